"""Convolving a gradient with a kernel, and what a loss of the taps needs to know of the gradient.

Throughout, "convolve" is what ``torch.nn.functional.conv1d`` does: ``(W * g)[n] = sum_i w_i g[n + i - c]`` with
centre ``c``. For the symmetric kernels that smoothing is about, it makes no difference. Beyond its edges a gradient
``[a, b, c, d]`` goes on

- by "reflect" to ``c b | a b c d | c b``, the README's choice and the optimizers', which is not symmetric as a matrix;
- by "symmetric" (half-sample symmetric, as the DCT-II sees it) to ``b a | a b c d | d c``;
- by "circular" (as the FFT sees it) to ``c d | a b c d | a b``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from convopt.theory.kernels import check_size

Boundary = Literal["reflect", "symmetric", "circular"]

SHORT = 2**12
"""Elements up to which gathering all shifted copies of a vector by index is cheaper than views of it."""

BLOCK = 2**17
"""Elements of a longer vector that one core smooths at a time: from tap to tap, they stay in its cache."""

PIECE = 2**19
"""Elements of a large gradient to smooth at a time, so that what is done with them finds them in the cache."""

CACHE = 2**19
"""Elements, 2 MiB of float32: up to here copies of pictures are cheaper than views, because they stay in the cache."""


class Shifts(ABC):
    """The copies of gradients, shifted by one position per tap, that a kernel averages.

    On one core, smoothing by them is ten times faster than ``conv1d`` and ``conv2d`` with a single channel, and no
    value is read back from the device. Half precision is computed in float32.
    """

    @abstractmethod
    def smooth(self, kernel: Tensor) -> list[Tensor]:
        """``W * g`` of each gradient, in its shape and in float32 (float64 where it is float64)."""

    @abstractmethod
    def correlate(self, others: Sequence[Tensor]) -> Tensor:
        """``sum over the gradients of <other, shift_i g>`` for each tap ``i``, a vector.

        This is the adjoint of ``smooth`` as a map of the taps: if ``l`` is a loss of the smoothed gradients and
        ``others`` its derivatives there, the result is the exact gradient of ``l`` with respect to the taps.
        """


class LineShifts(Shifts):
    """Shifts along one axis of one or more vectors.

    For one kernel, vectors are laid end to end, and the copies are views of that, but for the few positions next to an
    end. For a kernel each, the copies of short vectors are gathered together, with zeros after the end of all but the
    longest one; of a long one they are views of itself.

    Args:
        lines: vectors of one dtype and device, each at least ``size`` long.
        size: taps, odd.
        boundary: how each vector goes on beyond its ends.

    Raises:
        ValueError: a vector is shorter than the kernel.
    """

    def __init__(self, lines: Sequence[Tensor], size: int, boundary: Boundary = "reflect"):
        self._lengths = tuple(line.numel() for line in lines)
        if min(self._lengths) < size:
            raise ValueError(
                f"vectors of lengths {self._lengths} were given for a kernel of {size} taps, expected no shorter ones"
            )
        self._lines = [at_least_float32(line) for line in lines]
        self._size, self._boundary = size, boundary
        self._short = [i for i, length in enumerate(self._lengths) if length <= SHORT]
        self._long = [i for i, length in enumerate(self._lengths) if length > SHORT]
        # Not by cached_property: torch.compile cannot see through its lock.
        self._gathered: Tensor | None = None
        self._at_ends: Tensor | None = None

    @property
    def _copies(self) -> Tensor:
        """Of the short lines, ``(short lines, size, length of the longest)``."""
        if self._gathered is None:
            lengths = tuple(self._lengths[i] for i in self._short)
            joined = torch.cat([*[self._lines[i] for i in self._short], self._lines[0].new_zeros(1)])
            neighbours = _neighbours(lengths, self._size, self._boundary, joined.device)
            self._gathered = joined.index_select(0, neighbours).view(len(lengths), self._size, -1)
        return self._gathered

    @property
    def _views(self) -> list[tuple[Tensor, ...]]:
        """Of each long line."""
        return [_views(self._lines[i], self._size) for i in self._long]

    @property
    def _windows(self) -> Tensor:
        """Of the long lines."""
        if self._at_ends is None:
            self._at_ends = _windows_at_ends([self._lines[i] for i in self._long], self._size, self._boundary)
        return self._at_ends

    def smooth(self, kernel: Tensor) -> list[Tensor]:
        """``W * g`` of each line, in float32 (float64 where it is float64).

        ``kernel`` holds the taps of one kernel, ``(size,)``, or of a kernel for each line, ``(lines, size)``.
        """
        kernel = kernel.to(self._lines[0].dtype)
        if kernel.ndim == 1 and sum(self._lengths) <= SHORT:
            kernel = kernel.expand(len(self._lines), -1)
        if kernel.ndim == 1:
            bundles = _bundles(self._lines)
            return [line for lines in bundles for line in _smooth_together(lines, kernel, self._boundary)]
        kernels, radius = kernel.unbind(), self._size // 2
        smoothed = list(self._lines)
        if self._short:
            own = torch.stack([kernels[i] for i in self._short]).unsqueeze(1)
            for i, (line,) in zip(self._short, torch.bmm(own, self._copies), strict=True):
                smoothed[i] = line[: self._lengths[i]]
        for place, i in enumerate(self._long):
            edges = torch.mv(self._windows[place, :, : 2 * radius].t(), kernels[i])
            smoothed[i] = torch.empty_like(self._lines[i])
            first, inner, last = smoothed[i].tensor_split((radius, self._lengths[i] - radius))
            _weigh(self._views[place], kernels[i], out=inner)
            torch._foreach_copy_([first, last], [edges[:radius], edges[radius:]])
        return smoothed

    def correlate(self, others: Sequence[Tensor]) -> Tensor:
        """``sum over the lines of <other, shift_i g>`` for each tap ``i``, a vector."""
        others, radius = [other.reshape(-1) for other in others], self._size // 2
        parts = []
        for place, i in enumerate(self._short):
            parts.append(torch.mv(self._copies[place, :, : self._lengths[i]], others[i]))
        for place, i in enumerate(self._long):
            first, inner, last = others[i].tensor_split((radius, self._lengths[i] - radius))
            parts.append(_dots(inner, self._views[place]))
            parts.append(torch.mv(self._windows[place, :, : 2 * radius], torch.cat([first, last])))
        return torch.stack(parts).sum(0)

    def statistics(self) -> "ShiftStatistics":
        """The :func:`shift_statistics` of each line, its own target, stacked: each field has a first axis of lines."""
        products, sums = list(self._lines), list(self._lines)
        if self._short:
            of_short = torch.bmm(self._copies, self._copies.mT), self._copies.sum(-1)
            for i, product, total in zip(self._short, *of_short, strict=True):
                products[i], sums[i] = product, total
        if self._long:
            # Were the line shift-invariant, the products would depend on the distance of the taps alone, and sums on
            # nothing. What makes the difference is at the ends.
            lagged = torch.stack([_dots(views[0], views) for views in self._views])
            total = torch.stack([views[0].sum() for views in self._views]).unsqueeze(1)
            signed = self._windows * _window_signs(self._size, self._windows.dtype, self._windows.device)
            toeplitz = lagged.index_select(1, _distances(self._size, lagged.device)).view(-1, self._size, self._size)
            of_long = torch.baddbmm(toeplitz, self._windows, signed.mT), total + signed.sum(-1)
            for i, product, total in zip(self._long, *of_long, strict=True):
                products[i], sums[i] = product, total
        lengths = _as_tensor(self._lengths, products[0].dtype, products[0].device)
        mean_products = torch.stack(products) / lengths.unsqueeze(2)
        middle = mean_products[:, self._size // 2]
        return ShiftStatistics(mean_products, torch.stack(sums) / lengths, middle, middle[:, self._size // 2])


class PictureShifts(Shifts):
    """Shifts along the last two axes of one or more tensors, which one buffer holds one below the other.

    The copies are the rows of a few matrices. Where one copy for each shift along the last axis fits the cache, they
    are made, each matrix holds ``size`` of them, and smoothing is one matrix-vector product per matrix. Else each
    matrix is one view of the buffer, and smoothing one multiply-add per view. The derivative with respect to the taps
    is matrix-vector products either way.

    Args:
        pictures: tensors of one dtype and device and any memory layout, of shapes ``(..., H, W step)`` with one common
            W, H and W at least ``size``.
        size: taps along each of the two axes, odd.
        boundary: how each picture goes on beyond its edges.
        step: how many elements apart neighbours along the last axis are: so many pictures are interleaved there.

    Raises:
        ValueError: the kernel is larger than a picture, or widths differ.
    """

    def __init__(self, pictures: Sequence[Tensor], size: int, boundary: Boundary = "reflect", step: int = 1):
        self._shapes = [picture.shape for picture in pictures]
        width = self._shapes[0][-1:]
        if any(
            len(shape) < 2 or min(shape[-2], shape[-1] // step) < size or shape[-1:] != width or 0 in shape
            for shape in self._shapes
        ):
            raise ValueError(
                f"tensors of shapes {[tuple(shape) for shape in self._shapes]} were given for a kernel of "
                f"{size} x {size} taps, expected no less along their last two axes and one common width"
            )
        radius = size // 2
        padded = [
            _extend(at_least_float32(picture).reshape(-1, *picture.shape[-2:]), radius, radius, boundary, step)
            for picture in pictures
        ]
        self._padded_shapes = [stack.shape for stack in padded]
        self._matrices = _copies(_join(padded), size, row=padded[0].shape[-1], step=step)

    def smooth(self, kernel: Tensor) -> list[Tensor]:
        """``W * g`` of each tensor, in its shape and in float32 (float64 where it is float64)."""
        first, *others = self._matrices
        kernel = kernel.to(first.dtype).reshape(-1)
        if len(first) == 1:
            total = first.new_empty(first.shape[1])
            _weigh([view.view(-1) for view in self._matrices], kernel, out=total)
        else:
            tap, *taps = kernel.view(len(self._matrices), -1).unbind()
            total = torch.mv(first.t(), tap)
            for copies, tap in zip(others, taps, strict=True):
                total.addmv_(copies.t(), tap)
        return self._crop(total)

    def correlate(self, others: Sequence[Tensor]) -> Tensor:
        """``sum over the tensors of <other, shift_i g>`` for each tap ``i``, row by row, a vector."""
        if torch.compiler.is_compiling():  # it makes one loop of sums over rows, but not of matrix-vector products
            copies = [self._crop(copy) for matrix in self._matrices for copy in matrix]
            return torch.stack([torch.stack([*map(product_of_rows, others, pictures)]).sum() for pictures in copies])
        spread = self._matrices[0].new_zeros(self._matrices[0].shape[1])
        for place, other in zip(self._crop(spread), others, strict=True):
            place.copy_(other.reshape(place.shape))
        return torch.cat([torch.mv(copies, spread) for copies in self._matrices])

    def _crop(self, flat: Tensor) -> list[Tensor]:
        """Views of the pictures' places in a flat tensor of the span."""
        places, start = [], 0
        for shape, (count, height, row) in zip(self._shapes, self._padded_shapes, strict=True):
            stack = flat[start:].as_strided((count, *shape[-2:]), (height * row, row, 1))
            places.append(stack.view(shape))
            start += count * height * row
        return places


