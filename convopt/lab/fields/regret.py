"""How far a method ends from the best one, which the truth tells: ``python -m convopt.lab.fields.regret FILE.json``.

Methods named after FILE.json are measured again.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from convopt.lab import arithmetic, data, provenance
from convopt.lab.fields.methods import FIXED, METHODS, PENALIZED, RATES, Make
from convopt.lab.fields.reconstruction import STEPS, Outcome, Outcomes, reconstruct
from convopt.lab.fields.tasks import TASKS, Problem
from convopt.lab.records import write_atomically
from convopt.lab.report import Table
from convopt.lab.stats import Interval, mean_interval


class Study(NamedTuple):
    """What is measured.

    Attributes:
        tasks: by name, what makes one from its noise and a seed, and the levels of noise.
        methods: of :data:`convopt.lab.fields.methods.METHODS`.
        seeds: of fields, measurements and batches.
        steps: of a run.
        rates: learning rates, of which held-out measurements choose.
        dataset: that tasks are made from, where they need one.
    """

    tasks: Mapping[str, tuple[Callable[[float, int], Problem], Sequence[float]]]
    methods: Mapping[str, Make]
    seeds: Sequence[int]
    steps: int
    rates: Sequence[float]
    dataset: str | None = None


SEEDS = range(10)
LINEAR = Study(TASKS, METHODS, SEEDS, STEPS, RATES)

BASELINE = "Adam, cosine"
"""What one uses without smoothing."""

UNSMOOTHED = ("SGD", "Adam", BASELINE)
"""The methods that smooth nothing."""


def mean_score(outcomes: Sequence[Outcome]) -> float:
    """Over seeds; minus infinity where one diverged."""
    return statistics.fmean(-math.inf if math.isnan(each.score) else each.score for each in outcomes)


def best_of(outcomes: Outcomes, names: Iterable[str]) -> str:
    """The method, of those named and measured, with the highest mean score: what only the truth can tell."""
    return max((name for name in names if name in outcomes), key=lambda name: mean_score(outcomes[name]))


def chosen_by_held_out(outcomes: Outcomes, names: Iterable[str]) -> list[Outcome]:
    """For each seed that of several methods, say widths, whose held-out error is smallest: what a user can do."""
    by_seed = zip(*(outcomes[name] for name in names), strict=True)
    return [min(of_seed, key=lambda each: math.inf if math.isnan(each.error) else each.error) for of_seed in by_seed]


def of_seed(found: Mapping[str, Outcomes], seed: int) -> dict[str, dict[str, Outcome]]:
    """What one seed's held-out measurements chose, by condition and method. ValueError for a seed that was not run."""
    if seed not in SEEDS:
        raise ValueError(f"seed must be an integer from 0 to {SEEDS[-1]}, got {seed!r}")
    return {condition: {name: each[seed] for name, each in of.items()} for condition, of in found.items()}


def best_for_all(found: Mapping[str, Outcomes], names: Iterable[str]) -> str:
    """The method, of those named, that stays least behind the best of them where it is furthest behind."""
    names = list(names)

    def worst(name: str) -> float:
        return max(mean_score(of[best_of(of, names)]) - mean_score(of[name]) for of in found.values())

    return min(names, key=worst)


def gain(ours: Sequence[Outcome], others: Sequence[Outcome]) -> Interval:
    """How far ``ours`` is above the others, in the unit of their scores, paired by seed."""
    return mean_interval([own.score - other.score for own, other in zip(ours, others, strict=True)])


def ways(found: Mapping[str, Outcomes]) -> dict[str, dict[str, Sequence[Outcome]]]:
    """Ways to choose how much to smooth, and the penalty beside them: the outcomes by way and condition.

    The one width everywhere is :func:`best_for_all`, which needs the truth, if only once.
    """
    one = best_for_all(found, FIXED)
    return {
        "FieldAdam": {condition: of["FieldAdam"] for condition, of in found.items()},
        "width chosen by held-out data": {condition: chosen_by_held_out(of, FIXED) for condition, of in found.items()},
        "one fixed width everywhere": {condition: of[one] for condition, of in found.items()},
        "total variation, weight chosen by held-out data": {
            condition: chosen_by_held_out(of, PENALIZED) for condition, of in found.items()
        },
    }


def over_best_width(found: Mapping[str, Outcomes]) -> dict[tuple[str, str], Interval]:
    """How many dB each of :func:`ways` is above the best fixed width, which only the truth can tell.

    By way and condition.
    """
    return {
        (way, condition): gain(ours, found[condition][best_of(found[condition], FIXED)])
        for way, of_way in ways(found).items()
        for condition, ours in of_way.items()
    }


