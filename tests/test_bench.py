"""The benchmark measures every optimizer in one run and reports ratios."""

import json
import subprocess
import sys

import pytest

from convopt.lab import bench


@pytest.fixture(scope="module")
def rows():
    return bench.measure(["SimpleNet"], [1], "cpu", seconds=0.1)


def test_there_is_a_row_for_each_optimizer_and_kind_of_step(rows):
    kinds = {"step", "training step, batch 8", "training step, batch 64"}
    assert {(row["optimizer"], row["what"]) for row in rows} == {(o, kind) for o in bench.OPTIMIZERS for kind in kinds}
    assert all(row["median_ms"] > 0 for row in rows)


def test_ratios_are_those_of_the_medians_of_one_kind_of_step(rows):
    for what in {row["what"] for row in rows}:
        medians = {row["optimizer"]: row["median_ms"] for row in rows if row["what"] == what}
        for row in rows:
            if row["what"] == what:
                assert row["over_sgd"] == pytest.approx(medians[row["optimizer"]] / medians["SGD"])
                assert row["over_adamw"] == pytest.approx(medians[row["optimizer"]] / medians["AdamW"])
    assert all((row["over_floor"] is None) == (row["what"] != "step") for row in rows)


@pytest.mark.slow
def test_the_command_prints_json():
    command = [sys.executable, "-m", "convopt.cli", "bench", "--quick", "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert rows[0].keys() == {
        *("optimizer", "model", "what", "threads", "device", "median_ms", "over_sgd", "over_adamw", "over_floor")
    }
