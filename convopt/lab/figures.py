"""The figures of the notebooks, in colours that colour-blind readers tell apart, on a white ground."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from convopt.lab import probes
from convopt.lab.records import Record, finished
from convopt.lab.report import HEADINGS, Table, by_seed, measured
from convopt.lab.stats import Interval, mean_interval
from convopt.lab.study import Results
from convopt.lab.tryout.answer import Outcome
from convopt.theory import kernels, snr
from convopt.theory.smoothing import smooth
from convopt.theory.spectrum import make_bands

OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")

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

AXIS_LABELS = {
    "test_accuracy": "test accuracy (%)",
    "pgd_accuracy": "accuracy against PGD-10 (%)",
    "gradient_norm": "mean gradient norm",
    "train_loss": "training loss (nats)",
    "wrong_labels_learnt": "wrong labels learnt (%)",
    "rho": "agreement of gradients, rho",
    "annealing_factor": "factor on the learning rate",
    "best": "best test accuracy (%)",
    "final": "final test accuracy (%)",
    "stability": "stability (lower is steadier)",
}


def colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label, in order."""
    return {label: OKABE_ITO[i % len(OKABE_ITO)] for i, label in enumerate(labels)}


def curves(arms: dict[str, list[Record]], measures: Sequence[str], title: str) -> Figure:
    """One panel per per-epoch measure: every seed thin, the mean bold, its 95 % interval as a band."""
    figure, panels = plt.subplots(1, len(measures), figsize=(5.2 * len(measures), 3.6), squeeze=False)
    for measure, axes in zip(measures, panels[0], strict=True):
        scale = 100 if "(%)" in AXIS_LABELS[measure] else 1
        for label, colour in colours(arms).items():
            series = [
                scale * np.array(record.curves[measure]) for record in finished(arms[label]) if measure in record.curves
            ]
            if series:
                _band(axes, series, colour, label)
        axes.set(xlabel="epoch", ylabel=AXIS_LABELS[measure])
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title)
    return figure


def _band(axes: Axes, series: list[np.ndarray], colour: str, label: str, start: int = 1) -> None:
    epochs = np.arange(start, start + len(series[0]))
    for values in series:
        axes.plot(epochs, values, color=colour, alpha=0.2, linewidth=0.6)
    intervals = [mean_interval(column) for column in zip(*series, strict=True)]
    axes.plot(epochs, [interval.mean for interval in intervals], color=colour, linewidth=2, label=label)
    if len(series) > 1:
        low, high = [interval.low for interval in intervals], [interval.high for interval in intervals]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def race(arms: dict[str, list[Record]], title: str, epoch: int | None = None) -> Figure:
    """Mean test accuracy and training loss over each arm's records up to ``epoch``, None for as far as they go.

    The axes have room for all epochs, so that pictures at several compare. The figure is unknown to pyplot and may be
    drawn in any thread.
    """
    figure = Figure(figsize=(10, 3.8))
    last = max((record.run.epochs for records in arms.values() for record in records), default=1)
    for measure, axes in zip(("test_accuracy", "train_loss"), figure.subplots(1, 2), strict=True):
        scale = 100 if "(%)" in AXIS_LABELS[measure] else 1
        for label, colour in colours(arms).items():
            series = [record.curves.get(measure, []) for record in arms[label]]
            means = [scale * np.mean(values) for values in zip(*series, strict=False)]
            shown = means[:epoch]
            axes.plot(range(1, len(shown) + 1), shown, "o-", color=colour, linewidth=2, markevery=[-1], label=label)
            axes.update_datalim([(last, mean) for mean in means])
        axes.set(xlabel="epoch", ylabel=AXIS_LABELS[measure], xlim=(0.5, last + 0.5))
        axes.autoscale_view(scalex=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if not any(arms.values()):
            axes.set(xticks=[], yticks=[])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    return figure


def dots(arms: dict[str, list[Record]], measures: Sequence[str], title: str) -> Figure:
    """One panel per measure, one line per arm: every seed a faint dot, the mean with its 95 % interval."""
    figure, panels = plt.subplots(
        1, len(measures), figsize=(4.2 * len(measures), 0.45 * len(arms) + 1.4), sharey=True, squeeze=False
    )
    labels = list(arms)
    for measure, axes in zip(measures, panels[0], strict=True):
        for row, (label, colour) in enumerate(colours(labels).items()):
            values = list(by_seed(arms[label], measure).values())
            if not values:
                continue
            interval = mean_interval(values)
            axes.scatter(values, [row] * len(values), color=colour, alpha=0.25, s=14, linewidths=0)
            _dot(axes, interval, row, colour)
        axes.set(xlabel=AXIS_LABELS[measure])
        axes.set_yticks(range(len(labels)), labels)
    panels[0][0].invert_yaxis()
    figure.suptitle(title)
    return figure


def _dot(axes: Axes, interval: Interval, row: int, colour: str) -> None:
    axes.plot(interval.mean, row, "o", color=colour, markersize=7)
    if interval.low is not None:
        axes.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.5)


