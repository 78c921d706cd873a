"""What FieldAdam learns of its gradients: signal and noise at rings of equal frequency, and the law they follow."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convopt.optim._outliers import judge
from convopt.theory.fields import PowerLaw, fit_power_law, laplacian_eigenvalues, reconstruction_gain
from convopt.theory.spectrum import Basis, basis, radial_bins

FIRST_BLOCK = 8
"""The gradients of the first block over which signal is averaged; each block ends after twice as many as the last."""

RECENT = 0.95
"""The memory of the noise power, in steps: 1 / (1 - RECENT)."""

CERTAINTY = 2.0
"""By how many standard errors signal must exceed what was established before."""


class Rings(NamedTuple):
    """The frequencies of a grid, pooled to rings.

    Attributes:
        bases: the DCT along each axis.
        eigenvalues: of the Laplacian at each frequency, ``(frequencies,)``.
        bins: the ring of each frequency, ``(frequencies,)``.
        sizes: how many frequencies each ring holds, ``(rings,)``.
        pooled: the mean eigenvalue of each ring, ``(rings,)``.
    """

    bases: tuple[Basis, ...]
    eigenvalues: Tensor
    bins: Tensor
    sizes: Tensor
    pooled: Tensor

    def means(self, spectrum: Tensor) -> Tensor:
        """The mean over each ring of ``(frequencies, fields)``: ``(rings, fields)``."""
        return ring_sums(spectrum, self.bins, len(self.sizes)) / self.sizes[:, None]

    def gain(self, law: Tensor) -> Tensor:
        """What a law, ``(2, fields)``, prescribes at each frequency: ``(frequencies, fields)``."""
        return reconstruction_gain(PowerLaw(*law), self.eigenvalues).T

    def power_after(self, gain: Tensor, power: Tensor) -> Tensor:
        """``<g, K g>`` over a field's size, ``(fields,)``, of gradients with some ``power``, ``(fields, rings)``."""
        return (self.means(gain).T * power * self.sizes).sum(1) / len(gain)


def ring_sums(spectrum: Tensor, bins: Tensor, rings: int) -> Tensor:
    """The sum over each ring of ``(frequencies, fields)``: ``(rings, fields)``."""
    fields = spectrum.shape[1]
    if fields > 1:
        bins = (bins[:, None] * fields + torch.arange(fields, device=bins.device)).flatten()
    # On one axis three times as fast as on two.
    return spectrum.new_zeros(rings * fields).scatter_add_(0, bins, spectrum.flatten()).view(rings, fields)


def rings_of(grid: Sequence[int], dtype: torch.dtype, device: torch.device) -> Rings:
    """As many rings as the grid's longest axis is long, without those that hold no frequency."""
    eigenvalues = laplacian_eigenvalues(grid).flatten()
    _, bins, sizes = torch.unique(radial_bins(grid, max(grid)).flatten(), return_inverse=True, return_counts=True)
    pooled = ring_sums(eigenvalues[:, None], bins, len(sizes))[:, 0] / sizes
    exact = (each.to(device, dtype) for each in (sizes, pooled))
    bases = tuple(basis(length, dtype, device) for length in grid)
    return Rings(bases, eigenvalues.to(device, dtype), bins.to(device), *exact)


def may_teach(state: dict[str, Any], spectrum: Tensor) -> Tensor:
    """Which fields' gradients are finite, not zero and not far larger than usual, ``(fields,)``; that follows."""
    powers = torch.linalg.vector_norm(spectrum, dim=0, dtype=torch.float64).square()
    one = len(powers) == 1  # floats are faster
    ordinary, usual = judge(*(each.item() if one else each for each in (powers, state["usual_power"])))
    state["usual_power"].copy_(torch.as_tensor(usual, dtype=torch.float64, device=powers.device))
    verdicts: Tensor = torch.as_tensor(ordinary, device=powers.device) & (powers > 0)
    return verdicts


def learn_rings(state: dict[str, Any], spectrum: Tensor, rings: Rings) -> bool:
    """Take a gradient's spectrum, ``(frequencies, fields)``, into the statistics of those fields that it may teach.

    The state's ``rings``, ``(6, fields, rings)``, are averages of the last products and powers, their sums over the
    present block, and the established signal with its standard error. Its ``counts``, ``(2, fields)``, are of
    comparisons, in all and in the present block.

    Returns:
        Whether there are any such fields.
    """
    recent, block, (signal, error) = state["rings"].split(2)
    known = state["usual_power"] > 0
    teaches = may_teach(state, spectrum)
    if not teaches.any():
        return False
    state["seen"] += 1
    compared, counts = teaches & known, state["counts"]
    products = spectrum * state["previous"], spectrum.square()
    means = torch.stack([rings.means(each).T for each in products])
    state["previous"].copy_(spectrum if teaches.all() else torch.where(teaches, spectrum, state["previous"]))
    if not compared.all():
        means = torch.where(compared[:, None], means, 0)
    counts += compared
    recent.lerp_(means, (compared * (1 / counts[0]).clamp_min(1 - RECENT).nan_to_num(posinf=0))[:, None])
    block += means
    comparisons = state["seen"] - 1
    if comparisons >= FIRST_BLOCK and comparisons & (comparisons - 1) == 0:
        # A field that has missed most of the block has established nothing.
        enough = counts[1] >= (comparisons if comparisons == FIRST_BLOCK else comparisons // 2) / 2
        mean, power = block / counts[1, :, None]
        spread = power / (rings.sizes * counts[1, :, None]).sqrt()
        spread[:, 0] = math.inf  # the constant's ring says nothing of the others
        higher = enough[:, None] & (mean - CERTAINTY * spread > signal - CERTAINTY * error)
        signal.copy_(torch.where(higher, mean, signal))
        error.copy_(torch.where(higher, spread, error))
        block.zero_()
        counts[1] = 0
    return True


def is_due(state: dict[str, Any], every: int) -> bool:
    """Whether laws are fitted after this gradient: the first time when a block is complete."""
    seen: int = state["seen"]
    return seen > FIRST_BLOCK and (seen - 1) % every == 0


def fit_laws(state: dict[str, Any], rings: Rings, group: dict[str, Any]) -> None:
    """Fit the laws of all fields: where no block is complete, that of the prior."""
    batches = group["batches"] or state["seen"]
    state["law"].copy_(torch.stack(fitted_law(state["rings"], rings, batches, len(group["grid"]))))
    # So far the average was of powers after the prior's gain, which may be far from the first that is learned.
    complete = state["rings"][5].isfinite().any(1)
    power = rings.power_after(rings.gain(state["law"]), state["rings"][1])
    weight = 1 - group["betas"][1] ** state["averaged"]
    state["power"].copy_(torch.where(complete & ~state["fitted"], weight * power, state["power"]))
    state["fitted"] |= complete


def fitted_law(statistics: Tensor, rings: Rings, batches: int, axes: int) -> PowerLaw:
    """The law of a field's rings, whose statistics :func:`learn_rings` keeps, where the data are so many batches."""
    (product, power), _, (signal, error) = torch.split(statistics, 2)
    # Where the last gradients happen to agree entirely there is still some noise.
    noise = torch.maximum(power - product.clamp_min(0), 1e-3 * power)
    per_noise = batches / noise
    return fit_power_law(signal * per_noise, error * per_noise, rings.pooled, axes)
