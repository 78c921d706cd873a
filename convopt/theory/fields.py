"""The gain for a field that is reconstructed from noisy measurements: what it should be, and how it is fitted.

Let a field x be measured by ``y = A x + noise``, and let frequencies be independent of each other: curvature H, power
Sigma of the difference that is to be found, ``x* - x_0``, and noise power N of the gradient of all data. Gradient
descent with a gain K from x_0 has found the share ``1 - exp(-K H t)`` of that difference after a time t. The share of
the smallest expected error is Wiener's, ``R / (1 + R)``, with R the signal-to-noise ratio of the whole gradient at x_0,
``R = H^2 Sigma / N``. Both agree at every frequency *at the same time* where

    K H t = log(1 + R).

So a gain proportional to ``log(1 + R)`` lets one early stop serve all frequencies. Where data are plentiful it is
nearly flat; where they are scarce it falls as the prior power does. The factor 1 / H is left out: measured with the
true H, it gained nothing in tomography and lost where noise was strong.

R is a power law for most fields. One with edges has a power of ``w^-(d+1)`` in d dimensions; in the eigenvalues of the
Laplacian, which are ``w^2`` for small w, that is ``l^-(d+1)/2``. The scale and the exponent of ``R = c l^-s`` are
fitted to the gradients; none of it is a width that somebody has to choose. ``log(1 + c / l)`` is also the integral of
the gains ``1 / (1 + lambda l)`` over ``log lambda``, from ``lambda = 1 / c`` on: all widths at once.

Sources: early stopping as regularisation, Yao et al., On early stopping in gradient descent learning, Constr. Approx.
26, 2007; the power of fields with edges, Field, J. Opt. Soc. Am. A 4(12), 1987.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from convopt.theory.spectrum import frequencies

TOLERANCE = 0.5
"""By what factor rings may deviate from a power law."""

PRIOR_LOG_SCALE, PRIOR_LOG_SCALE_DEVIATION = math.log(0.3), 3.0
PRIOR_EXPONENT_DEVIATION = 0.25

LOG_SCALES = torch.arange(-7.0, 14.25, 0.5, dtype=torch.float64, device="cpu")
EXPONENTS = torch.arange(0.25, 3.25, 0.25, dtype=torch.float64, device="cpu")


class PowerLaw(NamedTuple):
    """A ratio ``R = exp(log_scale) l^-exponent`` for each of several fields, ``l`` the Laplacian's eigenvalue.

    Attributes:
        log_scale: ``(fields,)``.
        exponent: ``(fields,)``.
    """

    log_scale: Tensor
    exponent: Tensor

    def at(self, eigenvalues: Tensor) -> Tensor:
        """The ratio at eigenvalues of shape ``(n,)``: ``(fields, n)``."""
        return self.logarithm(eigenvalues).exp()

    def logarithm(self, eigenvalues: Tensor) -> Tensor:
        """That of :meth:`at`."""
        return self.log_scale[:, None] - self.exponent[:, None] * eigenvalues.log()


def laplacian_eigenvalues(shape: Sequence[int]) -> Tensor:
    """``sum of 2 - 2 cos w`` at the DCT's frequencies of a grid: float64, ``shape``, all positive.

    The constant's, which is 0, is given as that of the lowest other frequency, so that a power law has a value there.
    """
    along = [2 - 2 * torch.cos(frequencies(length)) for length in shape]
    eigenvalues = torch.stack(torch.meshgrid(*along, indexing="ij")).sum(0)
    positive = eigenvalues[eigenvalues > 0]
    return eigenvalues.clamp_min(positive.min() if positive.numel() else 1.0)


def prior_law(fields: int, axes: int) -> PowerLaw:
    """The power law where nothing is known yet, that of edges, for fields of so many ``axes``; float64 on the CPU."""
    scale, exponent = ([value] * fields for value in (PRIOR_LOG_SCALE, (axes + 1) / 2))
    return PowerLaw(*torch.tensor([scale, exponent], dtype=torch.float64, device="cpu"))


def reconstruction_gain(law: PowerLaw, eigenvalues: Tensor) -> Tensor:
    """``log(1 + R)``, scaled to a mean of 1 over frequencies: ``(fields, n)`` for eigenvalues ``(n,)``. Positive."""
    gain = torch.log1p(law.at(eigenvalues))
    return gain / gain.mean(1, keepdim=True)


def fit_power_law(ratio: Tensor, deviation: Tensor, eigenvalues: Tensor, axes: int) -> PowerLaw:
    """Fit a power law to noisy ratios of signal and noise: the posterior mean over a grid of laws.

    A ratio is taken as normal around the law's value R, with the variance ``deviation^2 + (R / 2)^2``: measured noise,
    and rings that do not follow the law. The prior is that of fields with edges, wide in scale, narrow in the exponent.

    Args:
        ratio: ``(fields, rings)``, unbiased estimates, which may be negative.
        deviation: their standard deviations, same shape, not negative; inf for a ring that says nothing.
        eigenvalues: the mean eigenvalue of each ring, ``(rings,)``.
        axes: of the field, one to three.
    """
    candidates = torch.cartesian_prod(LOG_SCALES, EXPONENTS).to(ratio)
    scales, exponents = candidates.unbind(1)
    law = PowerLaw(scales, exponents)
    known = deviation.isfinite() & ratio.isfinite()
    # Relative to the law's value, whose square may be more than float32 can hold.
    relative, spread = (
        torch.where(known, each, 0)[:, None] / law.at(eigenvalues.to(ratio)) for each in (ratio, deviation)
    )
    variance = spread.square() + TOLERANCE**2
    log_variance = variance.log() + 2 * law.logarithm(eigenvalues.to(ratio))
    misfit = torch.where(known[:, None], (relative - 1).square() / variance + log_variance, 0).sum(2)
    misfit += ((scales - PRIOR_LOG_SCALE) / PRIOR_LOG_SCALE_DEVIATION).square()
    misfit += ((exponents - (axes + 1) / 2) / PRIOR_EXPONENT_DEVIATION).square()
    posterior = torch.softmax(-misfit / 2, 1)
    return PowerLaw(posterior @ scales, posterior @ exponents)
