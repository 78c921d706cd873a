"""The benchmark measures every optimizer in one run and reports ratios."""

import json
import math
import subprocess
import sys

import pandas as pd
import pytest

from convopt import ConvolutionalSGD
from convopt.lab import bench, timings


@pytest.fixture(scope="module")
def rows():
    return bench.measure(["SimpleNet"], "cpu", seconds=0.1)


@pytest.mark.slow
def test_there_is_a_row_for_each_optimizer_and_kind_of_step(rows):
    kinds = {"step", "training step, batch 8", "training step, batch 64"}
    measured = {(o, kind) for o in bench.OPTIMIZERS for kind in kinds}
    measured |= {(o, kind) for o in bench.MUON for kind in kinds - {"step"}}
    assert {(row["optimizer"], row["what"]) for row in rows} == measured
    assert all(row["median_ms"] > 0 for row in rows)


def test_what_is_kept_is_told_of_each_optimizer_in_mebibytes(rows):
    kept = {row["optimizer"]: row["kept_mib"] for row in rows if row["what"] == "step"}
    numbers = sum(p.numel() for p in bench.SimpleNet().parameters())
    assert kept["SGD"] == pytest.approx(4 * numbers / 2**20)
    assert kept["AdamW"] == pytest.approx(2 * kept["SGD"], rel=0.01)
    assert kept["SGD + SNRAnnealing"] == pytest.approx(2 * kept["SGD"], rel=0.01)  # all of the last gradient


@pytest.mark.slow
def test_a_language_model_is_trained_on_tokens(monkeypatch):
    monkeypatch.setattr(bench, "BLOCK", 4)  # else it takes a minute
    monkeypatch.setattr(bench, "TRAINING_ROUNDS", 1)
    labels = [row["optimizer"] for row in bench.measure(["GRU language model"], "cpu", seconds=0.1)]
    assert labels == 2 * list(bench.OPTIMIZERS)


def test_ratios_are_those_of_the_medians_of_one_kind_of_step(rows):
    for what in {row["what"] for row in rows}:
        medians = {row["optimizer"]: row["median_ms"] for row in rows if row["what"] == what}
        for row in rows:
            if row["what"] == what:
                assert row["over_sgd"] == pytest.approx(medians[row["optimizer"]] / medians["SGD"])
                assert row["over_adamw"] == pytest.approx(medians[row["optimizer"]] / medians["AdamW"])
    assert all((row["over_floor"] is None) == (row["what"] != "step") for row in rows)


def test_a_comparison_has_a_row_per_optimizer_and_a_column_per_kind_of_step(rows):
    table = bench.comparison(pd.DataFrame(rows), "training step", "over_sgd").frame
    assert table.optimizer.tolist() == [*bench.OPTIMIZERS, *bench.MUON]
    assert list(table) == ["optimizer", "SimpleNet, batch 8", "SimpleNet, batch 64"]
    assert table.iloc[0].tolist() == ["SGD", 1, 1]


def test_a_figure_that_was_not_measured_is_not_a_number(rows):
    frame = pd.DataFrame(rows)
    assert bench.figure_of(frame, "SGD", "SimpleNet", "over_sgd") == 1
    assert math.isnan(bench.figure_of(frame, "SGD", "SimpleNet", "over_sgd", what="no step"))


@pytest.mark.parametrize("spoilt", [[1], [{}]], ids=["a number", "an empty row"])
def test_a_store_with_rows_of_another_kind_is_refused(rows, tmp_path, spoilt):
    store = tmp_path / "costs.json"
    timings.write(rows, store)
    store.write_text(json.dumps({**json.loads(store.read_text()), "rows": spoilt}))
    with pytest.raises(ValueError, match="--store must be a file of measurements"):
        bench.measure(["SimpleNet"], "cpu", seconds=0.1, store=store)


def test_published_measurements_come_back_with_where_they_come_from(rows, tmp_path):
    timings.write(rows, tmp_path / "costs.json")
    made, frame = timings.read(tmp_path / "costs.json")
    pd.testing.assert_frame_equal(frame, pd.DataFrame(rows))
    assert made.keys() >= {"date", "processor", "torch", "commit"}


def test_a_measurement_that_was_interrupted_goes_on_where_it_was(rows, tmp_path, monkeypatch):
    store, asked = tmp_path / "costs.json", []

    def measured(name, batch, *_):
        asked.append(batch)
        if asked == [None, 8, 64]:
            raise KeyboardInterrupt
        return [row for row in rows if row["what"] == bench._what(batch)]

    monkeypatch.setattr(bench, "_measured", measured)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(["SimpleNet"], "cpu", seconds=0.1, store=store)
    assert asked == [None, 8, 64]
    assert bench.measure(["SimpleNet"], "cpu", seconds=0.1, store=store) == rows
    assert asked == [None, 8, 64, 64]
    assert timings.rows_of(store, "cpu") == rows


@pytest.mark.parametrize(("what", "before"), [("torch", "0"), ("processor", "another"), ("accelerator", "a GPU")])
def test_measurements_of_another_version_or_machine_are_not_gone_on_with(what, before, rows, tmp_path):
    store = tmp_path / "costs.json"
    timings.write(rows, store)
    content = json.loads(store.read_text())
    content["provenance"][what] = before
    store.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"was measured with {what} {before}, and this is .*: name another file"):
        bench.measure(["SimpleNet"], "cpu", seconds=0.1, store=store)
    assert json.loads(store.read_text()) == content


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": []}'])
def test_a_store_that_holds_something_else_is_refused_and_left_alone(content, tmp_path):
    store = tmp_path / "notes.json"
    store.write_text(content)
    with pytest.raises(ValueError, match=r"--store must be a file of measurements, or none yet, got .*notes\.json"):
        bench.measure(["SimpleNet"], "cpu", seconds=0.1, store=store)
    assert store.read_text() == content


@pytest.mark.slow
def test_compiled_steps_are_measured_beside_the_others(monkeypatch):
    assert {"ConvolutionalSGD, compiled", "ConvolutionalSGDv2, compiled"} <= bench._makers("10 M", "cpu").keys()
    monkeypatch.setitem(bench.MODELS, "10 M", bench.MODELS["0.1 M"])
    monkeypatch.setattr(bench, "COMPILED", (ConvolutionalSGD,))  # one is enough: compilation takes its time
    labels = {row["optimizer"] for row in bench.measure(["10 M"], "cpu", seconds=0.1)}
    assert "ConvolutionalSGD, compiled" in labels


@pytest.mark.slow
def test_the_command_prints_json():
    command = [sys.executable, "-m", "convopt.cli", "bench", "--quick", "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert rows[0].keys() == {
        *("optimizer", "model", "what", "device", "median_ms", "over_sgd", "over_adamw", "over_floor", "kept_mib")
    }
