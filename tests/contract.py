"""The table of optimizers and options that the contract tests run over, on torch's own OptimizerInfo.

An optimizer of ``convopt.optim`` joins it by itself. What makes it differ from SGD is listed in ``PARTICULAR``.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from optimizers import OURS, convolutional_model
from torch import nn
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    optim_error_inputs_func_adamw,
    optim_error_inputs_func_sgd,
    optim_inputs_func_adamw,
    optim_inputs_func_sgd,
)

from convopt import (
    ConvolutionalSGD,
    ConvolutionalSGDv2,
    FieldAdam,
    LaplacianSmoothingSGD,
    LocalLossConvSGD,
    WienerAdamW,
    WienerSGD,
    spatial_param_groups,
)

NOT_TAKEN = {"dampening", "amsgrad", "capturable", "differentiable"}
"""Options of the base optimizers that none of ours has; giving one is a TypeError."""


def _inputs(base: Callable[..., list[OptimizerInput]], own: list[dict[str, Any]], device: str) -> list[OptimizerInput]:
    taken = [each for each in base(device=device) if not each.kwargs.keys() & NOT_TAKEN]
    return taken + [OptimizerInput(params=None, kwargs=options, desc=str(options)) for options in own]


def _info(optimizer: type, like: str, *own: dict[str, Any], impls: tuple[str, ...] = ("foreach",)) -> OptimizerInfo:
    base, errors = {
        "SGD": (optim_inputs_func_sgd, optim_error_inputs_func_sgd),
        "AdamW": (optim_inputs_func_adamw, optim_error_inputs_func_adamw),
    }[like]
    return OptimizerInfo(
        optimizer,
        optim_inputs_func=lambda device, dtype=None: _inputs(base, list(own), device),
        optim_error_inputs_func=errors,
        supported_impls=impls,
        supports_sparse=False,
        supports_complex=False,
    )


PARTICULAR = [
    _info(ConvolutionalSGD, "SGD", {"kernel_size": 3}, {"kernel_init": "gaussian", "kernel_lr": 0.01}),
    _info(LocalLossConvSGD, "SGD", {"kernel_size": 3}, {"local_lr": 0.1, "lambd": 1.0}),
    _info(ConvolutionalSGDv2, "SGD", {"kernel_size": 3, "loss_weights": (0.5, 0.3, 0.2)}, {"kernel_update_every": 1}),
    _info(LaplacianSmoothingSGD, "SGD", {"sigma": 3.0}),
    _info(
        WienerSGD,
        "SGD",
        {"every": 1, "warmup": 2, "snr_annealing": True},
        {"gain": "separable"},
        {"foreach": False},
        impls=("for-loop", "foreach", "fused"),
    ),
    _info(FieldAdam, "AdamW", {"every": 1}, {"batches": 4}, impls=("for-loop", "foreach", "fused")),
    _info(
        WienerAdamW,
        "AdamW",
        {"every": 1, "warmup": 2, "snr_annealing": True},
        {"scale": "unit dc"},
        impls=("for-loop", "foreach", "fused"),
    ),
]
"""Optimizers with options of their own, which the tests then cover, or with another base than SGD."""

_PARTICULAR = {info.optim_cls: info for info in PARTICULAR}
CONTRACT = [_PARTICULAR.get(cls) or _info(cls, "SGD") for cls in OURS.values()]


def missing_options(info: OptimizerInfo) -> set[str]:
    """The options that the optimizer must take, to be tested like its base, and does not."""
    needed = {name for each in info.optim_inputs_func(device="cpu") for name in each.kwargs}
    return needed - inspect.signature(info.optim_cls).parameters.keys()


def each_option() -> Iterator[tuple[OptimizerInfo, dict[str, Any], str]]:
    """Every optimizer with every set of options, and what to call it."""
    for info in CONTRACT:
        for each in info.optim_inputs_func(device="cpu"):
            yield info, each.kwargs, f"{info.optim_cls.__name__}-{each.desc}"


def refused_arguments() -> Iterator[tuple[OptimizerInfo, Any, type[Exception], str]]:
    """What torch's own optimizers refuse when they are made: parameters with options, and by which error."""
    for info in CONTRACT:
        for each in info.optim_error_inputs_func("cpu", torch.float32):
            given = each.optimizer_error_input
            # A tensor for the learning rate is no trouble to ours, whatever the implementation.
            supported = "foreach" in given.kwargs and "betas" not in given.kwargs
            if each.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR and not supported:
                yield info, given, each.error_type, f"{info.optim_cls.__name__}-{given.desc}"


def make(info: OptimizerInfo, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """The optimizer over all of ``convolutional_model``; those that take a grid are told what looks at images."""
    options = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    if info.optim_cls in (FieldAdam, WienerSGD, WienerAdamW):
        dtype = next(model.parameters()).dtype
        groups, _ = spatial_param_groups(model, torch.zeros(1, 1, 8, 8, dtype=dtype), smallest_kernel=3)
        return info.optim_cls(groups, **options)
    return info.optim_cls(model.named_parameters(), **options)


def model_and_optimizer(info: OptimizerInfo, seed: int = 0, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model with the weights of ``seed``, and its optimizer."""
    model = convolutional_model(seed)
    return model, make(info, model, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list, ascend: bool = False) -> list[float]:
    """The loss of each batch, before its step; ours that can use the loss are given it."""
    takes_loss = hasattr(optimizer, "kernels")
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        (-loss if ascend else loss).backward()
        optimizer.step(**({"loss": loss.detach()} if takes_loss else {}))
        losses.append(loss.item())
    return losses


def tensors_of(state: Any) -> list[torch.Tensor]:
    """All tensors in a nested state."""
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in tensors_of(value)]
