"""Running many runs on all cores or on a Dask cluster, resumable after any interruption."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import fields
from typing import Any

from convopt.lab import cluster
from convopt.lab.data import DataError
from convopt.lab.folders import require_writable
from convopt.lab.portable import PORTABLE
from convopt.lab.records import Failure, Record, Store
from convopt.lab.runs import Choice, Run
from convopt.lab.training import train


class SweepError(RuntimeError):
    """Some runs failed, now or in an earlier sweep. The message has a line for each; the others are done."""


def sweep(
    runs: Iterable[Run],
    store: Store,
    jobs: int | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
) -> list[Record]:
    """The records of ``runs``, in their order; those that ``store`` lacks are trained and saved one by one.

    A sweep that is interrupted loses the runs in flight and nothing else: started again, it trains what is missing.
    A run that raises is noted in the store; the others go on, and later sweeps leave it alone. Two sweeps over one
    store do each other no harm, but what is missing when both start, both train.

    Args:
        runs: what to run; duplicates are run once.
        store: where records are looked for and saved.
        jobs: worker processes, see ``cluster.completed``. Their arithmetic is portable, see ``arithmetic``.
        scheduler: address of a running Dask scheduler to use in their place; records come back here. Its workers
            compute portably if they were started with ``portable.PORTABLE`` in their environment.
        retry_failed: train also what failed in an earlier sweep.

    Raises:
        ValueError: ``jobs`` is not positive, ``scheduler`` is no address, or nothing can be written into the store's
            folder; no run has been trained then.
        SweepError: runs failed; raised when all others are done.
        cluster.ClusterError: the scheduler or workers went away.
        DataError: the data are missing or damaged, which is no fault of a run and ends the sweep.
        records.RecordsError: a record could not be saved.
    """
    runs = list(runs)
    found = {run: store.load(run) for run in runs}
    missing = [run for run, record in found.items() if record is None]
    failures = [] if retry_failed else [failure for run in missing if (failure := store.load_failure(run)) is not None]
    left_alone = {failure.run for failure in failures}
    pending = [run for run in missing if run not in left_alone]
    if pending:
        require_writable("store", store.folder)
    with closing(cluster.completed(attempt, pending, jobs, scheduler, environment=PORTABLE)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                store.save_failure(outcome)
                failures.append(outcome)
            else:
                store.save(outcome)
                found[outcome.run] = outcome
    if failures:
        lines = [
            f"  {describe(failure.run)}: {failure.error} ({store.failure_path(failure.run)})" for failure in failures
        ]
        raise SweepError(
            f"{len(failures)} of {len(found)} runs failed, and are left alone until `convopt run` is told "
            "--retry-failed; the others are done:\n" + "\n".join(lines)
        )
    return [found[run] for run in runs]


def describe(run: Run) -> str:
    """What a message calls a run: its configuration on one line, without what has its default."""
    told = {field.name: getattr(run, field.name) for field in fields(run) if getattr(run, field.name) != field.default}
    return ", ".join(_told(name, value) for name, value in told.items())


def _told(name: str, value: Any) -> str:
    if isinstance(value, Choice):
        return f"{value.name}({', '.join(f'{option}={of_it}' for option, of_it in value.options)})"
    return value if isinstance(value, str) else f"{name} {value}"


def attempt(run: Run) -> Record | Failure:
    """The outcome of training ``run``, which it may be to fail."""
    try:
        return train(run)
    except DataError:
        raise
    except Exception as error:
        return Failure.of(run, error)
