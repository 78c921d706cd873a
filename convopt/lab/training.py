"""Training one run and recording its course."""

import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_leaves

from convopt import SNRAnnealing, WienerAdamW, WienerSGD, optim, spatial_param_groups
from convopt.lab import controls, data, networks, provenance, rivals
from convopt.lab.adversaries import STEPS, Adversary
from convopt.lab.records import Record, nine_digits
from convopt.lab.rivals import OptimizersTogether, PflugTest
from convopt.lab.runs import Choice, Run
from convopt.lab.tasks import TASKS, Task, outputs_of

OURS: dict[str, type[torch.optim.Optimizer]] = {
    name: cls
    for name, cls in ((name, getattr(optim, name)) for name in optim.__all__)
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
}
"""The optimizers of ``convopt.optim`` by name."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    # torch's fastest on a CPU
    "SGD": partial(torch.optim.SGD, fused=True),
    "Adam": partial(torch.optim.Adam, fused=True),
    "AdamW": partial(torch.optim.AdamW, fused=True),
    **OURS,
    "RawDirectionSGD": controls.RawDirectionSGD,
    "RawDirectionSGDv2": controls.RawDirectionSGDv2,
    "RawLengthSGD": controls.RawLengthSGD,
    **rivals.RIVALS,
}
"""Optimizers of the experiments by name."""


def train(run: Run) -> Record:
    """Train ``run`` on one thread and return its record. Nothing outside is changed, global random state included.

    A run whose loss is not finite ends at once; its record has status "diverged" and the epochs it completed.
    """
    with one_thread():
        *_, record = train_by_epoch(run)
    return record


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


PER_LAYER = "SNRAnnealing per layer"


def make_optimizer(run: Run, model: nn.Module, dataset: data.Dataset) -> torch.optim.Optimizer | OptimizersTogether:
    """The run's optimizer over all of the model's parameters; a Wiener one is told which of them see a grid.

    Besides the optimizer's own options there are ``smallest_kernel``, that of ``spatial_param_groups``; ``smoothed``,
    "first layer" or "other layers": in the rest the kernel has one tap; and ``pixel_kernel``, name and size of the
    fixed kernel of ``controls.smooth_over_pixels``.
    """
    options = dict(run.optimizer.options)
    make = OPTIMIZERS[run.optimizer.name]
    if run.annealing is not None and run.annealing.name == PER_LAYER:
        return rivals.one_per_layer(model, partial(make, **options))
    if "pixel_kernel" in options:
        kernel = options.pop("pixel_kernel")
        optimizer = make(model.named_parameters(), **options)
        controls.smooth_over_pixels(optimizer, next(model.parameters()), dataset.grid, *kernel)
        return optimizer
    if "smoothed" in options:
        return make(controls.smoothed_groups(model, options.pop("smoothed")), **options)
    if make not in (WienerSGD, WienerAdamW):
        return make(model.named_parameters(), **options)
    kernels = {name: options.pop(name) for name in ("smallest_kernel",) if name in options}
    groups, _ = spatial_param_groups(model, dataset.train.x[:1], **kernels)
    return make(groups, **options)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]] = {
    "cosine": lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
    "one cycle": lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps
    ),
    "plateau": lambda optimizer, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=2),
}
"""Schedules by name, made from the optimizer and the number of all steps.

"cosine" and "one cycle" step after each batch. "plateau" divides the rate by ten where the validation accuracy has not
risen for three epochs.
"""


def make_schedule(
    run: Run, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The run's learning rate over all its steps, None for a constant. ValueError where its schedule is unknown."""
    if run.schedule == "constant":
        return None
    if run.schedule not in SCHEDULES:
        raise ValueError(f"schedule must be constant, {', '.join(SCHEDULES)}, got {run.schedule!r}")
    return SCHEDULES[run.schedule](optimizer, steps)


