"""Convolving a gradient with a kernel, and the derivative of that with respect to the taps.

Throughout, "convolve" is what ``torch.nn.functional.conv1d`` does: ``(W * g)[n] = sum_i w_i g[n + i - c]`` with
centre ``c``. For the symmetric kernels that smoothing is about, it makes no difference. Beyond its edges a gradient
goes on by reflection (the README's choice, torch's "reflect": the edge value is not repeated).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

CACHE = 2**19
"""Elements, 2 MiB of float32: what the second-level cache of one core holds."""


class Shifts(ABC):
    """The copies of a gradient, shifted by one position per tap, that a kernel averages.

    The copies are the rows of a few matrices, so that smoothing is one matrix-vector product per matrix and the
    derivative with respect to its taps another. Where one copy for each shift along the last axis fits the cache,
    they are made and each matrix holds ``size`` of them; else each matrix is one view of the gradient. On one core
    both are ten times faster than ``conv2d`` with a single channel, and no value is read back from the device.
    Half precision is computed in float32.
    """

    def __init__(self, buffer: Tensor, size: int, rows: int, row: int):
        # One copy runs over everything. What is computed in the gutters between rows or lines is cut off.
        length = buffer.numel() - size + 1
        self._span = length - (rows - 1) * row
        self._dtype = buffer.dtype
        if size * length <= CACHE:
            copies = buffer.as_strided((size, length), (1, 1)).contiguous()
            self._matrices = [copies[:, i * row : i * row + self._span] for i in range(rows)]
        else:
            views = buffer.as_strided((rows, size, 1, self._span), (row, 1, self._span, 1))
            self._matrices = [view for one_row in views.unbind() for view in one_row.unbind()]

    @abstractmethod
    def _crop(self, flat: Tensor) -> list[Tensor]:
        """Views of the gradients' places in a flat tensor of the span."""

    def smooth(self, kernel: Tensor) -> list[Tensor]:
        """``W * g`` of each gradient, in its shape and in float32 (float64 where it is float64)."""
        taps = kernel.to(self._dtype).reshape(len(self._matrices), -1).unbind()
        total = torch.mv(self._matrices[0].t(), taps[0])
        for copies, weights in zip(self._matrices[1:], taps[1:], strict=True):
            total.addmv_(copies.t(), weights)
        return self._crop(total)

    def correlate(self, others: Sequence[Tensor]) -> Tensor:
        """``sum over the gradients of <other, shift_i g>`` for each tap ``i``, a vector.

        This is the adjoint of ``smooth`` as a map of the taps: if ``l`` is a loss of the smoothed gradients and
        ``others`` its derivatives there, the result is the exact gradient of ``l`` with respect to the taps.
        """
        spread = self._matrices[0].new_zeros(self._span)
        for place, other in zip(self._crop(spread), others, strict=True):
            place.copy_(other.reshape(place.shape))
        # mv even of one row, because torch.dot is eight times slower where a view is not aligned.
        return torch.cat([torch.mv(copies, spread) for copies in self._matrices])


class LineShifts(Shifts):
    """Shifts along one axis of one or more vectors, which one buffer holds end to end.

    Args:
        lines: vectors of one dtype and device, each at least ``size`` long.
        size: taps, odd.

    Raises:
        ValueError: a vector is shorter than the kernel.
    """

    def __init__(self, lines: Sequence[Tensor], size: int):
        lengths = tuple(line.numel() for line in lines)
        if min(lengths) < size:
            raise ValueError(
                f"vectors of lengths {lengths} were given for a kernel of {size} taps, expected no shorter ones"
            )
        radius = size // 2
        dtype = _arithmetic_dtype(lines[0])
        gap = lines[0].new_empty(2 * radius, dtype=dtype)
        pieces = [gap[:radius]]
        for line in lines:
            pieces += [line.to(dtype), gap]
        pieces[-1] = gap[:radius]
        buffer = torch.cat(pieces)
        margins, sources = _reflection(lengths, radius, buffer.device)
        buffer.index_copy_(0, margins, buffer.index_select(0, sources))
        super().__init__(buffer, size, rows=1, row=0)
        self._sections = [section for length in lengths for section in (length, 2 * radius)][:-1]

    def _crop(self, flat: Tensor) -> list[Tensor]:
        return list(flat.split_with_sizes(self._sections)[::2])


