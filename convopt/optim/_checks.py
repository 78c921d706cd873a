"""What is refused: options out of range, and gradients that cannot be smoothed."""

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from convopt.optim._scalars import is_readable


def is_number(value: Any) -> bool:
    """Whether torch takes ``value`` wherever it takes a Python number."""
    return value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, Real) and not isinstance(value, bool)


def check_number(name: str, value: Any, *, at_least: float, below: float = math.inf) -> None:
    """Raise ValueError unless ``at_least <= value < below``; 0-dim tensors are numbers too."""
    if not is_number(value) or not at_least <= value < below:
        raise ValueError(f"{name} must be a number in [{at_least}, {below}), got {value!r}")


def check_learning_rate(value: Any) -> None:
    """Raise ValueError unless ``value`` is a number that is not negative; no value is read from an accelerator.

    Tensors of one element are numbers here, as to torch's optimizers.
    """
    is_one = isinstance(value, Tensor) and value.numel() == 1
    if is_one and not is_readable(value.device):
        return
    check_number("lr", value.reshape(()) if is_one else value, at_least=0)


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name} must be a number in (0, 1], got {value!r}")


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_flag(name: str, value: Any, *, or_none: bool = False) -> None:
    """Raise ValueError unless ``value`` is True or False, or None where that is allowed."""
    if not (isinstance(value, bool) or (or_none and value is None)):
        raise ValueError(f"{name} must be True or False{' or None' if or_none else ''}, got {value!r}")


def check_implementation(options: dict[str, Any]) -> None:
    """Raise ValueError unless ``maximize``, ``foreach`` and ``fused`` are flags that go together."""
    check_flag("maximize", options["maximize"])
    for name in ("fused", "foreach"):
        check_flag(name, options[name], or_none=True)
    if options["fused"] and options["foreach"]:
        raise ValueError("fused and foreach must not both be True")


def check_keys(state_dict: dict[str, Any], names: Sequence[str]) -> None:
    """Raise ValueError unless a state_dict holds everything that is named."""
    if missing := [name for name in names if name not in state_dict]:
        raise ValueError(f"the state_dict must hold {', '.join(names)}, got one without {', '.join(missing)}")


def check_saved(one: str, many: str, params: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """Raise ValueError unless a state dict holds for each parameter ``one`` of its shape, of ``many``."""
    if len(params) != len(saved):
        raise ValueError(f"state_dict must hold {len(params)} {many}, got {len(saved)}")
    for i, (p, tensor) in enumerate(zip(params, saved, strict=True)):
        if tensor.shape != p.shape:
            raise ValueError(
                f"state_dict must hold {one} of shape {tuple(p.shape)} for parameter {i}, got {tuple(tensor.shape)}"
            )


def params_with_grad(group: dict[str, Any]) -> list[Tensor]:
    """The group's parameters that have a gradient."""
    return [p for p in group["params"] if p.grad is not None]


def check_gradients(params: Iterable[Tensor], takes_shards: bool = False) -> None:
    """Raise RuntimeError where a parameter is sharded, unless as a DTensor, or its gradient sparse or complex.

    Without ``takes_shards``, DTensors are refused as well.
    """
    for p in params:
        grad = grad_of(p)
        refused = is_sharded(p) and not (takes_shards and is_distributed(p))
        if grad.layout is torch.strided and not (refused or grad.is_complex()):
            if is_distributed(p):
                _check_place(p, grad)
            continue
        if refused:
            raise RuntimeError(
                "flat pieces of parameters, as FullyShardedDataParallel makes them, are not supported: use "
                "fully_shard, whose parameters are DTensors, or DistributedDataParallel"
                if takes_shards
                else "sharded parameters (DTensor, as fully_shard and FSDP make them) are not supported, because a "
                "gradient is smoothed as a whole: use DistributedDataParallel"
            )
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"sparse gradients are not supported, got layout {grad.layout} of shape {tuple(p.shape)}"
            )
        else:
            raise RuntimeError(f"complex gradients are not supported, got {grad.dtype} of shape {tuple(p.shape)}")


def _check_place(p: Any, grad: Any) -> None:
    if getattr(grad, "placements", None) != p.placements:
        raise RuntimeError(
            f"the gradient of a DTensor of shape {tuple(p.shape)} must be placed as the parameter is, as "
            f"{tuple(p.placements)}, got {tuple(getattr(grad, 'placements', ()))}: redistribute it first"
        )


def grad_of(p: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert p.grad is not None
    return p.grad


def is_sharded(p: Tensor) -> bool:
    """Whether a rank holds a part of ``p`` only: a DTensor, or a piece of FSDP's flat parameter."""
    return is_distributed(p) or getattr(p, "_fsdp_flattened", False)


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    # By an attribute, since torch builds without torch.distributed have no such class to import.
    return type(tensor) not in (Tensor, torch.nn.Parameter) and hasattr(tensor, "full_tensor")


def check_not_differentiable(optimizer: Optimizer, name: str) -> None:
    """Raise RuntimeError for an optimizer whose step is to be differentiated, which ``name`` would cut off."""
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise RuntimeError(f"{name} cannot be differentiated: attach it to an optimizer with differentiable=False")


def is_at_rest(lr: float | Tensor) -> bool:
    """Whether a learning rate is 0: then a step is for show, as distributed checkpoints make one with zero gradients.

    A tensor is read on the CPU only: elsewhere the host would have to wait for the device.
    """
    if isinstance(lr, Tensor):
        return is_readable(lr.device) and lr.item() == 0
    return lr == 0


def named_params(group: dict[str, Any], first: int = 0) -> Iterable[tuple[str, Tensor]]:
    """The group's parameters with the names they were given to the optimizer with, or else indices from ``first``."""
    params = group["params"]
    return zip(group.get("param_names") or map(str, range(first, first + len(params))), params, strict=True)


def named_groups(
    groups: Iterable[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], Iterable[tuple[str, Tensor]]]]:
    """Each group with its :func:`named_params`, whose indices go on over all groups."""
    first = 0
    for group in groups:
        yield group, named_params(group, first)
        first += len(group["params"])
