"""Sweeps save every finished run, survive being killed, and finish the rest when started again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from distributed import LocalCluster

from convopt.lab import experiments, sweep, training
from convopt.lab.records import Store, read_table, write_table

RUNS = experiments.find("06-stress-test").runs("digits", range(2), epochs=1)


@pytest.fixture(scope="module")
def records():
    return [training.train(run) for run in RUNS[:4]]


def curves(record) -> dict:
    return {name: values for name, values in record.curves.items() if not name.startswith("seconds")}


def test_records_come_in_the_order_of_runs_and_are_not_run_again(tmp_path, records):
    store = Store(tmp_path)
    first = sweep.sweep(RUNS[:4], store, jobs=2)
    assert [record.run for record in first] == RUNS[:4]
    assert [curves(record) for record in first] == [curves(record) for record in records]
    assert sweep.sweep(reversed(RUNS[:4]), store) == first[::-1]


def test_a_running_dask_cluster_can_do_the_work(tmp_path):
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        (record,) = sweep.sweep(RUNS[:1], Store(tmp_path), scheduler=cluster.scheduler_address)
    assert Store(tmp_path).load(RUNS[0]) == record


def test_a_killed_sweep_keeps_what_was_finished_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "convopt.cli", "run", "06-stress-test", "--dataset", "digits"]
    command += ["--seeds", "2", "--epochs", "2", "--jobs", "2", "--store", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert len(kept) >= 2
    assert all(json.loads(content)["status"] == "finished" for content in kept.values())
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert {row["n"] for row in rows} == {2}
    assert len(rows) == 7
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(list(tmp_path.glob("*.json"))) == 14


def test_a_record_that_does_not_parse_is_named_and_run_again(tmp_path, records):
    store = Store(tmp_path)
    for record in records[:3]:
        store.save(record)
    broken = tmp_path / f"{RUNS[0].id}.json"
    broken.write_text(broken.read_text()[:100])
    wrong = tmp_path / f"{RUNS[1].id}.json"
    wrong.write_text(wrong.read_text().replace(RUNS[1].id, "0" * 16))
    with pytest.warns(UserWarning, match=broken.name), pytest.warns(UserWarning, match=wrong.name):
        assert len(store.records()) == 1
    with pytest.warns(UserWarning, match=broken.name), pytest.warns(UserWarning, match=wrong.name):
        again = sweep.sweep(RUNS[:3], store, jobs=1)
    assert [curves(record) for record in again] == [curves(record) for record in records[:3]]
    assert len(store.records()) == 3


def test_a_table_holds_the_same_records(tmp_path, records):
    path = tmp_path / "table.parquet"
    write_table(records, path)
    assert sorted(read_table(path), key=lambda r: r.run.id) == sorted(records, key=lambda r: r.run.id)
    store = Store(tmp_path / "own", published=path)
    assert store.load(RUNS[0]) == records[0]
    assert len(store.records()) == 4
    assert not (tmp_path / "own").exists()


def test_own_records_come_before_published_ones(tmp_path, records):
    path = tmp_path / "table.parquet"
    write_table(records, path)
    store = Store(tmp_path / "own", published=path)
    own = sweep.train(RUNS[0])
    store.save(own)
    assert store.load(RUNS[0]) == own
    assert len(store.records()) == 4


def test_what_is_written_leaves_no_temporary_files(tmp_path, records):
    Store(tmp_path).save(records[0])
    assert [path.name for path in tmp_path.iterdir()] == [f"{RUNS[0].id}.json"]


def test_a_failing_run_is_raised_after_the_finished_ones_were_saved(tmp_path):
    bad = experiments.Setting(1200, 5000, 0.0, experiments.STRESS.model, 1).run(experiments.SGD, "digits", 1, 0)
    with pytest.raises(ValueError, match="batch_size"):
        sweep.sweep([RUNS[0], bad], Store(tmp_path), jobs=1)
    assert Store(tmp_path).load(RUNS[0]) is not None


def test_jobs_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="jobs"):
        sweep.sweep(RUNS, Store(tmp_path), jobs=0)
