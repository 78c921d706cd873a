"""Whether published results come out again: a few runs drawn at random, or arm by arm over all of them."""

import math
import random
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pandas as pd
from scipy import stats

from convopt.lab.experiments import Experiment
from convopt.lab.records import Record, finished
from convopt.lab.report import MEASURES, Table, by_label, by_seed, measured, rows, seconds, table
from convopt.lab.runs import Run
from convopt.lab.stats import paired_difference
from convopt.lab.sweep import describe


def draw(published: Iterable[Record], sample: int, seed: int, max_seconds: float = math.inf) -> list[Record]:
    """``sample`` different records drawn at random.

    Args:
        published: what to draw from, in an order that is always the same.
        sample: how many.
        seed: the same draws the same.
        max_seconds: leave out what took longer to train and evaluate.

    Raises:
        ValueError: there are fewer.
    """
    candidates = [record for record in published if seconds(record) <= max_seconds]
    if sample > len(candidates):
        raise ValueError(f"sample must be at most the {len(candidates)} published runs to draw from, got {sample}")
    return random.Random(seed).sample(candidates, sample)


def tolerance(record: Record, published: Iterable[Record], measure: str) -> float:
    """By how many points ``measure``, "best" or "final", may differ when the run of ``record`` is trained again.

    With the same torch on the same processor nothing differs: a run is deterministic. Elsewhere sums are rounded
    differently, and training amplifies that: initial weights changed by one part in ten million move the final
    accuracy of SGD in the stress test by up to three points, as much as another seed does, and that of runs on clean
    labels at batch 64 by some tenths. So the tolerance is what 99 % of the differences between two seeds of the run's
    arm stay within, by Student's t from its published seeds, and at least half a point: few seeds can agree by chance.
    Of an arm with three seeds it is wide; ``differences`` of whole arms tell more.
    """
    arm = _arms(published)[replace(record.run, seed=0)]
    values = list(by_seed(arm, measure).values())
    if len(values) < 2:
        return 0.5
    quantile = float(stats.t.ppf(0.995, len(values) - 1))
    return max(0.5, quantile * math.sqrt(2) * statistics.stdev(values))


def compare(old: Iterable[Record], new: Iterable[Record], published: Iterable[Record]) -> pd.DataFrame:
    """A row per pair of the ``old`` and ``new`` record of a run, for reading.

    The column ``verdict`` has "identical" where everything but the time taken is the same to the last bit, "within
    tolerance" (see :func:`tolerance`, of the ``published`` records), or "outside". A run that diverged must diverge
    again.
    """
    compared = []
    for before, after in zip(old, new, strict=True):
        row: dict[str, Any] = {"run": describe(before.run)}
        within = before.status == after.status
        for measure in ("best", "final"):
            values = [
                measured(record, measure) if record.status == "finished" else math.nan for record in (before, after)
            ]
            allowed = tolerance(before, published, measure)
            within = within and not abs(values[1] - values[0]) > allowed
            row |= {f"{measure} (%)": values[0], f"{measure} again": values[1], f"{measure} may differ by": allowed}
        row["verdict"] = "identical" if is_identical(before, after) else "within tolerance" if within else "outside"
        compared.append(row)
    return pd.DataFrame(compared)


def differences(experiment: Experiment, reproduced: Iterable[Record], published: Iterable[Record]) -> Table | None:
    """A row per arm of ``experiment`` with records of both: reproduced minus published, for reading.

    Means over the seeds that finished in both, paired, with 95 % intervals; then the number of these pairs, and how
    many of all the arm's pairs are identical (see :func:`is_identical`). None where there are no pairs.
    """
    again = {record.run: record for record in reproduced}
    report_rows, identical = [], []
    for labelled in by_label(experiment, published).values():
        for arm in _arms(labelled).values():
            pairs = [(old, again[old.run]) for old in arm if old.run in again]
            if not pairs:
                continue
            old, new = zip(*pairs, strict=True)
            (row,) = rows(experiment, old)
            n = len({record.run for record in finished(old)} & {record.run for record in finished(new)})
            for measure in MEASURES:
                values = by_seed(new, measure), by_seed(old, measure)
                row[measure] = paired_difference(*values).interval._asdict() if n else None
            report_rows.append({**row, "n": n, "diverged": len(pairs) - n})
            identical.append(sum(is_identical(*pair) for pair in pairs))
    if not report_rows:
        return None
    told = table(experiment, report_rows, MEASURES)
    return replace(told, frame=told.frame.assign(identical=identical), signed=True)


def is_identical(first: Record, second: Record) -> bool:
    """Whether two records are the same to the last bit in what both recorded, but for the time taken."""
    common = {name for name in first.curves.keys() & second.curves.keys() if not name.startswith("seconds")}
    return (first.run, first.status, first.confirmation_accuracy) == (
        second.run,
        second.status,
        second.confirmation_accuracy,
    ) and all(first.curves[name] == second.curves[name] for name in common)


def _arms(records: Iterable[Record]) -> dict[Run, list[Record]]:
    """Records by their run but for its seed."""
    arms: dict[Run, list[Record]] = {}
    for record in records:
        arms.setdefault(replace(record.run, seed=0), []).append(record)
    return arms
