"""Whether published results come out again: a few runs drawn at random, or arm by arm over all of them."""

import json
import math
import random
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from convopt.lab.durations import seconds
from convopt.lab.experiments import Experiment
from convopt.lab.predictions import unpack
from convopt.lab.records import Record, finished
from convopt.lab.report import MEASURES, Table, by_label, by_seed, measured, rows, table
from convopt.lab.runs import Run
from convopt.lab.stats import holm, paired_difference
from convopt.lab.sweep import describe
from convopt.lab.tasks import ACCURACY


def of_experiments(chosen: Iterable[Experiment], published: Iterable[Record]) -> list[Record]:
    """The records of the experiments' own seeds, on any data set and for any number of epochs.

    A trial of a search may be trained as an arm is, but has another seed: it is no run of the arm's experiment.
    """
    published = list(published)
    settings = {(record.run.dataset, record.run.epochs) for record in published}
    own = {
        run
        for experiment in chosen
        for dataset, epochs in settings
        for run in experiment.taking(dataset).runs(dataset, None, epochs)
    }
    return [record for record in published if record.run in own]


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


LARGEST_TOLERANCE = 3.0
"""Points of accuracy, or percent of another measure."""

LEAST_TOLERANCE = 0.5
"""The same: few seeds can agree by chance."""


def must_be_identical(old: Record, new: Record) -> bool:
    """Whether both were computed in portable arithmetic, which gives the same bits on every x86-64 processor."""
    return all(record.provenance.get("arithmetic") == "portable" for record in (old, new))


def tolerance(record: Record, arm: Iterable[Record], measure: str) -> float:
    """By how much ``measure``, "best" or "final", may differ when the run of ``record`` is trained again elsewhere.

    In portable arithmetic nothing differs (see :func:`must_be_identical`). Otherwise sums are rounded as the processor
    has it, and training amplifies that: initial weights changed by one part in ten million move the final accuracy of
    SGD in the stress test by up to three points, as much as another seed does, and that of runs on clean labels at
    batch 64 by some tenths. So the tolerance is what 99 % of the differences between two seeds of the run's arm stay
    within, by Student's t from the published seeds of its ``arm``; it is at least ``LEAST_TOLERANCE`` and at most
    ``LARGEST_TOLERANCE``.
    """
    unit = 1.0 if record.measure == ACCURACY else abs(measured(record, measure)) / 100
    values = [value for value in by_seed(arm, measure).values() if math.isfinite(value)]
    if len(values) < 2:
        return LEAST_TOLERANCE * unit
    quantile = float(stats.t.ppf(0.995, len(values) - 1))
    spread = quantile * math.sqrt(2) * statistics.stdev(values)
    return min(max(spread, LEAST_TOLERANCE * unit), LARGEST_TOLERANCE * unit)


def compare(old: Iterable[Record], new: Iterable[Record], published: Iterable[Record]) -> pd.DataFrame:
    """A row per pair of the ``old`` and ``new`` record of a run, for reading.

    The column ``verdict`` has "identical" where everything but the time taken is the same to the last bit. Where it
    must be and is not, or differs by more than :func:`tolerance`, it has "outside", else "within tolerance". A run that
    diverged must diverge again.
    """
    compared, arms = [], _arms(published)
    for before, after in zip(old, new, strict=True):
        row: dict[str, Any] = {"run": describe(before.run)}
        within = before.status == after.status and not must_be_identical(before, after)
        for measure in ("best", "final"):
            values = [
                measured(record, measure) if record.status == "finished" else math.nan for record in (before, after)
            ]
            arm = arms[replace(before.run, seed=0)]
            allowed = tolerance(before, arm, measure) if before.status == "finished" else 0.0
            within = within and _is_within(*values, allowed)
            row |= {measure: values[0], f"{measure} again": values[1], f"{measure} may differ by": allowed}
        row["verdict"] = "identical" if is_identical(before, after) else "within tolerance" if within else "outside"
        compared.append(row)
    return pd.DataFrame(compared)


FRESH_SEEDS = range(1000, 1003)
"""Of an arm that is verified as a whole; no published run has them."""