def intervals(table: Table, columns: Sequence[str] = ()) -> Figure:
    """A dot with its 95 % interval for each row of a table, a panel per column that holds intervals.

    ``columns`` are headings; without any, all such columns are shown. Of differences, zero is marked.
    """
    frame = table.frame
    columns = columns or [name for name in frame if any(isinstance(value, Interval) for value in frame[name])]
    index = frame[list(frame.columns[: table.index])].astype(str)
    labels = index.agg(", ".join, axis=1)
    shades = colours(dict.fromkeys(index.iloc[:, -1]))
    figure, panels = plt.subplots(
        1, len(columns), figsize=(3.6 + 2.9 * len(columns), 0.26 * len(frame) + 1.2), sharey=True, squeeze=False
    )
    for column, axes in zip(columns, panels[0], strict=True):
        for row, (value, name) in enumerate(zip(frame[column], index.iloc[:, -1], strict=True)):
            if not isinstance(value, Interval):
                continue
            colour = shades[name] if table.index > 1 else OKABE_ITO[6]
            _dot(axes, value, row, colour)
        for row in _block_ends(index):
            axes.axhline(row + 0.5, color="grey", linewidth=0.6)
        if table.signed:
            axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel=column)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].set_ylim(len(labels) - 0.4, -0.6)
    return figure


def verdicts(table: Table) -> Figure:
    """A dot with its 95 % interval for each row of ``advice.judge`` that is about accuracy, marked by its verdict.

    The axis is linear up to 5 points to either side of zero, logarithmic beyond.
    """
    frame = table.frame[table.frame.measure.str.contains("%")]
    marks = {"confirmed": (OKABE_ITO[3], "o"), "refuted": (OKABE_ITO[4], "s"), "undecided": ("grey", "D")}
    figure, axes = plt.subplots(figsize=(9.5, 0.27 * len(frame) + 1.4))
    for row, (interval, verdict) in enumerate(zip(frame.measured, frame.verdict, strict=True)):
        colour, marker = marks[verdict]
        axes.plot(interval.mean, row, marker, color=colour, markersize=6)
        if interval.low is not None:
            axes.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.5)
    for verdict, (colour, marker) in marks.items():
        axes.plot([], [], marker, color=colour, label=verdict)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(frame)), frame.situation + ": " + frame.difference, fontsize=8)
    axes.set_ylim(len(frame) - 0.4, -0.6)
    axes.set_xscale("symlog", linthresh=5, linscale=1)
    axes.set_xticks([-50, -15, -5, -2.5, 0, 2.5, 5, 15, 50])
    axes.xaxis.set_major_formatter("{x:+g}")
    axes.set(xlabel="difference in accuracy (points)", xlim=(-80, 60))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _block_ends(index: pd.DataFrame) -> list[int]:
    """The rows after which a new block begins: of equal conditions or, where these alternate, of equal labels."""
    keys = index.iloc[:, :-1].agg(", ".join, axis=1) if index.shape[1] > 1 else pd.Series("", index=index.index)
    for column in (keys, index.iloc[:, -1]):
        ends = [row for row in range(len(index) - 1) if column.iloc[row] != column.iloc[row + 1]]
        if len(ends) < len(index) - 1:
            return ends
    return []


