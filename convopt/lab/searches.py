"""What searches found: their tables, and the choices that follow from their records."""

import itertools
import json
import math
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

import pandas as pd

from convopt.lab.experiments import SEARCHES, SPACES, Experiment, part_and_option, search
from convopt.lab.experiments.search import Choices
from convopt.lab.records import Record, finished, write_atomically
from convopt.lab.report import Table, by_label, measured
from convopt.lab.runs import Run
from convopt.lab.stats import Interval

GUESSING = 10.0
"""The accuracy of a diverged run, in percent: searches train on ten classes."""


def choose(experiment: Experiment, load: Callable[[Run], Record | None]) -> dict[str, Any]:
    """What is best on the validation data after the last epoch, over the search's seeds, for each of its choices.

    Args:
        experiment: a search, one of ``SEARCHES``.
        load: the record of a run, or None. A choice of whose trials one has no record is left open.
    """
    found: dict[str, dict[str, list[float | None]]] = {}
    for run, trial in zip(experiment.runs(), itertools.cycle(SEARCHES[experiment.name]), strict=False):
        record = load(run)
        scores = found.setdefault(trial.choice, {}).setdefault(json.dumps(trial.value), [])
        scores.append(None if record is None else score(record))
    done = {choice: scores for choice, scores in found.items() if not any(None in of_one for of_one in scores.values())}
    return {choice: json.loads(max(scores, key=lambda value: fmean(scores[value]))) for choice, scores in done.items()}


def score(record: Record) -> float:
    """What is known of a trial, of which more is better; of one that diverged, or whose outcome is nan, the least."""
    if record.status != "finished":
        return -math.inf
    reached = measured(record, "validation") * (1 if record.measure.higher_is_better else -1)
    return -math.inf if math.isnan(reached) else reached


def validation(record: Record) -> float:
    """The last epoch's validation accuracy in percent; that of guessing for a diverged run."""
    return measured(record, "validation") if record.status == "finished" else GUESSING


def write_choices(choices: Choices) -> None:
    """Put choices in the place of what was chosen before, a line for each."""
    searches = [
        f" {json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(choice)}: {json.dumps(value)}" for choice, value in of_search.items())
        + "\n }"
        for name, of_search in choices.items()
    ]
    write_atomically(search.CHOSEN_FILE, ("{\n" + ",\n".join(searches) + "\n}\n").encode())


def tuning(experiment: Experiment, records: Iterable[Record]) -> pd.DataFrame:
    """Mean validation accuracy in percent after the last epoch, a row per recipe and setting, a column per rate.

    A diverged run counts as guessing. The column ``chosen`` holds the best rate of each row.
    """
    rows = [
        {
            "setting": f"{record.run.model.name}, batch {record.run.batch_size}, noise {record.run.label_noise:.0%}",
            "optimizer": record.run.optimizer.name + (", cosine" if record.run.schedule.name == "cosine" else ""),
            "lr": dict(record.run.optimizer.options)["lr"],
            "accuracy": validation(record),
        }
        for arm in by_label(experiment, records).values()
        for record in arm
    ]
    table = pd.DataFrame(rows).pivot_table(index=["setting", "optimizer"], columns="lr", values="accuracy", sort=False)
    table = table.sort_index(axis=1)
    return table.assign(chosen=table.idxmax(axis=1))


def tuning_table(experiment: Experiment, records: Iterable[Record]) -> Table:
    """``tuning`` for reading."""
    found = tuning(experiment, records)
    headings = {lr: f"at {lr:g} (%)" for lr in found.columns.drop("chosen")} | {"chosen": "chosen learning rate"}
    return Table(found.rename(columns=headings).reset_index(), experiment.name, index=2)


def chosen_table(experiment: Experiment, records: Iterable[Record]) -> Table:
    """Of a random search, whose arms are methods and whose runs are trials, each method's best trial."""
    rows = []
    for label, arm in by_label(experiment, records).items():
        best = best_trial(arm)
        rows.append(
            {
                "method": label,
                "learning rate": dict(best.run.optimizer.options)["lr"],
                "options": ", ".join(f"{name} {value:g}" for name, value in searched(label, best.run).items()),
                "validation acc. (%)": Interval(measured(best, "validation"), None, None),
                "trials": str(len(arm)),
            }
        )
    return Table(pd.DataFrame(rows), experiment.name)


def best_trial(trials: Iterable[Record]) -> Record:
    """The record with the best final validation accuracy among those that did not diverge."""
    return max(finished(trials), key=lambda record: measured(record, "validation"))


def searched(label: str, run: Run) -> dict[str, Any]:
    """The options that the method's search draws, beside the learning rate, and their values in ``run``."""
    values = {}
    for name, _ in SPACES[label].options:
        part, option = part_and_option(name)
        values[option] = dict(getattr(run, part).options)[option]
    return values