def attach_annealing(
    run: Run, optimizer: torch.optim.Optimizer | OptimizersTogether
) -> "SNRAnnealing | Replay | PflugTest | dict[str, SNRAnnealing] | None":
    """What anneals the run, attached to its optimizer.

    "SNRAnnealing" and "SNRAnnealing per layer" take that class's options; of optimizers that step together, each is
    annealed by itself. "Pflug test" takes the options of ``rivals.PflugTest``. "replayed" multiplies each step by the
    factor that SNRAnnealing, with its defaults, had at the same step of the run whose seed is larger by the option
    ``shift``: the same decay, deaf to what goes on in this run. ValueError where the annealing is unknown.
    """
    if run.annealing is None:
        return None
    options = dict(run.annealing.options)
    if run.annealing.name in ("SNRAnnealing", PER_LAYER):
        if isinstance(optimizer, OptimizersTogether):
            return {name: SNRAnnealing(each, **options) for name, each in optimizer.optimizers.items()}
        return SNRAnnealing(optimizer, **options)
    if run.annealing.name == "Pflug test":
        return PflugTest(optimizer, **options)
    if run.annealing.name == "replayed":
        other = replace(run, seed=run.seed + options["shift"], annealing=Choice.of("SNRAnnealing"))
        return Replay(optimizer, factors(other))
    known = ("SNRAnnealing", PER_LAYER, "Pflug test", "replayed")
    raise ValueError(f"annealing must be one of {', '.join(known)}, got {run.annealing.name!r}")


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
    optimizer = make_optimizer(run, model, dataset)
    annealing = attach_annealing(run, optimizer)
    seen: list[float] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(annealing.factor()))
    for batches in epochs(run, training_split(run, dataset)):
        train_epoch(model, optimizer, batches, loss_of=TASKS[dataset.task].loss)
    return seen


def training_split(run: Run, dataset: data.Dataset) -> data.Split:
    """What the run trains on, with the noise of its targets."""
    clean = dataset.train.first(run.n_train)
    return data.Split(
        clean.x, data.corrupt_targets(clean.y, run.label_noise, dataset.outputs, run.stream("wrong labels"))
    )


def epochs(run: Run, split: data.Split) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """For each epoch its batches of inputs and targets; the last incomplete batch is dropped."""
    generator = torch.Generator().manual_seed(run.stream("batches"))
    n = len(split) - len(split) % run.batch_size
    for _ in range(run.epochs):
        order = torch.randperm(len(split), generator=generator)[:n]
        yield list(zip(split.x[order].split(run.batch_size), split.y[order].split(run.batch_size), strict=True))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | OptimizersTogether,
    batches: list[tuple[Tensor, Tensor]],
    after_step: Callable[[], None] = lambda: None,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    adversary: Adversary | None = None,
) -> tuple[float, float] | None:
    """Mean loss and mean gradient norm over the batches; None if a loss was not finite.

    Args:
        model: put into training mode, as is an optimizer that has modes.
        optimizer: steps once per batch.
        batches: of inputs and targets.
        after_step: called after each step.
        loss_of: of outputs and targets.
        adversary: who changes the inputs first.
    """
    model.train()
    set_mode(optimizer, "train")
    takes_loss = "loss" in inspect.signature(optimizer.step).parameters
    takes_two_gradients = hasattr(optimizer, "first_step")
    in_halves = takes_loss and optimizer.param_groups[0].get("second_estimate") == "half batches"
    params = list(model.parameters())
    total_loss, total_norm = 0.0, 0.0
    for x, y in batches:
        if adversary is not None:
            x = adversary.attack(model, x, y)
        for p in params:
            p.grad = None
        if in_halves:
            value = _backward_in_halves(model, optimizer, x, y, loss_of)
        else:
            loss = loss_of(model(x), y)
            value = loss.item()
            if math.isfinite(value):
                loss.backward()
        if not math.isfinite(value):
            return None
        total_loss += value
        total_norm += math.hypot(*(torch.linalg.vector_norm(p.grad).item() for p in params))
        if takes_loss:
            optimizer.step(loss=value)
        elif takes_two_gradients:
            optimizer.step(lambda x=x, y=y: loss_of(model(x), y).backward())
        else:
            optimizer.step()
        after_step()
    return total_loss / len(batches), total_norm / len(batches)


