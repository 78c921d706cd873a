"""Figures of kernels, gains and gradients."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from convopt.lab.figures.looks import QUIET, Look, looks, series
from convopt.lab.figures.style import SMALLEST, WIDEST, band
from convopt.lab.records import Record, finished
from convopt.theory import kernels
from convopt.theory.smoothing import smooth
from convopt.theory.spectrum import make_bands


def kernel_taps(arms: dict[str, list[Record]], kernel: str) -> Figure:
    """One panel per arm: each tap of a 1-D kernel over the epochs, every seed thin, the mean bold."""
    figure, panels = plt.subplots(1, len(arms), figsize=(min(3.4 * len(arms), WIDEST), 3.2), sharey=True, squeeze=False)
    for (label, records), axes in zip(arms.items(), panels[0], strict=True):
        taps = np.array([[snapshot[kernel] for snapshot in record.kernels] for record in finished(records)])
        centre = taps.shape[-1] // 2
        names = ["centre" if tap == centre else f"{tap - centre:+d}" for tap in range(taps.shape[-1])]
        for tap, (name, look) in enumerate(series(names).items()):
            band(axes, list(taps[:, :, tap]), look, name, start=0)
        axes.set(xlabel="epoch", title=label)
        axes.title.set_fontsize(SMALLEST)
    panels[0][0].set_ylabel("tap")
    figure.legend(
        *panels[0][-1].get_legend_handles_labels(), title="distance", loc="outside right center", frameon=False
    )
    return figure


def gains(arms: dict[str, list[Record]], name: str, epochs: Sequence[int]) -> Figure:
    """The learnt radial gain ``name`` of each arm's records after each of the epochs, see ``gain_lines``."""
    return gain_lines(
        {
            label: {f"epoch {epoch}": [record.kernels[epoch][name] for record in finished(records)] for epoch in epochs}
            for label, records in arms.items()
        }
    )


def gain_lines(learnt: dict[str, dict[str, list[Sequence[float]]]], top: float | None = None) -> Figure:
    """One panel per arm: radial gains by frequency, a line per moment, seeds thin and their mean bold.

    Args:
        learnt: the seeds' gains by arm and moment; of a moment without any, the legend tells all the same. Images are
            square: there are as many rings of frequencies as pixels along a side.
        top: where the axis of gains ends; None lets it hold all lines.
    """
    side = next(len(gain) for moments in learnt.values() for seeds in moments.values() for gain in seeds)
    frequency = make_bands((side, side), radial=True, dtype=torch.float32, device=torch.device("cpu")).frequency
    figure, panels = plt.subplots(
        1, len(learnt), figsize=(min(4.6 * len(learnt), WIDEST), 3.4), sharey=True, squeeze=False
    )
    for (label, moments), axes in zip(learnt.items(), panels[0], strict=True):
        shades = plt.get_cmap("viridis")(np.linspace(0.9, 0.1, len(moments)))
        for (moment, seeds), shade in zip(moments.items(), shades, strict=True):
            for gain in seeds:
                axes.plot(frequency, gain, color=shade, alpha=0.2, linewidth=0.6)
            line = (frequency, np.mean(seeds, 0)) if seeds else ([], [])
            axes.plot(*line, color=shade, linewidth=2, label=moment)
        axes.axhline(1, color=QUIET, linewidth=0.8)
        axes.set(xlabel="radial frequency (share of Nyquist's)", title=label)
    if top is not None:
        axes.set_ylim(0, top)
    panels[0][0].set_ylabel("gain")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def growing_gain(courses: dict[str, list[dict[int, Tensor]]], step: int) -> Figure:
    """Courses of ``probes.gain_course`` up to ``step``, by arm and one per seed; the axes have room for all steps."""
    learnt = {
        arm: {f"step {moment}": [course[moment] for course in seeds] if moment <= step else [] for moment in seeds[0]}
        for arm, seeds in courses.items()
    }
    return gain_lines(learnt, top=2)


def kernel_images(kernels_by_title: dict[str, Sequence[Sequence[float]]]) -> Figure:
    """2-D kernels side by side on one colour scale, each tap's value written into it."""
    figure, panels = plt.subplots(
        1, len(kernels_by_title), figsize=(min(3.1 * len(kernels_by_title), WIDEST), 3.3), squeeze=False
    )
    top = max(np.max(kernel) for kernel in kernels_by_title.values())
    for (title, kernel), axes in zip(kernels_by_title.items(), panels[0], strict=True):
        axes.imshow(kernel, cmap="cividis", vmin=0, vmax=top)
        for (row, column), value in np.ndenumerate(np.array(kernel)):
            shade = "black" if value > top / 2 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=SMALLEST, color=shade)
        axes.set(title=title, xticks=[], yticks=[])
        axes.title.set_fontsize(SMALLEST)
        axes.grid(visible=False)
    return figure


