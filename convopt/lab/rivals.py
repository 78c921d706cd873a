"""Optimizers of others that the study compares with, and what they need in a training loop."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from convopt.optim.annealing import products_of


class OptimizersTogether:
    """Several optimizers over parts of one model, by name, stepped together."""

    def __init__(self, optimizers: dict[str, Optimizer]):
        self.optimizers = optimizers

    def step(self) -> None:
        """One step of each."""
        for optimizer in self.optimizers.values():
            optimizer.step()


def one_per_layer(model: nn.Module, make: Callable[..., Optimizer]) -> OptimizersTogether:
    """An optimizer for each layer."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        layers.setdefault(name.rpartition(".")[0], []).append(p)
    return OptimizersTogether({name: make(params) for name, params in layers.items()})


def muon(named_params: Iterable[tuple[str, nn.Parameter]], lr: float) -> OptimizersTogether:
    """torch's Muon for the hidden matrices; AdamW, at a tenth of the rate, for the output layer and all biases.

    As Muon's author recommends: it is made for matrices within the network. The output layer's are the last two.
    """
    params = [p for _, p in named_params]
    inner, output = params[:-2], params[-2:]
    matrices = [p for p in inner if p.ndim == 2]
    rest = [p for p in inner if p.ndim != 2] + output
    return OptimizersTogether(
        {
            "matrices": torch.optim.Muon(matrices, lr=lr, weight_decay=0.0),
            "rest": torch.optim.AdamW(rest, lr=lr / 10, weight_decay=0.0),
        }
    )


def sam(params: Any, rho: float, **options: Any) -> Optimizer:
    """Sharpness-aware minimisation around SGD; its step takes a closure that computes the gradients again."""
    from pytorch_optimizer import SAM

    return SAM(params, torch.optim.SGD, rho=rho, **options)


def from_pytorch_optimizer(name: str) -> Callable[..., Optimizer]:
    """The optimizer of that library called ``name``, imported when it is made: that takes seconds."""

    def make(params: Any, **options: Any) -> Optimizer:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)(params, **options)

    return make


def from_schedulefree(name: str) -> Callable[..., Optimizer]:
    """The optimizer of that library called ``name``. It has modes, ``train()`` and ``eval()``."""

    def make(params: Any, **options: Any) -> Optimizer:
        import schedulefree

        return getattr(schedulefree, name)(params, **options)

    return make


RIVALS: dict[str, Callable[..., Optimizer | OptimizersTogether]] = {
    "Muon": muon,
    "NAdam": torch.optim.NAdam,
    "SAM": sam,
    "Lion": from_pytorch_optimizer("Lion"),
    "AdEMAMix": from_pytorch_optimizer("AdEMAMix"),
    "Grokfast": from_pytorch_optimizer("GrokFastAdamW"),
    "ScheduleFreeSGD": from_schedulefree("SGDScheduleFree"),
    "ScheduleFreeAdamW": from_schedulefree("AdamWScheduleFree"),
}
"""Optimizers by name, made from parameters and options."""


class PflugTest:
    """Halves the learning rates each time that consecutive gradients have pointed apart more than together.

    Inner products of consecutive gradients are summed up; where the sum is negative after ``burn_in`` steps, the rates
    are halved and the sum starts again.

    Source: Pflug (1983) as in Chee and Toulis (arXiv:1710.06382), algorithm 1, with halving in place of stopping.
    """

    def __init__(self, optimizer: Optimizer, burn_in: int):
        self._burn_in = burn_in
        self._previous: list[torch.Tensor] = []
        self._sum, self._steps, self._factor = 0.0, 0, 1.0
        optimizer.register_step_post_hook(self._after_step)

    def factor(self) -> float:
        """What the rates have been multiplied by so far."""
        return self._factor

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
