"""Sharded parameters (DTensor, as fully_shard makes them): what a rank holds of them, and sums over all ranks.

Statistics are sums over coordinates, so that each rank adds up its own and a few numbers are reduced; updates look at
each element by itself. Nothing here does anything to a tensor that is not sharded.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convopt.optim._checks import grad_of, is_distributed

Owner: TypeAlias = tuple[Any, ...]
"""The process groups among whose ranks a parameter is parted; none for one that a rank holds whole."""


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory; of one that is not distributed, itself."""
    return tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def local_grad(p: Tensor) -> Tensor:
    """What this rank holds of a parameter's gradient."""
    return local(grad_of(p))


def like(tensor: Tensor, p: Tensor) -> Tensor:
    """A rank's part, shaped as the parameter's, as the whole tensor that it is a part of: for checkpoints."""
    if not is_distributed(p):
        return tensor
    from torch.distributed.tensor import DTensor

    places: Any = p
    return DTensor.from_local(
        tensor, places.device_mesh, places.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


def owner_of(p: Tensor) -> Owner:
    """Among which ranks a parameter is parted."""
    if not is_distributed(p):
        return ()
    places: Any = p
    return tuple(
        places.device_mesh.get_group(axis) for axis, each in enumerate(places.placements) if not each.is_replicate()
    )


def summed(number: Tensor, owner: Owner) -> Tensor:
    """The sum over all ranks of a tensor of numbers; in place where there are several."""
    for group in owner:
        torch.distributed.all_reduce(number, group=group)
    return number


def by_owner(params: Iterable[Tensor]) -> dict[Owner, list[Tensor]]:
    """Parameters that are parted alike, together."""
    parted: dict[Owner, list[Tensor]] = {}
    for p in params:
        parted.setdefault(owner_of(p), []).append(p)
    return parted
