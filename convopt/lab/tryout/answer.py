"""From records to an answer: which method helps, by how much, and what to paste."""

import html
import math
from dataclasses import dataclass, field

import pandas as pd

from convopt.lab.records import Record, finished
from convopt.lab.report import Table, by_seed, format_interval
from convopt.lab.runs import Run
from convopt.lab.stats import Comparison, Interval, holm, mean_interval, paired_difference
from convopt.lab.tasks import Measure, measure_of
from convopt.lab.tryout.plan import Plan

REFERENCE = "AdamW, cosine"
"""What nothing is recommended that is worse than."""

LEVEL = 0.05
"""Below which a corrected p-value has to be."""


@dataclass(frozen=True)
class Outcome:
    """What was trained.

    Attributes:
        plan: by which.
        chosen: the best trial of each method that has one.
        compared: by method, the records of its best trial's settings on the paired seeds.
        interrupted: whether the reader stopped it.
    """

    plan: Plan
    chosen: dict[str, Record]
    compared: dict[str, list[Record]] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def measure(self) -> Measure:
        """What the task is judged by."""
        return measure_of(next((record.curves for record in self.chosen.values()), {}))

    def values(self, label: str) -> dict[int, float]:
        """The measure on the test rows after training, by seed."""
        return by_seed(self.compared.get(label, []), "final")

    @property
    def seeds(self) -> int:
        """How many all methods that have a best trial share."""
        return len(set.intersection(*[set(self.values(label)) for label in self.chosen])) if self.chosen else 0

    @property
    def baseline(self) -> str | None:
        """The baseline that is best on the validation rows, over the paired seeds or else in the search, if any is."""
        labels = [label for label in self.chosen if not self.plan.methods[label].ours]
        return self.measure.best(labels, key=self._validation) if labels else None

    def _validation(self, label: str) -> float:
        records = finished(self.compared.get(label, [])) or [self.chosen[label]]
        return mean_interval([validation_of(record) for record in records]).mean

    def improvements(self) -> dict[str, tuple[Comparison, float]]:
        """For each method of ours how much better it is than the best baseline, and the p-value, Holm's over all."""
        if self.baseline is None:
            return {}
        control = self._signed(self.baseline)
        found = {
            label: paired_difference(treatment, control)
            for label in self.chosen
            if self.plan.methods[label].ours and (treatment := self._signed(label)).keys() & control.keys()
        }
        corrected = holm([each.p for each in found.values()]) if found else []
        return {label: (each, p) for (label, each), p in zip(found.items(), corrected, strict=True)}

    def _signed(self, label: str) -> dict[int, float]:
        """Values by seed of which more is better."""
        sign = 1 if self.measure.higher_is_better else -1
        return {seed: sign * value for seed, value in self.values(label).items()}

    def better(self) -> list[str]:
        """The methods of ours that are better than the best baseline beyond doubt, the best first."""
        found = {
            label: comparison.interval.mean
            for label, (comparison, p) in self.improvements().items()
            if comparison.interval.excludes_zero and comparison.interval.mean > 0 and p < LEVEL
        }
        return sorted(found, key=found.__getitem__, reverse=True)

    def recommended(self) -> str | None:
        """The best of those that are better beyond doubt and not worse than the reference."""
        reference = self._signed(REFERENCE)
        for label in self.better():
            values = self._signed(label)
            if sum(values[seed] - reference[seed] for seed in values.keys() & reference.keys()) >= 0:
                return label
        return None

    @property
    def decides(self) -> bool:
        """Whether the paired seeds suffice for any difference, however large, to pass the corrected test."""
        ours = sum(self.plan.methods[label].ours for label in self.chosen)
        return 2 * ours / 2**self.seeds < LEVEL


def validation_of(record: Record) -> float:
    """The measure on the validation rows after the last epoch."""
    return record.curves[f"validation_{record.measure.name}"][-1]


def best_trials(records: dict[Run, Record], labels: dict[Run, str]) -> dict[str, Record]:
    """The trial of each method that is best on the validation rows; none where all trials diverged."""
    by_method: dict[str, list[Record]] = {label: [] for label in labels.values()}
    for run, record in records.items():
        if record.status == "finished" and math.isfinite(validation_of(record)):
            by_method[labels[run]].append(record)
    return {label: of_it[0].measure.best(of_it, key=validation_of) for label, of_it in by_method.items() if of_it}


