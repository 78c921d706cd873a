"""What page 16 says: what each piece adds to an optimizer, task by task."""

from collections.abc import Iterable
from statistics import fmean, median
from typing import NamedTuple

import pandas as pd

from convopt.lab.correctness import ALPHA, Pair, compare, difference
from convopt.lab.experiments.beyond_mnist import ATTACHED, BASES, FACTORS, SELDOM_ON, TASKS, label
from convopt.lab.experiments.tuned_filters import COMPARED, RAW, arm_label
from convopt.lab.records import Record, finished
from convopt.lab.report import Table
from convopt.lab.searches import score
from convopt.lab.stats import CrossedComparison, Interval, holm
from convopt.lab.study import Results

HARM = -0.5
"""Points that a piece may cost at most."""

TUNED = "the tuned rate"


class Cell(NamedTuple):
    """Where a piece is compared with the optimizer alone; ``rate`` says at which learning rate."""

    task: str
    base: str
    rate: str


def added(results: Results, piece: str) -> dict[Cell, CrossedComparison]:
    """What the piece adds to the optimizer alone at the same learning rate, in points, wherever there are records."""
    return _compared(
        (cell, results.arms[label(*cell, piece)], results.arms[label(*cell, "alone")]) for cell in _cells(results)
    )


def over_cosine(results: Results, piece: str) -> dict[Cell, CrossedComparison]:
    """The piece at the rate that was tuned for the optimizer alone, minus a cosine with tuned rate and epochs."""
    return _compared(
        (cell, results.arms[label(*cell, piece)], results.arms.get(label(cell.task, cell.base, "cosine"), []))
        for cell in _cells(results)
        if cell.rate == TUNED
    )


def best_over_best(results: Results, piece: str) -> dict[Cell, CrossedComparison]:
    """The piece minus the optimizer alone, each at the rate of the three that is best for it on the validation data."""

    def best(cell: Cell, each: str) -> list[Record]:
        return _best(results.arms[label(*cell._replace(rate=rate), each)] for rate in FACTORS)

    return _compared(
        (cell._replace(rate="the best of three rates"), best(cell, piece), best(cell, "alone"))
        for cell in _cells(results)
        if cell.rate == TUNED
    )


def filters(results: Results) -> dict[Cell, CrossedComparison]:
    """What filters add to an optimizer with a cosine at the settings that were tuned without them, in points."""
    return _compared(
        (
            Cell(task, base, which),
            results.arms.get(label(task, base, "cosine", which), []),
            results.arms.get(label(task, base, "cosine"), []),
        )
        for task in TASKS
        for base in BASES
        for which in ATTACHED
    )


def seldom_minus_always(results: Results) -> dict[Cell, CrossedComparison]:
    """SNRAnnealing that compares gradients at every fourth step, minus the one that does so at each, in points."""
    return _compared(
        (
            Cell(task, base, "every fourth step minus each"),
            results.arms.get(label(task, base, "every=4"), []),
            results.arms.get(label(task, base, "every=1"), []),
        )
        for task in SELDOM_ON
        for base in BASES
    )


def tuned_filters(results: Results) -> dict[tuple[str, str], Pair]:
    """Filters and raw gradients, each with a cosine of its own: by the gradient, and by the task and the optimizer."""
    arms = {arm.label for arm in results.experiment.arms}
    pairs = {
        (gradient, label(task, base)): Pair(
            f"{label(task, base)}: does it help?", arm_label(task, base, gradient), arm_label(task, base, RAW)
        )
        for task, of_task in COMPARED.items()
        for base, gradient in of_task
        if gradient != RAW
    }
    return {place: pair for place, pair in pairs.items() if {pair.treatment, pair.control} <= arms}


def gains_of_tuned(results: Results) -> dict[tuple[str, str], Interval]:
    """What each of :func:`tuned_filters` adds to the raw gradient, in points."""
    compared = {place: compare(results, pair) for place, pair in tuned_filters(results).items()}
    return {place: comparison.interval for place, comparison in compared.items() if comparison is not None}


def _compared(arms: Iterable[tuple[Cell, list[Record], list[Record]]]) -> dict[Cell, CrossedComparison]:
    """Treatment minus control by cell, where both have a seed."""
    compared = ((cell, difference(treatment, control)) for cell, treatment, control in arms)
    return {cell: comparison for cell, comparison in compared if comparison is not None}


def _best(arms: Iterable[list[Record]]) -> list[Record]:
    """Of arms the one with the best mean measure on the validation data."""
    done = [arm for arm in map(finished, arms) if arm]
    if not done:
        return []
    most = max(map(len, done))  # where runs have diverged, the arm is not chosen
    return max((arm for arm in done if len(arm) == most), key=lambda arm: fmean(map(score, arm)))


