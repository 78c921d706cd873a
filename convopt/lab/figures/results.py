"""Figures of experiments: curves, dots, intervals, trends."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from convopt.lab.figures.comparisons import dot
from convopt.lab.figures.looks import GROUNDS, QUIET, Look, looks, series
from convopt.lab.figures.style import AXIS_LABELS, SMALLEST, WIDEST, band, hide_spare
from convopt.lab.records import Record, finished
from convopt.lab.report import Table, by_seed, heading, judged_by, measured
from convopt.lab.stats import Interval, mean_interval
from convopt.lab.study import Results
from convopt.lab.tryout.answer import Outcome


def curves(arms: dict[str, list[Record]], measures: Sequence[str], title: str) -> Figure:
    """One panel per per-epoch measure: every seed thin, the mean bold, its 95 % interval as a band."""
    figure, panels = plt.subplots(1, len(measures), figsize=(min(5.2 * len(measures), WIDEST), 3.6), squeeze=False)
    for measure, axes in zip(measures, panels[0], strict=True):
        scale = 100 if "(%)" in AXIS_LABELS[measure] else 1
        for label, look in looks(arms).items():
            courses = [
                scale * np.array(record.curves[measure]) for record in finished(arms[label]) if measure in record.curves
            ]
            if courses:
                band(axes, courses, look, label)
        axes.set(xlabel="epoch", ylabel=AXIS_LABELS[measure])
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title)
    return figure


def race(arms: dict[str, list[Record]], title: str, epoch: int | None = None) -> Figure:
    """Mean test accuracy and training loss over each arm's records up to ``epoch``, None for as far as they go.

    The axes have room for all epochs, so that images at several compare. The figure is unknown to pyplot and may be
    drawn in any thread.
    """
    figure = Figure(figsize=(10, 3.8))
    last = max((record.run.epochs for records in arms.values() for record in records), default=1)
    for measure, axes in zip(("test_accuracy", "train_loss"), figure.subplots(1, 2), strict=True):
        scale = 100 if "(%)" in AXIS_LABELS[measure] else 1
        for label, look in looks(arms).items():
            courses = [record.curves.get(measure, []) for record in arms[label]]
            means = [scale * np.mean(values) for values in zip(*courses, strict=False)]
            shown = means[:epoch]
            drawn = {"color": look.colour, "marker": look.marker, "markevery": [-1], "linewidth": 2}
            axes.plot(range(1, len(shown) + 1), shown, label=label, **drawn)
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
        1, len(measures), figsize=(min(4.2 * len(measures), WIDEST), 0.45 * len(arms) + 1.4), sharey=True, squeeze=False
    )
    labels = list(arms)
    for measure, axes in zip(measures, panels[0], strict=True):
        for row, (label, look) in enumerate(looks(labels).items()):
            values = list(by_seed(arms[label], measure).values())
            if not values:
                continue
            interval = mean_interval(values)
            axes.scatter(values, [row] * len(values), color=look.colour, alpha=0.25, s=14, linewidths=0)
            dot(axes, interval, row, look)
        axes.set(xlabel=AXIS_LABELS[measure])
        axes.set_yticks(range(len(labels)), labels)
    panels[0][0].invert_yaxis()
    figure.suptitle(title)
    return figure


def intervals(table: Table, columns: Sequence[str] = ()) -> Figure:
    """A dot with its 95 % interval for each row of a table, a panel per column that holds intervals.

    ``columns`` are headings; without any, all such columns are shown. The last column of the index names a method, or
    a difference of two, "A minus B", which is drawn as A is. Of differences, zero is marked.
    """
    frame = table.frame
    columns = columns or [name for name in frame if any(isinstance(value, Interval) for value in frame[name])]
    index = table.text().iloc[:, : table.index]
    labels = index.agg(", ".join, axis=1)
    methods = index.iloc[:, -1].str.partition(" minus ")[0]
    look_of = looks(dict.fromkeys(methods))
    figure, panels = plt.subplots(
        1,
        len(columns),
        figsize=(min(3.6 + 2.9 * len(columns), WIDEST), 0.26 * len(frame) + 1.2),
        sharey=True,
        squeeze=False,
    )
    for column, axes in zip(columns, panels[0], strict=True):
        for row, (value, method) in enumerate(zip(frame[column], methods, strict=True)):
            if isinstance(value, Interval):
                dot(axes, value, row, look_of[method])
        for row in _block_ends(index):
            axes.axhline(row + 0.5, color=QUIET, linewidth=0.6)
        if table.signed:
            axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel=column)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].set_ylim(len(labels) - 0.4, -0.6)
    return figure


def verdicts(table: Table) -> Figure:
    """A dot with its 95 % interval for each row of ``advice.judge`` that is about accuracy, marked by its verdict.

    Labels stand above their dots, under a heading per situation: so the figure is narrow enough for a telephone. The
    axis is linear up to 2 points to either side of zero, logarithmic beyond.
    """
    frame = table.frame[table.frame.measure.str.contains("%")]
    marks = {"confirmed": Look("green", "o"), "refuted": Look("vermillion", "s"), "undecided": Look("brown", "D")}
    begins = frame.situation != frame.situation.shift()
    places = np.arange(len(frame)) + 0.75 * begins.cumsum()
    figure, axes = plt.subplots(figsize=(5.2, 0.42 * places.max() + 1.6))
    for place, (interval, verdict) in zip(places, zip(frame.measured, frame.verdict, strict=True), strict=True):
        dot(axes, interval, place, marks[verdict])
    for verdict, look in marks.items():
        axes.plot([], [], look.marker, color=look.colour, label=verdict)
    axes.axvline(0, color="black", linewidth=0.8)
    over_lines = {"transform": axes.get_yaxis_transform(), "bbox": {"facecolor": "white", "linewidth": 0, "pad": 1}}
    for place, label in zip(places, map(_what_differs, frame.difference), strict=True):
        axes.text(0, place - 0.48, label, verticalalignment="center", **over_lines)
    for place, situation in zip(places[begins], frame.situation[begins], strict=True):
        axes.text(0, place - 1.05, situation, verticalalignment="center", weight="bold", **over_lines)
    axes.set(yticks=[], ylim=(places.max() + 0.5, places.min() - 1.4))
    axes.spines["left"].set_visible(False)
    axes.set_xscale("symlog", linthresh=2, linscale=1.5)
    axes.set_xticks([-50, -10, -2, -1, 0, 1, 2, 10])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:+g}" if x else "0")
    axes.set(xlabel="difference in accuracy (points)", xlim=(-80, 20))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _what_differs(difference: str) -> str:
    """What two labels have in common, then the rest: "SGD, cosine: Wiener filter minus raw gradient", for example."""
    treatment, control = (label.split(", ") for label in difference.split(" minus "))
    if len(treatment) != len(control):
        return difference
    alike = [one for one, other in zip(treatment, control, strict=True) if one == other]
    rest = [", ".join(part for part in label if part not in alike) for label in (treatment, control)]
    return ": ".join(filter(None, [", ".join(alike), " minus ".join(rest)]))


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
    figure, panels = plt.subplots(1, len(measures), figsize=(min(4.6 * len(measures), WIDEST), 3.8), squeeze=False)
    for measure, axes in zip(measures, panels[0], strict=True):
        for label, look in looks(results.arms).items():
            colour = look.colour
            at: dict[float, list[Record]] = {}
            for record in results.arms[label]:
                at.setdefault(getattr(record.run, condition), []).append(record)
            values = {x: list(by_seed(at[x], measure).values()) for x in sorted(at)}
            found = {x: mean_interval(of_x) for x, of_x in values.items() if of_x}
            means = [interval.mean for interval in found.values()]
            axes.plot(list(found), means, color=colour, marker=look.marker, markersize=6, label=label)
            for x, interval in found.items():
                axes.scatter([x] * len(values[x]), values[x], color=colour, alpha=0.2, s=9, linewidths=0)
                if interval.low is not None:
                    axes.plot([x, x], [interval.low, interval.high], color=colour, linewidth=2)
        if logarithmic:
            axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({getattr(record.run, condition) for record in results.records}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=xlabel, ylabel=heading(measure, judged_by(results.records)))
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def ratios(table: Table, xlabel: str) -> Figure:
    """A table of positive ratios on a logarithmic axis: a line of dots per row, a colour per column; 1 is marked."""
    values = table.frame.set_index(table.frame.columns[0])
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(values) + 1.4))
    for name, look in series(values).items():
        axes.plot(values[name], range(len(values)), look.marker, color=look.colour, markersize=6, label=name, alpha=0.8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(values)), values.index)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def growths(lines: dict[str, dict[float, float]], xlabel: str, ylabel: str) -> Figure:
    """A line per method through its values, on two logarithmic axes."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for label, look in looks(lines).items():
        values = list(lines[label].values())
        axes.plot(list(lines[label]), values, color=look.colour, marker=look.marker, markersize=6, label=label)
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
    columns = 4
    rows = -(-len(arms) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(WIDEST, 2.1 * rows), sharey=True, squeeze=False)
    best = max(measured(record, "validation") for records in arms.values() for record in records)
    for (label, look), axes in zip(looks(arms).items(), panels.flat, strict=False):
        records = arms[label]
        rates = [dict(record.run.optimizer.options)["lr"] for record in records]
        accuracies = [measured(record, "validation") for record in records]
        axes.semilogx(rates, accuracies, look.marker, color=look.colour, fillstyle="none")
        winner = int(np.argmax(accuracies))
        axes.semilogx(rates[winner], accuracies[winner], look.marker, color=look.colour)
        axes.axhline(best, color=QUIET, linewidth=0.8)
        axes.set_title(label, fontsize=SMALLEST)
    hide_spare(panels, len(arms))
    figure.supxlabel("learning rate")
    figure.supylabel("validation accuracy (%)")
    figure.suptitle(title)
    return figure


