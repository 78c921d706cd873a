"""Tables of an experiment from its records."""

import base64
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from convopt.lab import data
from convopt.lab.experiments import Experiment
from convopt.lab.records import Record, finished
from convopt.lab.runs import Choice, Run
from convopt.lab.stats import Comparison, Interval, holm, mean_interval, paired_difference, verdict
from convopt.lab.tasks import ACCURACY, TASKS, Measure

MEASURES = ("best", "final", "stability")


@dataclass(frozen=True)
class Table:
    """A table whose cells may be intervals: for reading with a link to its numbers, as text, or as CSV.

    Attributes:
        frame: the cells; intervals as ``stats.Interval``, None where there is nothing.
        name: of the CSV file, without its ending.
        signed: whether means and ends are written with their sign, as differences are.
        index: how many of the leading columns make up the index where the table is shown.
        decimals: of intervals under headings that are not in percent, at most.

    What is shown has three significant digits at most; accuracies in percent have one decimal. The CSV has all digits.
    """

    frame: pd.DataFrame
    name: str
    signed: bool = False
    index: int = 1
    decimals: int = 2

    def text(self) -> pd.DataFrame:
        """The table as strings: "mean [low, high]", "yes" and "no", with one decimal under headings in percent."""
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

    def _repr_html_(self) -> str:
        told = self.text()
        shown = told.set_index(list(told.columns[: self.index]))
        # An interval stays on one line, words need not.
        shown = shown.map(lambda cell: cell.replace(" ", "\u00a0") if cell.endswith("]") else cell)
        content = base64.b64encode(self.csv().encode()).decode()
        link = f'<a download="{self.name}.csv" href="data:text/csv;base64,{content}">{self.name}.csv</a>'
        return f"{shown.to_html()}\n<p>{link}</p>"

    def __repr__(self) -> str:
        return self.text().to_string(index=False)

    def _cell(self, column: str, value: Any) -> str:
        in_percent = "(%)" in column
        if isinstance(value, Interval) and not math.isnan(value.mean):
            return format_interval(value, 1 if in_percent else _decimals(value, self.decimals), self.signed)
        if value is None or isinstance(value, Interval) or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return _p_value(value) if column.startswith("p,") else f"{value:z.1f}" if in_percent else _short(value)
        return str(value)


def _short(value: float) -> str:
    """With three significant digits at most; 1230 rather than 1.23e+03."""
    return f"{float(f'{value:.3g}'):zg}"


