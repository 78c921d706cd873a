"""Trains what was planned, until the budget or the reader's patience ends."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from convopt.lab import cluster, sweep
from convopt.lab.names import quoted
from convopt.lab.records import Failure, Record, Store
from convopt.lab.runs import Run
from convopt.lab.tryout.answer import Outcome, best_trials
from convopt.lab.tryout.plan import ALL, SEEDS, TUNED, Plan


def carry_out(plan: Plan, store: Store, budget: float, jobs: int, begun: float) -> Outcome:
    """Search, then compare the best of each method on paired seeds, seed by seed; what the store has is not trained.

    Args:
        plan: what to train.
        store: where records are looked for and saved.
        budget: seconds from ``begun``, a ``time.monotonic()``. What is in flight then is dropped.
        jobs: worker processes.
        begun: when the reader began to wait.

    Raises:
        SweepError: the first run that raised an error ends everything: the others would, too.
        KeyboardInterrupt: before there was anything to answer with.
    """
    labels = plan.search()
    found: dict[Run, Record] = {}
    interrupted = not _train(list(labels), store, begun + TUNED * budget, jobs, found)
    chosen = best_trials(found, labels)
    if interrupted and not chosen:
        raise KeyboardInterrupt
    all_tried = {labels[run] for run in found} == plan.methods.keys()
    if interrupted or not all_tried or all(plan.methods[label].ours for label in chosen):
        return Outcome(plan, chosen, interrupted=interrupted)
    compared = {replace(record.run, seed=seed): label for seed in range(SEEDS) for label, record in chosen.items()}
    found = {}
    interrupted = not _train(list(compared), store, begun + ALL * budget, jobs, found)
    by_method: dict[str, list[Record]] = {label: [] for label in chosen}
    for run, record in found.items():
        by_method[compared[run]].append(record)
    return Outcome(plan, chosen, by_method, interrupted)


def _train(runs: Sequence[Run], store: Store, until: float, jobs: int, found: dict[Run, Record]) -> bool:
    """Put the records of ``runs`` into ``found`` until the time ``until``; False if the reader stopped it."""
    found |= {run: record for run in runs if (record := store.load(run)) is not None}
    pending = [run for run in runs if run not in found]
    if not pending or time.monotonic() > until:
        return True
    try:
        with closing(cluster.completed(sweep.attempt, pending, jobs)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    raise sweep.SweepError(f"{sweep.describe(outcome.run)} failed: {quoted(outcome.error)}")
                store.save(outcome)
                found[outcome.run] = outcome
                if time.monotonic() > until:
                    break
    except KeyboardInterrupt:
        return False
    return True
