"""How ``W * g`` and its adjoint are made fast. For what they are, see :mod:`convopt.theory.smoothing`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from convopt.theory._ambient import constant, in_full_precision
from convopt.theory._ways import ways
from convopt.theory.smoothing import Boundary, ShiftStatistics, at_least_float32, source

SHORT = 2**12
"""Elements up to which gathering all shifted copies of a vector by index is cheaper than views of it."""

BLOCK = 2**17
"""Elements of a longer vector that one core smooths at a time: from tap to tap, they stay in its cache."""

PIECE = 2**19
"""Elements of a large gradient to smooth at a time, so that what is done with them finds them in the cache."""

CACHE = 2**19
"""Elements, 2 MiB of float32: up to here copies of images are cheaper than views, because they stay in the cache."""


class Shifts(ABC):
    """The copies of gradients, shifted by one position per tap, that a kernel averages.

    On one core they are ten times faster than ``conv1d`` and ``conv2d`` with a single channel. No value is read back
    from the device. Half precision is computed in float32.
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

    @property
    def _copies(self) -> Tensor:
        """Of the short lines, ``(short lines, size, length of the longest)``."""
        if self._gathered is None:
            lengths = tuple(self._lengths[i] for i in self._short)
            joined = torch.cat([*[self._lines[i] for i in self._short], self._lines[0].new_zeros(1)])
            neighbours = _neighbours(lengths, self._size, self._boundary, joined.device)
            self._gathered = joined.index_select(0, neighbours).view(len(lengths), self._size, -1)
        return self._gathered

    def _windows(self) -> Tensor:
        """What the taps see at the ends of the long lines: ``(long lines, size, 3 (size - 1))``.

        First, at the edges, ``size - 1`` positions where a tap reaches over an end. Then ``size - 1`` windows over the
        first end and as many over where the last ``size - 1`` elements begin, with zeros for what is not at the ends:
        by :func:`_window_signs`, they make the difference between the products of views of a line and of its copies.
        """
        reach, zero = self._size - 1, self._lines[0].new_zeros(1)
        lines = [self._lines[i] for i in self._long]
        ends = torch.stack([torch.cat([line[:reach], line[len(line) - reach :], zero]) for line in lines])
        places = _places_at_ends(self._size, self._boundary, ends.device)
        return ends.index_select(1, places).view(len(lines), self._size, 3 * reach)

    @in_full_precision
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
        kernels, smoothed = kernel.unbind(), list(self._lines)
        if self._short:
            own = torch.stack([kernels[i] for i in self._short]).unsqueeze(1)
            for i, (line,) in zip(self._short, torch.bmm(own, self._copies), strict=True):
                smoothed[i] = line[: self._lengths[i]]
        for i in self._long:
            (smoothed[i],) = _smooth_together([self._lines[i]], kernels[i], self._boundary)
        return smoothed

    @in_full_precision
    def correlate(self, others: Sequence[Tensor]) -> Tensor:
        """``sum over the lines of <other, shift_i g>`` for each tap ``i``, a vector."""
        others, radius = [other.reshape(-1) for other in others], self._size // 2
        parts = [torch.mv(self._copies[k, :, : self._lengths[i]], others[i]) for k, i in enumerate(self._short)]
        for i, windows in zip(self._long, self._windows() if self._long else (), strict=True):
            first, inner, last = others[i].tensor_split((radius, self._lengths[i] - radius))
            inside = _dots(inner, _views(self._lines[i], self._size))
            parts += [inside, torch.mv(windows[:, : 2 * radius], torch.cat([first, last]))]
        return torch.stack(parts).sum(0)

    @in_full_precision
    def statistics(self) -> ShiftStatistics:
        """The ``shift_statistics`` of each line, its own target, stacked: each field has a first axis of lines."""
        products, sums = list(self._lines), list(self._lines)
        if self._short:
            of_short = torch.bmm(self._copies, self._copies.mT), self._copies.sum(-1)
            for i, product, total in zip(self._short, *of_short, strict=True):
                products[i], sums[i] = product, total
        if self._long:
            for i, product, total in zip(self._long, *self._sums_of_long(), strict=True):
                products[i], sums[i] = product, total
        lengths = _column(self._lengths, products[0].dtype, products[0].device)
        means, mean_products = torch.stack(sums) / lengths, torch.stack(products) / lengths.unsqueeze(2)
        middle = mean_products[:, self._size // 2]
        return ShiftStatistics(mean_products, means, middle, middle[:, self._size // 2])

    def _sums_of_long(self) -> tuple[Tensor, Tensor]:
        """Of each long line the products of its copies, and their sums.

        Were a line shift-invariant, products would depend on the distance of the taps alone, and sums on nothing. What
        makes the difference is at the ends.
        """
        views = [_views(self._lines[i], self._size) for i in self._long]
        windows = self._windows()
        lagged = torch.stack([_dots(of_line[0], of_line) for of_line in views])
        total = torch.stack([of_line[0].sum() for of_line in views]).unsqueeze(1)
        signed = windows * _window_signs(self._size, windows.dtype, windows.device)
        toeplitz = lagged.index_select(1, _distances(self._size, lagged.device)).view(-1, self._size, self._size)
        return torch.baddbmm(toeplitz, windows, signed.mT), total + signed.sum(-1)


class ImageShifts(Shifts):
    """Shifts along the last two axes of one or more tensors, which one buffer holds one below the other.

    The copies are the rows of a few matrices. Where one copy for each shift along the last axis fits the cache, they
    are made, each matrix holds ``size`` of them, and smoothing is one matrix-vector product per matrix. Else each
    matrix is one view of the buffer, and smoothing one multiply-add per view. The derivative with respect to the taps
    is matrix-vector products either way.

    Args:
        images: tensors of one dtype and device and any memory layout, of shapes ``(..., H, W step)`` with one common
            W, H and W at least ``size``.
        size: taps along each of the two axes, odd.
        boundary: how each image goes on beyond its edges.
        step: how many elements apart neighbours along the last axis are: so many images are interleaved there.

    Raises:
        ValueError: the kernel is larger than an image, or widths differ.
    """

    def __init__(self, images: Sequence[Tensor], size: int, boundary: Boundary = "reflect", step: int = 1):
        self._shapes = [image.shape for image in images]
        width = self._shapes[0][-1:]
        if any(
            len(shape) < 2 or min(shape[-2], shape[-1] // step) < size or shape[-1:] != width or 0 in shape
            for shape in self._shapes
        ):
            raise ValueError(
                f"tensors of shapes {[tuple(shape) for shape in self._shapes]} were given for a kernel of "
                f"{size} x {size} taps, expected no less along their last two axes and one common width"
            )
        extend = ways().extend
        padded = [
            extend(at_least_float32(image).reshape(-1, *image.shape[-2:]), size // 2, boundary, step)
            for image in images
        ]
        self._padded_shapes = [stack.shape for stack in padded]
        buffer = torch.cat([stack.view(-1) for stack in padded]) if len(padded) > 1 else padded[0]
        self._matrices = _copies(buffer, size, row=padded[0].shape[-1], step=step)

    @in_full_precision
    def smooth(self, kernel: Tensor) -> list[Tensor]:
        """``W * g`` of each tensor, in its shape and in float32 (float64 where it is float64)."""
        first, *others = self._matrices
        kernel = kernel.to(first.dtype).reshape(-1)
        if len(first) == 1:
            total = first.new_empty(first.shape[1])
            ways().weigh([view.view(-1) for view in self._matrices], kernel, total, BLOCK)
        else:
            tap, *taps = kernel.view(len(self._matrices), -1).unbind()
            total = torch.mv(first.t(), tap)
            for copies, tap in zip(others, taps, strict=True):
                total.addmv_(copies.t(), tap)
        return self._crop(total)

    @in_full_precision
    def correlate(self, others: Sequence[Tensor]) -> Tensor:
        """``sum over the tensors of <other, shift_i g>`` for each tap ``i``, row by row, a vector."""
        return ways().correlate(self._matrices, others, self._crop)

    def _crop(self, flat: Tensor) -> list[Tensor]:
        """Views of the images' places in a flat tensor of the span."""
        places, start = [], 0
        for shape, (count, height, row) in zip(self._shapes, self._padded_shapes, strict=True):
            stack = flat[start:].as_strided((count, *shape[-2:]), (height * row, row, 1))
            places.append(stack.view(shape))
            start += count * height * row
        return places


class ShiftsInPieces(Shifts):
    """Shifts of one large gradient, reflected at its ends, a piece at a time, so that each stays in the core's cache.

    Args:
        gradient: ``(N,)``, shifted along its axis, or one image ``(H, W step)``, shifted along both.
        size: taps along each axis, odd and at most the length of each.
        step: as in :class:`ImageShifts`.
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
            if seen.ndim == 1 and len(seen) == place.stop - place.start + self._size - 1:  # no end is near
                line = at_least_float32(seen)
                smoothed = torch.empty_like(line[kept])
                ways().weigh(_views(line, self._size), kernel.to(line.dtype), smoothed, BLOCK)
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
        return LineShifts([seen], self._size) if seen.ndim == 1 else ImageShifts([seen], self._size, step=self._step)


def smooth_line(line: Tensor, kernel: Tensor) -> Tensor:
    """``W * g`` of one vector, reflected at its ends, in float32 (float64 where it is float64)."""
    return LineShifts([line], len(kernel)).smooth(kernel)[0]


def goes_in_pieces(tensor: Tensor) -> bool:
    """Whether a tensor is so large, and lies so, that going through it piece by piece in the core's cache pays."""
    return tensor.numel() > PIECE and ways().pieces and tensor.device.type == "cpu" and tensor.is_contiguous()


def _copies(buffer: Tensor, size: int, row: int, step: int) -> list[Tensor]:
    """The matrices of ``ImageShifts`` from a buffer of rows of ``row`` elements, for ``size`` x ``size`` taps."""
    # One copy runs over everything. What is computed in the gutters between rows is cut off.
    length = buffer.numel() - (size - 1) * step
    span = length - (size - 1) * row
    if size * length <= CACHE:
        copies = buffer.as_strided((size, length), (step, 1)).contiguous()
        return [copies[:, i * row : i * row + span] for i in range(size)]
    views = buffer.as_strided((size, size, 1, span), (row, step, span, 1))
    return [view for one_row in views.unbind() for view in one_row.unbind()]


def _views(line: Tensor, size: int) -> tuple[Tensor, ...]:
    """The copies of a line, but for the positions from where a tap reaches over an end."""
    return line.unfold(0, len(line) - size + 1, 1).unbind()


def _bundles(lines: Sequence[Tensor]) -> list[list[Tensor]]:
    """The lines in lists of no more elements than one core's cache holds, and of one line where that has more."""
    bundles, room = list[list[Tensor]](), 0
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
    ways().weigh(_views(joined, size), kernel, smoothed[size // 2 : len(joined) - size // 2], BLOCK)
    edges, neighbours = _edges(lengths, size, boundary, joined.device)
    windows = joined.index_select(0, neighbours).view(size, -1)
    smoothed.index_copy_(0, edges, torch.mv(windows.t(), kernel))
    return list(smoothed.split_with_sizes(lengths))


def _dots(a: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The inner product of a vector with each of the others."""
    # torch.dot is eight times slower where one of the vectors is not aligned.
    row = a.unsqueeze(0)
    return torch.cat([torch.mv(row, other) for other in others])


@constant(256)
def _places_at_ends(size: int, boundary: Boundary, device: torch.device) -> Tensor:
    """Where in a line's two ends and a zero after them the elements of ``_windows`` stand."""
    reach, length = size - 1, 2 * (size - 1)  # at the ends, a line is as if it were no longer than the two
    seen = _edges((length,), size, boundary, torch.device("cpu"))[1].view(size, -1)
    first = _range(-reach, 0) + _range(0, size).unsqueeze(1)
    last = first + reach
    windows = seen, first.masked_fill(first < 0, length), last.masked_fill(last < reach, length)
    return torch.cat(windows, 1).flatten().to(device)


@constant(256)
def _window_signs(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Which of ``_windows`` count, 1, and which were counted too many, -1."""
    return torch.tensor([1, -1, 1], dtype=dtype, device=device).repeat_interleave(size - 1)


@constant(256)
def _distances(size: int, device: torch.device) -> Tensor:
    """The distance of each two taps, row by row."""
    taps = _range(0, size)
    return (taps[:, None] - taps).abs().flatten().to(device)


@constant(256)
def _column(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device).unsqueeze(1)


@constant(256)
def _edges(lengths: tuple[int, ...], size: int, boundary: Boundary, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in lines end to end a tap reaches over an end, and, tap by tap, where the neighbours there stand."""
    radius, edges, neighbours = size // 2, [], []
    taps = _range(-radius, radius + 1).unsqueeze(1)
    for length, start in zip(lengths, accumulate(lengths, initial=0), strict=False):
        of_line = torch.cat([_range(0, radius), _range(length - radius, length)])
        edges.append(start + of_line)
        neighbours.append(start + source(of_line + taps, length, boundary))
    return torch.cat(edges).to(device), torch.cat(neighbours, 1).flatten().to(device)


@constant(256)
def _neighbours(lengths: tuple[int, ...], size: int, boundary: Boundary, device: torch.device) -> Tensor:
    """Where in lines end to end, and a zero after them, the neighbours stand that each tap weighs.

    Line by line and tap by tap, for as many positions as the longest line has.
    """
    taps, neighbours = _range(-(size // 2), size // 2 + 1).unsqueeze(1), []
    for length, start in zip(lengths, accumulate(lengths, initial=0), strict=False):
        of_line = start + source(_range(0, length) + taps, length, boundary)
        neighbours.append(torch.constant_pad_nd(of_line, (0, max(lengths) - length), sum(lengths)))
    return torch.cat(neighbours).flatten().to(device)


def _range(start: int, end: int) -> Tensor:
    return torch.arange(start, end, dtype=torch.long, device="cpu")