def set_mode(optimizer: torch.optim.Optimizer | OptimizersTogether, mode: str) -> None:
    """Call ``optimizer.train()`` or ``optimizer.eval()``, by ``mode``, of an optimizer that has them."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def _backward_in_halves(
    model: nn.Module,
    optimizer: WienerSGD | WienerAdamW,
    x: Tensor,
    y: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """Two backward passes, of half a batch each, and the mean loss."""
    losses = []
    for half, (x_half, y_half) in enumerate(zip(x.chunk(2), y.chunk(2), strict=True)):
        loss = loss_of(model(x_half), y_half) / 2
        loss.backward()
        losses.append(loss.item())
        if half == 0:
            optimizer.mark_half()
    return sum(losses)


def train_by_epoch(run: Run) -> Iterator[Record]:
    """Train ``run`` as ``train`` does, but on as many threads as torch has; its record as it stands after each epoch.

    Its status is "training" until the last; of a run of no epochs there is one record. A loss that is not finite ends
    the run, with a record of the epochs before.
    """
    dataset = dataset_of(run)
    model = make_model(run, dataset)
    optimizer = make_optimizer(run, model, dataset)
    annealing = attach_annealing(run, optimizer)
    train_split = training_split(run, dataset)
    if len(train_split) < run.batch_size:
        raise ValueError(f"batch_size {run.batch_size} exceeds the {len(train_split)} training inputs")
    # A run of no epochs has a schedule, too: torch's have a step at least.
    schedule = make_schedule(run, optimizer, max(1, run.epochs) * (len(train_split) // run.batch_size))
    if run.gradient_noise:
        controls.add_gradient_noise(optimizer, run.gradient_noise, run.stream("noise in gradients"))
    averaged = _averaged(run, model)
    adversary = run.adversary and Adversary(run.adversary, dataset.train.x, run.stream("adversary"))
    task = TASKS[dataset.task]
    loss_of = controls.loss_function(run.loss, task.loss)

    def after_step() -> None:
        if schedule is not None and run.schedule != "plateau":
            schedule.step()
        if averaged is not None:
            averaged.update_parameters(model)

    test_split = dataset.test.first(run.n_test)
    wrong = wrong_labels(run, dataset, train_split)
    curves: dict[str, list[float]] = {}
    kernels = [_snapshot(optimizer)]
    confirmation = None

    def record(status: str) -> Record:
        return Record(
            run=run,
            status=status,
            curves={name: list(values) for name, values in curves.items()},
            kernels=list(kernels),
            confirmation_accuracy=confirmation,
            provenance=provenance.collect(dataset.checksum),
        )

    if run.epochs == 0:
        yield record("finished")
    for epoch, batches in enumerate(epochs(run, train_split), start=1):
        start = time.perf_counter()
        outcome = train_epoch(model, optimizer, batches, after_step, loss_of, adversary)
        if outcome is None:
            yield record("diverged")
            return
        trained = time.perf_counter()
        set_mode(optimizer, "eval")
        judged = model if averaged is None else averaged
        test = evaluate(judged, test_split, task, dataset.target_scale)
        validation = evaluate(judged, dataset.validation, task, dataset.target_scale)[task.measure.name]
        if run.schedule == "plateau":
            schedule.step(validation if task.measure.higher_is_better else -validation)
        if epoch == run.epochs and dataset.confirmation is not None:
            confirmation = evaluate(judged, dataset.confirmation, task, dataset.target_scale)[task.measure.name]
        point = {
            "train_loss": outcome[0],
            "gradient_norm": outcome[1],
            **{f"test_{name}": value for name, value in test.items()},
            f"validation_{task.measure.name}": validation,
            **({"wrong_labels_learnt": evaluate(judged, wrong, task)["accuracy"]} if len(wrong) else {}),
            **_robustness(run, judged, test_split, dataset),
            **_annealing_now(optimizer, annealing),
            "seconds_training": trained - start,
            "seconds_evaluation": time.perf_counter() - trained,
        }
        for name, value in point.items():
            curves.setdefault(name, []).append(value)
        kernels.append(_snapshot(optimizer))
        yield record("training" if epoch < run.epochs else "finished")


def _averaged(run: Run, model: nn.Module) -> nn.Module | None:
    """The model that averages the run's weights. ValueError where the averaging is unknown."""
    if run.averaging is None:
        return None
    if run.averaging.name != "EMA":
        raise ValueError(f'averaging must be "EMA", got {run.averaging.name!r}')
    ema = get_ema_multi_avg_fn(dict(run.averaging.options)["decay"])
    return AveragedModel(model, multi_avg_fn=ema, use_buffers=True)