def trends(results: Results, condition: str, measures: Sequence[str], xlabel: str, logarithmic: bool = False) -> Figure:
    """Measures against a numeric condition of the runs: seeds as faint dots, a line through means with intervals.

    Args:
        results: of an experiment whose arms recur at several values of the condition.
        condition: an attribute of ``Run``, "batch_size" for example.
        measures: a panel each.
        xlabel: what the condition is.
        logarithmic: whether its axis is, to the base of 2.
    """
    figure, panels = plt.subplots(1, len(measures), figsize=(4.6 * len(measures), 3.8), squeeze=False)
    for measure, axes in zip(measures, panels[0], strict=True):
        for label, colour in colours(results.arms).items():
            at: dict[float, list[Record]] = {}
            for record in results.arms[label]:
                at.setdefault(getattr(record.run, condition), []).append(record)
            values = {x: list(by_seed(at[x], measure).values()) for x in sorted(at)}
            found = {x: mean_interval(of_x) for x, of_x in values.items() if of_x}
            means = [interval.mean for interval in found.values()]
            axes.plot(list(found), means, "o-", color=colour, markersize=5, label=label)
            for x, interval in found.items():
                axes.scatter([x] * len(values[x]), values[x], color=colour, alpha=0.2, s=9, linewidths=0)
                if interval.low is not None:
                    axes.plot([x, x], [interval.low, interval.high], color=colour, linewidth=2)
        if logarithmic:
            axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({getattr(record.run, condition) for record in results.records}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=xlabel, ylabel=HEADINGS[measure])
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def ratios(table: Table, xlabel: str) -> Figure:
    """A table of positive ratios on a logarithmic axis: a line of dots per row, a colour per column; 1 is marked."""
    values = table.frame.set_index(table.frame.columns[0])
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(values) + 1.4))
    for name, colour in colours(values).items():
        axes.plot(values[name], range(len(values)), "o", color=colour, markersize=6, label=name, alpha=0.8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(values)), values.index)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def growths(lines: dict[str, dict[float, float]], xlabel: str, ylabel: str) -> Figure:
    """A line per label through its values, on two logarithmic axes."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for i, (label, colour) in enumerate(colours(lines).items()):
        style = "o-" if i < len(OKABE_ITO) else "s--"
        axes.plot(list(lines[label]), list(lines[label].values()), style, color=colour, markersize=5, label=label)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(sorted({x for line in lines.values() for x in line}), minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    figure.legend(loc="outside right center", frameon=False)
    return figure


def searches(results: Results, title: str) -> Figure:
    """Validation accuracy of each trial against its learning rate, a small panel per arm; the best is filled."""
    arms = {label: finished(records) for label, records in results.arms.items()}
    columns = 5
    rows = -(-len(arms) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(13, 2.1 * rows), sharey=True, squeeze=False)
    best = max(measured(record, "validation") for records in arms.values() for record in records)
    for (label, records), axes in zip(arms.items(), panels.flat, strict=False):
        rates = [dict(record.run.optimizer.options)["lr"] for record in records]
        accuracies = [measured(record, "validation") for record in records]
        axes.semilogx(rates, accuracies, "o", color=OKABE_ITO[6], fillstyle="none")
        winner = int(np.argmax(accuracies))
        axes.semilogx(rates[winner], accuracies[winner], "o", color=OKABE_ITO[4])
        axes.axhline(best, color="grey", linewidth=0.8)
        axes.set_title(label, fontsize=9)
    for axes in panels.flat[len(arms) :]:
        axes.set_visible(False)
    figure.supxlabel("learning rate")
    figure.supylabel("validation accuracy (%)")
    figure.suptitle(title)
    return figure


def kernel_taps(arms: dict[str, list[Record]], kernel: str) -> Figure:
    """One panel per arm: each tap of a 1-D kernel over the epochs, every seed thin, the mean bold."""
    figure, panels = plt.subplots(1, len(arms), figsize=(3.4 * len(arms), 3.2), sharey=True, squeeze=False)
    for (label, records), axes in zip(arms.items(), panels[0], strict=True):
        taps = np.array([[snapshot[kernel] for snapshot in record.kernels] for record in finished(records)])
        centre = taps.shape[-1] // 2
        for tap in range(taps.shape[-1]):
            name = "centre" if tap == centre else f"{tap - centre:+d}"
            _band(axes, list(taps[:, :, tap]), OKABE_ITO[tap % len(OKABE_ITO)], name, start=0)
        axes.set(xlabel="epoch", title=label)
        axes.title.set_fontsize(9)
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
        learnt: the seeds' gains by arm and moment; of a moment without any, the legend tells all the same. Pictures are
            square: there are as many rings of frequencies as pixels along a side.
        top: where the axis of gains ends; None lets it hold all lines.
    """
    side = next(len(gain) for moments in learnt.values() for seeds in moments.values() for gain in seeds)
    frequency = make_bands((side, side), radial=True, dtype=torch.float32, device=torch.device("cpu")).frequency
    figure, panels = plt.subplots(1, len(learnt), figsize=(4.6 * len(learnt), 3.4), sharey=True, squeeze=False)
    for (label, moments), axes in zip(learnt.items(), panels[0], strict=True):
        shades = plt.get_cmap("viridis")(np.linspace(0.9, 0.1, len(moments)))
        for (moment, seeds), shade in zip(moments.items(), shades, strict=True):
            for gain in seeds:
                axes.plot(frequency, gain, color=shade, alpha=0.2, linewidth=0.6)
            line = (frequency, np.mean(seeds, 0)) if seeds else ([], [])
            axes.plot(*line, color=shade, linewidth=2, label=moment)
        axes.axhline(1, color="grey", linewidth=0.8)
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