def smoothing(gradient: Tensor, kernel_name: str, size: int) -> Figure:
    """A gradient before and after smoothing, and the kernel's frequency response.

    ``gradient`` is a vector; ``kernel_name`` one of ``kernels.NAMED_KERNELS``.
    """
    kernel = kernels.NAMED_KERNELS[kernel_name](size)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), width_ratios=(2, 1))
    raw, smoothed, of_kernel = series(["gradient", "smoothed gradient", "kernel"]).values()
    left.plot(gradient, color=raw.colour, linewidth=1, label="gradient g")
    left.plot(smooth(gradient, kernel), color=smoothed.colour, linewidth=2, label="smoothed W * g")
    left.set(xlabel="element", ylabel="value", title=f"{kernel_name} kernel, {size} taps")
    left.legend(frameon=False)
    response(right, {kernel_name: kernel}, {kernel_name: of_kernel})
    return figure


def response(axes: Axes, named: dict[str, Tensor], looks_of: dict[str, Look] | None = None) -> None:
    """The frequency responses of 1-D kernels; where one is negative, the step goes uphill."""
    frequencies = torch.linspace(0, torch.pi, 200)
    for name, look in (looks_of or series(named)).items():
        values = kernels.frequency_response(named[name], frequencies)
        axes.plot(
            frequencies / torch.pi, values, color=look.colour, linewidth=2, marker=look.marker, markevery=40, label=name
        )
        axes.fill_between(frequencies / torch.pi, values, 0, where=(values < 0).numpy(), color=look.colour, alpha=0.25)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="frequency (fraction of the highest)", ylabel="response", title="frequency response", ylim=(-0.45, 1.05)
    )


def descents(losses: dict[str, Sequence[float]]) -> Figure:
    """Losses against the step on a logarithmic scale, one line each; all start from 1."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for name, look in series(losses).items():
        relative = np.array(losses[name]) / losses[name][0]
        axes.semilogy(relative, color=look.colour, linewidth=2, marker=look.marker, markevery=25, label=name)
    axes.set(xlabel="step", ylabel="loss / first loss")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def centre_taps(
    formula: tuple[Sequence[float], Sequence[float]], found: dict[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure:
    """The centre tap of the original proposal's loss against lambda Var(g): the formula's line, and what was found.

    All are (lambda Var(g), centre tap); ``found`` by name.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    line, *others = series(["closed form", *found]).values()
    axes.semilogx(*formula, color=line.colour, linewidth=1.2, label="closed form")
    for (name, points), look in zip(found.items(), others, strict=True):
        hollow = {"markersize": 8, "fillstyle": "none", "markeredgewidth": 2, "linestyle": ""}
        axes.semilogx(*points, marker=look.marker, color=look.colour, label=name, **hollow)
    axes.set(xlabel=r"$\lambda\,$Var(g)", ylabel="centre tap", ylim=(0, 1.05))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def taps(named: dict[str, Tensor], title: str) -> Figure:
    """1-D kernels by name: their taps, and their frequency responses."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, look in series(named).items():
        distance = np.arange(len(named[name])) - len(named[name]) // 2
        left.plot(distance, named[name], color=look.colour, marker=look.marker, linewidth=1.5, label=name)
    left.set(xlabel="distance", ylabel="tap", xticks=distance)
    response(right, named)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(named), frameon=False)
    figure.suptitle(title)
    return figure


def histories(columns: dict[str, dict[str, list[float]]], ylabels: dict[str, str]) -> Figure:
    """One panel per quantity of recorders' histories, one line per optimizer, against the step."""
    figure, panels = plt.subplots(1, len(ylabels), figsize=(min(3.6 * len(ylabels), WIDEST), 3), squeeze=False)
    for (quantity, ylabel), axes in zip(ylabels.items(), panels[0], strict=True):
        for label, look in looks(columns).items():
            steps = columns[label]["step"]
            apart = max(1, len(steps) // 6)
            axes.plot(
                steps, columns[label][quantity], color=look.colour, marker=look.marker, markevery=apart, label=label
            )
        axes.set(xlabel="step", ylabel=ylabel)
    panels[0][0].legend(frameon=False, fontsize=SMALLEST)
    return figure