def table(outcome: Outcome) -> Table:
    """A row for each method: its settings, the measure, and how much better it is than the best baseline."""
    improvements, title = outcome.improvements(), outcome.measure.title
    rows = []
    for label in outcome.plan.methods:
        record, values = outcome.chosen.get(label), list(outcome.values(label).values())
        comparison, p = improvements.get(label, (None, None))
        rows.append(
            {
                "method": label,
                "learning rate": f"{_lr(record):g}" if record else "",
                "epochs": str(record.run.epochs) if record else "",
                f"test {title}": mean_interval(values) if values else None,
                f"better by, {title}": comparison and Interval(*comparison.interval),
                "p, Holm": p,
                "seeds": str(len(values)),
            }
        )
    return Table(pd.DataFrame(rows), "try", decimals=_decimals(outcome))


def _lr(record: Record) -> float:
    return dict(record.run.optimizer.options)["lr"]


def _decimals(outcome: Outcome) -> int:
    """Those that show four digits of the measure; of one in percent one."""
    values = [abs(value) for value in outcome.values(outcome.baseline or "").values()]
    if outcome.measure.scale == 100 or not values or not 0 < max(values) < math.inf:
        return 1
    return max(0, 3 - math.floor(math.log10(max(values))))


def paragraph(outcome: Outcome) -> str:
    """The answer in words, the main point first."""
    if outcome.seeds == 0:
        return (
            "Nothing was compared: when it ended, not every method had a finished run to compare. Give it more time, "
            "or a smaller network."
        )
    stopped = f"You stopped it after {outcome.seeds} paired seeds. " if outcome.interrupted else ""
    conditions = (
        f"Compared over {outcome.seeds} paired seeds on {outcome.plan.n_test} test rows, with {outcome.plan.network}."
    )
    return f"{stopped}{_verdict(outcome)} {conditions}"


def _verdict(outcome: Outcome) -> str:
    best, improvements = outcome.recommended(), outcome.improvements()
    baseline = f"{outcome.baseline}, the best baseline"
    if best is not None:
        p = improvements[best][1]
        return f"{best} helps here: it is better than {baseline}, by {_by(outcome, best)} (p = {p:.3f}, Holm)."
    if not improvements:
        return "Nothing can be decided: all trials of the baselines, or all of the methods from here, diverged."
    nearest = max(improvements, key=lambda label: improvements[label][0].interval.mean)
    if not outcome.decides:
        return (
            f"Nothing can be decided: with so few seeds no difference, however large, passes the test. So far "
            f"{nearest} differs from {baseline}, by {_by(outcome, nearest)}. Give it more time."
        )
    if outcome.better():
        return (
            f"Nothing here is recommended: {outcome.better()[0]} is better than {outcome.baseline}, the best baseline "
            f"on the validation rows, by {_by(outcome, outcome.better()[0])}, but worse than {REFERENCE}."
        )
    return f"Nothing here beats {baseline}. The nearest, {nearest}, differs by {_by(outcome, nearest)}."


def _by(outcome: Outcome, label: str) -> str:
    """How much better than the best baseline a method is: mean, interval, measure."""
    interval = outcome.improvements()[label][0].interval
    return f"{format_interval(interval, _decimals(outcome), signed=True)} in {outcome.measure.title} (+ is better)"


def snippet(outcome: Outcome) -> str:
    """What to paste: the recommended method, or else the best baseline, as it was chosen."""
    label = outcome.recommended() or outcome.baseline
    if label is None or outcome.seeds == 0:
        return "# Nothing was compared: there is nothing to paste yet.\n"
    record = outcome.chosen[label]
    code = outcome.plan.methods[label].code.format(lr=_lr(record))
    imports = "import torch\n" + ("import convopt\n" if "convopt." in code else "")
    return f"{imports}\n{code}# {record.run.epochs} epochs, batches of {record.run.batch_size}\n"


def page(outcome: Outcome, seen: list[str], figure: str) -> str:
    """One self-contained page; ``figure`` is an <img> element."""
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in seen)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<title>convopt try</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;font-size:.9rem}}
th,td{{padding:.3rem .6rem;border-bottom:1px solid #ccc;text-align:left}}
pre{{background:#f4f4f4;padding:1rem;overflow:auto}}div{{overflow-x:auto}}</style></head><body>
<h1>Does it help here?</h1><p><strong>{html.escape(paragraph(outcome))}</strong></p>{figure}
<div>{table(outcome)._repr_html_()}</div><h2>To paste</h2><pre>{html.escape(snippet(outcome))}</pre>
<h2>The data</h2>{lines}</body></html>
"""