SIGNIFICANCE = 0.01
"""Of the test of whole arms, over all arms that are tested together."""


def fresh_runs(old: Iterable[Record], published: Iterable[Record]) -> list[Run]:
    """Runs of the arms of ``old`` with new seeds, where two published ones or more say how far seeds differ."""
    arms = _arms(published)
    told = [arm for arm in _arms(old) if len(by_seed(arms[arm], "final")) > 1]
    return [replace(arm, seed=seed) for arm in told for seed in FRESH_SEEDS]


def compare_arms(fresh: Iterable[Record], published: Iterable[Record]) -> pd.DataFrame:
    """A row per arm of which there are ``fresh`` seeds: are they drawn from what the ``published`` ones are drawn from?

    Final values are compared by Student's t test at ``SIGNIFICANCE``, corrected by Holm. ``power`` is the chance that
    it finds a difference of ``LARGEST_TOLERANCE``, if there is one. ``verdict`` is "agrees" or "differs"; an arm
    differs, too, where a fresh seed diverged and no published one did, or none finished.
    """
    of_published = _arms(published)
    rows: list[dict[str, Any]] = []
    for arm, records in _arms(fresh).items():
        old, new = (list(by_seed(each, "final").values()) for each in (of_published[arm], records))
        unit = 1.0 if finished(of_published[arm])[0].measure == ACCURACY else abs(statistics.fmean(old)) / 100
        as_many_end = len(new) == len(records) or len(old) < len(of_published[arm])
        rows.append(
            {
                "arm": describe(arm),
                "published": statistics.fmean(old),
                "fresh": statistics.fmean(new) if new else math.nan,
                "p": float(stats.ttest_ind(old, new).pvalue) if new and as_many_end else 0.0,
                "power": _power(old, max(2, len(new)), LARGEST_TOLERANCE * unit),
            }
        )
    frame = pd.DataFrame(rows, columns=["arm", "published", "fresh", "p", "power"])
    frame["p"] = holm(frame["p"].fillna(1.0).tolist())
    frame["verdict"] = ["differs" if p < SIGNIFICANCE else "agrees" for p in frame["p"]]
    return frame


def _is_within(before: float, after: float, allowed: float) -> bool:
    """Whether two values differ by no more than is allowed; those that are no numbers, or infinite, not at all."""
    if math.isfinite(before) and math.isfinite(after):
        rounding = 1e-6 * max(abs(before), abs(after))  # of single precision
        return abs(after - before) <= allowed + rounding
    return before == after or (math.isnan(before) and math.isnan(after))


def _power(values: list[float], n: int, difference: float) -> float:
    """The chance that the t test of ``values`` against n more with the same spread finds that they differ so much."""
    degrees = len(values) + n - 2
    error = statistics.stdev(values) * math.sqrt(1 / len(values) + 1 / n)
    if not error:
        return 1.0
    critical = stats.t.ppf(1 - SIGNIFICANCE / 2, degrees)
    return float(stats.nct.sf(critical, degrees, difference / error))  # on the other side it is next to nothing


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
    """Whether two records are the same to the last bit in what both recorded, but for the time taken.

    Predictions are looked at where they are classes: of others, published records keep fewer digits.
    """
    told = [json.dumps([record.run.id, record.status, record.kernels]) for record in (first, second)]  # nan equals nan
    if told[0] != told[1]:
        return False
    curves = [name for name in first.curves.keys() & second.curves.keys() if not name.startswith("seconds")]
    splits = first.predictions.keys() & second.predictions.keys() if first.measure == ACCURACY else ()
    pairs = [
        ([first.confirmation_accuracy], [second.confirmation_accuracy]),
        *((first.curves[name], second.curves[name]) for name in curves),
        *((unpack(first.predictions[split]), unpack(second.predictions[split])) for split in splits),
    ]
    return all(np.array_equal(np.array(one, float), np.array(other, float), equal_nan=True) for one, other in pairs)


def _arms(records: Iterable[Record]) -> dict[Run, list[Record]]:
    """Records by their run but for its seed."""
    arms: dict[Run, list[Record]] = {}
    for record in records:
        arms.setdefault(replace(record.run, seed=0), []).append(record)
    return arms
