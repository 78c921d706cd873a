"""What annealing keeps of the gradients to compare the next ones with: everything, or a sample of a large network's.

The agreement is a ratio of two sums over all coordinates. A fixed random sample of a large network's estimates both
without bias, at a cost that does not grow with the network.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Container
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from convopt.optim._agreement import powers_over_ranks, products_of, products_over_ranks, sum_over_ranks, total_of
from convopt.optim._checks import check_keys, check_saved, is_distributed
from convopt.optim._outliers import overwrite, powers_of
from convopt.optim._scalars import Scalar
from convopt.optim._shards import Owner, as_part_of, owner_of, part_for, rows_of, summed

Gradients: TypeAlias = dict[Tensor, Tensor]
"""What this rank holds of the gradients of the parameters that have one."""

BLOCK = 16
"""About how many coordinates are drawn together: a line of the processor's cache, all read for any one of them."""

LEAST = 4
"""How many times the sample a network must be for a sample to pay: to pick lines takes longer than to read on."""


class Compared(ABC):
    """What is kept of gradients to compare later ones with."""

    @abstractmethod
    def look(self, gradients: Gradients) -> Any:
        """What of the gradients the other methods are to be given."""

    @abstractmethod
    def products(self, seen: Any) -> Tensor | None:
        """:func:`products_of` gradients and those kept, of the parameters that have both; None where none has."""

    @abstractmethod
    def powers(self, seen: Any) -> list[Scalar]:
        """Numbers whose sum is the gradients' power."""

    @abstractmethod
    def keep(self, seen: Any, may_teach: bool | Tensor) -> None:
        """Keep copies; zeros, with which nothing is compared, if they may not teach."""

    @abstractmethod
    def saved(self, params: list[Tensor]) -> dict[str, Any]:
        """What is kept, in a form that distributed checkpoints load into: tensors, whatever has been kept so far."""

    @abstractmethod
    def check(self, saved: dict[str, Any], params: list[Tensor]) -> None:
        """ValueError if something :meth:`saved` is of other parameters."""

    @abstractmethod
    def load(self, saved: dict[str, Any], params: list[Tensor]) -> None:
        """Go on from what was :meth:`saved`."""


class Whole(Compared):
    """Keeps all gradients."""

    def __init__(self) -> None:
        self._previous: Gradients = {}

    def look(self, gradients: Gradients) -> Gradients:
        """The gradients as they are."""
        return gradients

    def products(self, seen: Gradients) -> Tensor | None:
        """:func:`products_of` gradients and those kept, of the parameters that have both; None where none has."""
        if self._are_of_the_last_step(seen):
            return products_over_ranks(list(seen), list(seen.values()), list(self._previous.values()))
        # A parameter that had no gradient at the last step has none to compare with.
        both = [p for p, kept in self._previous.items() if p in seen and kept.shape == seen[p].shape]
        if not both:
            return None
        return products_over_ranks(both, [seen[p] for p in both], [self._previous[p] for p in both])

    def powers(self, seen: Gradients) -> list[Scalar]:
        """Numbers whose sum is the gradients' power."""
        return powers_over_ranks(list(seen), list(seen.values()))

    def keep(self, seen: Gradients, may_teach: bool | Tensor) -> None:
        """Keep copies; zeros, with which nothing is compared, if they may not teach."""
        if may_teach is True and self._are_of_the_last_step(seen):
            torch._foreach_copy_(list(self._previous.values()), list(seen.values()))
            return
        previous = {p: kept for p, kept in self._previous.items() if p in seen and kept.shape == seen[p].shape}
        for p, gradient in seen.items():
            if p in previous:
                overwrite(previous[p], gradient, may_teach)
            else:
                previous[p] = gradient.clone()
        self._previous = previous

    def _are_of_the_last_step(self, seen: Gradients) -> bool:
        """Whether the same parameters have gradients. To look each of them up takes a small network long."""
        kept = self._previous
        return (
            0 < len(seen) == len(kept)
            and all(map(operator.is_, seen, kept))
            and all(new.shape == old.shape for new, old in zip(seen.values(), kept.values(), strict=True))
        )

    def saved(self, params: list[Tensor]) -> dict[str, Any]:
        """Previous gradients in the order of the parameters; zeros for those without one."""
        previous = self._previous
        zeros = torch.zeros_like
        return {
            "previous": [as_part_of(p, previous[p].clone()) if p in previous else zeros(p) for p in params],
            "known": _known(previous, params),
        }

    def check(self, saved: dict[str, Any], params: list[Tensor]) -> None:
        """ValueError if something :meth:`saved` is of other parameters, or a sample."""
        if "sample" in saved:
            raise ValueError("the state_dict has a sample of the gradients: go on with the `sample` it was saved with")
        check_keys(saved, ("previous",))
        check_saved("a previous gradient", "previous gradients", params, saved["previous"])

    def load(self, saved: dict[str, Any], params: list[Tensor]) -> None:
        """Go on from what was :meth:`saved`."""
        pairs = zip(_named(saved, params), saved["previous"], strict=True)
        self._previous = {p: part_for(p, gradient) for p, gradient in pairs if p is not None}


