"""Calling a function for many items side by side: on this machine's cores or on a Dask cluster."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClusterError(RuntimeError):
    """A scheduler or workers went away, and with them what was in flight. The message says which and what to do."""


def completed(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int | None = None,
    scheduler: str | None = None,
    unit: str = "run",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Result]:
    """The results of ``function`` for each of ``items``, as they come, with a progress bar where there are several.

    What a dying worker had in hand is done again by another one.

    Args:
        function: importable; its arguments and results can be pickled. A process calls it for one item at a time.
        items: one argument each.
        jobs: worker processes of one thread each; None takes one per core. With 1, or where there is one item only,
            everything happens in this process, in order, if it has the ``environment``.
        scheduler: address of a running Dask scheduler, "tcp://host:8786", to use in place of local processes. Its
            workers need convopt[lab] and the data. While it has none, the work waits for them.
        unit: what the progress bar calls an item.
        environment: variables that local processes start with.

    Raises:
        ValueError: ``jobs`` is not positive, or ``scheduler`` is no address.
        ClusterError: the scheduler does not answer or went away; or items were given up, at the end, since worker
            after worker died of them.
        Exception: whatever ``function`` raised.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs!r}")
    workers = min(jobs or available_cores(), len(items))
    is_here = all(os.environ.get(name) == value for name, value in environment.items())
    in_process = not items or (scheduler is None and workers == 1 and is_here)
    results = map(function, items) if in_process else _on_cluster(function, items, workers, scheduler, environment)
    return _with_progress(results, len(items), unit)


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _with_progress(results: Iterable[Result], total: int, unit: str) -> Iterator[Result]:
    # Rarely where nobody watches a terminal.
    interval = 0.1 if sys.stderr.isatty() else 30.0
    yield from tqdm(results, total=total, desc=f"{unit}s", unit=unit, disable=total < 2, mininterval=interval)


def _on_cluster(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    scheduler: str | None,
    environment: Mapping[str, str],
) -> Iterator[Result]:
    """Results as they come from the cluster at ``scheduler``, or from local processes."""
    from distributed import KilledWorker, as_completed

    # Dask logs with a traceback what is told here in one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    lost = 0
    with _connect(scheduler) if scheduler else _local(workers, environment) as client:
        if not client.scheduler_info()["workers"]:
            print(f"{scheduler} has no workers yet; waiting for some", file=sys.stderr)
        for future in as_completed([client.submit(_alone, function, item) for item in items]):
            try:
                result = future.result()
            except KilledWorker:
                lost += 1
                continue
            except CancelledError as error:
                where = f"the Dask scheduler at {scheduler}" if scheduler else "the local cluster"
                raise ClusterError(f"{where} went away; what was finished before is kept") from error
            yield result
            future.release()
    if lost:
        raise ClusterError(
            f"{lost} of {len(items)} given up, as several workers died of each (out of memory?); the others are done"
        )


# Of a worker with several threads. Training seeds torch's global generator for a moment, and papermill has one event
# loop per process.
_lock = threading.Lock()


def _alone(function: Callable[[Item], Result], item: Item) -> Result:
    """``function(item)``, one at a time in a process."""
    with _lock:
        return function(item)


def _connect(scheduler: str) -> "Client":
    from distributed import Client

    try:
        return Client(scheduler)
    except OSError as error:
        raise ClusterError(f"no Dask scheduler answers at {scheduler} ({error})") from error
    except ValueError as error:
        raise ValueError(f"scheduler must be an address such as tcp://host:8786, got {scheduler!r}: {error}") from error


@contextmanager
def environment_with(variables: Mapping[str, str]) -> Iterator[None]:
    """This process has these environment variables, too, and those that it starts inherit them; then all is as before.

    Whatever else is put into the environment meanwhile goes as well.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _started_with(environment: Mapping[str, str]) -> Iterator[None]:
    """Worker processes get the environment before they import anything. Dask puts it into this process's, too."""
    import dask

    name = "distributed.nanny.pre-spawn-environ"
    with environment_with({}), dask.config.set({name: {**dask.config.get(name), **environment}}):
        yield


@contextmanager
def _local(workers: int, environment: Mapping[str, str]) -> "Iterator[Client]":
    """A client of local worker processes, which end with it or with this process."""
    from distributed import Client, LocalCluster

    # Any free port for the dashboard: a second sweep must not complain of the first.
    with (
        _started_with(environment),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
            # Ctrl-C reaches all processes of a terminal; it is this one that ends the others.
            preload="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