def facts(found: Mapping[str, Outcomes]) -> dict[str, Any]:
    """What the page says in words, by name: counts, a method's name, and differences in dB."""
    of_ways, over_width = ways(found), over_best_width(found)
    ours, penalized = of_ways["FieldAdam"], of_ways["total variation, weight chosen by held-out data"]
    behind = {way: [-over_width[way, condition].mean for condition in of_way] for way, of_way in of_ways.items()}
    over_adam = [mean_score(ours[condition]) - mean_score(of[BASELINE]) for condition, of in found.items()]
    over_plain = [
        mean_score(ours[condition]) - max(mean_score(of[name]) for name in UNSMOOTHED)
        for condition, of in found.items()
    ]
    over_ours = [mean_score(penalized[condition]) - mean_score(ours[condition]) for condition in found]
    return {
        "conditions": len(found),
        "widths": len(FIXED),
        "one": best_for_all(found, FIXED),
        "behind-median": statistics.median(behind["FieldAdam"]),
        "behind-most": max(behind["FieldAdam"]),
        "one-behind-most": max(behind["one fixed width everywhere"]),
        "held-out-behind-most": max(behind["width chosen by held-out data"]),
        "over-adam-least": min(over_adam),
        "over-adam-most": max(over_adam),
        "over-plain-least": min(over_plain),
        "over-plain-most": max(over_plain),
        "variation-better": sum(each > 0 for each in over_ours),
        "variation-most": max(over_ours),
        "variation-least": min(over_ours),
    }


OTHERS: dict[str, Sequence[str]] = {
    "cosine": [BASELINE],
    "sgd": ["SGD"],
    "width": [*FIXED],
    "variation": [*PENALIZED],
}
"""What FieldAdam is compared with, in the best of each kind, by the page's word for it."""


def over_best_of_each(outcomes: Outcomes) -> dict[str, Interval]:
    """How many dB FieldAdam is above the best of :data:`OTHERS`, which only the truth can tell."""
    return {kind: gain(outcomes["FieldAdam"], outcomes[best_of(outcomes, names)]) for kind, names in OTHERS.items()}


def table(found: Mapping[str, Outcomes], name: str = "17-fields", noise: str = "noise", unit: str = "dB") -> Table:
    """Scores of the main methods by task and level of noise, and FieldAdam's difference to them."""
    rows = []
    for condition, outcomes in found.items():
        task, level = condition.rsplit(", ", 1)
        width, weight = best_of(outcomes, FIXED), best_of(outcomes, PENALIZED)
        ours = outcomes["FieldAdam"]
        rows.append(
            {
                "task": task,
                noise: level,
                "minus best fixed width": gain(ours, outcomes[width]),
                f"minus {BASELINE}": gain(ours, outcomes[BASELINE]),
                "minus best total variation": gain(ours, outcomes[weight]),
                **{f"{which} ({unit})": mean_score(outcomes[which]) for which in ("FieldAdam", *UNSMOOTHED)},
                "best fixed width": width,
                "best total variation": weight.removeprefix("total variation "),
            }
        )
    return Table(pd.DataFrame(rows), name, signed=True, index=2)


def load(file: Path) -> tuple[list[dict[str, Any]], dict[str, Outcomes]]:
    """What :func:`measure` found: the provenance of each time, with what was measured; outcomes by task and noise."""
    content = json.loads(file.read_text())
    return content["provenance"], {
        condition: {name: [Outcome(*each) for each in of_seeds] for name, of_seeds in outcomes.items()}
        for condition, outcomes in content["outcomes"].items()
    }


def told(provenances: Sequence[Mapping[str, Any]]) -> str:
    """Where outcomes come from, a line for each time that some were measured: which methods, then when and where.

    Conditions are named where they are not all that were ever measured.
    """
    measured = [made["measured"] for made in provenances]
    methods, conditions = _methods_of(measured), {condition for of_one in measured for condition in of_one}
    lines = []
    for made, of_one in zip(provenances, measured, strict=True):
        here = _methods_of([of_one])
        others = [name for name in methods if name not in here]
        what = f"all methods but {', '.join(others)}" if others else "all methods"
        if len(here) < 4 or len(here) <= len(others):
            what = ", ".join(here)
        where = "" if of_one.keys() == conditions else f" ({'; '.join(of_one)})"
        when = ", ".join(str(made[name]) for name in ("date", "processor", "torch", "commit"))
        lines.append(f"{what}{where}: {when}")
    return "\n".join(lines)


def _methods_of(measured: Iterable[Mapping[str, Sequence[str]]]) -> list[str]:
    return list(dict.fromkeys(name for of_one in measured for names in of_one.values() for name in names))


def measure(file: Path, study: Study, anew: Sequence[str] = ()) -> None:
    """Measure a study, and write what was found after each of its conditions; what is there already stays.

    Args:
        file: of outcomes, or none yet.
        study: what to measure.
        anew: methods that have changed: they are measured again.

    Raises:
        ValueError: a method is none of the study's.
    """
    for name in anew:
        if name not in study.methods:
            raise ValueError(f"a method must be one of {', '.join(study.methods)}, got {name!r}")
    content = json.loads(file.read_text()) if file.exists() else {"provenance": [], "outcomes": {}}
    made = provenance.dated(data.load(study.dataset).checksum if study.dataset else "none") | {"measured": {}}
    for task, (make, levels) in study.tasks.items():
        for noise in levels:
            condition = f"{task}, {noise}"
            known = content["outcomes"].setdefault(condition, {})
            missing = [each for each in study.methods if each in anew or each not in known]
            if missing:
                tasks = [make(noise, seed) for seed in study.seeds]
                with arithmetic.threads(1):  # fields are small: threads would wait for each other
                    known |= reconstruct(tasks, missing, study.seeds, study.steps, study.rates)
                content["provenance"] += [made] if not made["measured"] else []
                made["measured"][condition] = missing
                write_atomically(file, json.dumps(content).encode())


if __name__ == "__main__":
    measure(Path(sys.argv[1]), LINEAR, sys.argv[2:])
