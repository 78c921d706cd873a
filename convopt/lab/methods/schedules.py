"""Learning rates over time."""

import math
from collections.abc import Callable
from typing import Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau


class Schedule(Protocol):
    """Sets an optimizer's learning rates."""

    def after_step(self) -> None:
        """Called after each step."""

    def after_epoch(self, score: float) -> None:
        """Called after each epoch; of the validation ``score``, more is better."""


class Constant:
    """Learning rates as they are."""

    def after_step(self) -> None:
        """Nothing changes."""

    def after_epoch(self, score: float) -> None:
        """Nothing changes."""


class OverSteps(Constant):
    """A scheduler of torch that steps after each of the first ``steps`` batches; what it ends with stays."""

    def __init__(self, scheduler: LRScheduler, steps: int):
        self._scheduler, self._left = scheduler, steps

    def after_step(self) -> None:
        """The next learning rate."""
        if self._left > 0:
            self._scheduler.step()
        self._left -= 1


class Plateau(Constant):
    """Divides the rate by ten where the validation score has not risen for three epochs."""

    def __init__(self, optimizer: Optimizer):
        self._scheduler = ReduceLROnPlateau(optimizer, mode="max", patience=2)

    def after_epoch(self, score: float) -> None:
        """Divide it or not."""
        self._scheduler.step(score)


Make = Callable[[Optimizer, int], LRScheduler]
"""A scheduler of torch, from an optimizer and the number of its steps, one or more."""


def _over(make: Make) -> Callable[..., Schedule]:
    """Over the whole training or, with ``horizon``, over so many epochs: afterwards the last learning rate stays."""

    def schedule(optimizer: Optimizer, epochs: int, steps_per_epoch: int, horizon: float | None = None) -> Schedule:
        if horizon is not None and not 0 < horizon < math.inf:
            raise ValueError(f"horizon must be a positive number of epochs, got {horizon!r}")
        # A run of no epochs has a schedule, too: torch's have a step at least.
        steps = max(1, round((epochs if horizon is None else horizon) * steps_per_epoch))
        return OverSteps(make(optimizer, steps), steps)

    return schedule


WARM_UP, DECAY = 0.05, 0.2
"""Shares of all steps with a rising and with a falling rate, of a warm-up-stable-decay schedule."""


def _warm_up_stable_decay(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A linear rise, a constant, a linear fall to zero.

    Source: Hägele et al., Scaling laws and compute-optimal training beyond fixed training durations (arXiv:2405.18392).
    """
    warm_up, decay = max(1, round(WARM_UP * steps)), max(1, round(DECAY * steps))
    return LambdaLR(optimizer, lambda step: max(0.0, min(1.0, (step + 1) / warm_up, (steps - step) / decay)))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": lambda optimizer, epochs, steps_per_epoch: Constant(),
    "cosine": _over(lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps)),
    "one cycle": _over(
        lambda optimizer, steps: OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps)
    ),
    "warm-up, stable, decay": _over(_warm_up_stable_decay),
    "plateau": lambda optimizer, epochs, steps_per_epoch: Plateau(optimizer),
}
"""By name; made from the optimizer, the run's epochs, the steps of each, and options.

Those over steps have the option ``horizon``, in epochs. At the end of it, "cosine" and "warm-up, stable, decay" have
stopped the training: their rate is zero.
"""