def _decimals(interval: Interval, most: int) -> int:
    """Those with which mean and ends have three significant digits at most."""
    largest = max(abs(end) for end in interval if end is not None)
    if largest == 0 or not math.isfinite(largest):
        return min(most, Table.decimals)
    leading = math.floor(math.log10(float(f"{largest:.3g}")))
    return max(0, min(most, 2 - leading))


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def rows(experiment: Experiment, records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per arm, data set and number of epochs among the records of ``experiment``; of a search, per trial.

    Each has ``optimizer`` (the arm's label), ``condition`` (a dict), ``n`` (runs that finished), ``diverged`` (runs
    that did not) and, as dicts of ``mean``, ``low`` and ``high`` over the finished runs: ``best`` and ``final``, the
    accuracy in percent on the reported test images; ``stability``; ``confirmation``, the final accuracy in percent
    on test images kept apart, or None for a data set without; what else ``HEADINGS`` names, or None where it does not
    apply; ``seconds_per_epoch`` as in :func:`measured`. An interval of fewer than two runs has no ends. Of other tasks
    than a classification, the measure takes the accuracy's place, and ``measured`` is what it is called.
    """
    return [_row(label, shared, arm) for (label, shared), arm in _arms(experiment, records).items()]


def _arms(experiment: Experiment, records: Iterable[Record]) -> dict[tuple[str, tuple], list[Record]]:
    """Records by label and condition, in the experiment's order."""
    arms: dict[tuple[str, tuple], list[Record]] = {}
    for label, arm in by_label(experiment, records).items():
        told = _trials(label, arm) if experiment.is_search else {}
        for record in arm:
            arms.setdefault((told.get(record.run, label), tuple(condition(record.run).items())), []).append(record)
    # Stable: arms keep their order.
    return dict(sorted(arms.items(), key=lambda item: [value for _, value in item[0][1]]))


def _trials(label: str, records: list[Record]) -> dict[Run, str]:
    """A label for each run of an arm of a search, with the options in which its trials differ."""
    options = {record.run: _options(record.run) for record in records}
    names = dict.fromkeys(name for of_run in options.values() for name in of_run)
    differing = [name for name in names if len({of_run.get(name) for of_run in options.values()}) > 1]
    return {
        run: ", ".join([label, *(f"{name} {of_run[name]}" for name in differing if name in of_run)])
        for run, of_run in options.items()
    }


def _options(run: Run) -> dict[str, Any]:
    """Those of everything that is chosen for ``run``, by their names."""
    chosen = {name: value for name, value in vars(run).items() if isinstance(value, Choice)}
    return {
        option if part == "optimizer" else f"{part} {option}": value
        for part, choice in chosen.items()
        for option, value in choice.options
    }


def condition(run: Run) -> dict[str, Any]:
    """What a run shares with those that it is compared with: everything but recipe and seed."""
    adversary = "none" if run.adversary is None else f"{run.adversary.name}, {dict(run.adversary.options)['epsilon']:g}"
    told = {name: getattr(run, name) for name in CONDITIONS}
    return {**told, "model": run.model.name, "adversary": adversary}


CONDITIONS = {
    "dataset": "data set",
    "model": "network",
    "batch_size": "batch size",
    "label_noise": "label noise",
    "n_train": "training inputs",
    "epochs": "epochs",
    "pixels": "pixels",
    "gradient_noise": "noise in gradients",
    "adversary": "adversary",
}
"""What runs that are compared share, by the names of ``condition``, and how tables call it."""


def _row(label: str, shared: tuple, records: list[Record]) -> dict[str, Any]:
    done = finished(records)
    row: dict[str, Any] = {
        "optimizer": label,
        "condition": dict(shared),
        "n": len(done),
        "diverged": len(records) - len(done),
    }
    for measure in (*HEADINGS, "seconds_per_epoch"):
        values = [value for record in done if (value := measured(record, measure)) is not None]
        row[measure] = mean_interval(values)._asdict() if values else None
    measure = done[0].measure if done else _measure_of_dataset(records[0].run.dataset)
    if measure != ACCURACY:
        row["measured"] = measure.title
    return row


def _measure_of_dataset(name: str) -> Measure:
    """What the task is judged by; the accuracy where the data are a file that is no more."""
    try:
        return TASKS[data.describe(name).task].measure
    except (ValueError, data.DataError):
        return ACCURACY


def measured(record: Record, measure: str) -> float | None:
    """A measure of ``HEADINGS``, ``seconds_per_epoch`` or a validation's of a finished record; None if it has none.

    Accuracies are in percent, other tasks' measures in their own unit. ``validation``, ``noisy_validation``, ``fgsm``
    and ``pgd`` are the last epoch's. ``seconds_per_epoch`` are the fastest epoch's, of training alone: what else a
    machine does can only add to them.
    """
    if measure == "stability":
        return record.stability
    if measure == "seconds_per_epoch":
        return min(record.curves["seconds_training"])
    if measure == "confirmation":
        value = record.confirmation_accuracy
    elif measure in ("validation", "noisy_validation", "fgsm", "pgd"):
        value = record.curves.get(f"{measure}_{record.measure.name}", [None])[-1]
    else:
        value = getattr(record, measure)
    return None if value is None else record.measure.scale * value


def by_seed(records: Iterable[Record], measure: str) -> dict[int, float]:
    """The measure of each finished record that has it, by seed."""
    values = {record.run.seed: measured(record, measure) for record in finished(records)}
    return {seed: value for seed, value in values.items() if value is not None}


def difference(treatment: Iterable[Record], control: Iterable[Record], measure: str) -> Comparison:
    """That of two arms in a measure, paired by seed; nan where no seed has it in both, as when runs diverged."""
    values, others = by_seed(treatment, measure), by_seed(control, measure)
    common = values.keys() & others.keys()
    return paired_difference(values, others) if common else Comparison(Interval(math.nan, None, None), 1.0)


def claims(experiment: Experiment, records: Iterable[Record]) -> Table:
    """What was claimed of the experiment against what was measured, with a verdict for each claim."""
    arms = by_label(experiment, records)
    found = []
    for claim in experiment.claims:
        treatment, control = (
            [record for record in arms[label] if claim.batch_size in (None, record.run.batch_size)]
            for label in (claim.treatment, claim.control)
        )
        found.append(difference(treatment, control, claim.measure))
    corrected = holm([comparison.p for comparison in found])
    rows = [
        {
            "claim": f"{claim.treatment} against {claim.control}"
            + (f", batch {claim.batch_size}" if claim.batch_size else ""),
            "measure": HEADINGS[claim.measure],
            "claimed": f"{claim.difference:+g}",
            "measured": comparison.interval,
            "p, Holm": p,
            "verdict": verdict(comparison.interval, p, claim.difference),
        }
        for claim, comparison, p in zip(experiment.claims, found, corrected, strict=True)
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
    title = judged_by(itertools.chain.from_iterable(arms.values()))
    rows, p_values = [], []
    for treatment, control in pairs:
        for shared in dict.fromkeys(shared for _, shared in arms):
            both = [arms.get((label, shared), []) for label in (treatment, control)]
            if not all(both):
                continue
            found = {measure: difference(*both, measure) for measure in {*measures, tested}}
            of_measures = {heading(measure, title): found[measure].interval for measure in measures}
            rows.append({**dict(shared), "difference": f"{treatment} minus {control}", **of_measures})
            p_values.append(found[tested].p)
    frame = pd.DataFrame(rows)
    varying = []
    if rows:
        frame[f"p, Holm ({tested})"] = holm(p_values)
        frame = frame.drop(columns=[name for name in CONDITIONS if frame[name].nunique() == 1])
        varying = [name for name in CONDITIONS if name in frame]
        frame = frame.rename(columns=CONDITIONS)
    return Table(frame, f"{experiment.name}-differences", signed=True, index=1 + len(varying))


def by_label(experiment: Experiment, records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by the label of their arm, in the experiment's order."""
    arms: dict[str, list[Record]] = {arm.label: [] for arm in experiment.arms}
    for record in records:
        label = experiment.label(record.run)
        if label is not None:
            arms[label].append(record)
    return arms


def heading(measure: str, of_task: str = ACCURACY.title) -> str:
    """How tables call a measure, where the task is judged by what is called ``of_task``; "" stands for several."""
    return HEADINGS[measure].replace(ACCURACY.title, of_task).strip()


def judged_by(records: Iterable[Record]) -> str:
    """What the measure of all finished records is called; "" where they differ, accuracy where there are none."""
    return _common({record.measure.title for record in finished(records)})


def _common(titles: set[str]) -> str:
    return "" if len(titles) > 1 else next(iter(titles), ACCURACY.title)


def _title(row: dict[str, Any]) -> str:
    return row.get("measured", ACCURACY.title)


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
    title = _common({_title(row) for row in report_rows})
    frame = pd.DataFrame(
        [
            {
                **{CONDITIONS[name]: row["condition"][name] for name in varying},
                "optimizer": row["optimizer"],
                **({} if title else {"measure": _title(row)}),
                **{heading(measure, title): row[measure] and Interval(**row[measure]) for measure in measures},
                "runs": f"{row['n']}" + (f" (+{row['diverged']} diverged)" if row["diverged"] else ""),
            }
            for row in report_rows
        ]
    )
    # Of errors nobody knows the size beforehand: three significant digits, however small.
    decimals = Table.decimals if title == ACCURACY.title else sys.float_info.dig
    return Table(frame, experiment.name, index=1 + len(varying), decimals=decimals)


def final_centre_tap(records: Iterable[Record], kernel: str) -> Interval:
    """Mean and interval over the records of the centre tap of ``kernel`` after the last epoch."""
    finals = [np.array(record.kernels[-1][kernel]) for record in records]
    return mean_interval([taps[tuple(length // 2 for length in taps.shape)] for taps in finals])


def format_interval(interval: Interval, decimals: int, signed: bool = False) -> str:
    """``"mean [low, high]"``, or the mean alone where there is no interval. A rounded zero is not negative.

    With signs, an interval without zero is shown without: what would round to zero has its first digit instead.
    """
    mean, low, high = interval
    form = f"{'+' if signed else ''}z.{decimals}f"
    if low is None:
        return format(mean, form)
    apart = signed and (low > 0 or high < 0)
    mean, low, high = (_first_digit(value, decimals) if apart else format(value, form) for value in interval)
    return f"{mean} [{low}, {high}]"


def _first_digit(value: float, decimals: int) -> str:
    """The value with its sign, and with more decimals where it would round to zero; a trace of rounding is zero."""
    most = decimals + 3
    needed = next((more for more in range(decimals, most) if float(f"{value:.{more}f}")), decimals)
    return f"{value:+z.{needed}f}"
