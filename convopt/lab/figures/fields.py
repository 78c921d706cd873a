"""Fields that were reconstructed, and the gains that did it."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from convopt.lab.figures.style import SMALLEST, hide_spare
from convopt.optim.fields import Learnt


def reconstructions(rows: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Fields as images with their PSNR: a row per task, the truth first, then a column per method.

    Args:
        rows: by task and method, fields in [0, 1] of two axes, or of three, whose middle slice is shown.
    """
    columns = max(map(len, rows.values()))
    figure, panels = plt.subplots(len(rows), columns, figsize=(2.35 * columns, 2.6 * len(rows)), squeeze=False)
    for (task, fields), of_row in zip(rows.items(), panels, strict=True):
        truth = next(iter(fields.values()))
        hide_spare(of_row, len(fields))
        for (name, field), axes in zip(fields.items(), of_row, strict=False):
            image = field[len(field) // 2] if field.ndim == 3 else field
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(name if field is truth else f"{name}\n{psnr(field, truth):.1f} dB", fontsize=SMALLEST)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
        of_row[0].set_ylabel(task, fontsize=SMALLEST)
    return figure


def psnr(field: Tensor, truth: Tensor) -> float:
    """In dB, of a field whose true values span [0, 1]."""
    return float(-10 * (field - truth).square().mean().log10())


def field_gains(learnt: Mapping[str, Learnt]) -> Figure:
    """The gain over the frequencies, a line per field: on logarithmic axes, from the largest noise to the smallest.

    The root of the Laplacian's eigenvalue is about the angular frequency, in radians per element, where that is low.
    """
    figure, axes = plt.subplots(figsize=(6.5, 3.6))
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0.1, len(learnt)))
    for (label, each), shade in zip(learnt.items(), shades, strict=True):
        axes.plot(each.eigenvalue.sqrt(), each.gain[0], color=shade, linewidth=2, label=label)
    axes.set(xscale="log", yscale="log", xlabel="square root of the Laplacian's eigenvalue", ylabel="gain")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    return figure
