"""On a real Dask cluster a sweep survives the death of workers, and tells in one line of that of the scheduler."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import dask
import pytest
from distributed import Client, LocalCluster

from convopt.lab import cluster, experiments, sweep, training
from convopt.lab.records import Store

RUNS = experiments.find("06-stress-test").runs("digits", range(2), epochs=1)


def workers(n: int, **options) -> LocalCluster:
    return LocalCluster(n_workers=n, dashboard_address=":0", **{"threads_per_worker": 1, **options})


def once_there_are(count: int, folder, act: Callable[[], object]) -> threading.Thread:
    """Does ``act`` as soon as ``folder`` holds ``count`` records."""

    def watch():
        while len(list(folder.glob("*.json"))) < count:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_one_run_at_a_time_in_a_worker_of_several_threads(tmp_path):
    with workers(1, threads_per_worker=3, processes=False, protocol="tcp") as local:
        records = sweep.sweep(RUNS[:3], Store(tmp_path), scheduler=local.scheduler_address)
    assert [record.run for record in records] == RUNS[:3]
    assert Store(tmp_path).load(RUNS[0]) == records[0]
    for record in records:
        expected = training.train(record.run)
        assert record.curves["train_loss"] == expected.curves["train_loss"]
        assert record.curves["test_accuracy"] == expected.curves["test_accuracy"]


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="tcp://host:8786, got 'nonsense'"):
        list(cluster.completed(str, [1], scheduler="nonsense"))


def test_a_scheduler_that_does_not_answer_is_one_error():
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(cluster.ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 "),
    ):
        list(cluster.completed(str, [1], scheduler="tcp://127.0.0.1:1"))


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path):
    with workers(2) as local, Client(local) as client:
        first, _ = client.run(os.getpid).values()
        killer = once_there_are(1, tmp_path, lambda: os.kill(first, signal.SIGKILL))
        records = sweep.sweep(RUNS, Store(tmp_path), scheduler=local.scheduler_address)
        killer.join()
        assert first not in client.run(os.getpid).values()
    assert [record.run for record in records] == RUNS
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == sorted(run.id for run in RUNS)
    assert not (tmp_path / "failed").exists()


@pytest.mark.slow
def test_a_stopped_scheduler_is_one_line_and_the_next_sweep_goes_on(tmp_path):
    command = [sys.executable, "-m", "convopt.cli", "run", "06-stress-test", "--dataset", "digits", "--seeds", "2"]
    command += ["--epochs", "1", "--store", str(tmp_path), "--scheduler"]
    with workers(1) as local:
        address = local.scheduler_address
        once_there_are(2, tmp_path, local.close)
        stopped = subprocess.run([*command, address], capture_output=True, text=True, timeout=300)
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1] == (
        f"convopt: error: the Dask scheduler at {address} went away; what was finished before is kept"
    )
    assert "Traceback" not in stopped.stderr
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert 2 <= len(kept) < len(RUNS)
    assert not (tmp_path / "failed").exists()
    with workers(2) as local:
        subprocess.run([*command, local.scheduler_address], capture_output=True, check=True, timeout=300)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == sorted(run.id for run in RUNS)


def die_of_13(item: int) -> int:
    if item == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.slow
def test_what_kills_every_worker_is_given_up_and_the_rest_done():
    done = []
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        pytest.raises(cluster.ClusterError, match="1 of 3 given up"),
    ):
        done.extend(cluster.completed(die_of_13, [1, 13, 2], jobs=2))
    assert sorted(done) == [1, 2]