def kernel_pictures(kernels_by_title: dict[str, Sequence[Sequence[float]]]) -> Figure:
    """2-D kernels side by side on one colour scale, each tap's value written into it."""
    figure, panels = plt.subplots(1, len(kernels_by_title), figsize=(3.1 * len(kernels_by_title), 3.3), squeeze=False)
    top = max(np.max(kernel) for kernel in kernels_by_title.values())
    for (title, kernel), axes in zip(kernels_by_title.items(), panels[0], strict=True):
        axes.imshow(kernel, cmap="cividis", vmin=0, vmax=top)
        for (row, column), value in np.ndenumerate(np.array(kernel)):
            shade = "black" if value > top / 2 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=shade)
        axes.set(title=title, xticks=[], yticks=[])
        axes.title.set_fontsize(9)
        axes.grid(visible=False)
    return figure


def smoothing(gradient: Tensor, kernel_name: str, size: int) -> Figure:
    """A gradient before and after smoothing, and the kernel's frequency response.

    ``gradient`` is a vector; ``kernel_name`` one of ``kernels.NAMED_KERNELS``.
    """
    kernel = kernels.NAMED_KERNELS[kernel_name](size)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), width_ratios=(2, 1))
    left.plot(gradient, color=OKABE_ITO[2], linewidth=1.2, label="gradient g")
    left.plot(smooth(gradient, kernel), color=OKABE_ITO[4], linewidth=2, label="smoothed W * g")
    left.set(xlabel="element", ylabel="value", title=f"{kernel_name} kernel, {size} taps")
    left.legend(frameon=False)
    response(right, {kernel_name: kernel})
    return figure


