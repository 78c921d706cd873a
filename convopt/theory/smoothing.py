"""Convolving a gradient with a kernel, and what a loss of the taps needs to know of the gradient.

Throughout, "convolve" is what ``torch.nn.functional.conv1d`` does: ``(W * g)[n] = sum_i w_i g[n + i - c]`` with
centre ``c``. For the symmetric kernels that smoothing is about, it makes no difference. Beyond its edges a gradient
``[a, b, c, d]`` goes on

- by "reflect" to ``c b | a b c d | c b``, the README's choice and the optimizers', which is not symmetric as a matrix;
- by "symmetric" (half-sample symmetric, as the DCT-II sees it) to ``b a | a b c d | d c``;
- by "circular" (as the FFT sees it) to ``c d | a b c d | a b``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from convopt.theory.kernels import check_size

Boundary = Literal["reflect", "symmetric", "circular"]

SHORT = 2**12
"""Elements up to which gathering all shifted copies of vectors by index is cheaper than laying out a buffer."""

CACHE = 2**19
"""Elements, 2 MiB of float32: up to here copies are cheaper than views, because they stay close to the core."""


class Shifts(ABC):
    """The copies of a gradient, shifted by one position per tap, that a kernel averages.

    The copies are the rows of a few matrices. Where one copy for each shift along the last axis fits the cache, they
    are made, each matrix holds ``size`` of them, and smoothing is one matrix-vector product per matrix. Else each
    matrix is one view of the gradient, and smoothing one multiply-add per view. The derivative with respect to the
    taps is matrix-vector products either way. On one core this is ten times faster than ``conv2d`` with a single
    channel, and no value is read back from the device. Half precision is computed in float32.
    """

    def __init__(self, matrices: list[Tensor]):
        self._matrices = matrices

    @abstractmethod
    def _crop(self, flat: Tensor) -> list[Tensor]:
        """Views of the gradients' places in a flat tensor of the span."""

    def smooth(self, kernel: Tensor) -> list[Tensor]:
        """``W * g`` of each gradient, in its shape and in float32 (float64 where it is float64)."""
        first, *others = self._matrices
        tap, *taps = kernel.to(first.dtype).reshape(len(self._matrices), -1).unbind()
        if len(first) == 1:
            total = torch.mul(first, tap)
            for view, tap in zip(others, taps, strict=True):
                total.addcmul_(view, tap)
            total = total.view(-1)
        else:
            total = torch.mv(first.t(), tap)
            for copies, tap in zip(others, taps, strict=True):
                total.addmv_(copies.t(), tap)
        return self._crop(total)

    def correlate(self, others: Sequence[Tensor]) -> Tensor:
        """``sum over the gradients of <other, shift_i g>`` for each tap ``i``, a vector.

        This is the adjoint of ``smooth`` as a map of the taps: if ``l`` is a loss of the smoothed gradients and
        ``others`` its derivatives there, the result is the exact gradient of ``l`` with respect to the taps.
        """
        spread = self._matrices[0].new_zeros(self._matrices[0].shape[1])
        for place, other in zip(self._crop(spread), others, strict=True):
            place.copy_(other.reshape(place.shape))
        # mv even of one row, because torch.dot is eight times slower where a view is not aligned.
        return torch.cat([torch.mv(copies, spread) for copies in self._matrices])


