"""The published records say today what they said when they were published.

``python tests/test_published_reports.py`` accepts the reports as they are now: after new records, never after new code.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest

from convopt.lab import experiments, report, workspace
from convopt.lab.records import Table
from convopt.lab.runs import Run

ACCEPTED = Path(__file__).with_name("published_reports.json")


@cache
def _published() -> Table:
    return workspace.published()


@cache
def _recorded() -> list[Run]:
    return _published().runs()


def digest(name: str) -> str:
    """Of the experiment's JSON report, numbers to nine digits."""
    experiment = experiments.find(name)
    wanted = set(experiment.runs())
    rows = report.rows(experiment, [_published().load(run) for run in _recorded() if run in wanted])
    rounded = json.loads(json.dumps(rows), parse_float=lambda text: float(f"{float(text):.9g}"))
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_the_json_report_of_every_published_experiment_is_as_it_was(name):
    assert digest(name) == json.loads(ACCEPTED.read_text())[name]


if __name__ == "__main__":
    ACCEPTED.write_text(json.dumps({name: digest(name) for name in experiments.EXPERIMENTS}, indent=1) + "\n")
