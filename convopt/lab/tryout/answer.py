"""From records to an answer: which method helps, by how much, and what to paste."""

import html
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
        return measure_of(next(iter(self.chosen.values())).curves)

    def values(self, label: str) -> dict[int, float]:
        """The measure on the test rows after training, by seed."""
        return by_seed(self.compared.get(label, []), "final")

    @property
    def seeds(self) -> int:
        """Those that all methods have."""
        return len(set.intersection(*[set(self.values(label)) for label in self.chosen])) if self.chosen else 0

    @property
    def baseline(self) -> str:
        """The baseline that is best on the validation rows, over the paired seeds or else in the search."""
        labels = [label for label in self.chosen if not self.plan.methods[label].ours]
        return self.measure.best(labels, key=self._validation)

    def _validation(self, label: str) -> float:
        records = finished(self.compared.get(label, [])) or [self.chosen[label]]
        return mean_interval([validation_of(record) for record in records]).mean

    def improvements(self) -> dict[str, tuple[Comparison, float]]:
        """For each method of ours how much better it is than the best baseline, and the p-value, Holm's over all."""
        sign = 1 if self.measure.higher_is_better else -1
        control = {seed: sign * value for seed, value in self.values(self.baseline).items()}
        found = {}
        for label in self.chosen:
            treatment = {seed: sign * value for seed, value in self.values(label).items()}
            if self.plan.methods[label].ours and treatment.keys() & control.keys():
                found[label] = paired_difference(treatment, control)
        corrected = holm([each.p for each in found.values()]) if found else []
        return {label: (each, p) for (label, each), p in zip(found.items(), corrected, strict=True)}

    def recommended(self) -> str | None:
        """The method of ours that is better than the best baseline beyond doubt, and not worse than the reference."""
        better = {
            label: comparison.interval.mean
            for label, (comparison, p) in self.improvements().items()
            if comparison.interval.excludes_zero and comparison.interval.mean > 0 and p < 0.05
        }
        reference = self.values(REFERENCE)
        sign = 1 if self.measure.higher_is_better else -1
        for label in sorted(better, key=better.__getitem__, reverse=True):
            values = self.values(label)
            shared = values.keys() & reference.keys()
            if sign * sum(values[seed] - reference[seed] for seed in shared) >= 0:
                return label
        return None


def validation_of(record: Record) -> float:
    """The measure on the validation rows after the last epoch."""
    return record.curves[f"validation_{record.measure.name}"][-1]


def best_trials(records: dict[Run, Record], labels: dict[Run, str]) -> dict[str, Record]:
    """The trial of each method that is best on the validation rows; none for one whose trials all diverged."""
    by_method: dict[str, list[Record]] = {label: [] for label in labels.values()}
    for run, record in records.items():
        if record.status == "finished":
            by_method[labels[run]].append(record)
    return {label: of_it[0].measure.best(of_it, key=validation_of) for label, of_it in by_method.items() if of_it}


def table(outcome: Outcome) -> Table:
    """A row for each method: its settings, the measure, and how much better it is than the best baseline."""
    improvements, title = outcome.improvements(), outcome.measure.title
    rows = []
    for label, record in outcome.chosen.items():
        values = list(outcome.values(label).values())
        comparison, p = improvements.get(label, (None, None))
        rows.append(
            {
                "method": label,
                "learning rate": f"{dict(record.run.optimizer.options)['lr']:g}",
                "epochs": str(record.run.epochs),
                f"test {title}": mean_interval(values) if values else None,
                f"better by, {title}": comparison and Interval(*comparison.interval),
                "p, Holm": p,
                "seeds": str(len(values)),
            }
        )
    return Table(pd.DataFrame(rows), "try", index=1)


def paragraph(outcome: Outcome) -> str:
    """The answer in words."""
    if outcome.seeds == 0:
        return "Nothing was compared: the search ended before every method had a run to compare. Give it more time."
    best, measure = outcome.recommended(), outcome.measure
    stopped = f"You stopped it; it has {outcome.seeds} paired seeds. " if outcome.interrupted else ""
    setting = f"over {outcome.seeds} paired seeds, {outcome.plan.n_test} test rows and {outcome.plan.network}"
    if best is None:
        near = max(outcome.improvements().items(), key=lambda item: item[1][0].interval.mean)
        few = " With fewer than eight seeds hardly anything can be decided: give it more time."
        few = few if outcome.seeds < 8 else ""
        return (
            f"{stopped}Nothing here beats {outcome.baseline}, the best baseline, {setting}. Nearest comes {near[0]}: "
            f"{_told(near[1][0].interval, measure)} ({measure.title}, more is better for it).{few}"
        )
    comparison, p = outcome.improvements()[best]
    return (
        f"{stopped}{best} helps here: it is better than {outcome.baseline}, the best baseline, by "
        f"{_told(comparison.interval, measure)} ({measure.title}), {setting} (p = {p:.3f}, Holm)."
    )


def _told(interval: Interval, measure: Measure) -> str:
    return format_interval(interval, 1 if measure.scale == 100 else 4, signed=True)


def snippet(outcome: Outcome) -> str:
    """What to paste: the recommended method, or else the best baseline, as it was chosen."""
    label = outcome.recommended() or outcome.baseline
    record = outcome.chosen[label]
    code = outcome.plan.methods[label].code.format(lr=dict(record.run.optimizer.options)["lr"])
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
