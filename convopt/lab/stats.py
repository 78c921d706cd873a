"""Statistics over seeds."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 4999
"""Of a bootstrap. Their random numbers are the same every time, so that tables do not flicker."""

CHUNKS, CHUNK = 20, 100
"""Resamples of seeds and inputs: so many times so many, which fit into the memory."""


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval.

    ``low`` and ``high`` are None for fewer than two values, and where one is not finite.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside; False for an interval without ends."""
        return self.low is not None and not self.low <= 0 <= self.high


def mean_interval(values: ArrayLike) -> Interval:
    """The mean of independent values, one per seed, with its bootstrap interval.

    It assumes no distribution, but of ten values it is some percent too narrow: of Gaussian ones it covers the mean in
    90 % of cases. What is called decided therefore passes a permutation test as well (see :func:`verdict`).

    ValueError where there is no value. Source: BCa, Efron, Better Bootstrap Confidence Intervals (JASA 1987).
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("values must hold at least one number, got none")
    if values.size < 2 or not np.isfinite(values).all():
        return Interval(float(values.mean()), None, None)
    # Sums, squares and cubes of very small or large values are no numbers. A power of two changes no digit.
    exponent = int(np.frexp(np.abs(values).max())[1])
    scaled = np.ldexp(values, -exponent)
    mean = math.ldexp(float(scaled.mean()), exponent)
    if np.ptp(scaled) <= 1e-9:  # nothing to resample but rounding
        return Interval(mean, mean, mean)
    found = stats.bootstrap((scaled,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=0).confidence_interval
    return Interval(mean, *(math.ldexp(float(end), exponent) for end in found))


class Comparison(NamedTuple):
    """A paired difference, treatment minus control: its interval, and the p-value of there being none."""

    interval: Interval
    p: float


def paired_difference(treatment: dict[int, float], control: dict[int, float]) -> Comparison:
    """The mean over the seeds that both have of ``treatment - control``, by seed, with its interval and p-value.

    The p-value is that of the two-sided paired permutation test: the share of all ways to exchange treatment and
    control within seeds that give a mean difference as large. With n seeds it is at least ``2 / 2 ** n``.

    ValueError if they have no seed in common. Where a difference is not finite there is no test, and ``p`` is 1.
    """
    seeds = sorted(treatment.keys() & control.keys())
    if not seeds:
        raise ValueError("treatment and control must have values of a common seed, got none")
    differences = np.array([treatment[seed] - control[seed] for seed in seeds])
    interval = mean_interval(differences)
    if len(seeds) < 2 or not np.isfinite(differences).all() or not differences.any():
        return Comparison(interval, 1.0)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=2 ** min(len(seeds), 14),
        rng=0,
        vectorized=True,
    )
    return Comparison(interval, float(test.pvalue))


class CrossedComparison(NamedTuple):
    """A paired difference over seeds and inputs, treatment minus control.

    Attributes:
        interval: of the mean, 95 %.
        p: the p-value of there being no difference.
        p_equal: the larger p-value of two one-sided tests, of the difference being at least ``EQUIVALENCE`` either way.
    """

    interval: Interval
    p: float
    p_equal: float


EQUIVALENCE = 0.3
"""Points of accuracy; what certainly differs by less is called no difference."""


def crossed_difference(treatment: dict[int, np.ndarray], control: dict[int, np.ndarray]) -> CrossedComparison:
    """The mean of ``treatment - control`` over the seeds that both have and over inputs, both taken as drawn at random.

    Args:
        treatment: by seed, a value for each input, ``(n,)``, such as 100 where it is classified correctly, else 0.
        control: the same.

    Seeds and inputs are resampled independently. The interval is the percentiles'; the tests take the resamples'
    standard deviation as the standard error of a Student's t with a degree of freedom less than there are seeds. Of
    fewer than two seeds there is neither, nor where a value is not finite.

    Where most of the variance is between seeds, the interval is too narrow: it covers the mean in about 90 % of cases
    with ten seeds, and in 84 % with five. Where there is no difference, ``p`` is below 0.05 in 6 % and 7 % of cases.

    ValueError if they have no seed in common. Source: Owen, The pigeonhole bootstrap (Annals of Applied Statistics
    2007); Schuirmann, A comparison of the two one-sided tests procedure (1987).
    """
    seeds = sorted(treatment.keys() & control.keys())
    if not seeds:
        raise ValueError("treatment and control must have a seed in common, got none")
    arms = [np.stack([np.asarray(of_arm[seed], float) for seed in seeds]) for of_arm in (treatment, control)]
    mean = float((arms[0] - arms[1]).mean())
    if len(seeds) < 2 or not math.isfinite(mean):
        return CrossedComparison(Interval(mean, None, None), 1.0, 1.0)
    n_seeds, n_inputs = arms[0].shape
    over_inputs = [_over_inputs(of_arm.tobytes(), n_seeds) for of_arm in arms]
    # Of classifications all sums are exact: an end that lies between two digits is rounded alike on every machine.
    sums = np.einsum("rs,rs->r", _draws(n_inputs, n_seeds)[1].astype(float), over_inputs[0] - over_inputs[1])
    means = sums / (n_inputs * n_seeds)
    low, high = np.percentile(means, [2.5, 97.5])
    error = float(means.std()) or np.finfo(float).tiny
    upper = [stats.t.sf(distance / error, n_seeds - 1) for distance in (abs(mean), EQUIVALENCE - abs(mean))]
    return CrossedComparison(Interval(mean, float(low), float(high)), float(2 * upper[0]), float(upper[1]))


@lru_cache(maxsize=512)  # a page compares an arm with many others
def _over_inputs(values: bytes, n_seeds: int) -> np.ndarray:
    """The sum over each draw of inputs, ``(CHUNKS * CHUNK, n_seeds)``, of float64 ``values`` by seed and input."""
    values = np.frombuffer(values).reshape(n_seeds, -1)
    return _draws_of_inputs(values.shape[1], n_seeds) @ values.T


@lru_cache(maxsize=1)  # of many inputs it is large, and arms with as many follow each other
def _draws_of_inputs(n_inputs: int, n_seeds: int) -> np.ndarray:
    """How often each input is drawn, as products take it: ``(CHUNKS * CHUNK, n_inputs)``."""
    return _draws(n_inputs, n_seeds)[0].astype(float)


@lru_cache(maxsize=16)  # many arms have as many seeds and inputs
def _draws(*sizes: int) -> list[np.ndarray]:
    """How often each of so many is drawn, ``(CHUNKS * CHUNK, size)`` for each of the sizes."""
    rng = np.random.default_rng(0)
    chunks = [
        [rng.multinomial(size, np.full(size, 1 / size), size=CHUNK).astype(np.uint8) for size in sizes]
        for _ in range(CHUNKS)
    ]
    return [np.concatenate(of_size) for of_size in zip(*chunks, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for there being several, in their order.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return corrected.tolist()


def verdict(difference: Interval, p: float, claimed: float) -> str:
    """Whether the difference is on the side of zero that was claimed: "confirmed", "refuted" or "undecided".

    It is decided where the interval excludes zero and ``p``, corrected for all claims that are judged together, is
    below 0.05.
    """
    if not difference.excludes_zero or p >= 0.05:
        return "undecided"
    return "confirmed" if (difference.mean > 0) == (claimed > 0) else "refuted"
