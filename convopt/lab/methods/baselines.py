"""Methods of others that the study compares with, and what they need in a training loop."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convopt.lab.methods.controls import mean_factor, smooth_over_pixels
from convopt.lab.methods.method import (
    ANNEALINGS,
    AVERAGINGS,
    LOSSES,
    OPTIMIZERS,
    Batch,
    Groups,
    Method,
    Optimizers,
    Setup,
    Wrapper,
    chosen_from,
    of_groups,
    to_each,
)
from convopt.optim.annealing import products_of


def _sgd(groups: Groups, setup: Setup, pixel_kernel: tuple[str, int] | None = None, **options: Any) -> Optimizer:
    """torch's SGD; with ``pixel_kernel``, name and size, see ``controls.smooth_over_pixels``."""
    optimizer = torch.optim.SGD(groups, fused=True, **options)
    if pixel_kernel is not None:
        smooth_over_pixels(optimizer, next(setup.model.parameters()), setup.dataset.grid, *pixel_kernel)
    return optimizer


def muon(groups: Groups, setup: Setup, lr: float) -> Optimizers:
    """torch's Muon for the hidden matrices; AdamW, at a tenth of the rate, for the output layer and all biases.

    As Muon's author recommends: it is made for matrices within the network. The output layer's are the last two.
    """
    output = set(list(setup.model.parameters())[-2:])
    matrices = chosen_from(groups, lambda _, p: p.ndim == 2 and p not in output)
    rest = chosen_from(groups, lambda _, p: p.ndim != 2 or p in output)
    return {
        "matrices": torch.optim.Muon(matrices, lr=lr, weight_decay=0.0),
        "rest": torch.optim.AdamW(rest, lr=lr / 10, weight_decay=0.0),
    }


def from_library(module: str, name: str, *fixed: Any) -> Callable[..., Optimizer]:
    """A method's ``make`` of the library's optimizer called ``name``, imported when it is made: that takes seconds."""

    def make(groups: Groups, setup: Setup, **options: Any) -> Optimizer:
        return getattr(importlib.import_module(module), name)(groups, *fixed, **options)

    return make


def step_with_closure(optimizers: Optimizers, batch: Batch, loss: float) -> None:
    """One step of each, which may ask for the gradient at other weights."""
    for optimizer in optimizers.values():
        optimizer.step(lambda: batch.loss().backward())


def set_mode(optimizers: Optimizers, mode: str) -> None:
    """Call ``train()`` or ``eval()``, by ``mode``."""
    for optimizer in optimizers.values():
        getattr(optimizer, mode)()


OPTIMIZERS |= {
    # fused is torch's fastest on a CPU
    "SGD": Method(_sgd),
    "Adam": Method(of_groups(torch.optim.Adam, fused=True)),
    "AdamW": Method(of_groups(torch.optim.AdamW, fused=True)),
    "NAdam": Method(of_groups(torch.optim.NAdam)),
    "Muon": Method(muon),
    # sharpness-aware minimisation, around SGD
    "SAM": Method(from_library("pytorch_optimizer", "SAM", torch.optim.SGD), step=step_with_closure),
    "Lion": Method(from_library("pytorch_optimizer", "Lion")),
    "AdEMAMix": Method(from_library("pytorch_optimizer", "AdEMAMix")),
    "Grokfast": Method(from_library("pytorch_optimizer", "GrokFastAdamW")),
    "ScheduleFreeSGD": Method(from_library("schedulefree", "SGDScheduleFree"), set_mode=set_mode),
    "ScheduleFreeAdamW": Method(from_library("schedulefree", "AdamWScheduleFree"), set_mode=set_mode),
}


class PflugTest:
    """Halves the learning rates each time that consecutive gradients have pointed apart more than together.

    Inner products of consecutive gradients are summed up; where the sum is negative after ``burn_in`` steps, the rates
    are halved and the sum starts again.

    Source: Pflug (1983) as in Chee and Toulis (arXiv:1710.06382), algorithm 1, with halving in place of stopping.
    """

    def __init__(self, optimizer: Optimizer, burn_in: int):
        self._burn_in = burn_in
        self._previous: list[Tensor] = []
        self._sum, self._steps, self._factor = 0.0, 0, 1.0
        optimizer.register_step_post_hook(self._after_step)

    def factor(self) -> float:
        """What the rates have been multiplied by so far."""
        return self._factor

    def state_dict(self) -> dict[str, Any]:
        """What is kept from step to step."""
        return {"previous": self._previous, "sum": self._sum, "steps": self._steps, "factor": self._factor}

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        grads = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
        if self._previous:
            self._sum += products_of(grads, self._previous)[0].item()
        self._previous = grads
        self._steps += 1
        if self._steps > self._burn_in and self._sum < 0:
            for group in optimizer.param_groups:
                group["lr"] /= 2
            self._sum, self._steps, self._factor = 0.0, 0, self._factor / 2


ANNEALINGS["Pflug test"] = Wrapper(to_each(PflugTest), mean_factor)


def ema_of_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average over the steps, buffers included."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


AVERAGINGS["EMA"] = ema_of_weights


def label_smoothing(amount: float) -> nn.Module:
    """Cross-entropy in nats; ``amount`` of each label is given to all classes alike."""
    return nn.CrossEntropyLoss(label_smoothing=amount)


def generalised_cross_entropy(q: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of ``(1 - p ** q) / q``, p the label's probability: cross-entropy at q to 0, absolute error at 1.

    Source: Zhang and Sabuncu (arXiv:1805.07836), equation 6.
    """

    def loss_of(logits: Tensor, y: Tensor) -> Tensor:
        probability = logits.softmax(1).gather(1, y[:, None])
        return ((1 - probability**q) / q).mean()

    return loss_of


LOSSES["label smoothing"] = label_smoothing
LOSSES["generalised cross-entropy"] = generalised_cross_entropy
