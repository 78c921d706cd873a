"""Training one run and recording its course."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convopt.lab import data, provenance
from convopt.lab.models import MODELS
from convopt.lab.records import Record
from convopt.lab.runs import Choice, Run
from convopt.optim import (
    ConvolutionalSGD,
    ConvolutionalSGDv2,
    LocalLossConvSGD,
    SNRAnnealing,
    WienerAdamW,
    WienerSGD,
    spatial_param_groups,
)
from convopt.optim._base import SmoothingOptimizer
from convopt.optim.wiener import WienerOptimizer

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    # torch's fastest on a CPU
    "SGD": partial(torch.optim.SGD, fused=True),
    "Adam": partial(torch.optim.Adam, fused=True),
    "AdamW": partial(torch.optim.AdamW, fused=True),
    "ConvolutionalSGD": ConvolutionalSGD,
    "LocalLossConvSGD": LocalLossConvSGD,
    "ConvolutionalSGDv2": ConvolutionalSGDv2,
    "WienerSGD": WienerSGD,
    "WienerAdamW": WienerAdamW,
}
"""Optimizers of the experiments by name."""


def train(run: Run) -> Record:
    """Train ``run`` on one thread and return its record. Nothing outside is changed, global random state included.

    A run whose loss is not finite ends at once; its record has status "diverged" and the epochs it completed.
    """
    with one_thread():
        return _train(run, dataset_of(run))


def dataset_of(run: Run) -> data.Dataset:
    """The run's data set, its pixels in the run's order. ValueError where that is unknown."""
    dataset = data.load(run.dataset)
    if run.pixels == "natural":
        return dataset
    if run.pixels != "permuted":
        raise ValueError(f'pixels must be "natural" or "permuted", got {run.pixels!r}')
    generator = torch.Generator().manual_seed(run.stream("order of the pixels"))
    return data.permute_pixels(dataset, torch.randperm(math.prod(dataset.grid), generator=generator))


def make_model(run: Run, dataset: data.Dataset) -> nn.Module:
    """The run's model with the initial weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.stream("initial weights"))
        return MODELS[run.model.name](dataset.grid, dataset.classes, **dict(run.model.options))


PER_LAYER = "SNRAnnealing per layer"


class LayerwiseOptimizer:
    """One optimizer for each layer of a model, stepped together, so that each may be annealed by itself."""

    def __init__(self, model: nn.Module, make: Callable[..., torch.optim.Optimizer]):
        layers: dict[str, list[nn.Parameter]] = {}
        for name, p in model.named_parameters():
            layers.setdefault(name.rpartition(".")[0], []).append(p)
        self.layers = {name: make(params) for name, params in layers.items()}

    def step(self) -> None:
        """One step of every layer."""
        for optimizer in self.layers.values():
            optimizer.step()


def make_optimizer(run: Run, model: nn.Module, grid: tuple[int, int]) -> torch.optim.Optimizer | LayerwiseOptimizer:
    """The run's optimizer over all of the model's parameters; a Wiener one is told which of them see the pixels.

    Its option ``smallest_kernel`` is that of ``spatial_param_groups``.
    """
    make = OPTIMIZERS[run.optimizer.name]
    options = dict(run.optimizer.options)
    if run.annealing is not None and run.annealing.name == PER_LAYER:
        return LayerwiseOptimizer(model, partial(make, **options))
    if make not in (WienerSGD, WienerAdamW):
        return make(model.named_parameters(), **options)
    # The models take flattened pictures; what they were before is seen from here.
    pictured = nn.Sequential(OrderedDict(flatten=nn.Flatten(), model=model))
    kernels = {name: options.pop(name) for name in ("smallest_kernel",) if name in options}
    groups, _ = spatial_param_groups(pictured, torch.zeros(1, 1, *grid), **kernels)
    return make(groups, **options)


