"""Sweeps save every finished run, survive being killed, and finish the rest when started again."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import psutil
import pytest

from convopt.cli import main
from convopt.lab import experiments, sweep, training
from convopt.lab.data import DataError
from convopt.lab.records import Failure, Store, Table, write_table
from convopt.lab.workspace import PUBLISHED

RUNS = experiments.find("06-stress-test").runs("digits", range(2), epochs=1)
ARMS = len(RUNS) // 2


@pytest.fixture(scope="module")
def records():
    return [training.train(run) for run in RUNS[:4]]


def wait_for_records(folder, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.json"))) < count:
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline, "it trains too slowly"
        time.sleep(0.05)


@contextmanager
def warned_of(*paths):
    """Each of the files is named in a warning."""
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(pytest.warns(UserWarning, match=path.name))
        yield


def raiser(error: Exception):
    def raise_it(*_):
        raise error

    return raise_it


def curves(record) -> dict:
    return {name: values for name, values in record.curves.items() if not name.startswith("seconds")}


@pytest.mark.slow
def test_records_come_in_the_order_of_runs_and_are_not_run_again(tmp_path, records):
    store = Store(tmp_path)
    first = sweep.sweep(RUNS[:4], store, jobs=2)
    assert [record.run for record in first] == RUNS[:4]
    assert [curves(record) for record in first] == [curves(record) for record in records]
    assert sweep.sweep(reversed(RUNS[:4]), store) == first[::-1]


@pytest.mark.slow
def test_a_killed_sweep_keeps_what_was_finished_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "convopt.cli", "run", "06-stress-test", "--dataset", "digits"]
    command += ["--seeds", "2", "--epochs", "1", "--jobs", "2", "--store", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_records(tmp_path, 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert len(kept) >= 2
    assert all(json.loads(content)["status"] == "finished" for content in kept.values())
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert {row["n"] for row in rows} == {2}
    assert len(rows) == ARMS
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(list(tmp_path.glob("*.json"))) == len(RUNS)


def test_a_record_that_does_not_parse_is_named_and_run_again(tmp_path, records):
    store = Store(tmp_path)
    for record in records:
        store.save(record)
    broken = tmp_path / f"{RUNS[0].id}.json"
    broken.write_text(broken.read_text()[:100])
    wrong = tmp_path / f"{RUNS[1].id}.json"
    wrong.write_text(wrong.read_text().replace(RUNS[1].id, "0" * 16))
    empty = tmp_path / f"{RUNS[2].id}.json"
    empty.write_bytes(b"")
    with warned_of(broken, wrong, empty):
        assert [store.load(run) for run in store.runs()] == records[3:]
    with warned_of(broken, wrong, empty):
        again = sweep.sweep(RUNS[:4], store, jobs=1)
    assert [curves(record) for record in again] == [curves(record) for record in records]
    assert len(store.runs()) == 4


def test_a_record_under_the_name_of_another_run_is_not_taken_for_it(tmp_path, records):
    store = Store(tmp_path)
    store.save(records[0])
    misplaced = (tmp_path / f"{RUNS[0].id}.json").rename(tmp_path / f"{RUNS[1].id}.json")
    with warned_of(misplaced):
        assert store.load(RUNS[1]) is None


def test_a_table_holds_the_same_records(tmp_path, records):
    path = tmp_path / "table.parquet"
    write_table(records, path)
    table = Table(path)
    assert sorted(table.records(), key=lambda r: r.run.id) == sorted(records, key=lambda r: r.run.id)
    assert table.runs() == [record.run for record in table.records()]
    store = Store(tmp_path / "own", published=path)
    assert store.load(RUNS[0]) == records[0]
    assert len(store.runs()) == 4
    assert not (tmp_path / "own").exists()


def test_own_records_come_before_published_ones(tmp_path, records):
    path = tmp_path / "table.parquet"
    write_table(records, path)
    store = Store(tmp_path / "own", published=path)
    own = replace(records[0], curves={**records[0].curves, "test_accuracy": [0.125]})
    store.save(own)
    assert store.load(RUNS[0]) == own
    told = {run: store.load(run) for run in store.runs()}
    assert told == {record.run: record for record in [own, *records[1:]]}
    assert len(store.runs()) == 4


def test_what_is_written_leaves_no_temporary_files(tmp_path, records):
    Store(tmp_path).save(records[0])
    assert [path.name for path in tmp_path.iterdir()] == [f"{RUNS[0].id}.json"]


BAD = experiments.Setting(1200, 5000, 0.0, experiments.STRESS.model, 1).run(experiments.SGD, "digits", 1, 0)
"""A run that raises: its batches are larger than its data set."""


def test_a_failing_run_does_not_keep_the_others_and_is_left_alone_until_told_otherwise(tmp_path, monkeypatch):
    store = Store(tmp_path)
    said = r"1 of 2 runs failed.*\n  digits, .*batch_size 5000, .*SGD.*, seed 0: ValueError: batch_size .*failed/"
    with pytest.raises(sweep.SweepError, match=said):
        sweep.sweep([BAD, RUNS[0]], store, jobs=1)
    assert store.load(RUNS[0]) is not None
    assert "training.py" in store.load_failure(BAD).traceback
    with monkeypatch.context() as context:
        context.setattr(sweep, "train", None)  # nothing is trained now
        with pytest.raises(sweep.SweepError, match=said):
            sweep.sweep([BAD, RUNS[0]], store)
    with pytest.raises(sweep.SweepError, match=said):
        sweep.sweep([BAD, RUNS[0]], store, jobs=1, retry_failed=True)
    assert store.runs() == [RUNS[0]]


def test_the_command_lists_failed_runs_and_retries_them(tmp_path, records, capsys):
    store = Store(tmp_path)
    store.save_failure(Failure(RUNS[0], "ValueError: of yesterday", "Traceback"))
    for record in records[1:]:
        store.save(record)
    command = ["run", "06-stress-test", "--dataset", "digits", "--seeds", "1", "--epochs", "1", "--jobs", "1"]
    command += ["--store", str(tmp_path)]
    assert main(command) == 1
    said = capsys.readouterr().err.splitlines()
    assert f"1 of {ARMS} runs failed" in said[-2]
    assert "--retry-failed" in said[-2]
    assert said[-1].startswith(f"  {sweep.describe(RUNS[0])}: ValueError: of yesterday")
    assert main([*command, "--retry-failed"]) == 0
    assert store.load_failure(RUNS[0]) is None
    assert main(command) == 0


def test_messages_tell_a_run_by_all_that_is_not_as_usual():
    run = experiments.PERMUTED.run(experiments.annealed(experiments.SGD), "digits", 3, 7)
    assert sweep.describe(run) == (
        "digits, n_train 1200, n_test 397, batch_size 8, label_noise 0.15, epochs 3, SimpleNet(), "
        "SGD(lr=0.01, momentum=0.9), seed 7, permuted, SNRAnnealing()"
    )


def test_missing_data_is_no_fault_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", raiser(DataError("MNIST is not there")))
    with pytest.raises(DataError):
        sweep.sweep(RUNS[:2], Store(tmp_path), jobs=1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, records, monkeypatch, capsys):
    Store(tmp_path).save(records[0])
    monkeypatch.setattr(os, "fsync", raiser(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    command = ["run", "06-stress-test", "--dataset", "digits", "--seeds", "1", "--epochs", "1", "--jobs", "1"]
    assert main([*command, "--store", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"convopt: error: cannot write {tmp_path}/{RUNS[1].id}.json: No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == [f"{RUNS[0].id}.json"]
    assert Store(tmp_path).load(RUNS[0]) == records[0]


@pytest.mark.parametrize("kept", [0.5, 0.0], ids=["truncated", "empty"])
def test_a_damaged_table_is_named_with_how_to_get_it_back(tmp_path, records, kept, monkeypatch, capsys):
    for folder in ("notebooks", "book/records"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write_table(records, tmp_path / PUBLISHED)
    content = (tmp_path / PUBLISHED).read_bytes()
    (tmp_path / PUBLISHED).write_bytes(content[: int(kept * len(content))])
    assert main(["report", "06-stress-test"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / PUBLISHED} is damaged" in said
    assert f"`git checkout -- {tmp_path / PUBLISHED}`" in said


@pytest.mark.slow
def test_two_sweeps_over_one_store_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "convopt.cli", "run", "06-stress-test", "--dataset", "digits", "--seeds", "1"]
    command += ["--epochs", "1", "--jobs", "1", "--store", str(tmp_path), "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(run.id for run in RUNS[:ARMS])
    assert len(Store(tmp_path).runs()) == ARMS


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_control_c_keeps_what_was_finished_and_leaves_no_process(tmp_path, jobs):
    command = [sys.executable, "-m", "convopt.cli", "run", "06-stress-test", "--dataset", "digits"]
    command += ["--seeds", "2", "--epochs", "2", "--jobs", jobs, "--store", str(tmp_path)]
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells have background jobs ignore it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, process_group=0, preexec_fn=heeded)
    wait_for_records(tmp_path, 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("convopt: error: interrupted; finished runs are kept")
    assert "Traceback" not in said
    assert len(family) >= (jobs == "2") * 2
    assert not psutil.wait_procs(family, timeout=20)[1]
    kept = Store(tmp_path).runs()
    assert 2 <= len(kept) < len(RUNS)
    assert not list(tmp_path.glob(".*"))


def test_jobs_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="jobs"):
        sweep.sweep(RUNS, Store(tmp_path), jobs=0)