class ShiftsInPieces(Shifts):
    """Shifts of one large gradient, reflected at its ends, a piece at a time, so that each stays in the core's cache.

    Args:
        gradient: ``(N,)``, shifted along its axis, or one picture ``(H, W step)``, shifted along both.
        size: taps along each axis, odd and at most the length of each.
        step: as in :class:`PictureShifts`.
    """

    def __init__(self, gradient: Tensor, size: int, step: int = 1):
        self.gradient = gradient
        self._size, self._step = size, step

    def smooth(self, kernel: Tensor) -> list[Tensor]:
        """``W * g``, in the gradient's shape and in float32 (float64 where it is float64)."""
        smoothed = torch.empty_like(self.gradient, dtype=at_least_float32(self.gradient[:0]).dtype)
        for place, piece in self.smooth_pieces(kernel):
            smoothed[place] = piece
        return [smoothed]

    def smooth_pieces(self, kernel: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Which elements, or which rows, and these smoothed, one piece after the other."""
        for place, seen, kept in self._pieces():
            inside = len(seen) == place.stop - place.start + self._size - 1
            if inside and seen.ndim == 1:
                line = at_least_float32(seen)
                smoothed = torch.empty_like(line[kept])
                _weigh(_views(line, self._size), kernel.to(line.dtype), out=smoothed)
            else:
                smoothed = self._shifts_of(seen).smooth(kernel)[0][kept]
            yield place, smoothed

    def correlate(self, others: Sequence[Tensor]) -> Tensor:
        """``<other, shift_i g>`` for each tap ``i``, a vector."""
        (other,), parts = others, []
        for place, seen, kept in self._pieces():
            spread = torch.zeros_like(seen, dtype=other.dtype)
            spread[kept] = other[place]
            parts.append(self._shifts_of(seen).correlate([spread]))
        return torch.stack(parts).sum(0)

    def _pieces(self) -> Iterator[tuple[slice, Tensor, slice]]:
        """Of each piece the place, the piece with the neighbours that a kernel sees, and where it stands among these.

        What a kernel sees of the neighbours' other sides is not kept.
        """
        length, reach = len(self.gradient), self._size // 2
        count = max(1, min(-(-self.gradient.numel() // PIECE), length // self._size))
        for start, end in pairwise(length * i // count for i in range(count + 1)):
            first, last = max(start - reach, 0), min(end + reach, length)
            yield slice(start, end), self.gradient[first:last], slice(start - first, end - first)

    def _shifts_of(self, seen: Tensor) -> Shifts:
        if seen.ndim == 1:
            return LineShifts([seen], self._size)
        return PictureShifts([seen], self._size, step=self._step)


def goes_in_pieces(tensor: Tensor) -> bool:
    """Whether a tensor is so large, and lies so, that going through it piece by piece in the core's cache pays."""
    large = tensor.numel() > PIECE and not torch.compiler.is_compiling()
    return large and tensor.device.type == "cpu" and tensor.is_contiguous()


def product_of_rows(first: Tensor, second: Tensor) -> Tensor:
    """``<first, second>`` of two tensors of as many elements, in the second one's shape, as torch.compile likes it.

    Of the rows' sums it makes vector code in one pass, together with others' over the same tensors.
    """
    return (first.reshape(second.shape) * second).sum(-1).sum()


def _copies(buffer: Tensor, size: int, row: int, step: int) -> list[Tensor]:
    """The matrices of ``PictureShifts`` from a buffer of rows of ``row`` elements, for ``size`` x ``size`` taps."""
    # One copy runs over everything. What is computed in the gutters between rows is cut off.
    length = buffer.numel() - (size - 1) * step
    span = length - (size - 1) * row
    if size * length <= CACHE:
        copies = buffer.as_strided((size, length), (step, 1)).contiguous()
        return [copies[:, i * row : i * row + span] for i in range(size)]
    views = buffer.as_strided((size, size, 1, span), (row, step, span, 1))
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
    """Mean products of a gradient's shifted copies: all that the kernel losses need to know of it.

    ``shift_i g`` is the copy that tap ``i`` weighs, so that ``W * g = sum_i w_i shift_i g``; the taps of a kernel of
    two axes are counted row by row. All are means over the gradient's elements. With n taps:

    Attributes:
        products: A, ``A_ij = mean(shift_i g shift_j g)``, ``(..., n, n)``. Its middle row is b, ``mean(g shift_i g)``.
        means: m, ``m_i = mean(shift_i g)``, ``(..., n)``.
        target_products: c, ``c_i = mean(target shift_i g)``, ``(..., n)``.
        target_power: ``mean(target^2)``, ``(...)``.
    """

    products: Tensor
    means: Tensor
    target_products: Tensor
    target_power: Tensor


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
        products=products.view(rows * size, rows * size) / gradient.numel(),
        means=sums.flatten() / gradient.numel(),
        target_products=torch.bmm(spread, below.mT).sum((0, 1)) / gradient.numel(),
        target_power=targets.square().mean(),
    )