def make_schedule(
    run: Run, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The run's learning rate over all its steps, None for a constant. ValueError where its schedule is unknown."""
    if run.schedule == "constant":
        return None
    if run.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    raise ValueError(f'schedule must be "constant" or "cosine", got {run.schedule!r}')


def attach_annealing(
    run: Run, optimizer: torch.optim.Optimizer | LayerwiseOptimizer
) -> "SNRAnnealing | Replay | dict[str, SNRAnnealing] | None":
    """What anneals the run, attached to its optimizer.

    "SNRAnnealing" and "SNRAnnealing per layer" take that class's options. "replayed" multiplies each step by the factor
    that SNRAnnealing, with its defaults, had at the same step of the run whose seed is larger by the option ``shift``:
    the same decay, deaf to what goes on in this run. ValueError where the annealing is unknown.
    """
    if run.annealing is None:
        return None
    options = dict(run.annealing.options)
    if run.annealing.name == "SNRAnnealing":
        return SNRAnnealing(optimizer, **options)
    if run.annealing.name == PER_LAYER:
        return {name: SNRAnnealing(of_layer, **options) for name, of_layer in optimizer.layers.items()}
    if run.annealing.name == "replayed":
        other = replace(run, seed=run.seed + options["shift"], annealing=Choice.of("SNRAnnealing"))
        return Replay(optimizer, factors(other))
    raise ValueError(f'annealing must be "SNRAnnealing", "{PER_LAYER}" or "replayed", got {run.annealing.name!r}')


class Replay:
    """Multiplies the learning rates of an optimizer's steps by given factors, one after the other."""

    def __init__(self, optimizer: torch.optim.Optimizer, factors: list[float]):
        self._factors = factors
        self._step = 0
        self._lr = [group["lr"] for group in optimizer.param_groups]
        optimizer.register_step_pre_hook(self._before_step)

    def factor(self) -> float:
        """Of the last step."""
        return self._factors[max(self._step - 1, 0)]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, lr in zip(optimizer.param_groups, self._lr, strict=True):
            group["lr"] = lr * self._factors[self._step]
        self._step += 1


def factors(run: Run) -> list[float]:
    """Train ``run``, which is annealed, and return by what each of its steps was multiplied."""
    dataset = dataset_of(run)
    model = make_model(run, dataset)
    optimizer = make_optimizer(run, model, dataset.grid)
    annealing = attach_annealing(run, optimizer)
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(annealing.factor()))
    for batches in epochs(run, training_split(run, dataset)):
        train_epoch(model, optimizer, batches)
    return seen


def training_split(run: Run, dataset: data.Dataset) -> data.Split:
    """The pictures the run trains on, with its wrong labels."""
    clean = dataset.train.first(run.n_train)
    return data.Split(
        clean.x, data.corrupt_labels(clean.y, run.label_noise, dataset.classes, run.stream("wrong labels"))
    )


def epochs(run: Run, split: data.Split) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """For each epoch its batches of pictures and labels; the last incomplete batch is dropped."""
    generator = torch.Generator().manual_seed(run.stream("batches"))
    n = len(split) - len(split) % run.batch_size
    for _ in range(run.epochs):
        order = torch.randperm(len(split), generator=generator)[:n]
        yield list(zip(split.x[order].split(run.batch_size), split.y[order].split(run.batch_size), strict=True))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Tensor, Tensor]],
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> tuple[float, float] | None:
    """Mean loss and mean gradient norm over the batches; None if a loss was not finite.

    ``schedule`` steps after each batch.
    """
    model.train()
    takes_loss = isinstance(optimizer, SmoothingOptimizer)
    in_halves = isinstance(optimizer, WienerOptimizer) and optimizer.defaults["second_estimate"] == "half batches"
    params = list(model.parameters())
    total_loss, total_norm = 0.0, 0.0
    for x, y in batches:
        for p in params:
            p.grad = None
        if in_halves:
            value = _backward_in_halves(model, optimizer, x, y)
        else:
            loss = F.cross_entropy(model(x), y)
            value = loss.item()
            if math.isfinite(value):
                loss.backward()
        if not math.isfinite(value):
            return None
        total_loss += value
        total_norm += math.hypot(*(torch.linalg.vector_norm(p.grad).item() for p in params))
        optimizer.step(**({"loss": value} if takes_loss else {}))
        if schedule is not None:
            schedule.step()
    return total_loss / len(batches), total_norm / len(batches)