def response(axes: Axes, named: dict[str, Tensor]) -> None:
    """The frequency responses of 1-D kernels; where one is negative, the step goes uphill."""
    frequencies = torch.linspace(0, torch.pi, 200)
    for (name, kernel), colour in zip(named.items(), OKABE_ITO[4:] + OKABE_ITO[:4], strict=False):
        values = kernels.frequency_response(kernel, frequencies)
        axes.plot(frequencies / torch.pi, values, color=colour, linewidth=2, label=name)
        axes.fill_between(frequencies / torch.pi, values, 0, where=(values < 0).numpy(), color=colour, alpha=0.25)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="frequency (fraction of the highest)", ylabel="response", title="frequency response", ylim=(-0.45, 1.05)
    )


def descents(losses: dict[str, Sequence[float]]) -> Figure:
    """Losses against the step on a logarithmic scale, one line each; all start from 1."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for (name, values), colour in zip(losses.items(), OKABE_ITO, strict=False):
        axes.semilogy(np.array(values) / values[0], color=colour, linewidth=2, label=name)
    axes.set(xlabel="step", ylabel="loss / first loss")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def centre_taps(
    formula: tuple[Sequence[float], Sequence[float]], found: dict[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure:
    """The centre tap that the README's loss teaches against lambda Var(g): the formula's line, and what was found.

    All are (lambda Var(g), centre tap); ``found`` by name.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    axes.semilogx(*formula, color="black", linewidth=1.2, label="closed form")
    for (name, points), colour, marker in zip(found.items(), OKABE_ITO[1:], "osD^v", strict=False):
        axes.semilogx(*points, marker, color=colour, markersize=8, fillstyle="none", markeredgewidth=2, label=name)
    axes.set(xlabel=r"$\lambda\,$Var(g)", ylabel="centre tap", ylim=(0, 1.05))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def taps(named: dict[str, Tensor], title: str) -> Figure:
    """1-D kernels by name: their taps, and their frequency responses."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for (name, kernel), colour in zip(named.items(), OKABE_ITO[4:] + OKABE_ITO[:4], strict=False):
        distance = np.arange(len(kernel)) - len(kernel) // 2
        left.plot(distance, kernel, "o-", color=colour, linewidth=1.5, label=name)
    left.set(xlabel="distance", ylabel="tap", xticks=distance)
    left.legend(frameon=False)
    response(right, named)
    figure.suptitle(title)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file of 128 colours: a page holds many of them, and so each is a third as large."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    palette = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    palette.save(packed, format="png", optimize=True)
    return packed.getvalue()


def to_base64(figure: Figure) -> str:
    """The figure as a PNG file in base64, as a page's data URL takes it."""
    return base64.b64encode(to_png(figure)).decode()


