"""Which recorded runs of an experiment a report shows, and which others there are."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from convopt.lab import experiments
from convopt.lab.experiments import Experiment
from convopt.lab.runs import Run

DEFAULT_DATASET = "mnist"


@dataclass(frozen=True)
class Selection:
    """Recorded runs of one experiment.

    Attributes:
        shown: those that are asked for.
        others: the rest of the experiment's.
        exact: whether ``shown`` are of the very data set, seeds and epochs that are asked for.
    """

    shown: list[Run]
    others: list[Run]
    exact: bool

    def note(self) -> str | None:
        """One line on what is shown in place of what was asked for, or None."""
        if self.exact or not self.shown:
            return None
        return f"there are no records with the study's data set and epochs; shown are those of {_told(self.shown)}"

    def told_of_others(self) -> str | None:
        """One line on the records that are not shown, or None where there are none."""
        if not self.others:
            return None
        return f"There are also records of {_told(self.others)}; --dataset, --epochs and --seeds choose."


def select(
    experiment: Experiment,
    recorded: Iterable[Run],
    dataset: str | None = None,
    seeds: Iterable[int] | None = None,
    epochs: int | None = None,
) -> Selection:
    """What a report of ``experiment`` shows.

    That is what the experiment's page shows, MNIST with the experiment's own seeds and epochs, unless something else is
    asked for. Where there is nothing of it, other epochs and then other data sets stand in for what was left open. Runs
    that only tuned something are not mentioned, though their settings may be an arm's.
    """
    own = [run for run in recorded if experiment.label(run)]
    seeds = None if seeds is None else list(seeds)
    all_datasets = {run.dataset for run in own}
    all_epochs = {run.epochs for run in own}
    datasets = {dataset or DEFAULT_DATASET}
    choices = [
        (datasets, {epochs}),
        (datasets, {epochs} if epochs else all_epochs),
        (datasets if dataset else all_datasets, {epochs} if epochs else all_epochs),
    ]
    shown: list[Run] = []
    exact = False
    for place, (some_datasets, some_epochs) in enumerate(choices):
        wanted = {run for name in some_datasets for count in some_epochs for run in experiment.runs(name, seeds, count)}
        if shown := [run for run in own if run in wanted]:
            exact = place == 0
            break
    told = set(shown) | (set() if experiment.is_search else experiments.tuning_runs())
    return Selection(shown, [run for run in own if run not in told], exact=exact)


def _told(runs: Iterable[Run]) -> str:
    """ "digits with 5 epochs (7 runs), mnist with 30 epochs (70 runs)" """
    counts = Counter((run.dataset, run.epochs) for run in runs)
    return ", ".join(
        f"{dataset} with {epochs} epoch{'s' * (epochs != 1)} ({count} run{'s' * (count != 1)})"
        for (dataset, epochs), count in sorted(counts.items())
    )
