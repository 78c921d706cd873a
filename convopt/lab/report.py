"""Tables of an experiment from its records."""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from convopt.lab.experiments import Experiment
from convopt.lab.records import Record, finished
from convopt.lab.runs import Run
from convopt.lab.stats import Interval, holm, mean_interval, paired_difference, verdict

MEASURES = ("best", "final", "stability")


@dataclass(frozen=True)
class Table:
    """A table whose cells may be intervals: for reading with a link to its numbers, as text, or as CSV.

    Attributes:
        frame: the cells; intervals as ``stats.Interval``, None where there is nothing.
        name: of the CSV file, without its ending.
        signed: whether means and ends are written with their sign, as differences are.
        index: how many of the leading columns make up the index where the table is shown.
    """

    frame: pd.DataFrame
    name: str
    signed: bool = False
    index: int = 1

    def text(self) -> pd.DataFrame:
        """The table as strings: "mean [low, high]", with one decimal under headings in percent and two elsewhere."""
        told = {name: [self._cell(name, value) for value in self.frame[name]] for name in self.frame}
        return pd.DataFrame(told)

    def csv(self) -> str:
        """The table as comma-separated values; of an interval the mean, and its ends in two columns more."""
        columns: dict[str, list[Any]] = {}
        for name in self.frame:
            values = self.frame[name].tolist()
            if any(isinstance(value, Interval) for value in values):
                for field, suffix in (("mean", ""), ("low", ", low"), ("high", ", high")):
                    columns[name + suffix] = [getattr(value, field, None) for value in values]
            else:
                columns[name] = values
        return pd.DataFrame(columns).to_csv(index=False)

    def only(self, *columns: str) -> "Table":
        """The index and these columns alone."""
        return replace(self, frame=self.frame[[*self.frame.columns[: self.index], *columns]])

    def _repr_html_(self) -> str:
        told = self.text().replace(" ", "\u00a0", regex=True)  # an interval stays on one line
        shown = told.set_index(list(told.columns[: self.index]))
        content = base64.b64encode(self.csv().encode()).decode()
        link = f'<a download="{self.name}.csv" href="data:text/csv;base64,{content}">{self.name}.csv</a>'
        return f"{shown.to_html()}\n<p>{link}</p>"

    def __repr__(self) -> str:
        return self.text().to_string(index=False)

    def _cell(self, column: str, value: Any) -> str:
        if isinstance(value, Interval):
            return format_interval(value, 1 if "(%)" in column else 2, self.signed)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return f"{value:.3f}" if column.startswith("p,") else f"{value:g}" if isinstance(value, float) else str(value)


def rows(experiment: Experiment, records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per arm, data set and number of epochs among the records that belong to ``experiment``.

    Each has ``optimizer`` (the arm's label), ``condition`` (a dict), ``n`` (runs that finished), ``diverged`` (runs
    that did not) and, as dicts of ``mean``, ``low`` and ``high`` over the finished runs: ``best`` and ``final``, the
    accuracy in percent on the reported test pictures; ``stability``; ``confirmation``, the final accuracy in percent
    on test pictures kept apart, or None for a data set without; what else ``HEADINGS`` names, or None where it does not
    apply; ``seconds_per_epoch`` of training, evaluation apart. An interval of fewer than two runs has no ends.
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
        ("gradient_noise", run.gradient_noise),
        ("adversary", "none" if run.adversary is None else f"{run.adversary.name}, {run.adversary.options[0][1]:g}"),
    )


def _row(label: str, condition: tuple, records: list[Record]) -> dict[str, Any]:
    done = finished(records)
    row: dict[str, Any] = {
        "optimizer": label,
        "condition": dict(condition),
        "n": len(done),
        "diverged": len(records) - len(done),
    }
    for measure in (*HEADINGS, "seconds_per_epoch"):
        values = [value for record in done if (value := measured(record, measure)) is not None]
        row[measure] = mean_interval(values)._asdict() if values else None
    return row


def measured(record: Record, measure: str) -> float | None:
    """A measure of ``HEADINGS``, ``seconds_per_epoch`` or ``validation`` of a finished record; None if it has none.

    Accuracies are in percent. ``validation``, ``fgsm`` and ``pgd`` are the last epoch's.
    """
    if measure == "stability":
        return record.stability
    if measure == "seconds_per_epoch":
        seconds = record.curves["seconds_training"]
        return sum(seconds) / len(seconds)
    if measure == "confirmation":
        accuracy = record.confirmation_accuracy
    elif measure in ("validation", "fgsm", "pgd"):
        accuracy = record.curves.get(f"{measure}_accuracy", [None])[-1]
    else:
        accuracy = getattr(record, measure)
    return None if accuracy is None else 100 * accuracy