def mean_shift_statistics(statistics: Sequence[ShiftStatistics]) -> ShiftStatistics:
    """The mean of the statistics of several gradients of one shape: what to take before a ratio is formed."""
    return ShiftStatistics(*(torch.stack(parts).mean(0) for parts in zip(*statistics, strict=True)))


def _check_boundary(boundary: str) -> None:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary must be one of {', '.join(get_args(Boundary))}, got {boundary!r}")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in the precision of all arithmetic here: float64 as it is, everything else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _extend(fields: Tensor, rows: int, columns: int, boundary: Boundary, step: int = 1) -> Tensor:
    """Fields ``(n, H, W step)`` with ``rows`` more above and below, ``columns`` more at the left and the right."""
    if torch.compiler.is_compiling() and step == 1:  # of torch's padding it makes a loop that computes every place anew
        for axis, margin in ((1, rows), (2, columns)):
            length = fields.shape[axis]
            before, after = (
                [fields.narrow(axis, _source(position, length, boundary), 1) for position in outside]
                for outside in (range(-margin, 0), range(length, length + margin))
            )
            fields = torch.cat([*before, fields, *after], axis)
        return fields
    if step == 1 and boundary != "symmetric":
        return F.pad(fields.unsqueeze(0), (columns, columns, rows, rows), mode=boundary)[0]
    count, height, width = len(fields), fields.shape[1], fields.shape[2] // step
    extended = fields.new_empty(count, height + 2 * rows, (width + 2 * columns) * step)
    cells = extended.view(count, height + 2 * rows, width + 2 * columns, step)
    lines = cells[:, rows : rows + height]
    lines[:, :, columns : columns + width] = fields.view(count, height, width, step)
    for part, axis, length, margin in ((lines, 2, width, columns), (cells, 1, height, rows)):
        margins, sources = _margins(length, margin, boundary, fields.device)
        part.index_copy_(axis, margins, part.index_select(axis, sources))
    return extended


