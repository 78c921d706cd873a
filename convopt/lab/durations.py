"""How long runs took."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from convopt.lab.experiments import Experiment
from convopt.lab.records import Record, finished
from convopt.lab.report import Table, by_label, measured
from convopt.lab.runs import Run
from convopt.lab.stats import mean_interval


def seconds(record: Record) -> float:
    """How long the run took."""
    return sum(record.curves.get("seconds_training", [])) + sum(record.curves.get("seconds_evaluation", []))


def costs(
    experiment: Experiment, records: Iterable[Record], target: float, state_bytes: Callable[[Run], float]
) -> Table:
    """For each arm the time of a training step, the state it keeps, and the time to an accuracy, over seeds.

    ``target`` is a test accuracy in percent that an epoch must end with; the last column counts runs that get there.
    ``state_bytes`` of a run are per parameter, ``trainer.state_bytes`` for one.
    """
    rows = []
    for label, arm in by_label(experiment, records).items():
        if not arm:
            continue
        done = finished(arm)
        steps_per_epoch = arm[0].run.n_train // arm[0].run.batch_size
        steps = [1000 * measured(record, "seconds_per_epoch") / steps_per_epoch for record in done]
        times = [time for record in done if (time := _time_to(record, target)) is not None]
        rows.append(
            {
                "optimizer": label,
                "ms per training step": mean_interval(steps) if steps else None,
                "state (bytes per parameter)": f"{state_bytes(arm[0].run):.0f}",
                f"seconds to {target:g} %": mean_interval(times) if times else None,
                "runs that reach it": f"{len(times)} of {len(done)}",
            }
        )
    return Table(pd.DataFrame(rows), f"{experiment.name}-costs")


def ledger(experiments: Iterable[Experiment], records: Iterable[Record]) -> Table:
    """What each experiment's records took to train and evaluate, one run after the other.

    A run that several experiments share counts in the first of them.
    """
    left = {record.run: record for record in records}
    rows = []
    for experiment in experiments:
        own = [left.pop(run) for run in experiment.runs() if run in left]
        if own:
            times = [seconds(record) for record in own]
            median = float(np.median(times))
            rows.append((experiment.name, str(len(own)), median, sum(times) / 3600))
    frame = pd.DataFrame(rows, columns=["experiment", "runs", "seconds per run (median)", "hours of one core"])
    return Table(frame, "ledger")


def _time_to(record: Record, target: float) -> float | None:
    reached = [epoch for epoch, accuracy in enumerate(record.curves["test_accuracy"], 1) if 100 * accuracy >= target]
    return reached[0] * measured(record, "seconds_per_epoch") if reached else None