def by_seed(records: Iterable[Record], measure: str) -> dict[int, float]:
    """The measure of each finished record that has it, by seed."""
    values = {record.run.seed: measured(record, measure) for record in finished(records)}
    return {seed: value for seed, value in values.items() if value is not None}


def claims(experiment: Experiment, records: Iterable[Record]) -> Table:
    """What was claimed of the experiment against what was measured, with a verdict for each claim."""
    arms = by_label(experiment, records)
    measured_differences = [
        paired_difference(by_seed(arms[claim.treatment], claim.measure), by_seed(arms[claim.control], claim.measure))
        for claim in experiment.claims
    ]
    corrected = holm([difference.p for difference in measured_differences])
    rows = [
        {
            "claim": f"{claim.treatment} against {claim.control}",
            "measure": HEADINGS[claim.measure],
            "claimed": f"{claim.difference:+g}",
            "measured": difference.interval,
            "p, Holm": p,
            "verdict": verdict(difference.interval, p, claim.difference),
        }
        for claim, difference, p in zip(experiment.claims, measured_differences, corrected, strict=True)
    ]
    return Table(pd.DataFrame(rows), f"{experiment.name}-claims", signed=True)


def differences(
    experiment: Experiment,
    records: Iterable[Record],
    pairs: Iterable[tuple[str, str]],
    measures: Sequence[str] = ("best", "final", "confirmation"),
    tested: str = "final",
) -> Table:
    """Paired differences in each condition that has records of both arms.

    Args:
        experiment: whose arms are compared.
        records: of its runs, and any others.
        pairs: (treatment, control) by their labels.
        measures: of :func:`measured`; one that the data set lacks is left empty.
        tested: the measure whose differences are tested; p-values are Holm's over all rows.
    """
    arms = _arms(experiment, records)
    rows, p_values = [], []
    for treatment, control in pairs:
        for condition in dict.fromkeys(condition for _, condition in arms):
            both = [arms.get((label, condition), []) for label in (treatment, control)]
            if not all(both):
                continue
            row: dict[str, Any] = {"difference": f"{treatment} minus {control}", **dict(condition)}
            for measure in measures:
                values = [by_seed(arm, measure) for arm in both]
                comparison = paired_difference(*values) if values[0].keys() & values[1].keys() else None
                row[HEADINGS[measure]] = comparison and comparison.interval
                if measure == tested:
                    p_values.append(comparison.p if comparison else 1.0)
            rows.append(row)
    frame = pd.DataFrame(rows)
    if rows:
        frame[f"p, Holm ({tested})"] = holm(p_values)
        frame = frame.drop(columns=[name for name, _ in condition if frame[name].nunique() == 1])
    varying = [name for name, _ in condition if name in frame] if rows else []
    frame = frame[[*varying, *(name for name in frame if name not in varying)]]
    return Table(frame, f"{experiment.name}-differences", signed=True, index=1 + len(varying))


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
    "stability": "stability",
    "early_stopped": "early-stopped acc. (%)",
    "confirmation": "confirmation acc. (%)",
    "fgsm": "acc. against FGSM (%)",
    "pgd": "acc. against PGD-10 (%)",
}
"""Measures of a finished record, and how tables call them."""


def common_condition(report_rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in all rows' conditions."""
    first = report_rows[0]["condition"]
    return {name: value for name, value in first.items() if all(row["condition"][name] == value for row in report_rows)}


def table(
    experiment: Experiment, report_rows: list[dict[str, Any]], measures: Sequence[str] = (*MEASURES, "confirmation")
) -> Table:
    """The rows of ``experiment`` for reading, with a column for each condition that differs between them."""
    common = common_condition(report_rows)
    varying = [name for name in report_rows[0]["condition"] if name not in common]
    frame = pd.DataFrame(
        [
            {
                **{name: row["condition"][name] for name in varying},
                "optimizer": row["optimizer"],
                **{HEADINGS[measure]: row[measure] and Interval(**row[measure]) for measure in measures},
                "runs": f"{row['n']}" + (f" (+{row['diverged']} diverged)" if row["diverged"] else ""),
            }
            for row in report_rows
        ]
    )
    return Table(frame, experiment.name, index=1 + len(varying))


def final_centre_tap(records: Iterable[Record], kernel: str) -> Interval:
    """Mean and interval over the records of the centre tap of ``kernel`` after the last epoch."""
    finals = [np.array(record.kernels[-1][kernel]) for record in records]
    return mean_interval([taps[tuple(length // 2 for length in taps.shape)] for taps in finals])


def format_interval(interval: Interval, decimals: int, signed: bool = False) -> str:
    """``"mean [low, high]"``, or the mean alone where there is no interval."""
    sign = "+" if signed else ""
    mean = f"{interval.mean:{sign}.{decimals}f}"
    if interval.low is None:
        return mean
    return f"{mean} [{interval.low:{sign}.{decimals}f}, {interval.high:{sign}.{decimals}f}]"
