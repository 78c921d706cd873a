"""Tables of an experiment from its records."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from convopt.lab.experiments import Experiment
from convopt.lab.records import Record, finished
from convopt.lab.runs import Run
from convopt.lab.stats import Interval, mean_interval, paired_difference, verdict

MEASURES = ("best", "final", "stability")


def rows(experiment: Experiment, records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per arm, data set and number of epochs among the records that belong to ``experiment``.

    Each has ``optimizer`` (the arm's label), ``condition`` (a dict), ``n`` (runs that finished), ``diverged`` (runs
    that did not) and, as dicts of ``mean``, ``low`` and ``high`` over the finished runs: ``best`` and ``final``, the
    accuracy in percent on the reported test pictures; ``stability``; ``confirmation``, the final accuracy in percent
    on test pictures kept apart, or None for a data set without; ``seconds_per_epoch`` of training, evaluation apart.
    An interval of fewer than two runs has None for its ends.
    """
    return [_row(label, condition, arm) for (label, condition), arm in _arms(experiment, records).items()]


def _arms(experiment: Experiment, records: Iterable[Record]) -> dict[tuple[str, tuple], list[Record]]:
    """Records by label and condition, in the experiment's order."""
    arms: dict[tuple[str, tuple], list[Record]] = {}
    for label, arm in by_label(experiment, records).items():
        for record in arm:
            arms.setdefault((label, _condition(record.run)), []).append(record)
    return dict(sorted(arms.items(), key=lambda item: str(item[0][1])))  # stable: arms keep their order


def _condition(run: Run) -> tuple[tuple[str, Any], ...]:
    return (
        ("dataset", run.dataset),
        ("model", run.model.name),
        ("batch_size", run.batch_size),
        ("label_noise", run.label_noise),
        ("n_train", run.n_train),
        ("epochs", run.epochs),
        ("pixels", run.pixels),
    )


def _row(label: str, condition: tuple, records: list[Record]) -> dict[str, Any]:
    done = finished(records)
    row: dict[str, Any] = {
        "optimizer": label,
        "condition": dict(condition),
        "n": len(done),
        "diverged": len(records) - len(done),
    }
    for measure in (*MEASURES, "confirmation", "seconds_per_epoch"):
        values = [value for record in done if (value := measured(record, measure)) is not None]
        row[measure] = mean_interval(values)._asdict() if values else None
    return row


def measured(record: Record, measure: str) -> float | None:
    """Of a finished record ``best``, ``final`` or ``confirmation`` in percent, ``stability``, ``seconds_per_epoch``."""
    if measure == "stability":
        return record.stability
    if measure == "seconds_per_epoch":
        seconds = record.curves["seconds_training"]
        return sum(seconds) / len(seconds)
    accuracy = record.confirmation_accuracy if measure == "confirmation" else getattr(record, measure)
    return None if accuracy is None else 100 * accuracy


def by_seed(records: Iterable[Record], measure: str) -> dict[int, float]:
    """The measure of each finished record, by seed."""
    return {record.run.seed: measured(record, measure) for record in finished(records)}


def claims(experiment: Experiment, records: Iterable[Record]) -> pd.DataFrame:
    """What was claimed of the experiment against what was measured, with a verdict for each claim."""
    arms = by_label(experiment, records)
    rows = []
    for claim in experiment.claims:
        measured_difference = paired_difference(
            by_seed(arms[claim.treatment], claim.measure), by_seed(arms[claim.control], claim.measure)
        )
        rows.append(
            {
                "claim": f"{claim.treatment} against {claim.control}",
                "measure": HEADINGS[claim.measure],
                "claimed": f"{claim.difference:+g}",
                "measured": format_interval(measured_difference, claim.measure, signed=True),
                "verdict": verdict(measured_difference, claim.difference),
            }
        )
    return pd.DataFrame(rows)


def by_label(experiment: Experiment, records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by the label of their arm, in the experiment's order."""
    arms: dict[str, list[Record]] = {label: [] for label, _, _ in experiment.arms}
    for record in records:
        label = experiment.label(record.run)
        if label is not None:
            arms[label].append(record)
    return arms


HEADINGS = {
    "best": "best acc. (%)",
    "final": "final acc. (%)",
    "stability": "stability",
    "confirmation": "confirmation acc. (%)",
}


def common_condition(report_rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in all rows' conditions."""
    first = report_rows[0]["condition"]
    return {name: value for name, value in first.items() if all(row["condition"][name] == value for row in report_rows)}


def table(report_rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows for reading: a column per condition that differs between rows, intervals as "mean [low, high]"."""
    common = common_condition(report_rows)
    return pd.DataFrame(
        [
            {
                "optimizer": row["optimizer"],
                **{name: value for name, value in row["condition"].items() if name not in common},
                **{
                    heading: "" if row[measure] is None else format_interval(Interval(**row[measure]), measure)
                    for measure, heading in HEADINGS.items()
                },
                "runs": f"{row['n']}" + (f" (+{row['diverged']} diverged)" if row["diverged"] else ""),
            }
            for row in report_rows
        ]
    )


def final_centre_tap(records: Iterable[Record], kernel: str) -> str:
    """Mean and interval over the records of the centre tap of ``kernel`` after the last epoch."""
    finals = [np.array(record.kernels[-1][kernel]) for record in records]
    centres = [taps[tuple(length // 2 for length in taps.shape)] for taps in finals]
    return format_interval(mean_interval(centres), kernel)


def format_interval(interval: Interval, measure: str, signed: bool = False) -> str:
    """``"mean [low, high]"``: one decimal for accuracies in percent, two for other measures."""
    decimals = 1 if measure in ("best", "final", "confirmation") else 2
    sign = "+" if signed else ""
    mean = f"{interval.mean:{sign}.{decimals}f}"
    if interval.low is None:
        return mean
    return f"{mean} [{interval.low:{sign}.{decimals}f}, {interval.high:{sign}.{decimals}f}]"