class LineShifts(Shifts):
    """Shifts along one axis of one or more vectors, which one buffer holds end to end.

    Args:
        lines: vectors of one dtype and device, each at least ``size`` long.
        size: taps, odd.
        boundary: how each vector goes on beyond its ends.

    Raises:
        ValueError: a vector is shorter than the kernel.
    """

    def __init__(self, lines: Sequence[Tensor], size: int, boundary: Boundary = "reflect"):
        lengths = tuple(line.numel() for line in lines)
        if min(lengths) < size:
            raise ValueError(
                f"vectors of lengths {lengths} were given for a kernel of {size} taps, expected no shorter ones"
            )
        radius = size // 2
        values = [at_least_float32(line) for line in lines]
        if sum(lengths) <= SHORT:
            neighbours = _neighbours(lengths, size, boundary, values[0].device)
            super().__init__([torch.cat(values).index_select(0, neighbours).view(size, -1)])
            gap = 0
        else:
            margin = values[0].new_empty(2 * radius)
            pieces = [margin[:radius]]
            for line in values:
                pieces += [line, margin]
            pieces[-1] = margin[:radius]
            buffer = torch.cat(pieces)
            margins, sources = _margins(lengths, radius, boundary, buffer.device)
            buffer.index_copy_(0, margins, buffer.index_select(0, sources))
            super().__init__(_copies(buffer, size, rows=1, row=0))
            gap = 2 * radius
        self._sections = [section for length in lengths for section in (length, gap)][:-1]

    def _crop(self, flat: Tensor) -> list[Tensor]:
        return list(flat.split_with_sizes(self._sections)[::2])


class PictureShifts(Shifts):
    """Shifts along the last two axes of one or more tensors, which one buffer holds one below the other.

    Args:
        pictures: tensors of one dtype and device and any memory layout, of shapes ``(..., H, W)`` with one common
            W, H and W at least ``size``.
        size: taps along each of the two axes, odd.
        boundary: how each picture goes on beyond its edges.

    Raises:
        ValueError: the kernel is larger than a picture, or widths differ.
    """

    def __init__(self, pictures: Sequence[Tensor], size: int, boundary: Boundary = "reflect"):
        self._shapes = [picture.shape for picture in pictures]
        width = self._shapes[0][-1:]
        if any(len(shape) < 2 or min(shape[-2:]) < size or shape[-1:] != width or 0 in shape for shape in self._shapes):
            raise ValueError(
                f"tensors of shapes {[tuple(shape) for shape in self._shapes]} were given for a kernel of "
                f"{size} x {size} taps, expected no less along their last two axes and one common width"
            )
        radius = size // 2
        padded = [
            _extend(at_least_float32(picture).reshape(-1, *picture.shape[-2:]), radius, radius, boundary)
            for picture in pictures
        ]
        self._padded_shapes = [stack.shape for stack in padded]
        super().__init__(_copies(_join(padded), size, rows=size, row=padded[0].shape[-1]))

    def _crop(self, flat: Tensor) -> list[Tensor]:
        places, start = [], 0
        for shape, (count, height, row) in zip(self._shapes, self._padded_shapes, strict=True):
            stack = flat.as_strided((count, *shape[-2:]), (height * row, row, 1), start)
            places.append(stack.view(shape))
            start += count * height * row
        return places


def _copies(buffer: Tensor, size: int, rows: int, row: int) -> list[Tensor]:
    """The matrices of ``Shifts`` from a buffer of rows of ``row`` elements, for ``rows`` x ``size`` taps."""
    # One copy runs over everything. What is computed in the gutters between rows or lines is cut off.
    length = buffer.numel() - size + 1
    span = length - (rows - 1) * row
    if size * length <= CACHE:
        copies = buffer.as_strided((size, length), (1, 1)).contiguous()
        return [copies[:, i * row : i * row + span] for i in range(rows)]
    views = buffer.as_strided((rows, size, 1, span), (row, 1, span, 1))
    return [view for one_row in views.unbind() for view in one_row.unbind()]


def _join(tensors: list[Tensor]) -> Tensor:
    """The elements of contiguous tensors end to end; of one tensor no copy."""
    flat = [tensor.view(-1) for tensor in tensors]
    return torch.cat(flat) if len(flat) > 1 else flat[0]


