"""`convopt records check` names what is wrong with records, changes nothing, and is content with the published ones."""

import hashlib
import json
import tempfile
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convopt.cli import main
from convopt.lab import check, data, experiments, training
from convopt.lab.parquet import with_checksum
from convopt.lab.records import Record, RecordsError, Store, Table, write_table
from convopt.lab.runs import Choice
from convopt.lab.workspace import PUBLISHED

RUN = experiments.STRESS.run(experiments.SGD, "digits", epochs=1, seed=0)


@pytest.fixture(scope="module")
def record():
    return _trained()


def faults(folder, **options) -> list[str]:
    return [fault for fault, _ in check.check(folder, **options)[1]]


def test_a_good_record_in_a_store_or_a_table_has_no_fault(tmp_path, record):
    Store(tmp_path).save(record)
    write_table([record], tmp_path / "table.parquet")
    assert check.check(tmp_path, tmp_path / "table.parquet") == (2, [])


def test_a_record_of_ones_own_network_has_no_fault_though_it_cannot_be_imported_here(tmp_path, record):
    run = replace(RUN, dataset=str(tmp_path), data="0123", model=Choice.of("elsewhere:of_rows"))
    found = [said for _, said in check._faults(replace(record, run=run))]
    assert not any("elsewhere" in said for said in found)


def test_a_table_keeps_records_with_and_without_predictions(tmp_path, record):
    records = [replace(record, predictions={}), replace(record, run=replace(RUN, seed=RUN.seed + 1))]
    write_table(records, tmp_path / "table.parquet")
    kept = {each.run: each.predictions for each in Table(tmp_path / "table.parquet").records()}
    assert kept == {each.run: each.predictions for each in records}
    assert record.predictions


@pytest.mark.parametrize(
    ("fault", "said", "changed"),
    [
        ("orphaned", "no experiment", {"n_train": 999}),
        ("unknown configuration", "Adagrad", {"optimizer": Choice.of("Adagrad", lr=0.1)}),
        ("unknown configuration", "nesterow", {"optimizer": Choice.of("SGD", lr=0.1, nesterow=True)}),
        ("unknown configuration", "kernel_init", {"optimizer": Choice.of("ConvolutionalSGDv2", kernel_init="heart")}),
        ("unknown configuration", "Perceptron", {"model": Choice.of("Perceptron")}),
        ("unknown configuration", "linear", {"schedule": "linear"}),
        ("unknown configuration", "halved", {"annealing": Choice.of("halved")}),
        ("unknown configuration", "cifar", {"dataset": "cifar"}),
    ],
)
def test_a_run_that_nothing_knows_any_more_is_told_with_the_reason(tmp_path, record, fault, said, changed):
    Store(tmp_path).save(replace(record, run=replace(RUN, **changed)))
    assert any(found == fault and said in line for found, line in check.check(tmp_path)[1])


def test_what_is_published_about_replayed_factors_is_known_without_training(tmp_path, record):
    annealing = Choice.of("replayed", shift=1)
    (arm,) = [
        run
        for run in experiments.find("04-wiener").runs("digits", [0], 1)
        if run.optimizer.name == "SGD" and run.annealing == annealing
    ]
    Store(tmp_path).save(replace(record, run=arm))
    assert faults(tmp_path) == []


def test_other_data_are_told_where_the_data_are_at_hand(tmp_path, record, monkeypatch):
    Store(tmp_path).save(replace(record, provenance={**record.provenance, "data": "0" * 64}))
    assert faults(tmp_path) == ["of other data"]
    monkeypatch.setenv("CONVOPT_DATA", str(tmp_path))
    elsewhere = replace(record, run=experiments.STRESS.run(experiments.SGD, "mnist", epochs=1, seed=0))
    store = Store(tmp_path / "mnist")
    store.save(elsewhere)
    assert not data.is_at_hand("mnist")
    assert faults(store.folder) == []


