"""Smoothing kernels and their frequency response.

A kernel is a tensor of taps: shape ``(k,)`` smooths along one axis, ``(k, k)`` along two; ``k`` is odd and
the taps of an averaging kernel sum to 1, so that a constant gradient passes unchanged.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convopt.theory._ambient import in_full_precision


def check_size(size: int, name: str = "kernel_size") -> int:
    """Return ``size`` if it is an odd positive int, which alone has a centre tap; else raise ValueError."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ValueError(f"{name} must be an odd positive integer, got {size!r}")
    return size


def uniform(size: int, ndim: int = 1) -> Tensor:
    """The box kernel, float32, shape ``(size,) * ndim``: every tap equal. Its response dips below zero."""
    check_size(size, "size")
    return torch.full((size,) * ndim, 1.0 / size**ndim, dtype=torch.float32, device="cpu")


def gaussian(size: int, ndim: int = 1, sigma: float | None = None) -> Tensor:
    """A Gaussian sampled at integer distances and normalised, float32, shape ``(size,) * ndim``.

    ``sigma`` is in taps and defaults to ``size / 4``, so that the kernel ends near two standard deviations.
    """
    check_size(size, "size")
    sigma = size / 4 if sigma is None else sigma
    _check_positive("sigma", sigma)
    distance = _positions(size) - size // 2
    profile = torch.exp(-(distance**2) / (2 * sigma**2))
    return _separable(profile / profile.sum(), ndim)


def binomial(size: int, ndim: int = 1) -> Tensor:
    """Row ``size - 1`` of Pascal's triangle over its sum ([1 2 1]/4 at size 3), float32, ``(size,) * ndim``.

    Its response is ``cos(omega / 2) ** (size - 1)`` along each axis, which is never negative.
    """
    check_size(size, "size")
    row = torch.tensor([math.comb(size - 1, i) for i in range(size)], dtype=torch.float64, device="cpu")
    return _separable(row / row.sum(), ndim)


