"""What a notebook asks of an experiment: its records, trained where they are missing, and their tables."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

from convopt.lab import durations, experiments, report, sweep, workspace
from convopt.lab.experiments import Experiment
from convopt.lab.parameters import check_parameters
from convopt.lab.records import Record
from convopt.lab.report import MEASURES, Table, by_seed, format_interval
from convopt.lab.runs import Run
from convopt.lab.stats import paired_difference


class Study:
    """Experiments with the parameters of one notebook.

    Args:
        dataset: "mnist" or "digits", or another of classes.
        seeds: paired seeds; 0 takes as many as each experiment has.
        epochs: passes over the training images; 0 takes each experiment's own.
        store: folder of records; "" takes the published ones and adds new runs to ./runs.
        jobs: worker processes; 0 takes one per core.

    ValueError for a value that a parameter must not have.

    Attributes:
        records: of all experiments that were asked for, in that order.
    """

    def __init__(self, dataset: str, seeds: int, epochs: int, store: str, jobs: int):
        check_parameters(
            ("seeds", "epochs", "jobs"), dataset=dataset, seeds=seeds, epochs=epochs, store=store, jobs=jobs
        )
        self._dataset, self._epochs, self._jobs = dataset, epochs or None, jobs or None
        self._seeds = seeds or None
        self._store = workspace.open_store(store)
        self.records: list[Record] = []

    def __call__(self, experiment: str) -> "Results":
        """The results of the experiment with this name. ValueError lists the known ones."""
        (results,) = self.together([experiments.find(experiment)])
        return results

    def search(self, name: str) -> "Results":
        """The published results of a search, whatever the parameters: its choices are those that experiments use."""
        search, published = experiments.find(name), workspace.published()
        records = [record for run in search.runs() if (record := published.load(run)) is not None]
        self.records += records
        return Results(search, records)

    def prepare(self, *names: str) -> None:
        """Train what is missing of experiments that are asked for later, in one sweep: workers start but once."""
        sweep.sweep(self._distinct([experiments.find(name) for name in names]), self._store, self._jobs)

    def together(self, several: Sequence[Experiment]) -> list["Results"]:
        """The results of several experiments; what is missing of them is trained in one sweep."""
        distinct = self._distinct(several)
        found = dict(zip(distinct, sweep.sweep(distinct, self._store, self._jobs), strict=True))
        self.records += found.values()
        return [Results(experiment, [found[run] for run in self._runs(experiment)]) for experiment in several]

    def _runs(self, experiment: Experiment) -> list[Run]:
        seeds = experiment.first_seeds(self._seeds) if self._seeds else None
        return experiment.runs(self._dataset, seeds, self._epochs)

    def _distinct(self, several: Sequence[Experiment]) -> list[Run]:
        return list(dict.fromkeys(run for experiment in several for run in self._runs(experiment)))

    @property
    def minutes(self) -> float:
        """How long the runs of all records took, one after the other."""
        return sum(map(durations.seconds, {record.run: record for record in self.records}.values())) / 60


class Results:
    """An experiment's records and the tables and arms that they make."""

    def __init__(self, experiment: Experiment, records: list[Record]):
        self.experiment = experiment
        self.records = records

    @cached_property
    def arms(self) -> dict[str, list[Record]]:
        """Records by label, in the experiment's order."""
        return report.by_label(self.experiment, self.records)

    def where(self, **condition: object) -> "Results":
        """Those whose conditions have these values, ``model="ConvNet"`` for example (see ``report.condition``)."""
        chosen = [r for r in self.records if condition.items() <= report.condition(r.run).items()]
        return Results(self.experiment, chosen)

    def only(self, *labels: str) -> "Results":
        """Those of the arms with these labels."""
        arms = tuple(arm for arm in self.experiment.arms if arm.label in labels)
        return Results(replace(self.experiment, arms=arms), [r for label in labels for r in self.arms[label]])

    def table(self, *measures: str) -> Table:
        """A row per arm and condition; without ``measures``, best, final, stability and confirmation."""
        rows = report.rows(self.experiment, self.records)
        return report.table(self.experiment, rows, measures or (*MEASURES, "confirmation"))

    def differences(
        self, pairs: Iterable[tuple[str, str]], measures: Sequence[str] = ("best", "final", "confirmation"), **options
    ) -> Table:
        """Paired differences between arms, see ``report.differences``."""
        return report.differences(self.experiment, self.records, pairs, measures, **options)

    def difference(self, treatment: str, control: str, measure: str = "final") -> str:
        """The paired difference of two arms' measure, as text: mean and 95 % interval, or "not measured"."""
        both = [by_seed(self.arms[label], measure) for label in (treatment, control)]
        if not both[0].keys() & both[1].keys():  # diverged, or a measure that the data set lacks
            return "not measured"
        in_percent = measure != "stability"
        return format_interval(paired_difference(*both).interval, 1 if in_percent else 2, signed=True)