def test_the_command_lists_what_is_wrong_and_changes_nothing(tmp_path, record, capsys):
    Store(tmp_path).save(record)
    content = (tmp_path / f"{RUN.id}.json").read_bytes()
    for name, bytes_ in (("empty", b""), ("broken", content[:99]), ("misnamed", content)):
        (tmp_path / f"{name}.json").write_bytes(bytes_)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["records", "check", "--store", str(tmp_path)]) == 1
    *lines, summary = [line for line in capsys.readouterr().out.splitlines() if "at hand" not in line]
    assert [line.split(":")[0] for line in lines] == ["corrupt"] * 3
    assert all(f"{name}.json" in line for name, line in zip(("broken", "empty", "misnamed"), lines, strict=True))
    assert summary.startswith("4 records checked: 3 corrupt, 0 orphaned")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_record_without_a_provenance_is_corrupt(tmp_path, record):
    Store(tmp_path).save(record)
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": None}))
    assert faults(tmp_path) == ["corrupt"]


@pytest.mark.parametrize(
    "changed",
    [
        {"curves": {}},
        {"curves": []},
        {"curves": {"test_accuracy": 0.5}},
        {"kernels": None},
        {"predictions": []},
        {"status": "stopped"},
    ],
    ids=lambda changed: json.dumps(changed),
)
def test_a_record_with_a_part_of_the_wrong_kind_is_corrupt(tmp_path, record, changed, capsys):
    Store(tmp_path).save(record)
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    assert faults(tmp_path) == ["corrupt"]
    with pytest.warns(UserWarning, match="is not a readable record"):
        assert main(["report", "06-stress-test", "--dataset", "digits", "--store", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "optimizer",
    [{"name": 3, "options": {}}, {"name": "SGD", "options": {"lr": {"first": 0.1}}}],
    ids=["a number for a name", "an option that is a dict"],
)
def test_a_record_of_a_run_that_cannot_be_is_corrupt(tmp_path, record, optimizer):
    told = record.to_json()
    run = {**told["run"], "optimizer": optimizer}
    canonical = json.dumps(run, sort_keys=True, separators=(",", ":"))
    name = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    (tmp_path / f"{name}.json").write_text(json.dumps({**told, "run": run, "id": name}))
    assert faults(tmp_path) == ["corrupt"]


@settings(max_examples=50, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(where=0.6875, bit=0)  # of a page's header: the checksums of pages left it unseen
def test_a_table_with_any_bit_of_damage_is_refused(where, bit):
    content = bytearray(_table_of_one())
    content[int(where * len(content))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        path.write_bytes(content)
        with pytest.raises(RecordsError, match=r"table\.parquet"):
            Table(path)


@given(st.integers(0, 200))
def test_a_table_that_ends_too_soon_is_refused(length):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        path.write_bytes(_table_of_one()[:length])
        with pytest.raises(RecordsError, match=r"table\.parquet"):
            Table(path)


def test_other_programs_read_a_table_in_spite_of_its_checksum(tmp_path, record):
    write_table([record], tmp_path / "table.parquet")
    assert pd.read_parquet(tmp_path / "table.parquet")["id"].tolist() == [record.run.id]


@cache
def _trained() -> Record:
    return training.train(RUN)


@cache
def _table_of_one() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_table([_trained()], Path(folder) / "table.parquet")
        return (Path(folder) / "table.parquet").read_bytes()


def test_a_table_that_calls_a_run_by_another_name_is_damaged(tmp_path):
    path = tmp_path / "table.parquet"
    frame = pd.read_parquet(BytesIO(_table_of_one()))
    path.write_bytes(with_checksum(frame.assign(id="0" * 16).to_parquet()))
    for read in (Table.runs, Table.records):
        with pytest.raises(RecordsError, match="hashes to"):
            read(Table(path))


def test_a_damaged_table_is_one_finding(tmp_path, record):
    table = tmp_path / "table.parquet"
    write_table([record], table)
    table.write_bytes(table.read_bytes()[:-100])
    ((fault, said),) = check.check(tmp_path, table)[1]
    assert fault == "corrupt"
    assert "git checkout" in said


@pytest.mark.slow
def test_the_published_records_have_no_fault(tmp_path):
    checked, findings = check.check(tmp_path, ROOT / PUBLISHED)
    assert checked > 700
    assert not findings
