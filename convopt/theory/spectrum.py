"""Gradients in the frequency domain of a grid: the orthonormal DCT-II, spectra, radial bins, Wiener's gain.

In the basis of the DCT-II along some axes, every kernel that is symmetric along each of them, under half-sample
symmetric boundaries, is a pointwise gain: its frequency response on the grid of :func:`frequencies`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from convopt.theory._ambient import constant, in_full_precision
from convopt.theory.kernels import check_symmetric, frequency_response
from convopt.theory.smoothing import at_least_float32


def frequencies(length: int) -> Tensor:
    """The frequencies of the DCT-II along an axis of ``length`` elements: ``pi i / length``, radians, float64."""
    return torch.pi / length * _positions(length)


@constant(64)
def dct_matrix(length: int) -> Tensor:
    """The orthonormal DCT-II as a matrix, ``(length, length)``, float64, row i the wave of frequency i. Only read it.

    Source: Strang, The Discrete Cosine Transform, SIAM Review 41(1), 1999.
    """
    if length < 1:
        raise ValueError(f"length must be positive, got {length!r}")
    waves = torch.cos(frequencies(length).unsqueeze(1) * (_positions(length) + 0.5))
    waves *= math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves


@in_full_precision
def dct(field: Tensor, axes: Sequence[int]) -> Tensor:
    """The orthonormal DCT-II of a floating-point tensor along ``axes``, in its shape and dtype; norms stay the same.

    ValueError for an axis that is out of range or given twice, and for integers.
    """
    for axis in _checked_axes(field, axes):
        matrix = dct_matrix(field.shape[axis]).to(field)
        field = (field.transpose(axis, -1) @ matrix.T).transpose(axis, -1)
    return field


@in_full_precision
def idct(spectrum: Tensor, axes: Sequence[int]) -> Tensor:
    """The inverse of :func:`dct` along ``axes``."""
    for axis in _checked_axes(spectrum, axes):
        matrix = dct_matrix(spectrum.shape[axis]).to(spectrum)
        spectrum = (spectrum.transpose(axis, -1) @ matrix).transpose(axis, -1)
    return spectrum


LONG = 256
"""From this length on an FFT transforms an axis faster than a product with a matrix, at 1024 ten times as fast."""


class LongBasis:
    """The orthonormal DCT-II of a long axis, by an FFT.

    Args:
        length: of the axis.
        dtype: float32 or float64, of what is transformed.
        device: of the same.

    Attributes:
        shape: that of :func:`dct_matrix`.

    Source: Makhoul, A fast cosine transform in one and two dimensions, IEEE Trans. ASSP 28(1), 1980.
    """

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device):
        self.shape = (length, length)
        every = torch.arange(length, device="cpu")
        half = every[: length // 2 + 1]
        angles = half.double() * (torch.pi / 2 / length)
        turns = torch.polar(torch.full_like(angles, math.sqrt(2)), angles)
        turns[0] = 1
        order = torch.cat([every[::2], every[1::2].flip(0)])
        # Frequency i is the real part of wave i, frequency length - i its imaginary one.
        pairs = torch.stack([half, -half % length], 1).flatten()
        places = torch.where(every < len(half), 2 * every, 2 * (length - every) + 1)
        self._order, self._order_back, self._pairs, self._places = (
            each.to(device) for each in (order, order.argsort(), pairs, places)
        )
        complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        self._turns, self._turns_back = (each.to(device, complex_dtype) for each in (turns, 1 / turns))

    def to_spectrum(self, rows: Tensor) -> Tensor:
        """Fields ``(n, length)``, as their spectra."""
        waves = torch.fft.ihfft(rows.index_select(1, self._order), norm="ortho") * self._turns
        return torch.view_as_real(waves).flatten(1).index_select(1, self._places)

    def to_fields(self, rows: Tensor) -> Tensor:
        """The inverse of :meth:`to_spectrum`."""
        waves = torch.view_as_complex(rows.index_select(1, self._pairs).view(len(rows), -1, 2)) * self._turns_back
        arranged: Tensor = torch.fft.hfft(waves, self.shape[0], norm="ortho")
        return arranged.index_select(1, self._order_back)


Basis = Tensor | LongBasis


def basis(length: int, dtype: torch.dtype, device: torch.device) -> Basis:
    """The DCT-II along an axis, for :func:`fields_to_spectrum`: its matrix, or for a long one what an FFT needs."""
    return LongBasis(length, dtype, device) if length >= LONG else dct_matrix(length).to(device, dtype)


@in_full_precision
def fields_to_spectrum(fields: Tensor, bases: Sequence[Basis]) -> Tensor:
    """Many fields at once in the basis of :func:`dct`, frequency by frequency.

    Args:
        fields: floating-point, any shape that consists of fields, one after the other.
        bases: for each axis of a field its :func:`basis`, in the dtype and on the device of the fields; or the first
            rows of its :func:`dct_matrix`, for its lowest frequencies alone.

    Returns:
        ``(frequencies, fields)``: a row holds one frequency of every field.
    """
    for along in reversed(bases):
        rows = fields.reshape(-1, along.shape[1])
        fields = along.to_spectrum(rows).T if isinstance(along, LongBasis) else along @ rows.T
    return fields.reshape(math.prod([along.shape[0] for along in bases]), -1)


@in_full_precision
def spectrum_to_fields(spectrum: Tensor, bases: Sequence[Basis]) -> Tensor:
    """The inverse of :func:`fields_to_spectrum`, with frequencies that the bases lack as zeros: ``(fields, *axes)``."""
    for along in bases:
        rows = spectrum.reshape(along.shape[0], -1).T
        spectrum = along.to_fields(rows) if isinstance(along, LongBasis) else rows @ along
    return spectrum.reshape(-1, *[along.shape[1] for along in bases])


def lowest_frequencies(energy: Tensor, neglected: float) -> list[int]:
    """For each axis, how many of its lowest frequencies hold all but a share ``neglected`` of the energy, at least one.

    Args:
        energy: not negative, at each frequency of a grid.
        neglected: in [0, 1); what lies above along any of the axes is no more than this share per axis.
    """
    lengths = []
    for axis in range(energy.ndim):
        along = energy.movedim(axis, 0).flatten(1).sum(1) if energy.ndim > 1 else energy
        above = along.flip(0).cumsum(0).flip(0)
        lengths.append(max(1, int((above > neglected * along.sum()).sum())))
    return lengths


def kernel_gain(kernel: Tensor, shape: Sequence[int]) -> Tensor:
    """The gain of a kernel symmetric along each axis on the DCT's frequencies of a grid: float64, ``shape``.

    ``kernel`` is ``(k,)`` or ``(k, k)``, ``shape`` has as many axes, each at least k long; ValueError otherwise, and
    where the kernel is not symmetric or not finite.
    """
    kernel = check_symmetric(kernel)
    if kernel.ndim != len(shape) or any(length < size for length, size in zip(shape, kernel.shape, strict=True)):
        raise ValueError(
            f"kernel must have as many axes as the grid {tuple(shape)} and be no longer, got shape "
            f"{tuple(kernel.shape)}"
        )
    return frequency_response(kernel, *torch.meshgrid(*[frequencies(length) for length in shape], indexing="ij"))


def apply_gain(field: Tensor, gain: Tensor) -> Tensor:
    """Scale each frequency along the trailing axes of ``field`` by ``gain``, in the field's shape and dtype.

    With a gain that is nowhere negative, the result never points uphill: its inner product with ``field`` is not
    negative.

    Args:
        field: floating-point, ``(..., *gain.shape)``.
        gain: factors on the DCT's frequencies.

    Raises:
        ValueError: the trailing axes are not those of the gain.
    """
    if gain.ndim == 0 or field.shape[-gain.ndim :] != gain.shape:
        raise ValueError(f"field must have trailing axes {tuple(gain.shape)}, got shape {tuple(field.shape)}")
    axes = range(-gain.ndim, 0)
    return idct(dct(field, axes) * gain.to(field), axes)


def cross_spectrum(a: Tensor, b: Tensor, axes: Sequence[int]) -> Tensor:
    """The product of two fields' DCTs along ``axes``, averaged over all other axes: in the order of ``axes``.

    With a and b two independent estimates of one gradient, each element's expectation is the power of the signal at
    that frequency, without bias; it may come out negative. In float32 (float64 for float64). ValueError for different
    shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"fields must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    axes = _checked_axes(a, axes)
    spectra = [dct(at_least_float32(field), axes) for field in (a, b)]
    product = (spectra[0] * spectra[1]).movedim(axes, tuple(range(-len(axes), 0)))
    return product.reshape(-1, *product.shape[-len(axes) :]).mean(0)


