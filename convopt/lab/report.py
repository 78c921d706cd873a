"""Tables of an experiment from its records."""

from collections.abc import Iterable, Sequence
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
    # Stable: arms keep their order.
    return dict(sorted(arms.items(), key=lambda item: [value for _, value in item[0][1]]))


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
    for measure in (*MEASURES, "early_stopped", "confirmation", "seconds_per_epoch"):
        values = [value for record in done if (value := measured(record, measure)) is not None]
        row[measure] = mean_interval(values)._asdict() if values else None
    return row


def measured(record: Record, measure: str) -> float | None:
    """Of a finished record ``best``, ``final``, ``early_stopped``, ``confirmation`` or ``validation`` in percent,
    ``stability`` or ``seconds_per_epoch``. ``validation`` is the last epoch's.
    """
    if measure == "stability":
        return record.stability
    if measure == "seconds_per_epoch":
        seconds = record.curves["seconds_training"]
        return sum(seconds) / len(seconds)
    if measure == "confirmation":
        accuracy = record.confirmation_accuracy
    elif measure == "validation":
        accuracy = record.curves["validation_accuracy"][-1]
    else:
        accuracy = getattr(record, measure)
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


def differences(
    experiment: Experiment,
    records: Iterable[Record],
    pairs: Iterable[tuple[str, str]],
    measures: Iterable[str] = ("best", "final", "confirmation"),
) -> pd.DataFrame:
    """Paired differences for reading, in each condition that has records of both arms: "mean [low, high]".

    Args:
        experiment: whose arms are compared.
        records: of its runs, and any others.
        pairs: (treatment, control) by their labels.
        measures: see :func:`measured`; one that the data set lacks is left empty.
    """
    arms = _arms(experiment, records)
    rows = []
    for treatment, control in pairs:
        for condition in dict.fromkeys(condition for _, condition in arms):
            both = [arms.get((label, condition), []) for label in (treatment, control)]
            if not all(both):
                continue
            row: dict[str, Any] = {"difference": f"{treatment} minus {control}", **dict(condition)}
            for measure in measures:
                values = [{seed: x for seed, x in by_seed(arm, measure).items() if x is not None} for arm in both]
                known = values[0].keys() & values[1].keys()
                difference = format_interval(paired_difference(*values), measure, signed=True) if known else ""
                row[HEADINGS[measure]] = difference
            rows.append(row)
    told = pd.DataFrame(rows)
    same = [name for name, _ in condition if told[name].nunique() == 1] if rows else []
    return told.drop(columns=same)


def tuning(experiment: Experiment, records: Iterable[Record]) -> pd.DataFrame:
    """Mean validation accuracy in percent after the last epoch, a row per recipe and setting, a column per rate.

    A diverged run counts as guessing. The column ``chosen`` holds the best rate of each row.
    """
    rows = [
        {
            "setting": f"{record.run.model.name}, batch {record.run.batch_size}, noise {record.run.label_noise:.0%}",
            "optimizer": record.run.optimizer.name + (", cosine" if record.run.schedule == "cosine" else ""),
            "lr": dict(record.run.optimizer.options)["lr"],
            "accuracy": measured(record, "validation") if record.status == "finished" else 10.0,
        }
        for arm in by_label(experiment, records).values()
        for record in arm
    ]
    table = pd.DataFrame(rows).pivot_table(index=["setting", "optimizer"], columns="lr", values="accuracy", sort=False)
    table = table.sort_index(axis=1)
    return table.assign(chosen=table.idxmax(axis=1))


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
    "early_stopped": "early-stopped acc. (%)",
    "stability": "stability",
    "confirmation": "confirmation acc. (%)",
}


def common_condition(report_rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in all rows' conditions."""
    first = report_rows[0]["condition"]
    return {name: value for name, value in first.items() if all(row["condition"][name] == value for row in report_rows)}


def table(report_rows: list[dict[str, Any]], measures: Sequence[str] = (*MEASURES, "confirmation")) -> pd.DataFrame:
    """The rows for reading: a column per condition that differs between rows, intervals as "mean [low, high]"."""
    common = common_condition(report_rows)
    return pd.DataFrame(
        [
            {
                "optimizer": row["optimizer"],
                **{name: value for name, value in row["condition"].items() if name not in common},
                **{HEADINGS[measure]: _format(row[measure], measure) for measure in measures},
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


def _format(interval: dict[str, Any] | None, measure: str) -> str:
    return "" if interval is None else format_interval(Interval(**interval), measure)


def format_interval(interval: Interval, measure: str, signed: bool = False) -> str:
    """``"mean [low, high]"``: one decimal for accuracies in percent, two for other measures."""
    decimals = 1 if measure in ("best", "final", "early_stopped", "confirmation") else 2
    sign = "+" if signed else ""
    mean = f"{interval.mean:{sign}.{decimals}f}"
    if interval.low is None:
        return mean
    return f"{mean} [{interval.low:{sign}.{decimals}f}, {interval.high:{sign}.{decimals}f}]"