@lru_cache(maxsize=256)
def _margins(length: int, margin: int, boundary: Boundary, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where along an axis that was made longer by a margin at either end the margins are, and what they repeat."""
    outside = [*range(-margin, 0), *range(length, length + margin)]
    margins, sources = (
        torch.tensor([margin + place for place in places], dtype=torch.long, device=device)
        for places in (outside, [_source(position, length, boundary) for position in outside])
    )
    return margins, sources


def _source(position: int, length: int, boundary: Boundary) -> int:
    """Where along an axis the value at a position stands that may be up to ``length`` outside of it."""
    if boundary == "circular":
        return position % length
    repeated = boundary == "symmetric"  # whether the edge value is
    if position < 0:
        return -position - repeated
    return position if position < length else 2 * (length - 1) - position + repeated


def _views(line: Tensor, size: int) -> tuple[Tensor, ...]:
    """The copies of a line, but for the positions from where a tap reaches over an end."""
    return line.unfold(0, len(line) - size + 1, 1).unbind()


def _bundles(lines: Sequence[Tensor]) -> list[list[Tensor]]:
    """The lines in lists of no more elements than one core's cache holds, and of one line where that has more."""
    bundles: list[list[Tensor]] = []
    room = 0
    for line in lines:
        if not bundles or len(line) > room:
            bundles.append([])
            room = BLOCK
        bundles[-1].append(line)
        room -= len(line)
    return bundles


def _smooth_together(lines: Sequence[Tensor], kernel: Tensor, boundary: Boundary) -> list[Tensor]:
    """Smooth lines as if they were one, then set right what reaches over their ends."""
    lengths, size = tuple(line.numel() for line in lines), len(kernel)
    joined = torch.cat(list(lines)) if len(lines) > 1 else lines[0]
    smoothed = torch.empty_like(joined)
    _weigh(_views(joined, size), kernel, out=smoothed[size // 2 : len(joined) - size // 2])
    edges, neighbours = _edges(lengths, size, boundary, joined.device)
    windows = joined.index_select(0, neighbours).view(size, -1)
    smoothed.index_copy_(0, edges, torch.mv(windows.t(), kernel))
    return list(smoothed.split_with_sizes(lengths))


def _weigh(copies: Sequence[Tensor], taps: Tensor, out: Tensor) -> None:
    """The sum of vectors, each weighed with its tap, into ``out``."""
    first, *others = taps.unbind()
    if torch.compiler.is_compiling():  # it makes one loop of this, but not of additions in place
        out.copy_(sum((copy * tap for copy, tap in zip(copies[1:], others, strict=True)), copies[0] * first))
        return
    # Not in blocks on accelerators, whose cost is in calls.
    whole = out.device.type != "cpu" or len(out) <= BLOCK
    for start in range(0, len(out), len(out) if whole else BLOCK):
        block, copy, *copies_of_block = (
            (out, *copies) if whole else (vector[start : start + BLOCK] for vector in (out, *copies))
        )
        torch.mul(copy, first, out=block)
        for copy, tap in zip(copies_of_block, others, strict=True):
            block.addcmul_(copy, tap)


def _dots(a: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The inner product of a vector with each of the others."""
    # torch.dot is eight times slower where one of the vectors is not aligned.
    row = a.unsqueeze(0)
    return torch.cat([torch.mv(row, other) for other in others])


def _windows_at_ends(lines: Sequence[Tensor], size: int, boundary: Boundary) -> Tensor:
    """What the taps see at the ends of lines: ``(lines, size, 3 (size - 1))``.

    First, at the edges, ``size - 1`` positions where a tap reaches over an end. Then ``size - 1`` windows over the
    first end and as many over where the last ``size - 1`` elements begin, with zeros for what is not at the ends: by
    :func:`_window_signs`, they make the difference between the products of views of a line and those of its copies.
    """
    reach = size - 1
    ends = torch.stack([torch.cat([line[:reach], line[len(line) - reach :]]) for line in lines])
    places = _places_at_ends(size, boundary, ends.device)
    return torch.constant_pad_nd(ends, (0, 1)).index_select(1, places).view(len(lines), size, 3 * reach)


@lru_cache(maxsize=256)
def _places_at_ends(size: int, boundary: Boundary, device: torch.device) -> Tensor:
    """Where in a line's two ends and a zero after them the elements of :func:`_windows_at_ends` stand."""
    reach, radius = size - 1, size // 2
    # At the ends, a line is as if it were no longer than the two.
    length, zero = 2 * reach, 2 * reach
    neighbours = _neighbours((length,), size, boundary, torch.device("cpu")).view(size, -1)
    taps = torch.arange(size).unsqueeze(1)
    first, last = torch.arange(-reach, 0) + taps, torch.arange(0, reach) + taps
    windows = [
        neighbours[:, :radius],
        neighbours[:, length - radius : length],
        first.masked_fill(first < 0, zero),
        last.masked_fill(last < reach, zero),
    ]
    return torch.cat(windows, 1).flatten().to(device)


@lru_cache(maxsize=256)
def _window_signs(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Which of :func:`_windows_at_ends` count, 1, and which were counted too many, -1."""
    signs = torch.ones(3, size - 1, dtype=dtype)
    signs[1] = -1
    return signs.flatten().to(device)


@lru_cache(maxsize=256)
def _distances(size: int, device: torch.device) -> Tensor:
    """The distance of each two taps, row by row."""
    taps = torch.arange(size)
    return (taps[:, None] - taps).abs().flatten().to(device)


@lru_cache(maxsize=256)
def _as_tensor(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A column of numbers."""
    return torch.tensor(numbers, dtype=dtype, device=device).unsqueeze(1)


@lru_cache(maxsize=256)
def _edges(lengths: tuple[int, ...], size: int, boundary: Boundary, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in lines end to end a tap reaches over an end, and, tap by tap, where the neighbours there stand."""
    radius, edges, neighbours = size // 2, [], []
    for length, start in zip(lengths, accumulate(lengths, initial=0), strict=False):
        for position in (*range(radius), *range(length - radius, length)):
            edges.append(start + position)
            neighbours.append([start + _source(position + tap - radius, length, boundary) for tap in range(size)])
    places = torch.tensor(neighbours, dtype=torch.long).view(-1, size).T.flatten()
    return torch.tensor(edges, dtype=torch.long, device=device), places.to(device)


@lru_cache(maxsize=256)
def _neighbours(lengths: tuple[int, ...], size: int, boundary: Boundary, device: torch.device) -> Tensor:
    """Where in lines end to end, and a zero after them, the neighbours stand that each tap weighs.

    Line by line and tap by tap, for as many positions as the longest line has.
    """
    radius, zero, longest = size // 2, sum(lengths), max(lengths)
    places = torch.full((len(lengths), size, longest), zero)
    for of_line, length, start in zip(places, lengths, accumulate(lengths, initial=0), strict=False):
        sources = [_source(position, length, boundary) for position in range(-radius, length + radius)]
        of_line[:, :length] = start + torch.tensor(sources, dtype=torch.long).unfold(0, length, 1)
    return places.flatten().to(device)