def laplacian(size: int, ndim: int = 1, sigma: float = 1.0) -> Tensor:
    """The kernel of Laplacian smoothing, cut to ``size`` taps, float32, ``(size,) * ndim``; along each axis in turn.

    The inverse of ``I - sigma * Laplacian`` weighs a neighbour at distance d by :func:`decay_ratio` to the power of d.
    Its response :func:`laplacian_response` is positive; that of the cut kernel need not be where the last tap is not
    small.

    Args:
        size: taps along each axis, odd.
        ndim: axes.
        sigma: strength, positive, in taps squared.

    Source: Osher et al., Laplacian Smoothing Gradient Descent (arXiv:1806.06317), equation 4.
    """
    check_size(size, "size")
    profile = decay_ratio(sigma) ** (_positions(size) - size // 2).abs()
    return _separable(profile / profile.sum(), ndim)


def decay_ratio(sigma: float) -> float:
    """By how much Laplacian smoothing weighs a neighbour less than the one before it, in (0, 1).

    ``(2 sigma + 1 - sqrt(4 sigma + 1)) / (2 sigma)``. ValueError unless ``sigma`` is positive.
    """
    _check_positive("sigma", sigma)
    return 2 * sigma / (2 * sigma + 1 + math.sqrt(4 * sigma + 1))  # the same without cancellation


def laplacian_response(frequencies: Tensor, sigma: float = 1.0) -> Tensor:
    """``1 / (1 + 2 sigma (1 - cos omega))``, the response of Laplacian smoothing with all its taps.

    ``frequencies`` are in radians per tap, any shape; ``sigma`` is positive. Source: as for :func:`laplacian`.
    """
    _check_positive("sigma", sigma)
    return 1 / (1 + 2 * sigma * (1 - torch.cos(frequencies)))


def identity(size: int, ndim: int = 1) -> Tensor:
    """The kernel that changes nothing, float32, shape ``(size,) * ndim``: 1 at the centre, 0 elsewhere."""
    check_size(size, "size")
    centre = torch.zeros(size, dtype=torch.float64, device="cpu")
    centre[size // 2] = 1
    return _separable(centre, ndim)


NAMED_KERNELS = {
    "uniform": uniform,
    "gaussian": gaussian,
    "binomial": binomial,
    "laplacian": laplacian,
    "identity": identity,
}


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def _separable(profile: Tensor, ndim: int) -> Tensor:
    """The outer product of ``profile`` with itself, ``ndim`` times, as float32."""
    kernel = profile
    for _ in range(ndim - 1):
        kernel = kernel.unsqueeze(-1) * profile
    return kernel.float()


def _positions(end: int, start: int = 0) -> Tensor:
    return torch.arange(start, end, dtype=torch.float64, device="cpu")


def clip_to_simplex(kernel: Tensor) -> Tensor:
    """Clip taps at zero and divide by their sum over the last axis, without reading a value back from the device.

    This is LocalLossConvSGD's rule. It lands on the simplex but is not the Euclidean projection. A kernel
    without a positive tap becomes the uniform one.
    """
    clipped = kernel.clamp_min(0)
    total = clipped.sum(-1, keepdim=True)
    return torch.where(total == 0, 1 / kernel.shape[-1], clipped / total)


@in_full_precision
def from_logits(logits: Tensor) -> Tensor:
    """The softmax over all taps: a kernel on the simplex, of the shape of ``logits``. Its taps are positive."""
    return torch.softmax(logits.reshape(-1), 0).view(logits.shape)


@in_full_precision
def frequency_response(kernel: Tensor, *frequencies: Tensor) -> Tensor:
    """The real part of a kernel's response: ``sum_i w_i cos(omega . (i - centre))``.

    Args:
        kernel: taps, shape ``(k,)`` or ``(k, k)``.
        frequencies: angular frequencies in radians per tap, 0 to pi, one tensor for each axis of the kernel; of any
            shapes that broadcast.

    Returns:
        Tensor of the broadcast shape of ``frequencies`` in their dtype. For a symmetric kernel this is the factor by
        which smoothing scales that frequency. Where it is negative, the smoothed gradient points uphill.

    Raises:
        ValueError: there is not one tensor of frequencies for each axis.
    """
    if kernel.ndim != len(frequencies) or kernel.ndim not in (1, 2):
        raise ValueError(
            f"kernel must have one or two axes and one tensor of frequencies for each, got shape "
            f"{tuple(kernel.shape)} and {len(frequencies)}"
        )
    frequencies = torch.broadcast_tensors(*frequencies)  # type: ignore[no-untyped-call]
    distances = torch.cartesian_prod(*[_positions(size) - size // 2 for size in kernel.shape]).view(-1, kernel.ndim)
    phases = torch.stack(frequencies, -1) @ distances.T.to(frequencies[0])
    return torch.cos(phases) @ kernel.reshape(-1).to(frequencies[0])


LOWEST = 16
"""Of the grid's points, how many are looked at more closely, beside all that are lower than their neighbours."""


def minimum_response(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest point of the frequency response of a kernel that is symmetric along each axis.

    Args:
        kernel: taps, shape ``(k,)`` or ``(k, k)``, k odd.

    Returns:
        The minimum over all frequencies from 0 to pi, 0-dim, to about 1e-9 of the sum of the absolute taps, and the
        frequencies where it is taken, in radians per tap, ``(kernel.ndim,)``; both float64.

    Raises:
        ValueError: the kernel is not finite or not symmetric along each axis.
    """
    kernel = check_symmetric(kernel)
    # The response is a trigonometric polynomial of degree k // 2: on this grid every valley spans several points, and a
    # minimum lies at most ``slack`` below the point of the grid next to it.
    points = 8 * kernel.shape[0] + 1
    spacing = torch.pi / (points - 1)
    wavering = kernel.abs().sum() - kernel.flatten()[kernel.numel() // 2].abs()
    slack = kernel.ndim * wavering * (spacing * (kernel.shape[0] // 2) / 2) ** 2 / 2
    along = torch.linspace(0, torch.pi, points, dtype=torch.float64, device="cpu")
    grid = torch.meshgrid(*[along] * kernel.ndim, indexing="ij")
    values = frequency_response(kernel, *grid)
    neighbourhood = F.max_pool2d(-values.reshape(1, points, -1), 3, stride=1, padding=1).view_as(values)
    low = (values <= values.min() + slack).flatten()
    bottoms = ((-values).flatten() >= neighbourhood.flatten()).logical_and_(low).nonzero().squeeze(1)
    # A narrow valley across the grid may have its lowest point where the grid has no bottom.
    lowest = values.flatten().topk(min(LOWEST, int(low.sum())), largest=False).indices
    bottoms = torch.cat([bottoms, lowest])
    if wavering == 0:
        bottoms = bottoms[:1]
    starts = torch.stack([axis.flatten()[bottoms] for axis in grid], 1)
    ends = torch.cat([_descend_response(kernel, some, spacing) for some in torch.split(starts, 256)])
    values = frequency_response(kernel, *ends.T)
    return values.min(), ends[values.argmin()]


MOVES = 8
"""How often a point may move along a valley before smaller steps are taken."""


def _descend_response(kernel: Tensor, frequencies: Tensor, spacing: float) -> Tensor:
    """The lowest points of the response within about ``spacing`` of each of ``frequencies``, ``(n, kernel.ndim)``."""
    offsets = torch.cartesian_prod(*[torch.linspace(-1, 1, 9, dtype=torch.float64, device="cpu")] * kernel.ndim)
    while spacing > 1e-6:
        for _ in range(MOVES):
            nearby = (frequencies.unsqueeze(1) + spacing * offsets.view(-1, kernel.ndim)).clamp(0, torch.pi)
            lowest = frequency_response(kernel, *nearby.unbind(-1)).argmin(1)
            before, frequencies = frequencies, nearby.take_along_dim(lowest[:, None, None], 1).squeeze(1)
            if (frequencies - before).abs().max() < spacing:  # no end of a stretch was the lowest: it lies within
                break
        spacing /= 4
    return frequencies


def is_positive_semidefinite(kernel: Tensor, tolerance: float = 1e-7) -> bool:
    """Whether smoothing with the kernel never turns a gradient uphill: ``<g, W * g> >= 0`` for every g.

    Meant for circular and for symmetric boundaries, on tensors of any size, where it says that the response is nowhere
    negative. Padding by reflection breaks it: see ``smoothing_matrix``.

    Args:
        kernel: taps, shape ``(k,)`` or ``(k, k)``, k odd, symmetric along each axis.
        tolerance: how far below zero the response may dip, relative to the sum of the absolute taps.

    Raises:
        ValueError: the kernel is not finite or not symmetric along each axis.
    """
    return bool(minimum_response(kernel)[0] >= -tolerance * kernel.double().abs().sum())


def ascent_gradient(kernel: Tensor) -> Tensor | None:
    """A gradient g that smoothing turns uphill, ``<g, W * g> < 0``, under circular and under symmetric boundaries.

    Args:
        kernel: taps, shape ``(k,)`` or ``(k, k)``, k odd, symmetric along each axis.

    Returns:
        A wave of a frequency where the response is negative, float64, with as many axes as the kernel; None if the
        kernel is positive semidefinite.

    Raises:
        ValueError: the kernel is not finite or not symmetric along each axis.
    """
    if is_positive_semidefinite(kernel):
        return None
    kernel, frequencies = check_symmetric(kernel), minimum_response(kernel)[1]
    longest = 8 * kernel.shape[0]
    while True:
        lengths, waves = zip(
            *[_fitting_wave(frequency, 2 * kernel.shape[0], longest) for frequency in frequencies], strict=True
        )
        if frequency_response(kernel, *waves) < 0:
            break
        longest *= 2
    profiles = [torch.cos(wave * (_positions(length) + 0.5)) for wave, length in zip(waves, lengths, strict=True)]
    return profiles[0] if kernel.ndim == 1 else torch.outer(*profiles)


def _fitting_wave(frequency: Tensor, shortest: int, longest: int) -> tuple[int, Tensor]:
    """A length in this range and the frequency nearest to ``frequency`` of which whole periods fit it.

    Such a wave, short of the highest frequency, goes on as itself beyond circular and symmetric boundaries.
    """
    lengths = _positions(longest + 1, shortest)
    periods = (frequency * lengths / (2 * torch.pi)).round().minimum((lengths - 1) // 2)
    waves = 2 * torch.pi * periods / lengths
    nearest = (waves - frequency).abs().argmin()
    return int(lengths[nearest]), waves[nearest]


def project_positive_semidefinite(kernel: Tensor) -> Tensor:
    """The nearest kernel of the same size, in the Euclidean norm, whose response is nowhere negative, rescaled.

    The kernels whose response is non-negative form a cone; the projection onto it is a non-negative least-squares
    problem, whose unknowns are the multipliers of the frequencies where the response is negative. They are added one
    by one, the worst first. What is left of the negative response is removed by adding to the centre tap, and the
    result is scaled to the sum of ``kernel``: the nearest to about 1e-5, and safe. Needs scipy, which ``convopt[lab]``
    installs.

    Args:
        kernel: taps, shape ``(k,)`` or ``(k, k)``, k odd, symmetric along each axis, with a positive sum.

    Returns:
        Tensor of the kernel's shape and dtype; the kernel itself where it is positive semidefinite.

    Raises:
        ValueError: the kernel is not of floating point, not finite, not symmetric along each axis, its sum is not
            positive, or the nearest such kernel is zero.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    if not kernel.is_floating_point():
        raise ValueError(f"kernel must have a floating-point dtype, got {kernel.dtype}")
    if is_positive_semidefinite(kernel, tolerance=0):
        return kernel.clone()
    taps = check_symmetric(kernel)
    if not taps.sum() > 0:
        raise ValueError(f"kernel must have a positive sum, got {kernel}")
    distances = _positions(taps.shape[0]) - taps.shape[0] // 2
    waves, nearest = [], taps
    for _ in range(100):
        lowest, frequencies = minimum_response(nearest)
        if lowest > -1e-9 * taps.abs().sum():
            break
        profiles = torch.cos(frequencies.unsqueeze(1) * distances)
        waves.append(profiles[0] if taps.ndim == 1 else torch.outer(*profiles))
        violated = torch.stack(waves).flatten(1)
        multipliers, _ = nnls(-violated.T.numpy(), taps.flatten().numpy())
        nearest = taps + (torch.from_numpy(multipliers) @ violated).view(taps.shape)
    nearest.view(-1)[taps.numel() // 2] += (-minimum_response(nearest)[0]).clamp_min(0)
    if nearest.sum() <= 1e-9 * taps.abs().sum():
        raise ValueError(f"kernel has no positive semidefinite kernel near it but zero, got {kernel}")
    return (nearest * (taps.sum() / nearest.sum())).to(kernel)


def check_symmetric(kernel: Tensor) -> Tensor:
    """The kernel in float64 on the CPU; ValueError unless it is finite, symmetric along each axis and of odd size."""
    if kernel.ndim not in (1, 2) or len(set(kernel.shape)) != 1:
        raise ValueError(f"kernel must have shape (k,) or (k, k), got {tuple(kernel.shape)}")
    check_size(kernel.shape[0], "the kernel's size")
    taps = kernel.detach().to("cpu", torch.float64)
    largest = taps.abs().max()
    if not largest.isfinite():
        raise ValueError(f"kernel must be finite, got {kernel}")
    if any((taps - taps.flip(axis)).abs().max() > 1e-6 * largest for axis in range(taps.ndim)):
        raise ValueError(f"kernel must be symmetric along each axis, got {kernel}")
    return taps