def tried(outcome: Outcome) -> Figure:
    """Each method's measure on the test rows: every seed, mean and interval, and a line at the best baseline's mean."""
    labels, best = list(outcome.plan.methods), list(outcome.values(outcome.baseline or "").values())
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(labels) + 1.6))
    if best:
        axes.axvline(np.mean(best), color="grey", linestyle=":", label=f"mean of {outcome.baseline}")
    for ours, colour in ((False, OKABE_ITO[0]), (True, OKABE_ITO[6])):
        axes.plot([], [], "D", color=colour, label="from here" if ours else "baseline")
        for place, label in enumerate(labels):
            values = list(outcome.values(label).values())
            if not values or outcome.plan.methods[label].ours != ours:
                continue
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.3, markersize=4)
            mean, low, high = mean_interval(values)
            ends = [[0.0], [0.0]] if low is None else [[mean - low], [high - mean]]
            axes.errorbar(mean, place, xerr=ends, fmt="D", color=colour, capsize=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    better = "higher" if outcome.measure.higher_is_better else "lower"
    axes.set_xlabel(f"test {outcome.measure.title}, {outcome.seeds} paired seeds; {better} is better")
    figure.suptitle(f"{Path(outcome.plan.dataset).name}, {outcome.plan.network}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def to_html(figure: Figure, alt: str) -> HTML:
    """The figure as a picture with alternative text inside the page, for glueing into another page."""
    picture = to_base64(figure)
    return HTML(f'<img src="data:image/png;base64,{picture}" alt="{html.escape(alt)}" style="max-width: 100%">')


def histories(columns: dict[str, dict[str, list[float]]], ylabels: dict[str, str]) -> Figure:
    """One panel per quantity of recorders' histories, one line per optimizer, against the step."""
    figure, panels = plt.subplots(1, len(ylabels), figsize=(3.6 * len(ylabels), 3), squeeze=False)
    for (quantity, ylabel), axes in zip(ylabels.items(), panels[0], strict=True):
        for (label, history), colour in zip(columns.items(), OKABE_ITO[3:], strict=False):
            axes.plot(history["step"], history[quantity], color=colour, label=label)
        axes.set(xlabel="step", ylabel=ylabel)
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure


def ema_biases(measured: pd.DataFrame) -> Figure:
    """The EMA's floors and its lag against 1 - beta: formulas as lines, ``probes.ema_on_noise_and_drift`` as dots."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    betas = 1 - np.geomspace(1 - measured.beta.min(), 1 - measured.beta.max(), 100)
    floors = [snr.ema_floors(beta) for beta in betas]
    labels = {
        "signal": "signal power / noise power",
        "snr": "SNR, deviation from the new average",
        "snr_from_previous": "SNR, deviation from the old average",
    }
    for (name, label), colour in zip(labels.items(), OKABE_ITO[4:], strict=True):
        left.plot(1 - betas, [getattr(floor, name) for floor in floors], color=colour, label=label)
        left.plot(1 - measured.beta, measured[name], "o", color=colour)
    left.set(title="pure noise: what is reported, should be 0", ylabel="reported value")
    left.legend(frameon=False, fontsize=8)
    right.plot(1 - betas, [snr.ema_lag(beta) for beta in betas], color=OKABE_ITO[3], label="formula")
    right.plot(1 - measured.beta, measured.lag, "o", color=OKABE_ITO[3], label="measured")
    right.set(title="steady drift: lag", ylabel="steps")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="1 - beta")
    return figure


def snr_courses(powers: pd.DataFrame, labels: dict[str, str], floors: dict[str, float] | None = None) -> Figure:
    """The SNR against the epoch, a panel per batch size: each seed's faint, the ratio of the averages over seeds bold.

    Args:
        powers: of ``probes.course``, with the columns ``batch_size`` and ``seed``.
        labels: of the estimates to show.
        floors: of some of them, dotted.
    """
    sizes = list(powers.batch_size.unique())
    figure, panels = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 3.8), squeeze=False)
    for size, axes in zip(sizes, panels[0], strict=True):
        for estimate, colour in colours(labels).items():
            chosen = powers[(powers.batch_size == size) & (powers.estimate == estimate)]
            for _, one_seed in chosen.groupby("seed"):
                axes.plot(one_seed.epoch, one_seed.signal / one_seed.noise, color=colour, alpha=0.3, linewidth=0.7)
            means = probes.with_snr(chosen, ["epoch"])
            axes.plot(means.epoch, means.snr, "o-", color=colour, markersize=3, label=labels[estimate])
            if floors and estimate in floors:
                axes.axhline(floors[estimate], color=colour, linestyle=":")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="epoch", ylabel="SNR of a batch", title=f"batch {size}")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def snr_of_batches(seen: dict[float, probes.FreshGradients], label_noise: float, batch_size: int, title: str) -> Figure:
    """The SNR against the batch size, a line per label noise, and what it looks like at one of each.

    Beside the lines, one hidden unit's gradient over the pixels: of a batch, and the signal. Each has a colour scale of
    its own.

    Args:
        seen: of ``probes.fresh_gradients``, by label noise.
        label_noise: whose gradients are shown.
        batch_size: from 1 to as many pictures as were drawn.
        title: what the gradients are of.
    """
    figure, (left, *pictures) = plt.subplots(1, 3, figsize=(10, 3.4), width_ratios=(2, 1, 1))
    sizes = 2.0 ** np.arange(10)
    for (noise, (powers, _, _)), colour in zip(seen.items(), OKABE_ITO[3:] + OKABE_ITO[:3], strict=False):
        ratio = (powers.signal / powers.noise).item()
        left.loglog(sizes, sizes * ratio, color=colour, label=f"{100 * noise:g} % wrong labels")
        if noise == label_noise:
            left.plot(batch_size, batch_size * ratio, "o", color=colour, markersize=10)
            left.set_title(f"{title}, batch {batch_size}: SNR {batch_size * ratio:.2g}")
    left.axhline(1, color="grey", linewidth=0.8)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:g}")
    left.set(xlabel="batch size", ylabel="SNR of a batch")
    left.legend(frameon=False, fontsize=8)
    _, samples, signal = seen[label_noise]
    shown = {f"one hidden unit's gradient:\nbatch of {batch_size}": samples[:batch_size].mean(0), "signal": signal}
    for axes, (title, picture) in zip(pictures, shown.items(), strict=True):
        most = picture.abs().max().item() or 1  # the unit may be off for all of a small batch
        axes.imshow(picture, cmap="PuOr", vmin=-most, vmax=most)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.set_title(title, fontsize=10)
    return figure


def ring_spectra(spectra: pd.DataFrame) -> Figure:
    """Signal and noise power by ring of the pixels' frequencies, and Wiener's gain; one colour per order of the pixels.

    Args:
        spectra: of ``probes.course``, with the columns ``pixels`` and ``seed``; seeds are faint, means bold.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for pixels, colour in zip(spectra.pixels.unique(), (OKABE_ITO[6], OKABE_ITO[4]), strict=True):
        chosen = spectra[spectra.pixels == pixels]
        means = probes.with_gain(chosen, ["ring"])
        signal = means.signal.where(means.signal > 0)  # a logarithmic axis has no place for the others
        left.plot(means.ring, signal, "o-", color=colour, markersize=3, label=f"{pixels}: signal")
        left.plot(means.ring, means.total - means.signal, "s--", color=colour, markersize=3, label=f"{pixels}: noise")
        for _, one_seed in probes.with_gain(chosen, ["seed", "ring"]).groupby("seed"):
            right.plot(one_seed.ring, one_seed.gain, color=colour, alpha=0.3, linewidth=0.7)
        right.plot(means.ring, means.gain, "o-", color=colour, markersize=3, label=pixels)
    left.set(yscale="log", xlabel="ring (0: the lowest frequencies)", ylabel="power per frequency", title="spectra")
    right.set(xlabel="ring (0: the lowest frequencies)", ylabel="Wiener's gain", title="coherence", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    return figure


def snr_tracking(course: pd.DataFrame, beta: float) -> Figure:
    """Estimates of a falling SNR against the step: the EMA's, its floor, the two halves', and the truth."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for name, colour, width in (("EMA", OKABE_ITO[4], 1.2), ("two halves", OKABE_ITO[2], 1.2), ("truth", "black", 2)):
        values = course[name].where(course[name] > 0)  # an unbiased estimate may be negative: a gap
        axes.plot(course.step, values, color=colour, linewidth=width, label=name)
    axes.axhline(snr.ema_floors(beta).snr, color=OKABE_ITO[4], linestyle=":", label="the EMA's floor")
    axes.set(yscale="log", ylim=(5e-4, 20), xlabel="step", ylabel="SNR of a batch", title=f"beta = {beta}")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure
