"""What is learnt from data: how outputs are judged, for each task."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Measure(NamedTuple):
    """What a task is judged by.

    Attributes:
        name: of its curves, after the split's: ``test_accuracy``.
        title: in tables and figures.
        scale: what it is multiplied by there.
        higher_is_better: whether the largest value is the best.
    """

    name: str
    title: str
    scale: float = 1.0
    higher_is_better: bool = True

    @property
    def best(self) -> Callable[..., float]:
        """``max`` or ``min``."""
        return max if self.higher_is_better else min


class Task(NamedTuple):
    """What is to be predicted.

    Attributes:
        loss: of outputs and targets, 0-dim.
        measure: of which values are compared.
        measures: of outputs, targets and the unit of the targets, by the measures' names.
        predictions: of the same, what is kept of each input; see ``records.Record``.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    measure: Measure
    measures: Callable[[Tensor, Tensor, float], dict[str, float]]
    predictions: Callable[[Tensor, Tensor, float], np.ndarray]


def _accuracy(logits: Tensor, y: Tensor, _: float) -> dict[str, float]:
    return {"accuracy": (logits.argmax(1) == y).float().mean().item()}


def _classes(logits: Tensor, y: Tensor, _: float) -> np.ndarray:
    smallest = np.uint8 if logits.shape[1] <= 256 else np.uint16
    return logits.argmax(1).numpy().astype(smallest)


def _squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs.squeeze(1), y)


def _regression(outputs: Tensor, y: Tensor, scale: float) -> dict[str, float]:
    """The root mean squared error in the targets' unit, and R2, the share of their variance that is explained.

    R2 is nan where the targets do not vary.
    """
    error, varies = _squared_error(outputs, y).item(), (y != y[0]).any()
    return {"rmse": scale * error**0.5, "r2": 1 - error / y.var(correction=0).item() if varies else math.nan}


def _squared_errors(outputs: Tensor, y: Tensor, scale: float) -> np.ndarray:
    return (scale * (outputs.squeeze(1) - y)).square().numpy().astype(np.float32)


def _token_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of logits ``(n, T, vocabulary)`` and tokens ``(n, T)``."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def _nats(logits: Tensor, y: Tensor, _: float) -> dict[str, float]:
    return {"nats": _token_loss(logits, y).item()}


def _nats_per_text(logits: Tensor, y: Tensor, _: float) -> np.ndarray:
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
    return losses.mean(1).numpy().astype(np.float32)


ACCURACY = Measure("accuracy", "acc. (%)", 100.0)

TASKS: dict[str, Task] = {
    "classification": Task(F.cross_entropy, ACCURACY, _accuracy, _classes),
    "regression": Task(_squared_error, Measure("rmse", "RMSE", higher_is_better=False), _regression, _squared_errors),
    "next token": Task(_token_loss, Measure("nats", "nats per token", higher_is_better=False), _nats, _nats_per_text),
}
"""Tasks by name."""


def measure_of(curves: dict[str, list[float]]) -> Measure:
    """What a run's task is judged by, as its curves show; the accuracy where there are none."""
    return next((task.measure for task in TASKS.values() if f"test_{task.measure.name}" in curves), ACCURACY)


@torch.no_grad()
def outputs_of(model: torch.nn.Module, x: Tensor) -> Tensor:
    """A model's outputs in evaluation mode."""
    model.eval()
    return torch.cat([model(part) for part in x.split(250)])
