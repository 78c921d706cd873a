"""Which values the notebooks' parameters may have: the one place that knows."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from convopt.lab.data import describe, require_dataset
from convopt.lab.folders import require_folder
from convopt.lab.names import quoted
from convopt.lab.networks import require_network

MOST_SEEDS = 10_000
"""Runs are made before the first is trained: with far more seeds they would fill the memory."""


@dataclass(frozen=True)
class Values:
    """The values that a number may have.

    Attributes:
        expected: what a message says of them.
        hold: whether a number is one of them.
    """

    expected: str
    hold: Callable[[float], bool]


def _integers(low: int, high: float = math.inf) -> Values:
    limits = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
    return Values(f"an integer {limits}", lambda value: isinstance(value, int) and low <= value <= high)


NUMBERS = {
    "seed": _integers(0, 2**63 - 1),
    "seeds": _integers(1, MOST_SEEDS),
    "epochs": _integers(1),
    "jobs": _integers(1),
    "batch_size": _integers(1),
    "pairs": _integers(1),
    "steps": _integers(1),
    "taps": Values("an odd integer from 3 to 99", lambda value: isinstance(value, int) and value in range(3, 100, 2)),
    "probe_images": Values(
        "a multiple of 64, at least 64", lambda value: isinstance(value, int) and value >= 64 and value % 64 == 0
    ),
    "label_noise": Values("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "seconds": Values("a finite number of at least 0", lambda value: 0 <= value < math.inf),
    "budget_minutes": Values("a number of minutes from 0.1 to 10000", lambda value: 0.1 <= value <= 10_000),
}
"""By parameter. ``TEXTS`` has those that are no numbers."""


def check_parameters(or_zero: Collection[str] = (), /, **values: Any) -> None:
    """ValueError for the first parameter with a value that it must not have. Unknown parameters are left alone.

    Args:
        or_zero: names of parameters that may also be 0, which stands for a default of its own.
        values: by the parameters' names.
    """
    for name, value in values.items():
        if name in TEXTS:
            TEXTS[name](value)
        elif name in NUMBERS:
            _check_number(name, value, name in or_zero)


def _check_dataset(value: Any) -> None:
    require_dataset(value)
    task = describe(value).task
    if task != "classification":
        raise ValueError(
            f"dataset must be one of a classification, as notebooks tell of accuracies, got {quoted(value)}, a {task}: "
            "`convopt run` and `convopt try` take it"
        )


def _check_store(value: Any) -> None:
    if not isinstance(value, str | Path):
        raise ValueError(f"store must be the path of a folder, got {quoted(value)}")
    if value:
        require_folder("store", Path(value))


def _check_target(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"target must be the name of a table's column, or empty, got {quoted(value)}")


def _check_model(value: Any) -> None:
    if value != "":
        require_network(value)


TEXTS: dict[str, Callable[[Any], None]] = {
    "dataset": _check_dataset,
    "data": partial(require_dataset, called="data"),
    "target": _check_target,
    "model": _check_model,
    "store": _check_store,
}
"""What refuses the wrong values of a parameter that is no number."""


def _check_number(name: str, value: Any, or_zero: bool) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (NUMBERS[name].hold(value) or (or_zero and value == 0)):
        return
    expected = NUMBERS[name].expected + (", or 0 for the default" if or_zero else "")
    raise ValueError(f"{name} must be {expected}, got {quoted(value)}")
