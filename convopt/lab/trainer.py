"""A run put together: its data, its network, and the method that trains it."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convopt.lab import data, methods, networks
from convopt.lab.adversaries import Adversary
from convopt.lab.methods import controls
from convopt.lab.runs import Choice, Run
from convopt.lab.tasks import TASKS

Batches = list[tuple[Tensor, Tensor]]
"""Inputs and targets of each step."""


def dataset_of(run: Run) -> data.Dataset:
    """The run's data set, its pixels in the run's order. ValueError where that is unknown."""
    dataset = data.load(run.dataset)
    if run.pixels == "natural":
        return dataset
    if run.pixels not in ("permuted", "blurred"):
        raise ValueError(f'pixels must be "natural", "permuted" or "blurred", got {run.pixels!r}')
    if dataset.grid is None:
        raise ValueError(f"{dataset.name} has no pixels that could be {run.pixels}: its inputs are {dataset.kind}")
    if run.pixels == "blurred":
        return data.transform_inputs(dataset, lambda x: controls.blurred(x, dataset.grid, 3))
    generator = torch.Generator().manual_seed(run.stream("order of the pixels"))
    return data.permute_pixels(dataset, torch.randperm(math.prod(dataset.grid), generator=generator))


def make_model(run: Run, dataset: data.Dataset) -> nn.Module:
    """The run's model with the initial weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.stream("initial weights"))
        return networks.make(run.model.name, dataset.shape, dataset.outputs, **dict(run.model.options))


def training_split(run: Run, dataset: data.Dataset) -> data.Split:
    """What the run trains on, with the noise of its targets."""
    return noisy_targets(run, dataset.train.first(run.n_train), dataset, "wrong labels")


def noisy_targets(run: Run, split: data.Split, dataset: data.Dataset, stream: str) -> data.Split:
    """The split with as large a share of its targets corrupted as the run trains on, by a random stream of the run."""
    return data.Split(split.x, data.corrupt_targets(split.y, run.label_noise, dataset.outputs, run.stream(stream)))


def epochs(run: Run, split: data.Split) -> Iterator[Batches]:
    """For each epoch its batches of inputs and targets; the last incomplete batch is dropped."""
    generator = torch.Generator().manual_seed(run.stream("batches"))
    n = len(split) - len(split) % run.batch_size
    for _ in range(run.epochs):
        order = torch.randperm(len(split), generator=generator)[:n]
        yield list(zip(split.x[order].split(run.batch_size), split.y[order].split(run.batch_size), strict=True))


