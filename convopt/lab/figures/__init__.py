"""The figures of the notebooks."""

from convopt.lab.figures.comparisons import added, differences, factorial
from convopt.lab.figures.fields import field_gains, reconstructions
from convopt.lab.figures.kernels import (
    centre_taps,
    descents,
    gain_lines,
    gains,
    growing_gain,
    histories,
    kernel_images,
    kernel_taps,
    response,
    smoothing,
    taps,
)
from convopt.lab.figures.results import (
    curves,
    dots,
    growths,
    intervals,
    race,
    ratios,
    searches,
    trends,
    tried,
    verdicts,
)
from convopt.lab.figures.snr import ema_biases, ring_spectra, snr_courses, snr_of_batches, snr_tracking
from convopt.lab.figures.style import to_html, to_png, to_url

__all__ = [
    "added",
    "centre_taps",
    "curves",
    "descents",
    "differences",
    "dots",
    "ema_biases",
    "factorial",
    "field_gains",
    "gain_lines",
    "gains",
    "growing_gain",
    "growths",
    "histories",
    "intervals",
    "kernel_images",
    "kernel_taps",
    "race",
    "ratios",
    "reconstructions",
    "response",
    "ring_spectra",
    "searches",
    "smoothing",
    "snr_courses",
    "snr_of_batches",
    "snr_tracking",
    "taps",
    "to_html",
    "to_png",
    "to_url",
    "trends",
    "tried",
    "verdicts",
]
