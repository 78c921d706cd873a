"""Choices that searches make on the validation data, in a file that a command writes from records."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from convopt.lab.experiments.arms import Arm
from convopt.lab.names import damaged

CHOSEN_FILE = Path(__file__).with_name("chosen.json")
"""What was chosen, by the name of the experiment that searched and by what it was chosen for."""

Choices = dict[str, dict[str, Any]]
"""Values by the search's name and by what they were chosen for."""

TUNING_SEED = 10
"""The first that no published comparison uses."""


class Trial(NamedTuple):
    """An arm of a search.

    Attributes:
        choice: what it is a candidate for; the trials with the same choice compete.
        value: what is written down where it is the best of them: a number, or a list of numbers.
        arm: what is trained.
    """

    choice: str
    value: Any
    arm: Arm


Search = Sequence[Trial]


def chosen(search: str, choice: str) -> Any:
    """The value that ``search``, an experiment's name, chose. KeyError where it has not chosen yet."""
    return _chosen()[search][choice]


def is_chosen(search: str, choice: str) -> bool:
    """Whether ``search`` has chosen."""
    return choice in _chosen().get(search, {})


def read_choices() -> Choices:
    """What was chosen so far, as the file has it now."""
    try:
        return json.loads(CHOSEN_FILE.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(damaged(CHOSEN_FILE, error)) from error


_chosen = cache(read_choices)  # of which experiments are made, when they are imported