class Trainer:
    """Trains the network of one run.

    Args:
        run: which parts to put together. ValueError where one is unknown, or a batch larger than the training data.
        dataset: the run's, if it is loaded already.

    Attributes:
        dataset: with the pixels in the run's order.
        split: what is trained on.
        model: in training.
        optimizers: by name; one alone is called "".
        annealing: what anneals each optimizer; empty for a run without.
    """

    def __init__(self, run: Run, dataset: data.Dataset | None = None):
        self.run = run
        self.dataset = dataset_of(run) if dataset is None else dataset
        self._inputs = methods.inputs.Inputs()
        if run.inputs is not None:
            self._transform_inputs(run.inputs)
        self.split = training_split(run, self.dataset)
        if len(self.split) < run.batch_size:
            raise ValueError(f"batch_size {run.batch_size} exceeds the {len(self.split)} training inputs")
        self.model = make_model(run, self.dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.stream("layers that draw"))
            self._random_state = torch.get_rng_state()
        self._make_optimizers()
        steps = len(self.split) // run.batch_size
        make_schedule = methods.named(methods.SCHEDULES, "schedule", run.schedule)
        self._schedules = [
            make_schedule(optimizer, run.epochs, steps, **dict(run.schedule.options))
            for optimizer in self.optimizers.values()
        ]
        if run.gradient_noise:
            controls.add_gradient_noise(self.optimizers.values(), run.gradient_noise, run.stream("noise in gradients"))
        self._averaging = None
        if run.averaging is not None:
            average = methods.named(methods.AVERAGINGS, "averaging", run.averaging)
            self._averaging = average(self.model, self.optimizers, **dict(run.averaging.options))
        self._adversary = run.adversary and Adversary(run.adversary, self.dataset.train.x, run.stream("adversary"))
        self.loss_of = TASKS[self.dataset.task].loss
        if run.loss is not None:
            self.loss_of = methods.named(methods.LOSSES, "loss", run.loss)(**dict(run.loss.options))

    def _transform_inputs(self, choice: Choice) -> None:
        make, grid = methods.named(methods.INPUTS, "inputs", choice), self.dataset.grid
        if grid is None:
            raise ValueError(f"inputs must be None for {self.dataset.name}, which has no grid, got {choice.name!r}")
        self._inputs = make(grid, **dict(choice.options))
        self.dataset = data.transform_inputs(self.dataset, self._inputs.everywhere)
        self._inputs_generator = torch.Generator().manual_seed(self.run.stream("inputs"))

    def _make_optimizers(self) -> None:
        run, setup = self.run, methods.Setup(self.run, self.model, self.dataset)
        self._method = methods.named(methods.OPTIMIZERS, "optimizer", run.optimizer)
        chosen = [("filter", methods.FILTERS, run.filter), ("annealing", methods.ANNEALINGS, run.annealing)]
        wrappers = [
            (methods.named(registry, what, choice), dict(choice.options))
            for what, registry, choice in chosen
            if choice is not None
        ]
        arrangement: methods.Arrangement = {"": [{"params": list(self.model.named_parameters())}]}
        for wrapper, _ in wrappers:
            arrangement = wrapper.arrange(arrangement, setup)
        self.optimizers: methods.Optimizers = {}
        for name, groups in arrangement.items():
            self.optimizers[name] = self._method.make(groups, setup, **dict(run.optimizer.options))
        self._wrappers = [(wrapper, wrapper.attach(self.optimizers, setup, **options)) for wrapper, options in wrappers]
        self.annealing = self._wrappers[-1][1] if run.annealing is not None else {}

    def epochs(self) -> Iterator[Batches]:
        """For each epoch its batches."""
        return epochs(self.run, self.split)

    def train_epoch(
        self, batches: Batches, after_step: Callable[[], None] = lambda: None
    ) -> tuple[float, float] | None:
        """Train on the batches and return their mean loss and mean gradient norm; None if a loss was not finite.

        ``after_step`` is called after each step. What layers draw, as dropout does, is of a random stream of the run.
        """
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random_state)
            outcome = self._train_epoch(batches, after_step)
            self._random_state = torch.get_rng_state()
        return outcome

    def _train_epoch(self, batches: Batches, after_step: Callable[[], None]) -> tuple[float, float] | None:
        self.model.train()
        self._method.set_mode(self.optimizers, "train")
        params = list(self.model.parameters())
        total_loss, total_norm = 0.0, 0.0
        for x, y in batches:
            if self.run.inputs is not None:
                x = self._inputs.in_training(x, self._inputs_generator)
            if self._adversary is not None:
                x = self._adversary.attack(self.model, x, y)
            for p in params:
                p.grad = None
            batch = methods.Batch(self.model, x, y, self.loss_of)
            loss = self._method.prepare(self.optimizers, batch)
            if not math.isfinite(loss):
                return None
            total_loss += loss
            total_norm += math.hypot(*(torch.linalg.vector_norm(p.grad).item() for p in params if p.grad is not None))
            self._method.step(self.optimizers, batch, loss)
            for schedule in self._schedules:
                schedule.after_step()
            if self._averaging is not None:
                self._averaging.after_step()
            after_step()
        self._method.set_mode(self.optimizers, "eval")
        return total_loss / len(batches), total_norm / len(batches)

    def judged(self) -> AbstractContextManager[nn.Module]:
        """A context with the model to evaluate: in training, or with its averaged weights."""
        return nullcontext(self.model) if self._averaging is None else self._averaging.judged()

    def end_epoch(self, score: float) -> None:
        """Tell the schedules the validation score, of which more is better."""
        for schedule in self._schedules:
            schedule.after_epoch(score)

    def kernels(self) -> dict[str, Tensor]:
        """The optimizer's kernels, or gains by frequency, by name; empty for one that has neither."""
        return self._method.kernels(self.optimizers)

    def curves(self) -> dict[str, float]:
        """What optimizer and wrappers say of themselves after an epoch, by the names of ``curves.CURVES``."""
        told = self._method.curves(self.optimizers)
        for wrapper, attached in self._wrappers:
            told |= wrapper.curves(attached)
        return told | (self._averaging.curves() if self._averaging is not None else {})

    def state_bytes(self) -> int:
        """What optimizers, wrappers and averages keep from one step to the next, beside the network."""
        kept = [each.state_dict()["state"] for each in self.optimizers.values()]
        kept += [each.state_dict() for _, attached in self._wrappers for each in attached.values()]
        tensors = [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor)]
        tensors += self._averaging.kept() if self._averaging is not None else []
        return sum(tensor.nbytes for tensor in tensors)


def factors(run: Run) -> dict[str, list[float]]:
    """Train ``run``, which is annealed; for each of its optimizers by what each of its steps was multiplied."""
    trainer = Trainer(run)
    seen: dict[str, list[float]] = {name: [] for name in trainer.optimizers}

    def note() -> None:
        for name, annealing in trainer.annealing.items():
            seen[name].append(annealing.factor())

    for batches in trainer.epochs():
        trainer.train_epoch(batches, note)
    return seen


def state_bytes(run: Run) -> float:
    """Bytes per parameter that the run keeps from one step to the next, beside the network, after two steps.

    A momentum or a previous gradient in float32 is four. It is measured on the digits, whatever the run's data set:
    those are always at hand.
    """
    trainer = Trainer(replace(run, dataset="digits", data=""))
    trainer.train_epoch(next(trainer.epochs())[:2])
    return trainer.state_bytes() / sum(p.numel() for p in trainer.model.parameters())