class Piece(NamedTuple):
    """Where one parameter's coordinates lie in a sample.

    Attributes:
        param: the parameter.
        place: their places in the sample that this rank has.
        origin: their places in the sample that all ranks have together.
        blocks: which blocks of what this rank holds of the parameter they are; None for all.
        length: of a block.
        axes: the parameter's, in the order in which it lies in memory.
    """

    param: Tensor
    place: slice
    origin: slice
    blocks: Tensor | None
    length: int
    axes: list[int]

    def copy(self, gradient: Tensor, sample: Tensor) -> None:
        """Put these coordinates of the parameter's gradient into a sample."""
        lines = gradient.permute(self.axes).reshape(-1, self.length)  # no copy of a gradient that lies likewise
        target = sample[self.place].view(-1, self.length)
        if self.blocks is None:
            target.copy_(lines)
        elif (lines.dtype, lines.device) == (target.dtype, target.device):
            torch.index_select(lines, 0, self.blocks, out=target)
        else:
            target.copy_(lines.index_select(0, self.blocks))


class Stratum(NamedTuple):
    """Part of a sample, of parameters of one owner. Each coordinate stands for ``weight`` of the network's."""

    place: slice
    weight: float
    owner: Owner


class Look(NamedTuple):
    """The sampled coordinates of the gradients of ``params``; zeros for all others."""

    sample: Tensor
    params: frozenset[Tensor]