def _cells(results: Results) -> list[Cell]:
    every = (Cell(task, base, rate) for task in TASKS for base in BASES for rate in FACTORS)
    return [cell for cell in every if label(*cell, "alone") in results.arms]


def by_panel(added: dict[str, dict[Cell, CrossedComparison]]) -> dict[tuple[str, str, str], Interval]:
    """What each piece adds, by piece and optimizer, by task and by learning rate."""
    bases = dict.fromkeys(cell.base for cells in added.values() for cell in cells)
    return {
        (f"{piece} around {base}", cell.task, cell.rate): comparison.interval
        for base in bases
        for piece, cells in added.items()
        for cell, comparison in cells.items()
        if cell.base == base
    }


def table(of_piece: dict[Cell, CrossedComparison], name: str) -> Table:
    """A row per task and optimizer, a column per learning rate."""
    rows: dict[tuple[str, str], dict[str, Interval]] = {}
    for cell, comparison in of_piece.items():
        rows.setdefault((cell.task, cell.base), {})[cell.rate] = comparison.interval
    told = [{"task": task, "optimizer": base, **of_rate} for (task, base), of_rate in rows.items()]
    return Table(pd.DataFrame(told), name, signed=True, index=2, decimals=1)


def summary(several: dict[str, dict[Cell, CrossedComparison]], name: str) -> Table:
    """A row for each of several comparisons that were made: the worst, how often it harms, what it usually adds."""
    rows = []
    for what, cells in several.items():
        if not cells:
            continue
        worst = worst_of(cells)
        rows.append(
            {
                "what": what,
                "comparisons": str(len(cells)),
                f"below {HARM:g} points": str(harmed(cells)),
                "median (points)": Interval(median_of(cells), None, None),
                "worst (points)": cells[worst].interval,
                "where": ", ".join(worst),
            }
        )
    return Table(pd.DataFrame(rows), name, signed=True, decimals=1)


def worst_of(cells: dict[Cell, CrossedComparison]) -> Cell:
    """Where the difference is smallest."""
    return min(cells, key=lambda cell: cells[cell].interval.mean)


def harmed(cells: dict[Cell, CrossedComparison]) -> int:
    """In how many comparisons the difference is below ``HARM``."""
    return sum(each.interval.mean < HARM for each in cells.values())


def certainly_harmed(cells: dict[Cell, CrossedComparison]) -> int:
    """How many lose: their interval lies below zero."""
    return sum(each.interval.excludes_zero and each.interval.mean < 0 for each in cells.values())


def certainly_gained(cells: dict[Cell, CrossedComparison]) -> list[Cell]:
    """Where there is a gain that passes a test at level 0.05, with Holm's correction over all of the comparisons."""
    corrected = holm([each.p for each in cells.values()])
    return [cell for cell, p in zip(cells, corrected, strict=True) if p < ALPHA and cells[cell].interval.mean > 0]


def above_zero(cells: dict[Cell, CrossedComparison]) -> int:
    """How many intervals lie above zero."""
    return sum(each.interval.excludes_zero and each.interval.mean > 0 for each in cells.values())


def median_of(cells: dict[Cell, CrossedComparison]) -> float:
    """The median over all comparisons, in points: a few tasks have by far the largest differences."""
    return median(each.interval.mean for each in cells.values())


def at(cells: dict[Cell, CrossedComparison], rate: str) -> dict[Cell, CrossedComparison]:
    """Those at this learning rate, or with this filter."""
    return {cell: each for cell, each in cells.items() if cell.rate == rate}


def on_noisy_images(cells: dict[Cell, CrossedComparison]) -> dict[Cell, CrossedComparison]:
    """The comparisons at the tuned rate on images with noisy labels."""
    return {cell: each for cell, each in at(cells, TUNED).items() if TASKS[cell.task].noisy_images}


def diverged(results: Results, piece: str) -> int:
    """How many runs with the piece did not come to their end: they have no part in the comparisons."""
    return sum(len(arm) - len(finished(arm)) for cell in _cells(results) for arm in [results.arms[label(*cell, piece)]])


def in_place(results: Results) -> dict[str, float]:
    """The share of runs that ended with averaged weights in place, by learning rate."""
    shares: dict[str, list[float]] = {}
    for cell in _cells(results):
        for record in finished(results.arms[label(*cell, "WeightAveraging")]):
            shares.setdefault(cell.rate, []).append(record.curves["average_in_place"][-1])
    return {rate: fmean(values) for rate, values in shares.items()}