def tried(outcome: Outcome) -> Figure:
    """Each method's measure on the test rows: every seed, mean and interval, and a line at the best baseline's mean.

    Baselines are hollow.
    """
    labels, best = list(outcome.plan.methods), list(outcome.values(outcome.baseline or "").values())
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(labels) + 1.6))
    if best:
        axes.axvline(np.mean(best), color=QUIET, linestyle=":", label=f"mean of {outcome.baseline}")
    for ours, told in ((False, "baseline"), (True, "from here")):
        axes.plot([], [], "D", color=QUIET, markerfacecolor=QUIET if ours else GROUNDS["light"], label=told)
    for place, (label, look) in enumerate(looks(labels).items()):
        values = list(outcome.values(label).values())
        if not values:
            continue
        filled = look.colour if outcome.plan.methods[label].ours else GROUNDS["light"]
        axes.plot(values, [place] * len(values), look.marker, color=look.colour, alpha=0.3, markersize=4, linewidth=0)
        mean, low, high = mean_interval(values)
        ends = [[0.0], [0.0]] if low is None else [[mean - low], [high - mean]]
        axes.errorbar(mean, place, xerr=ends, fmt=look.marker, capsize=3, color=look.colour, markerfacecolor=filled)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    better = "higher" if outcome.measure.higher_is_better else "lower"
    axes.set_xlabel(f"test {outcome.measure.title}, {outcome.seeds} paired seeds; {better} is better")
    figure.suptitle(f"{Path(outcome.plan.dataset).name}, {outcome.plan.network}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=SMALLEST)
    return figure
