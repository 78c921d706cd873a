"""Which inputs the networks of an experiment's runs get right, and comparisons of arms over seeds and inputs alike."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from convopt.lab import data, workspace
from convopt.lab.names import damaged
from convopt.lab.predictions import pack, unpack
from convopt.lab.records import Record, finished
from convopt.lab.report import Table, format_interval
from convopt.lab.stats import CrossedComparison, Interval, crossed_difference, holm
from convopt.lab.study import Results
from convopt.lab.tasks import ACCURACY

ALPHA = 0.05
"""Of the tests of a table, corrected for its rows."""


def primary_split(record: Record) -> str:
    """The inputs that arms are compared on: the confirmation inputs, or the test inputs of a data set without."""
    return "confirmation" if "confirmation" in record.predictions else "test"


def labels_of(dataset: str, split: str) -> np.ndarray:
    """The classes of a data set's inputs, ``(n,)``; published ones are known without the data.

    DataError where they are not published, and the data not at hand.
    """
    known = _published_labels().get(dataset, {}).get(split)
    if known is not None:
        return unpack(known)
    return getattr(data.load(dataset), split).y.numpy()


@cache
def _published_labels() -> dict[str, dict[str, str]]:
    path = workspace.project_folder() / workspace.LABELS
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(damaged(path, error)) from error


def packed_labels(records: Iterable[Record]) -> dict[str, dict[str, str]]:
    """The classes that are needed to judge the records' predictions, by data set and split, packed."""
    judged = [record for record in records if record.measure == ACCURACY]
    needed = {(record.run.dataset, split) for record in judged for split in record.predictions}
    found: dict[str, dict[str, str]] = {}
    for dataset, split in sorted(needed):
        found.setdefault(dataset, {})[split] = pack(labels_of(dataset, split).astype(np.uint8))
    return found


def correct(records: Iterable[Record]) -> dict[int, np.ndarray]:
    """For each finished record, by seed: 100 for each primary input that is classified correctly, 0 for the others."""
    found = {}
    for record in finished(records):
        predicted = unpack(record.predictions[primary_split(record)])
        labels = labels_of(record.run.dataset, primary_split(record))[: len(predicted)]
        found[record.run.seed] = 100.0 * (predicted == labels)
    return found


def difference(treatment: Sequence[Record], control: Sequence[Record]) -> CrossedComparison | None:
    """The paired difference of two arms' records, in points; None where they have no seed in common.

    A point is one of accuracy. Of other tasks it is a percent of the control's mean squared error or mean loss, and
    more points are a smaller error.
    """
    if {record.measure for record in finished([*treatment, *control])} <= {ACCURACY}:
        values, others = correct(treatment), correct(control)
    else:
        errors, others = _errors(treatment), _errors(control)
        common = [others[seed] for seed in errors.keys() & others.keys()]
        point = -0.01 * float(np.mean(common)) if common else 1.0
        values, others = ({seed: each / point for seed, each in of_arm.items()} for of_arm in (errors, others))
    return crossed_difference(values, others) if values.keys() & others.keys() else None


def _errors(records: Iterable[Record]) -> dict[int, np.ndarray]:
    """Of each finished record, by seed, the squared error or the loss of each primary input."""
    return {r.run.seed: unpack(r.predictions[primary_split(r)]).astype(float) for r in finished(records)}


class Pair(NamedTuple):
    """Two arms that are compared, by their labels.

    Attributes:
        question: what the comparison answers.
        treatment: minus
        control: of it.
    """

    question: str
    treatment: str
    control: str


def compare(results: Results, pair: Pair) -> CrossedComparison | None:
    """The paired difference of two arms, in points; None where they have no seed in common.

    Both must have been tuned alike: ValueError where what was tuned of one was not tuned of the other.
    """
    _require_tuned_alike(results, pair.treatment, pair.control)
    return difference(results.arms[pair.treatment], results.arms[pair.control])


def headline(results: Results, treatment: str, control: str, measure: str = "confirmation") -> str:
    """The paired difference of two arms that were tuned alike, as text, for a summary. ValueError if they were not.

    It is over seeds and inputs (see :func:`compare`) where the records have predictions and ``measure`` is what those
    are of; of other records and measures it is over seeds. "not measured" where no seed has both.
    """
    _require_tuned_alike(results, treatment, control)
    ended = [record for label in (treatment, control) for record in finished(results.arms.get(label, []))]
    if measure != "confirmation" or not all(record.predictions for record in ended):
        return results.difference(treatment, control, measure)
    comparison = compare(results, Pair("", treatment, control))
    return "not measured" if comparison is None else format_interval(comparison.interval, 1, signed=True)


def _require_tuned_alike(results: Results, treatment: str, control: str) -> None:
    tuned = {arm.label: arm.tuned for arm in results.experiment.arms}
    if tuned[treatment] != tuned[control]:
        raise ValueError(f"{treatment} and {control} must be tuned alike, got {tuned[treatment]} and {tuned[control]}")


def comparisons(results: Results, pairs: Sequence[Pair], name: str) -> Table:
    """A row per pair: the difference over seeds and inputs, and what two tests say of it, corrected for all rows.

    Of labels like "SGD, raw gradient, cosine" a row names the parts that differ. Its question says the others.

    "better" and "worse" where the difference passes the test of there being none and its interval excludes zero; "no
    difference" where it certainly is less than ``stats.EQUIVALENCE`` points; "undecided" where neither.
    """
    found = [(pair, comparison) for pair in pairs if (comparison := compare(results, pair)) is not None]
    different, equal = (holm([getattr(each, p) for _, each in found]) for p in ("p", "p_equal"))
    rows = [
        {
            "question": pair.question,
            "difference": " minus ".join(_what_differs(pair.treatment, pair.control)),
            "points": each.interval,
            "p, Holm": p,
            "p, equal": p_equal,
            "verdict": _verdict(each.interval, p, p_equal),
            "seeds": str(len(_seeds(results, pair.treatment) & _seeds(results, pair.control))),
        }
        for (pair, each), p, p_equal in zip(found, different, equal, strict=True)
    ]
    return Table(pd.DataFrame(rows), name, signed=True, index=2, decimals=1)


def _seeds(results: Results, label: str) -> set[int]:
    return {record.run.seed for record in finished(results.arms[label])}


def _what_differs(*labels: str) -> list[str]:
    """Labels of parts that commas separate, without what they have in common at their beginnings and ends."""
    parts = [label.split(", ") for label in labels]
    for _ in range(2):  # from the front, then from the back
        while all(len(of_one) > 1 for of_one in parts) and len({of_one[0] for of_one in parts}) == 1:
            parts = [of_one[1:] for of_one in parts]
        parts = [of_one[::-1] for of_one in parts]
    return [", ".join(of_one) for of_one in parts]


def _verdict(difference: Interval, p: float, p_equal: float) -> str:
    if p_equal < ALPHA:
        return "no difference"
    if p < ALPHA and difference.excludes_zero:
        return "better" if difference.mean > 0 else "worse"
    return "undecided"


def accuracies(arms: Mapping[str, Sequence[Record]]) -> dict[str, Interval]:
    """Each arm's accuracy in percent on its primary inputs, with its interval over seeds and inputs."""
    found = {label: correct(records) for label, records in arms.items()}
    nothing = {label: {seed: np.zeros_like(values) for seed, values in arm.items()} for label, arm in found.items()}
    return {label: crossed_difference(arm, nothing[label]).interval for label, arm in found.items() if arm}
