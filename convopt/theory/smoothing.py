"""Convolving a gradient with a kernel, and what a loss of the taps needs to know of the gradient.

Throughout, "convolve" is what ``torch.nn.functional.conv1d`` does: ``(W * g)[n] = sum_i w_i g[n + i - c]`` with
centre ``c``. For the symmetric kernels that smoothing is about, it makes no difference. Beyond its edges a gradient
``[a, b, c, d]`` goes on

- by "reflect" to ``c b | a b c d | c b``, as in the original proposal and the optimizers, not a symmetric matrix;
- by "symmetric" (half-sample symmetric, as the DCT-II sees it) to ``b a | a b c d | d c``;
- by "circular" (as the FFT sees it) to ``c d | a b c d | a b``.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from convopt.theory._ambient import in_full_precision
from convopt.theory.kernels import check_size

Boundary = Literal["reflect", "symmetric", "circular"]

Positions = TypeVar("Positions", int, Tensor)


def smooth(gradient: Tensor, kernel: Tensor, boundary: Boundary = "reflect") -> Tensor:
    """Convolve a gradient with a kernel: ``W * g = sum_i w_i shift_i g``.

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
    _check_fits(gradient, kernel.shape[0], kernel.ndim, boundary)
    axes = range(-kernel.ndim, 0)
    copies = [extended(at_least_float32(gradient), kernel.shape[0] // 2, axes, boundary)]
    for axis in axes:
        copies = [copy.narrow(axis, i, gradient.shape[axis]) for copy in copies for i in range(kernel.shape[0])]
    smoothed = torch.zeros_like(copies[0])
    for tap, copy in zip(kernel.to(smoothed.dtype).flatten(), copies, strict=True):
        smoothed = smoothed + tap * copy
    return smoothed


def extended(field: Tensor, radius: int, axes: Sequence[int], boundary: Boundary) -> Tensor:
    """A tensor with what lies up to ``radius`` positions beyond either end of each of ``axes``."""
    for axis in axes:
        length = field.shape[axis]
        before, after = (
            [field.narrow(axis, source(position, length, boundary), 1) for position in outside]
            for outside in (range(-radius, 0), range(length, length + radius))
        )
        field = torch.cat([*before, field, *after], axis)
    return field


def source(position: Positions, length: int, boundary: Boundary) -> Positions:
    """Where along an axis the value at a position stands that may be up to ``length`` outside of it."""
    if boundary == "circular":
        return position % length

    def mirrored(at: Positions) -> Positions:
        """Each position before the first one at that on the other side of the edge; "symmetric" repeats the first."""
        return abs(at) if boundary == "reflect" else (abs(2 * at + 1) - 1) // 2

    last = length - 1
    return last - mirrored(last - mirrored(position))


def smoothing_matrix(kernel: Tensor, shape: Sequence[int], boundary: Boundary = "reflect") -> Tensor:
    """The matrix K with ``K g = W * g`` for flattened gradients of ``shape``: float64, ``(numel, numel)``.

    No gradient is turned uphill, to first order, if and only if the symmetric part of K is positive semidefinite.
    ValueError as for :func:`smooth`.
    """
    units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64, device="cpu")
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


@in_full_precision
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
    if target.shape != gradient.shape:
        raise ValueError(f"target must have the gradient's shape {tuple(gradient.shape)}, got {tuple(target.shape)}")
    axes = range(-min(gradient.ndim, 2), 0)
    _check_fits(gradient, size, max(1, len(axes)), boundary)
    # A vector is an image of one row under a kernel of one row.
    height, width = (1, *gradient.shape) if gradient.ndim == 1 else gradient.shape[-2:]
    rows = 1 if gradient.ndim == 1 else size
    padded = extended(at_least_float32(gradient), size // 2, axes, boundary)
    padded = padded.reshape(-1, height + rows - 1, width + size - 1)
    targets = at_least_float32(target).reshape(-1, height, width)
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


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in the precision of all arithmetic here: float64 as it is, everything else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def check_same_shape(**gradients: Tensor) -> None:
    """Raise ValueError unless all have one shape; it names them."""
    if len({gradient.shape for gradient in gradients.values()}) > 1:
        shapes = " and ".join(f"{name} {tuple(gradient.shape)}" for name, gradient in gradients.items())
        raise ValueError(f"gradients must have one shape, got {shapes}")


def _check_fits(gradient: Tensor, size: int, ndim: int, boundary: str) -> None:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary must be one of {', '.join(get_args(Boundary))}, got {boundary!r}")
    if gradient.ndim < ndim or min(gradient.shape[-ndim:]) < size or 0 in gradient.shape:
        raise ValueError(
            f"gradient must have at least {size} elements along each smoothed axis for {size} taps, got "
            f"{tuple(gradient.shape)}"
        )
