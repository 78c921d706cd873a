"""Statistics over seeds."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval; ``low`` and ``high`` are None for fewer than two values."""

    mean: float
    low: float | None
    high: float | None


def mean_interval(values: ArrayLike) -> Interval:
    """The mean of independent values, one per seed, with Student's t interval."""
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("values must hold at least one number, got none")
    mean = float(values.mean())
    if values.size < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return Interval(mean, mean - half, mean + half)


def paired_difference(treatment: dict[int, float], control: dict[int, float]) -> Interval:
    """The mean over the seeds that both have of ``treatment - control``, by seed, with its interval.

    ValueError if they have no seed in common.
    """
    seeds = sorted(treatment.keys() & control.keys())
    return mean_interval([treatment[seed] - control[seed] for seed in seeds])


def verdict(difference: Interval, claimed: float) -> str:
    """ "confirmed", "refuted" or "undecided": whether the interval lies on the side of zero that was claimed."""
    if difference.low is None or difference.low <= 0 <= difference.high:
        return "undecided"
    return "confirmed" if (difference.mean > 0) == (claimed > 0) else "refuted"
