"""The few primitives that eager torch and torch.compile want written differently, and the choice between the two."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convopt.theory._ambient import constant
from convopt.theory.smoothing import Boundary, extended, source

Crop = Callable[[Tensor], list[Tensor]]


class _Eager:
    """What torch.compile would make loops of, as it is fastest call by call."""

    pieces = True  # whether it pays to go through a large tensor piece by piece

    @staticmethod
    def extend(fields: Tensor, radius: int, boundary: Boundary, step: int) -> Tensor:
        """Fields ``(n, H, W step)`` with a margin of ``radius`` around each."""
        if step == 1 and boundary != "symmetric":
            return F.pad(fields.unsqueeze(0), [radius] * 4, mode=boundary)[0]
        count, height, width = len(fields), fields.shape[1], fields.shape[2] // step
        cells = fields.new_empty(count, height + 2 * radius, width + 2 * radius, step)
        lines = cells[:, radius : radius + height]
        lines[:, :, radius : radius + width] = fields.view(count, height, width, step)
        for part, axis, length in ((lines, 2, width), (cells, 1, height)):
            margins, repeated = _margins(length, radius, boundary, fields.device)
            part.index_copy_(axis, margins, part.index_select(axis, repeated))
        return cells.flatten(2)

    @staticmethod
    def weigh(copies: Sequence[Tensor], taps: Tensor, out: Tensor, block: int) -> None:
        """The sum of vectors, each weighed with its tap, into ``out``: on one core, so many elements at a time."""
        first, *others = taps.unbind()
        # Not in blocks on accelerators, whose cost is in calls.
        whole = out.device.type != "cpu" or len(out) <= block
        for start in range(0, len(out), len(out) if whole else block):
            part, copy, *others_of_part = (
                (out, *copies) if whole else (vector[start : start + block] for vector in (out, *copies))
            )
            torch.mul(copy, first, out=part)
            for copy, tap in zip(others_of_part, others, strict=True):
                part.addcmul_(copy, tap)

    @staticmethod
    def correlate(matrices: Sequence[Tensor], others: Sequence[Tensor], crop: Crop) -> Tensor:
        """The inner products of ``others`` with what ``crop`` takes of each row of the matrices."""
        spread = matrices[0].new_zeros(matrices[0].shape[1])
        for place, other in zip(crop(spread), others, strict=True):
            place.copy_(other.reshape(place.shape))
        return torch.cat([torch.mv(copies, spread) for copies in matrices])

    @staticmethod
    def powers(y: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``|y|^2``, ``|g|^2`` and ``<y, g>`` of two tensors of one shape."""
        y, g = y.reshape(-1), g.reshape(-1)
        return torch.dot(y, y), torch.dot(g, g), torch.dot(y, g)


class _Compiled(_Eager):
    """The same, written so that torch.compile makes one loop of it: no writing in place, no calls between."""

    pieces = False

    @staticmethod
    def extend(fields: Tensor, radius: int, boundary: Boundary, step: int) -> Tensor:
        return extended(fields.view(*fields.shape[:2], -1, step), radius, (1, 2), boundary).flatten(2)

    @staticmethod
    def weigh(copies: Sequence[Tensor], taps: Tensor, out: Tensor, block: int) -> None:
        first, *others = taps.unbind()
        out.copy_(sum((copy * tap for copy, tap in zip(copies[1:], others, strict=True)), copies[0] * first))

    @staticmethod
    def correlate(matrices: Sequence[Tensor], others: Sequence[Tensor], crop: Crop) -> Tensor:
        copies = [crop(copy) for matrix in matrices for copy in matrix]
        return torch.stack([torch.stack([*map(_row_by_row, others, images)]).sum() for images in copies])

    @staticmethod
    def powers(y: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _row_by_row(y, y), _row_by_row(g, g), _row_by_row(y, g)


def _row_by_row(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two tensors of as many elements; of sums over rows torch.compile makes vector code."""
    return (a.reshape(b.shape) * b).sum(-1).sum()


def ways() -> type[_Eager]:
    """The way that is fast here and now."""
    return _Compiled if torch.compiler.is_compiling() else _Eager


@constant(256)
def _margins(length: int, margin: int, boundary: Boundary, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where along an axis that was made longer by a margin at either end the margins are, and what they repeat."""
    outside = torch.tensor([*range(-margin, 0), *range(length, length + margin)], dtype=torch.long, device="cpu")
    return (margin + outside).to(device), (margin + source(outside, length, boundary)).to(device)