def power_spectrum(field: Tensor, axes: Sequence[int]) -> Tensor:
    """The square of a field's DCT along ``axes``, averaged over all other axes: the power of signal and noise."""
    return cross_spectrum(field, field, axes)


def radial_frequency(shape: Sequence[int]) -> Tensor:
    """``sqrt((i / H)^2 + (j / W)^2 + ...)`` on a grid, float64, ``shape``: 0 for the constant."""
    squares = [(_positions(length) / length).square() for length in shape]
    return torch.stack(torch.meshgrid(*squares, indexing="ij")).sum(0).sqrt()


def radial_bins(shape: Sequence[int], bins: int) -> Tensor:
    """Which of ``bins`` rings of equal width each frequency of a grid lies in: int64, ``shape``, 0 to ``bins - 1``.

    The rings part the radial frequencies from 0 to the largest. ValueError unless ``bins`` is positive.
    """
    if bins < 1:
        raise ValueError(f"bins must be positive, got {bins!r}")
    radius = radial_frequency(shape)
    scale = bins / radius.max() if radius.max() > 0 else 0.0
    # A frequency on the edge of two rings lies in the outer one, whatever the rounding.
    return (radius * scale + 1e-9).long().clamp_max(bins - 1)


def radial_mean(spectrum: Tensor, bins: Tensor, count: int) -> Tensor:
    """The mean of a spectrum over each ring, ``(count,)`` in its dtype; 0 for a ring that holds no frequency.

    Args:
        spectrum: any shape.
        bins: the ring of each frequency, in the spectrum's shape, see :func:`radial_bins`.
        count: number of rings.

    Raises:
        ValueError: shapes differ.
    """
    if spectrum.shape != bins.shape:
        raise ValueError(f"bins must have the spectrum's shape {tuple(spectrum.shape)}, got {tuple(bins.shape)}")
    ring = bins.flatten().to(spectrum.device)
    values = at_least_float32(spectrum).flatten()
    totals = values.new_zeros(count).index_add_(0, ring, values)
    return (totals / torch.bincount(ring, minlength=count).clamp_min(1)).to(spectrum.dtype)