class Sampled(Compared):
    """Keeps a sample of the gradients' coordinates, drawn once.

    Small parameters are in it whole. The others are parted into equal strata, all their coordinates in a line, and
    each stratum has one block drawn: large parameters have a share in proportion, and no coordinate is preferred.

    Args:
        params: parameters of an optimizer.
        size: how many coordinates to draw, at most.
        seed: of the draw; on every rank and after every restart the same.
    """

    def __init__(self, params: list[Tensor], size: int, seed: int = 0):
        self._pieces: list[Piece] = []
        self._strata: list[Stratum] = []
        self._size = 0
        self._draw(params, size, seed)
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
        self._previous = torch.zeros(self._pieces[-1].place.stop, dtype=dtype, device=params[0].device)
        self._known: frozenset[Tensor] = frozenset()

    def _draw(self, params: list[Tensor], size: int, seed: int) -> None:
        small = size // (2 * len(params))
        self._add([p for p in params if p.numel() <= small], 1, None)
        large = [p for p in params if p.numel() > small]
        share = (size - self._size) / sum(p.numel() for p in large)
        generator = torch.Generator("cpu").manual_seed(seed)
        lengths = {p: _block_of(p.numel() // p.shape[0] if p.ndim else 1) for p in large}
        for length in sorted(set(lengths.values())):
            members = [p for p in large if lengths[p] == length]
            blocks = sum(p.numel() for p in members) // length
            count = max(1, int(share * blocks))
            within = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
            drawn = (torch.arange(count, dtype=torch.float64, device="cpu") + within) * (blocks / count)
            self._add(members, length, drawn.long().clamp_max(blocks - 1), blocks / count)

    def _add(self, members: list[Tensor], length: int, drawn: Tensor | None, weight: float = 1.0) -> None:
        """Add blocks of some parameters, of which this rank has a part: all, or ``drawn`` from a line of all."""
        strata: list[Stratum] = []
        first = 0
        for p in members:
            count = p.numel() // length
            chosen = torch.arange(count, device="cpu")
            if drawn is not None:
                chosen = drawn[(drawn >= first) & (drawn < first + count)] - first
            first += count
            start, stop = (rows * count // max(1, p.shape[0]) if p.ndim else rows for rows in rows_of(p))
            before = self._size + length * int((chosen < start).sum())
            self._size += length * len(chosen)
            held = chosen[(chosen >= start) & (chosen < stop)] - start
            end = self._end()
            place, origin = (slice(begin, begin + length * len(held)) for begin in (end, before))
            axes = list(range(p.ndim)) if is_distributed(p) else sorted(range(p.ndim), key=p.stride, reverse=True)
            self._pieces.append(Piece(p, place, origin, None if drawn is None else held.to(p.device), length, axes))
            owner = owner_of(p)
            if strata and strata[-1].owner == owner:
                place = slice(strata.pop().place.start, place.stop)
            strata.append(Stratum(place, weight, owner))
        self._strata += strata

    def _end(self) -> int:
        return self._pieces[-1].place.stop if self._pieces else 0

    def look(self, gradients: Gradients) -> Look:
        """The gradients' sampled coordinates, as the other methods are to be given them."""
        present = [piece for piece in self._pieces if piece.param in gradients]
        new = torch.empty_like if len(present) == len(self._pieces) else torch.zeros_like
        sample = new(self._previous)
        for piece in present:
            piece.copy(gradients[piece.param], sample)
        return Look(sample, frozenset(gradients))

    def products(self, seen: Look) -> Tensor | None:
        """Estimates of :func:`products_of` gradients and those kept; None before any were kept."""
        both = seen.params & self._known
        if not both:
            return None
        sample = seen.sample
        if both != seen.params:
            sample = sample.clone()
            for piece in self._pieces:
                if piece.param not in both:
                    sample[piece.place] = 0
        totals: dict[Owner, list[Tensor]] = {}
        for place, weight, owner in self._strata:
            totals.setdefault(owner, []).append(weight * products_of([sample[place]], [self._previous[place]]))
        return total_of([summed(total_of(parts), owner) for owner, parts in totals.items()])

    def powers(self, seen: Look) -> list[Scalar]:
        """Numbers whose sum is an estimate of the gradients' power."""
        totals: dict[Owner, list[Scalar]] = {}
        parts = [seen.sample[place] for place, _, _ in self._strata]
        for (_, weight, owner), power in zip(self._strata, powers_of(parts), strict=True):
            totals.setdefault(owner, []).append(weight * power)
        return [sum_over_ranks(powers, owner, seen.sample.device) for owner, powers in totals.items()]

    def keep(self, seen: Look, may_teach: bool | Tensor) -> None:
        """Keep the sample; zeros, with which nothing is compared, if it may not teach."""
        overwrite(self._previous, seen.sample, may_teach)
        self._known = seen.params

    def saved(self, params: list[Tensor]) -> dict[str, Any]:
        """The previous gradients' sample, of all ranks."""
        whole = self._previous.new_zeros(self._size)
        for owner in dict.fromkeys(stratum.owner for stratum in self._strata):
            of_owner = torch.zeros_like(whole)
            for piece in self._pieces:
                if owner_of(piece.param) == owner:
                    of_owner[piece.origin] = self._previous[piece.place]
            whole += summed(of_owner, owner)
        return {"sample": whole, "known": _known(self._known, params)}

    def check(self, saved: dict[str, Any], params: list[Tensor]) -> None:
        """ValueError if something :meth:`saved` is of other parameters or of another size."""
        if "sample" not in saved:  # from before there were samples, or saved without one
            check_keys(saved, ("previous",))
            check_saved("a previous gradient", "previous gradients", params, saved["previous"])
        elif len(saved["sample"]) != self._size:
            raise ValueError(
                f"the state_dict must have a sample of {self._size} coordinates, got {len(saved['sample'])}: "
                "it is of another network, or was saved with another `sample`"
            )

    def load(self, saved: dict[str, Any], params: list[Tensor]) -> None:
        """Go on from what was :meth:`saved`, or from all gradients."""
        if "sample" in saved:
            for piece in self._pieces:
                self._previous[piece.place] = saved["sample"][piece.origin].to(self._previous)
        else:
            pairs = zip(params, saved["previous"], strict=True)
            self._previous = self.look({p: part_for(p, gradient) for p, gradient in pairs}).sample
        self._known = frozenset(p for p in _named(saved, params) if p is not None)


def _known(kept: Container[Tensor], params: list[Tensor]) -> Tensor:
    """Of which parameters gradients are kept, ``(params,)``: they may be zeros."""
    return torch.tensor([p in kept for p in params], device="cpu")


def _named(saved: dict[str, Any], params: list[Tensor]) -> list[Tensor | None]:
    """The parameters that :func:`_known` says, None in the place of others; of an earlier version's checkpoint, all."""
    known = saved["known"].tolist() if "known" in saved else [True] * len(params)
    return [p if is_known else None for p, is_known in zip(params, known, strict=True)]


def _block_of(row: int) -> int:
    """How many coordinates to draw together, so that a row consists of such blocks."""
    return min((d for d in range(1, 4 * BLOCK + 1) if row % d == 0), key=lambda d: abs(math.log(d / BLOCK)))


def compared(params: list[Tensor], sample: int | None) -> Compared:
    """What to keep of the gradients of an optimizer's parameters, where so many coordinates are to be compared."""
    if sample is not None and sum(p.numel() for p in params) > LEAST * sample:
        return Sampled(params, sample)
    return Whole()