class PictureShifts(Shifts):
    """Shifts along the last two axes of one or more tensors, which one buffer holds one below the other.

    Args:
        pictures: tensors of one dtype and device and any memory layout, of shapes ``(..., H, W)`` with one common
            W, H and W at least ``size``.
        size: taps along each of the two axes, odd.

    Raises:
        ValueError: the kernel is larger than a picture, or widths differ.
    """

    def __init__(self, pictures: Sequence[Tensor], size: int):
        self._shapes = [picture.shape for picture in pictures]
        if any(len(shape) < 2 or min(shape[-2:]) < size or shape[-1] != self._shapes[0][-1] for shape in self._shapes):
            raise ValueError(
                f"tensors of shapes {[tuple(shape) for shape in self._shapes]} were given for a kernel of "
                f"{size} x {size} taps, expected no less along their last two axes and one common width"
            )
        dtype, radius = _arithmetic_dtype(pictures[0]), size // 2
        padded = [
            F.pad(picture.to(dtype).reshape(1, -1, *picture.shape[-2:]), (radius,) * 4, mode="reflect")[0]
            for picture in pictures
        ]
        self._padded_shapes = [stack.shape for stack in padded]
        super().__init__(_join(padded), size, rows=size, row=padded[0].shape[-1])

    def _crop(self, flat: Tensor) -> list[Tensor]:
        places, start = [], 0
        for shape, (count, height, row) in zip(self._shapes, self._padded_shapes, strict=True):
            stack = flat.as_strided((count, *shape[-2:]), (height * row, row, 1), start)
            places.append(stack.view(shape))
            start += count * height * row
        return places


def _join(tensors: list[Tensor]) -> Tensor:
    """The elements of contiguous tensors end to end; of one tensor no copy."""
    flat = [tensor.view(-1) for tensor in tensors]
    return torch.cat(flat) if len(flat) > 1 else flat[0]


def smooth(gradient: Tensor, kernel: Tensor) -> Tensor:
    """Convolve a gradient with a kernel, beyond its edges continued by reflection.

    Args:
        gradient: floating-point tensor, ``(N,)`` for a kernel of shape ``(k,)``, ``(..., H, W)`` for ``(k, k)``.
        kernel: taps, k odd and at most the length of each smoothed axis.

    Returns:
        Tensor of the gradient's shape, float32 (float64 for a float64 gradient).

    Raises:
        ValueError: the shapes do not fit.
    """
    if kernel.ndim not in (1, 2) or len(set(kernel.shape)) != 1 or kernel.shape[0] % 2 == 0:
        raise ValueError(f"kernel must have shape (k,) or (k, k) with k odd, got {tuple(kernel.shape)}")
    if kernel.ndim == 1 and gradient.ndim != 1:
        raise ValueError(f"gradient must be a vector for a kernel of one axis, got shape {tuple(gradient.shape)}")
    size = kernel.shape[0]
    shifts = LineShifts([gradient], size) if kernel.ndim == 1 else PictureShifts([gradient], size)
    return shifts.smooth(kernel)[0]


def _arithmetic_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@lru_cache(maxsize=256)
def _reflection(lengths: tuple[int, ...], radius: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the margins in a buffer of lines with ``radius`` on either side, and of what they reflect."""
    margins, sources, start = [], [], radius
    for length in lengths:
        end = start + length - 1
        for distance in range(1, radius + 1):
            margins += [start - distance, end + distance]
            sources += [start + distance, end - distance]
        start += length + 2 * radius
    return torch.tensor(margins, device=device, dtype=torch.long), torch.tensor(
        sources, device=device, dtype=torch.long
    )