def smooth(gradient: Tensor, kernel: Tensor, boundary: Boundary = "reflect") -> Tensor:
    """Convolve a gradient with a kernel.

    Args:
        gradient: floating-point tensor, ``(N,)`` for a kernel of shape ``(k,)``, ``(..., H, W)`` for ``(k, k)``.
        kernel: taps, k odd and at most the length of each smoothed axis.
        boundary: how the gradient goes on beyond its edges, see above.

    Returns:
        Tensor of the gradient's shape, float32 (float64 for a float64 gradient). Values that are not finite spread
        to their neighbours.

    Raises:
        ValueError: the shapes do not fit, or no such boundary.
    """
    if kernel.ndim not in (1, 2) or len(set(kernel.shape)) != 1 or kernel.shape[0] % 2 == 0:
        raise ValueError(f"kernel must have shape (k,) or (k, k) with k odd, got {tuple(kernel.shape)}")
    if kernel.ndim == 1 and gradient.ndim != 1:
        raise ValueError(f"gradient must be a vector for a kernel of one axis, got shape {tuple(gradient.shape)}")
    _check_boundary(boundary)
    shifts = LineShifts if kernel.ndim == 1 else PictureShifts
    return shifts([gradient], kernel.shape[0], boundary).smooth(kernel)[0]


def smoothing_matrix(kernel: Tensor, shape: Sequence[int], boundary: Boundary = "reflect") -> Tensor:
    """The matrix K with ``K g = W * g`` for flattened gradients of ``shape``: float64, ``(numel, numel)``.

    Smoothing descends for every gradient if and only if the symmetric part of K is positive semidefinite.
    ValueError as for :func:`smooth`.
    """
    units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.stack([smooth(unit.view(*shape), kernel, boundary).flatten() for unit in units], 1)


class ShiftStatistics(NamedTuple):
    """Inner products of a gradient's shifted copies: all that the kernel losses need to know of it.

    ``shift_i g`` is the copy that tap ``i`` weighs, so that ``W * g = sum_i w_i shift_i g``; the taps of a kernel of
    two axes are counted row by row. With n taps and N elements:

    Attributes:
        products: A, ``A_ij = <shift_i g, shift_j g>``, ``(n, n)``. Its middle row is ``b_i = <g, shift_i g>``.
        means: m, ``m_i = mean(shift_i g)``, ``(n,)``.
        target_products: c, ``c_i = <target, shift_i g>``, ``(n,)``.
        target_power: ``|target|^2``, 0-dim.
        numel: N.
    """

    products: Tensor
    means: Tensor
    target_products: Tensor
    target_power: Tensor
    numel: int