def _backward_in_halves(model: nn.Module, optimizer: WienerOptimizer, x: Tensor, y: Tensor) -> float:
    """Two backward passes, of half a batch each, and the mean loss."""
    losses = []
    for half, (x_half, y_half) in enumerate(zip(x.chunk(2), y.chunk(2), strict=True)):
        loss = F.cross_entropy(model(x_half), y_half) / 2
        loss.backward()
        losses.append(loss.item())
        if half == 0:
            optimizer.mark_half()
    return sum(losses)


def _train(run: Run, dataset: data.Dataset) -> Record:
    model = make_model(run, dataset)
    optimizer = make_optimizer(run, model, dataset.grid)
    annealing = attach_annealing(run, optimizer)
    train_split = training_split(run, dataset)
    if len(train_split) < run.batch_size:
        raise ValueError(f"batch_size {run.batch_size} exceeds the {len(train_split)} training pictures")
    schedule = make_schedule(run, optimizer, run.epochs * (len(train_split) // run.batch_size))
    test_split = dataset.test.first(run.n_test)
    wrong = wrong_labels(run, dataset, train_split)
    curves: dict[str, list[float]] = {}
    kernels = [_snapshot(optimizer)]
    status, confirmation = "finished", None
    for epoch, batches in enumerate(epochs(run, train_split), start=1):
        start = time.perf_counter()
        outcome = train_epoch(model, optimizer, batches, schedule)
        if outcome is None:
            status = "diverged"
            break
        trained = time.perf_counter()
        test_loss, test_accuracy = evaluate(model, test_split)
        _, validation_accuracy = evaluate(model, dataset.validation)
        if epoch == run.epochs and dataset.confirmation is not None:
            _, confirmation = evaluate(model, dataset.confirmation)
        point = {
            "train_loss": outcome[0],
            "gradient_norm": outcome[1],
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "validation_accuracy": validation_accuracy,
            **({"wrong_labels_learnt": evaluate(model, wrong)[1]} if len(wrong) else {}),
            **_annealing_now(optimizer, annealing),
            "seconds_training": trained - start,
            "seconds_evaluation": time.perf_counter() - trained,
        }
        for name, value in point.items():
            curves.setdefault(name, []).append(value)
        kernels.append(_snapshot(optimizer))
    return Record(
        run=run,
        status=status,
        curves=curves,
        kernels=kernels,
        confirmation_accuracy=confirmation,
        provenance=provenance.collect(dataset.checksum),
    )


def wrong_labels(run: Run, dataset: data.Dataset, split: data.Split) -> data.Split:
    """The pictures of the run's training ``split`` whose labels are wrong, with those labels."""
    wrong = split.y != dataset.train.first(run.n_train).y
    return data.Split(split.x[wrong], split.y[wrong])


@torch.no_grad()
def evaluate(model: nn.Module, split: data.Split) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy, 0 to 1, in evaluation mode."""
    model.eval()
    logits = torch.cat([model(x) for x in split.x.split(1000)])
    return F.cross_entropy(logits, split.y).item(), (logits.argmax(1) == split.y).float().mean().item()


def _snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's kernels, or gains by frequency, by name as nested lists; empty for one that has neither."""
    if isinstance(optimizer, WienerOptimizer):
        learnt = optimizer.snr().parameters
        return {f"gain of {name.removeprefix('model.')}": of_p.gain.tolist() for name, of_p in learnt.items()}
    kernels = optimizer.kernels() if isinstance(optimizer, SmoothingOptimizer) else {}
    return {name: kernel.tolist() for name, kernel in kernels.items()}


def _annealing_now(optimizer: torch.optim.Optimizer, annealing: "SNRAnnealing | Replay | None") -> dict[str, float]:
    """The annealing's curves; empty for a run without."""
    if isinstance(annealing, SNRAnnealing):
        return {"rho": annealing.rho(), "annealing_factor": annealing.factor()}
    if isinstance(annealing, Replay):
        return {"annealing_factor": annealing.factor()}
    if isinstance(optimizer, WienerOptimizer) and optimizer.defaults["snr_annealing"]:
        snr = optimizer.snr()
        return {"rho": snr.rho, "annealing_factor": snr.factor}
    return {}


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: runs go to all cores side by side, and results do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
