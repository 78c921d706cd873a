"""What all figures share: a white ground, the names of axes, lines with their bands, and images made of figures."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
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
"""Pixels of an inch on the page."""

SHARP = 2 * DPI
"""Pixels of an inch in the image, for screens that have as many."""

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


def hide_spare(panels: np.ndarray, used: int) -> None:
    """Hide those of the panels that are left over."""
    for axes in panels.flat[used:]:
        axes.set_visible(False)


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
        low, high = np.array([[interval.low, interval.high] for interval in intervals], float).T  # nan where none
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def to_png(figure: Figure, dpi: int = DPI, **options: Any) -> bytes:
    """The figure as a PNG file of 128 colours: a page holds many of them, and so each is a third as large.

    ``options`` are those of ``Figure.savefig``.
    """
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, **options)
    palette = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    palette.save(packed, format="png", optimize=True, dpi=(dpi, dpi))
    return packed.getvalue()


def to_url(figure: Figure, dpi: int = DPI) -> str:
    """The figure as a PNG file in a data URL."""
    return f"data:image/png;base64,{base64.b64encode(to_png(figure, dpi)).decode()}"


def to_html(figure: Figure, alt: str) -> HTML:
    """The figure as an image with alternative text inside the page, for glueing into another page."""
    sources = f'src="{to_url(figure)}" srcset="{to_url(figure, SHARP)} {SHARP // DPI}x"'
    return HTML(f'<img {sources} alt="{html.escape(alt)}" style="max-width: 100%">')


def _output(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """What a notebook shows of a figure: a sharp image and its size on the page."""
    image = to_png(figure, SHARP, bbox_inches="tight")
    width, height = Image.open(io.BytesIO(image)).size
    return image, {"width": width * DPI // SHARP, "height": height * DPI // SHARP}


def show_sharply_in_notebooks() -> None:
    """From now on a notebook's figures are shown by :func:`_output`; elsewhere nothing happens."""
    shell = get_ipython()
    if shell is not None and "inline" in plt.get_backend():
        plt.switch_backend(plt.get_backend())  # loads it now: later it would put its own images in place of these
        shell.display_formatter.formatters["image/png"].for_type(Figure, _output)


show_sharply_in_notebooks()


def to_svg(figure: Figure, path: Path, description: str) -> None:
    """Write the figure on its own ground, the same bytes every time, with a description inside; close it."""
    with plt.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        told = {"Date": None, "Description": description}
        figure.savefig(path, facecolor=figure.get_facecolor(), metadata=told)
    plt.close(figure)
