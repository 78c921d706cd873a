"""Running many runs on all cores or on a Dask cluster, resumable after any interruption."""

import logging
import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm

from convopt.lab.records import Record, Store
from convopt.lab.runs import Run
from convopt.lab.training import train


def sweep(runs: Iterable[Run], store: Store, jobs: int | None = None, scheduler: str | None = None) -> list[Record]:
    """The records of ``runs``, in their order; those that ``store`` lacks are trained and saved one by one.

    A sweep that is killed loses the runs in flight and nothing else: started again, it trains what is missing.

    Args:
        runs: what to run; duplicates are run once.
        store: where records are looked for and saved.
        jobs: worker processes, each of one torch thread; None takes one per core. With 1, or where only one run
            is missing, everything happens in this process.
        scheduler: address of a running Dask scheduler to use in place of local processes. Its workers need
            convopt[lab] and the data; records come back here.

    Raises:
        ValueError: ``jobs`` is not positive.
        Exception: whatever a run raised, after the finished ones were saved.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs!r}")
    runs = list(runs)
    found = {run: store.load(run) for run in runs}
    missing = [run for run, record in found.items() if record is None]
    workers = min(jobs or available_cores(), len(missing))
    in_process = scheduler is None and workers <= 1
    outcomes = map(train, missing) if in_process else _on_cluster(missing, workers, scheduler)
    progress = tqdm(outcomes, total=len(missing), desc="runs", unit="run", disable=not missing, mininterval=_interval())
    for record in progress:
        store.save(record)
        found[record.run] = record
    return [found[run] for run in runs]


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_cluster(runs: list[Run], workers: int, scheduler: str | None) -> Iterable[Record]:
    """Records as they come from a cluster: the one at ``scheduler``, or local processes that end with this one."""
    from distributed import Client, LocalCluster, as_completed

    local = None
    if scheduler is None:
        local = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",  # any free port: a second sweep must not complain of the first
            silence_logs=logging.ERROR,
        )
    try:
        with Client(scheduler or local) as client:
            futures = [client.submit(train, run, key=f"train-{run.id}", pure=True) for run in runs]
            for future in as_completed(futures):
                yield future.result()
                future.release()
    finally:
        if local is not None:
            local.close()


def _interval() -> float:
    """Seconds between progress updates: rarely where nobody watches a terminal."""
    return 0.1 if sys.stderr.isatty() else 30.0
