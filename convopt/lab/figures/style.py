"""What all figures share: a white ground, the names of axes, lines with their bands, and images made of figures."""

import base64
import html
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from convopt.lab.figures.looks import Look
from convopt.lab.stats import mean_interval

plt.rcParams.update(
    {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "font.size": 10,
        "figure.constrained_layout.use": True,
    }
)

SMALLEST = 9
"""Points of a figure's smallest text."""

WIDEST = 10.0
"""Inches of the widest figure: in the page's column its smallest text has nine pixels."""

DPI = 100
"""Pixels of an inch."""

AXIS_LABELS = {
    "test_accuracy": "test accuracy (%)",
    "pgd_accuracy": "accuracy against PGD-10 (%)",
    "gradient_norm": "mean gradient norm",
    "train_loss": "training loss (nats)",
    "wrong_labels_learnt": "noisy labels memorized (%)",
    "rho": "agreement of gradients, rho",
    "annealing_factor": "factor on the learning rate",
    "best": "best test accuracy (%)",
    "final": "final test accuracy (%)",
    "stability": "stability (lower is steadier)",
}


def band(axes: Axes, series: list[np.ndarray], look: Look, label: str, start: int = 1) -> None:
    """Each series thin, their mean bold, its 95 % interval as a band; of one point per epoch, from ``start``."""
    colour = look.colour
    epochs = np.arange(start, start + len(series[0]))
    for values in series:
        axes.plot(epochs, values, color=colour, alpha=0.2, linewidth=0.6)
    intervals = [mean_interval(column) for column in zip(*series, strict=True)]
    means, apart = [interval.mean for interval in intervals], max(1, len(intervals) // 6)
    axes.plot(epochs, means, color=colour, linewidth=2, marker=look.marker, markevery=apart, label=label)
    if len(series) > 1:
        low, high = [interval.low for interval in intervals], [interval.high for interval in intervals]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file of 128 colours: a page holds many of them, and so each is a third as large."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    palette = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    palette.save(packed, format="png", optimize=True)
    return packed.getvalue()


def to_base64(figure: Figure) -> str:
    """The figure as a PNG file in base64, as a page's data URL takes it."""
    return base64.b64encode(to_png(figure)).decode()


def to_html(figure: Figure, alt: str) -> HTML:
    """The figure as an image with alternative text inside the page, for glueing into another page."""
    image = to_base64(figure)
    return HTML(f'<img src="data:image/png;base64,{image}" alt="{html.escape(alt)}" style="max-width: 100%">')


def to_svg(figure: Figure, path: Path, description: str) -> None:
    """Write the figure on its own ground, the same bytes every time, with a description inside; close it."""
    with plt.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        told = {"Date": None, "Description": description}
        figure.savefig(path, facecolor=figure.get_facecolor(), metadata=told)
    plt.close(figure)