def state_bytes(run: Run) -> float:
    """Bytes per parameter that the run keeps from one step to the next, beside the network, after two steps.

    Those of optimizer, annealing and averaging together. A momentum or a previous gradient in float32 is four. It is
    measured on the digits, whatever the run's data set: those are always at hand.
    """
    run = replace(run, dataset="digits", data="")
    dataset = dataset_of(run)
    model = make_model(run, dataset)
    optimizer = make_optimizer(run, model, dataset)
    annealing = attach_annealing(run, optimizer)
    batches = next(epochs(run, training_split(run, dataset)))
    train_epoch(model, optimizer, batches[:2], loss_of=controls.loss_function(run.loss, TASKS[dataset.task].loss))
    optimizers = optimizer.optimizers.values() if isinstance(optimizer, OptimizersTogether) else [optimizer]
    annealings = annealing.values() if isinstance(annealing, dict) else [annealing] if annealing is not None else []
    averaged = _averaged(run, model)
    kept = [each.state_dict()["state"] for each in optimizers], list(map(vars, annealings))
    tensors = [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor)]
    tensors += averaged.parameters() if averaged is not None else []
    return sum(tensor.nbytes for tensor in tensors) / sum(p.numel() for p in model.parameters())


def _robustness(run: Run, model: nn.Module, split: data.Split, dataset: data.Dataset) -> dict[str, float]:
    """Accuracy against each adversary, as strong as the run's own; empty for a run without."""
    if run.adversary is None:
        return {}
    accuracies = {}
    for name in STEPS:
        adversary = Adversary(replace(run.adversary, name=name), dataset.train.x, run.stream("adversary of the test"))
        model.eval()
        attacked = data.Split(adversary.attack(model, split.x, split.y), split.y)
        accuracies[f"{name.lower()}_accuracy"] = evaluate(model, attacked, TASKS[dataset.task])["accuracy"]
    return accuracies


def wrong_labels(run: Run, dataset: data.Dataset, split: data.Split) -> data.Split:
    """The inputs of the run's training ``split`` whose labels are known to be wrong, with those labels."""
    if dataset.task != "classification":
        return split.first(0)
    clean = dataset.train.y if dataset.clean is None else dataset.clean
    return split[split.y != clean[: run.n_train]]


def evaluate(model: nn.Module, split: data.Split, task: Task, target_scale: float = 1.0) -> dict[str, float]:
    """The ``loss`` and the task's measures, in evaluation mode."""
    outputs = outputs_of(model, split.x)
    return {"loss": task.loss(outputs, split.y).item(), **task.measures(outputs, split.y, target_scale)}


def _snapshot(optimizer: torch.optim.Optimizer | OptimizersTogether) -> dict[str, Any]:
    """The optimizer's kernels, or gains by frequency, by name as nested lists; empty for one that has neither."""
    kernels = optimizer.kernels() if hasattr(optimizer, "kernels") else {}
    if hasattr(optimizer, "snr"):
        learnt = optimizer.snr().parameters
        kernels = {f"gain of {name}": of_p.gain for name, of_p in learnt.items()}
    return nine_digits({name: kernel.tolist() for name, kernel in kernels.items()})


def _annealing_now(optimizer: torch.optim.Optimizer | OptimizersTogether, annealing: Any) -> dict[str, float]:
    """The annealing's curves; empty for a run without."""
    if isinstance(annealing, SNRAnnealing):
        return {"rho": annealing.rho(), "annealing_factor": annealing.factor()}
    if isinstance(annealing, Replay | PflugTest):
        return {"annealing_factor": annealing.factor()}
    if hasattr(optimizer, "snr") and optimizer.param_groups[0]["snr_annealing"]:
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