def shift_statistics(
    gradient: Tensor, size: int, target: Tensor | None = None, boundary: Boundary = "reflect"
) -> ShiftStatistics:
    """The statistics of a gradient's shifts: one pass over it, no convolution per tap.

    Args:
        gradient: floating-point vector, for a kernel of ``size`` taps, or ``(..., H, W)``, for ``size`` x ``size``.
        size: taps along each axis, odd and at most the length of each smoothed axis.
        target: what the smoothed gradient is compared with (a moving average, another batch's gradient), of the
            gradient's shape; None takes the gradient itself.
        boundary: how the gradient goes on beyond its edges.

    Returns:
        float32, or float64 for a float64 gradient. Values that are not finite make the statistics so. A variance that
        is formed from float32 statistics loses its digits where the mean is large against the deviation.

    Raises:
        ValueError: the shapes do not fit, or no such boundary.
    """
    target = gradient if target is None else target
    check_size(size, "size")
    _check_boundary(boundary)
    if target.shape != gradient.shape:
        raise ValueError(f"target must have the gradient's shape {tuple(gradient.shape)}, got {tuple(target.shape)}")
    if gradient.ndim == 0 or min(gradient.shape[-2:]) < size or 0 in gradient.shape:
        raise ValueError(
            f"gradient must have at least {size} elements along each smoothed axis, got {tuple(gradient.shape)}"
        )
    # A vector is a picture of one row under a kernel of one row.
    height, width = (1, *gradient.shape) if gradient.ndim == 1 else gradient.shape[-2:]
    rows = 1 if gradient.ndim == 1 else size
    fields, targets = (at_least_float32(tensor).reshape(-1, height, width) for tensor in (gradient, target))
    padded = _extend(fields, rows // 2, size // 2, boundary)
    # For each row, of all fields one below the other, its copies for the shifts along the row.
    copies = F.pad(padded.flatten(0, 1), (0, 0, 0, rows - 1)).unfold(1, width, 1).contiguous()
    lines = padded.shape[0] * padded.shape[1]
    # Products of a row's copies with those of the rows below depend on the distance of the rows alone. Windows that
    # reach into the next field are computed and never summed.
    below = copies.as_strided((lines, rows * size, width), copies.stride())
    pairs = torch.bmm(copies[:lines], below.mT).view(*padded.shape[:2], size, rows, size)
    products = pairs.new_zeros(rows, size, rows, size)
    for row in range(rows):
        sums = pairs[:, row : row + height].sum((0, 1))
        for distance in range(rows - row):
            products[row, :, row + distance] = sums[:, distance]
            products[row + distance, :, row] = sums[:, distance].T
    row_sums = copies[:lines].sum(-1).view(*padded.shape[:2], size)
    sums = torch.stack([row_sums[:, row : row + height].sum((0, 1)) for row in range(rows)])
    spread = F.pad(targets, (0, 0, 0, rows - 1)).view(lines, 1, width)
    return ShiftStatistics(
        products=products.view(rows * size, rows * size),
        means=sums.flatten() / gradient.numel(),
        target_products=torch.bmm(spread, below.mT).sum((0, 1)),
        target_power=targets.square().sum(),
        numel=gradient.numel(),
    )


def mean_shift_statistics(statistics: Sequence[ShiftStatistics]) -> ShiftStatistics:
    """The mean of the statistics of several gradients of one shape: what to take before a ratio is formed."""
    *tensors, numels = zip(*statistics, strict=True)
    if len(set(numels)) != 1:
        raise ValueError(f"statistics must be of gradients of one size, got {sorted(set(numels))} elements")
    return ShiftStatistics(*(torch.stack(parts).mean(0) for parts in tensors), numels[0])


def _check_boundary(boundary: str) -> None:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary must be one of {', '.join(get_args(Boundary))}, got {boundary!r}")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in the precision of all arithmetic here: float64 as it is, everything else in float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _extend(fields: Tensor, rows: int, columns: int, boundary: Boundary) -> Tensor:
    """Fields ``(n, H, W)`` with ``rows`` more above and below, ``columns`` more at the left and the right."""
    if boundary != "symmetric":
        return F.pad(fields.unsqueeze(0), (columns, columns, rows, rows), mode=boundary)[0]
    for axis, margin in ((1, rows), (2, columns)):
        length = fields.shape[axis]
        sources = [_source(i, length, boundary) for i in range(-margin, length + margin)]
        fields = fields.index_select(axis, torch.tensor(sources, device=fields.device))
    return fields


def _source(position: int, length: int, boundary: Boundary) -> int:
    """Where along an axis the value at a position stands that may be up to ``length`` outside of it."""
    if boundary == "circular":
        return position % length
    repeated = boundary == "symmetric"  # whether the edge value is
    if position < 0:
        return -position - repeated
    return position if position < length else 2 * (length - 1) - position + repeated


@lru_cache(maxsize=256)
def _margins(lengths: tuple[int, ...], radius: int, boundary: Boundary, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the margins in a buffer of lines with ``radius`` on either side, and of what they repeat."""
    margins, sources, start = [], [], radius
    for length in lengths:
        for position in (*range(-radius, 0), *range(length, length + radius)):
            margins.append(start + position)
            sources.append(start + _source(position, length, boundary))
        start += length + 2 * radius
    return torch.tensor(margins, device=device, dtype=torch.long), torch.tensor(
        sources, device=device, dtype=torch.long
    )


@lru_cache(maxsize=256)
def _neighbours(lengths: tuple[int, ...], size: int, boundary: Boundary, device: torch.device) -> Tensor:
    """Tap by tap, for each element of lines end to end, the position of the neighbour that the tap weighs."""
    starts = accumulate(lengths, initial=0)
    places = list(zip(starts, lengths, strict=False))
    radius = size // 2
    return torch.tensor(
        [
            start + _source(position + shift, length, boundary)
            for shift in range(-radius, radius + 1)
            for start, length in places
            for position in range(length)
        ],
        device=device,
    )
