"""Smoothing kernels and their frequency response.

A kernel is a tensor of taps: shape ``(k,)`` smooths along one axis, ``(k, k)`` along two; ``k`` is odd and
the taps of an averaging kernel sum to 1, so that a constant gradient passes unchanged.
"""

import math

import torch
from torch import Tensor


def check_size(size: int, name: str = "kernel_size") -> int:
    """Return ``size`` if it is an odd positive int, which alone has a centre tap; else raise ValueError."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ValueError(f"{name} must be an odd positive integer, got {size!r}")
    return size


def uniform(size: int, ndim: int = 1) -> Tensor:
    """The box kernel, float32, shape ``(size,) * ndim``: every tap equal. Its response dips below zero."""
    check_size(size, "size")
    return torch.full((size,) * ndim, 1.0 / size**ndim)


def gaussian(size: int, ndim: int = 1, sigma: float | None = None) -> Tensor:
    """A Gaussian sampled at integer distances and normalised, float32, shape ``(size,) * ndim``.

    ``sigma`` is in taps and defaults to ``size / 4``, so that the kernel ends near two standard deviations.
    """
    check_size(size, "size")
    sigma = size / 4 if sigma is None else sigma
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma!r}")
    distance = torch.arange(size, dtype=torch.float64) - size // 2
    profile = torch.exp(-(distance**2) / (2 * sigma**2))
    return _separable(profile / profile.sum(), ndim)


def binomial(size: int, ndim: int = 1) -> Tensor:
    """Row ``size - 1`` of Pascal's triangle over its sum ([1 2 1]/4 at size 3), float32, ``(size,) * ndim``.

    Its response is ``cos(omega / 2) ** (size - 1)`` along each axis, which is never negative.
    """
    check_size(size, "size")
    row = torch.tensor([math.comb(size - 1, i) for i in range(size)], dtype=torch.float64)
    return _separable(row / row.sum(), ndim)


def identity(size: int, ndim: int = 1) -> Tensor:
    """The kernel that changes nothing, float32, shape ``(size,) * ndim``: 1 at the centre, 0 elsewhere."""
    check_size(size, "size")
    centre = torch.zeros(size, dtype=torch.float64)
    centre[size // 2] = 1
    return _separable(centre, ndim)


NAMED_KERNELS = {"uniform": uniform, "gaussian": gaussian, "binomial": binomial, "identity": identity}


def _separable(profile: Tensor, ndim: int) -> Tensor:
    """The outer product of ``profile`` with itself, ``ndim`` times, as float32."""
    kernel = profile
    for _ in range(ndim - 1):
        kernel = kernel.unsqueeze(-1) * profile
    return kernel.float()


def clip_to_simplex(kernel: Tensor) -> Tensor:
    """Clip the taps at zero and divide by their sum, without reading a value back from the device.

    This is LocalLossConvSGD's rule. It lands on the simplex but is not the Euclidean projection. A kernel
    without a positive tap becomes the uniform one.
    """
    clipped = kernel.clamp_min(0)
    total = clipped.sum()
    return torch.where(total > 0, clipped / total, torch.full_like(kernel, 1 / kernel.numel()))


def frequency_response(kernel: Tensor, frequencies: Tensor) -> Tensor:
    """The real part of the response of a 1-D kernel: ``sum_i w_i cos(omega (i - centre))``.

    Args:
        kernel: taps, shape ``(k,)``.
        frequencies: angular frequencies in radians per tap, 0 to pi, any shape.

    Returns:
        Tensor of the shape of ``frequencies`` in its dtype. For a symmetric kernel this is the factor by which
        smoothing scales that frequency. Where it is negative, the smoothed gradient points uphill.
    """
    if kernel.ndim != 1:
        raise ValueError(f"kernel must be one-dimensional, got shape {tuple(kernel.shape)}")
    distance = torch.arange(kernel.numel(), dtype=frequencies.dtype) - kernel.numel() // 2
    return torch.cos(frequencies.unsqueeze(-1) * distance) @ kernel.to(frequencies.dtype)
