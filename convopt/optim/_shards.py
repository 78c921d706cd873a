"""Sharded parameters (DTensor, as fully_shard makes them): what a rank holds of them, and sums over all ranks.

Updates look at each element by itself, and statistics are sums over coordinates: each rank adds up its own, and a few
numbers are reduced. Tensors that are not distributed pass as they are.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convopt.optim._checks import grad_of, is_distributed

Owner: TypeAlias = tuple[Any, ...]
"""The process groups over whose ranks a parameter is spread; none for one that each rank holds whole."""


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory."""
    return tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def local_grad(p: Tensor) -> Tensor:
    """What this rank holds of a parameter's gradient."""
    return local(grad_of(p))


def as_part_of(p: Tensor, tensor: Tensor) -> Tensor:
    """A rank's part of something in the parameter's shape, as a distributed tensor: so checkpoints know its place."""
    if not is_distributed(p):
        return tensor
    from torch.distributed.tensor import DTensor

    whole: Any = p
    mesh, places = whole.device_mesh, whole.placements
    return DTensor.from_local(tensor, mesh, places, run_check=False, shape=p.shape, stride=p.stride())


def part_for(p: Tensor, tensor: Tensor) -> Tensor:
    """A copy of what this rank holds of something in the parameter's shape, on the parameter's device."""
    if is_distributed(p) and not is_distributed(tensor):
        from torch.distributed.tensor import distribute_tensor

        whole: Any = p
        tensor = distribute_tensor(tensor, whole.device_mesh, whole.placements)
    return local(tensor).to(p.device, copy=True)


def owner_of(p: Tensor) -> Owner:
    """Over which ranks a parameter is spread."""
    if not is_distributed(p):
        return ()
    whole: Any = p
    return tuple(whole.device_mesh.get_group(i) for i, each in enumerate(whole.placements) if not each.is_replicate())


def by_owner(params: Iterable[Tensor]) -> dict[Owner, list[Tensor]]:
    """Parameters that are spread over the same ranks, together."""
    spread: dict[Owner, list[Tensor]] = {}
    for p in params:
        spread.setdefault(owner_of(p), []).append(p)
    return spread


def summed(numbers: Tensor, owner: Owner) -> Tensor:
    """Numbers that each rank has of its own part, summed over the ranks; in place."""
    for group in owner:
        torch.distributed.all_reduce(numbers, group=group)
    return numbers


def rows_of(p: Tensor) -> tuple[int, int]:
    """The first row that this rank holds and the one after its last. RuntimeError where it does not hold rows whole."""
    if not is_distributed(p):
        return 0, p.shape[0] if p.ndim else 1
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    check_rows(p, "a parameter", "so that its gradient cannot be sampled: give SNRAnnealing sample=None")
    whole: Any = p
    shape, offset = compute_local_shape_and_global_offset(p.shape, whole.device_mesh, whole.placements)
    return offset[0], offset[0] + shape[0]


def check_rows(p: Tensor, name: str, reason: str) -> None:
    """RuntimeError unless each rank holds whole rows of a parameter, one after the other, as fully_shard has it."""
    from torch.distributed.tensor import Shard

    places: Any = p
    for each in places.placements:
        if not (each.is_replicate() or (type(each) is Shard and each.dim == 0)):
            raise RuntimeError(f"{name} of shape {tuple(p.shape)} is sharded as {tuple(places.placements)}, {reason}")
