"""The figures of compared arms: rows of dots with intervals."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convopt.lab.figures.looks import QUIET, Look, looks, series
from convopt.lab.figures.style import hide_spare
from convopt.lab.stats import Interval


def factorial(accuracies: dict[tuple[str, str, str], Interval], xlabel: str) -> Figure:
    """A panel per optimizer, two in a line, a row per step, a dot with its interval per gradient: what helps, where.

    Args:
        accuracies: by optimizer, gradient and step.
        xlabel: what the values are.
    """
    bases, gradients, steps = (list(dict.fromkeys(names)) for names in zip(*accuracies, strict=True))
    lines = -(-len(bases) // 2)
    height = 0.8 + lines * (0.7 + 0.54 * len(steps))
    figure, panels = plt.subplots(lines, 2, figsize=(8.8, height), sharex=True, sharey=True, squeeze=False)
    for number, (base, axes) in enumerate(zip(bases, panels.flat, strict=False)):
        of_base = {(gradient, step): each for (of_it, gradient, step), each in accuracies.items() if of_it == base}
        _rows_of_dots(axes, of_base, looks(gradients), steps)
        axes.set(title=base, xlabel=xlabel if number >= len(bases) - 2 else "")
    hide_spare(panels, len(bases))
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def differences(values: dict[tuple[str, str], Interval], xlabel: str) -> Figure:
    """A row per case, a dot with its interval per series, a line at no difference.

    Args:
        values: by series and case, one at least; what is missing leaves its place empty.
        xlabel: what the values are.
    """
    names, cases = (dict.fromkeys(of_one) for of_one in zip(*values, strict=True))
    figure, axes = plt.subplots(figsize=(7.2, 1.1 + 0.5 * len(cases)))
    axes.axvline(0, color=QUIET, linewidth=1)
    _rows_of_dots(axes, values, looks(names))
    axes.set_xlabel(xlabel)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def added(differences: dict[tuple[str, str, str], Interval], xlabel: str, columns: int) -> Figure:
    """So many panels in a line; in each a row per task, a dot with its interval per case, a line at no difference.

    Args:
        differences: by panel, task and case, one at least; what is missing leaves its place empty.
        xlabel: what the values are. Between -1 and 1 the scale is linear, beyond it is logarithmic.
        columns: panels in a line.
    """
    names, tasks, cases = (list(dict.fromkeys(of_one)) for of_one in zip(*differences, strict=True))
    lines = -(-len(names) // columns)
    height = 1.2 + 0.3 * len(tasks) * lines
    figure, panels = plt.subplots(lines, columns, figsize=(9.6, height), sharex=True, sharey=True, squeeze=False)
    for number, (name, axes) in enumerate(zip(names, panels.flat, strict=False)):
        of_panel = {(case, task): interval for (of_it, task, case), interval in differences.items() if of_it == name}
        axes.axvline(0, color=QUIET, linewidth=1)
        _rows_of_dots(axes, of_panel, series(cases), tasks)
        axes.set(title=name, xlabel=xlabel if number >= len(names) - columns else "")
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter("{x:g}")
    hide_spare(panels, len(names))
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _rows_of_dots(
    axes: Axes, values: dict[tuple[str, str], Interval], look_of: dict[str, Look], rows: Sequence[str] = ()
) -> None:
    """Values by label and row: rows from above, in each a dot with its interval per label.

    ``rows`` are those of the values, or more of them, which stay empty.
    """
    rows = rows or list(dict.fromkeys(row for _, row in values))
    for place, (label, look) in enumerate(look_of.items()):
        offset = 0.6 / len(look_of) * (place - (len(look_of) - 1) / 2)
        for number, row in enumerate(rows):
            if (label, row) in values:
                dot(axes, values[label, row], number + offset, look)
        axes.plot([], [], look.marker, color=look.colour, label=label)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def dot(axes: Axes, interval: Interval, row: float, look: Look) -> None:
    """A mean in its row, with its interval where there is one."""
    axes.plot(interval.mean, row, look.marker, color=look.colour, markersize=7)
    if interval.low is not None:
        axes.plot([interval.low, interval.high], [row, row], color=look.colour, linewidth=2.5)