class Bands(NamedTuple):
    """The frequencies of a grid, pooled to bands.

    Attributes:
        bases: for each axis the DCT as a matrix.
        pooling: ``(frequencies, bands)``: by it, a spectrum becomes its mean over each band.
        rings: of rings, the band of each frequency, int64, in the shape of the grid; else None.
        sizes: where bands are not rings, how many there are along each axis.
        weights: how many frequencies each band holds, ``(bands,)``.
        frequency: their mean frequency as a share of the Nyquist frequency, ``(bands,)``, on the CPU.
    """

    bases: tuple[Tensor, ...]
    pooling: Tensor
    rings: Tensor | None
    sizes: tuple[int, ...]
    weights: Tensor
    frequency: Tensor


@in_full_precision
def make_bands(shape: Sequence[int], radial: bool, dtype: torch.dtype, device: torch.device) -> Bands:
    """The bands of a grid: as many rings as its longer axis is long, or all frequencies along each axis by itself.

    Args:
        shape: the grid.
        radial: rings of the radial frequency; otherwise each axis by itself.
        dtype: of the bases; all else is float32.
        device: of all tensors but ``frequency``.

    The pooling of rings takes ``4 H W max(H, W)`` bytes, and to make it three times as much: 0.5 GB for 512 x 512.
    """
    bands: Sequence[Tensor]
    if radial:
        bands, radii, sizes = [radial_bins(shape, max(shape))], [radial_frequency(shape)], [max(shape)]
    else:
        bands = torch.meshgrid(*[_positions(length).long() for length in shape], indexing="ij")
        radii = [of_axis.float() / length for of_axis, length in zip(bands, shape, strict=True)]
        sizes = list(shape)
    members = [
        torch.nn.functional.one_hot(of_axis.flatten(), size).float() for of_axis, size in zip(bands, sizes, strict=True)
    ]
    weights = torch.cat([member.sum(0) for member in members])
    frequency = torch.cat([radius.flatten().float() @ member for radius, member in zip(radii, members, strict=True)])
    return Bands(
        bases=tuple(dct_matrix(length).to(device, dtype) for length in shape),
        pooling=(torch.cat(members, 1) / weights.clamp_min(1)).to(device),
        rings=bands[0].to(device) if radial else None,
        sizes=tuple(sizes),
        weights=weights.to(device),
        frequency=frequency / weights.clamp_min(1),
    )


def wiener_gain(signal_power: Tensor, total_power: Tensor) -> Tensor:
    """Wiener's filter, frequency by frequency: ``max(S, 0) / (S + N)``.

    Args:
        signal_power: S, an unbiased estimate, as of :func:`cross_spectrum`; any shape.
        total_power: S + N, as of :func:`power_spectrum`, same shape.

    Returns:
        The gain, not negative. It is the coherence of two estimates, SNR / (1 + SNR), and 0 where the power is 0. An
        estimate of S may exceed that of S + N; nothing is clipped at 1.

    Raises:
        ValueError: shapes differ.

    Source: Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949.
    """
    if signal_power.shape != total_power.shape:
        raise ValueError(f"powers must have one shape, got {tuple(signal_power.shape)} and {tuple(total_power.shape)}")
    return torch.where(total_power == 0, 0, signal_power.clamp_min(0) / total_power)


def energy_preserving(gain: Tensor, power: Tensor) -> Tensor:
    """The factor on a gain that leaves the total power of what it is applied to as it was: 0-dim.

    ``sqrt(sum P / sum h^2 P)``: a learning rate tuned without smoothing carries over. inf or nan where nothing passes.

    Args:
        gain: h, not negative, any shape.
        power: P, the mean power at each of the gain's frequencies, same shape.

    In float32 (float64 for float64).
    """
    gain, power = at_least_float32(gain), at_least_float32(power)
    return (power.sum() / (gain.square() * power).sum()).sqrt()


def _positions(length: int) -> Tensor:
    return torch.arange(length, dtype=torch.float64, device="cpu")


def _checked_axes(field: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes counted from 0."""
    if not field.is_floating_point():
        raise ValueError(f"field must hold floating-point numbers, got {field.dtype}")
    if any(not -field.ndim <= axis < field.ndim for axis in axes) or not axes:
        raise ValueError(f"axes must lie within a tensor of shape {tuple(field.shape)}, got {tuple(axes)}")
    counted = tuple(axis % field.ndim for axis in axes)
    if len(set(counted)) != len(counted):
        raise ValueError(f"axes must differ, got {tuple(axes)}")
    return counted
