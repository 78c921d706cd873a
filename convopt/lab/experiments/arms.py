"""What an experiment consists of: named arms, each a recipe in a setting, repeated over seeds. Nothing here trains."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from convopt.lab import data, networks
from convopt.lab.runs import CONSTANT, Choice, Run


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the fields of a ``Run`` that say so, under the same names."""

    optimizer: Choice
    schedule: Choice = CONSTANT
    annealing: Choice | None = None
    loss: Choice | None = None
    averaging: Choice | None = None
    filter: Choice | None = None
    inputs: Choice | None = None


SNR_ANNEALING = Choice.of("SNRAnnealing")


def annealed(recipe: Recipe, annealing: Choice = SNR_ANNEALING) -> Recipe:
    """The recipe with SNRAnnealing around its optimizer."""
    return replace(recipe, annealing=annealing)


def averaged(recipe: Recipe) -> Recipe:
    """The recipe with WeightAveraging around its optimizer."""
    return replace(recipe, averaging=Choice.of("WeightAveraging"))


def with_options(recipe: Recipe, part: str = "optimizer", /, **options: object) -> Recipe:
    """The recipe with these options of its optimizer, or of another ``part``: loss, averaging, annealing, filter."""
    choice = getattr(recipe, part)
    return replace(recipe, **{part: Choice.of(choice.name, **{**dict(choice.options), **options})})


def part_and_option(name: str) -> tuple[str, str]:
    """``"loss.amount"`` taken apart; an option without a part is the optimizer's."""
    part, _, option = name.rpartition(".")
    return part or "optimizer", option


@dataclass(frozen=True)
class Setting:
    """What a group of runs has in common: everything but data set, recipe, epochs and seed."""

    n_train: int
    batch_size: int
    label_noise: float
    model: Choice
    epochs: int
    n_test: int = 1000
    pixels: str = "natural"
    gradient_noise: float = 0.0
    adversary: Choice | None = None
    dataset: str | None = None

    def run(self, recipe: Recipe, dataset: str, epochs: int | None, seed: int) -> Run:
        """One run in this setting; of a smaller data set it takes what there is.

        A setting that has a data set of its own keeps to it. Where its network does not take such inputs, another does.
        """
        dataset = self.dataset or dataset
        kind, _, n_train, n_test = data.describe(dataset)
        model = networks.fitting(self.model.name, kind)
        return Run(
            dataset=dataset,
            n_train=min(self.n_train, n_train),
            n_test=min(self.n_test, n_test),
            batch_size=self.batch_size,
            label_noise=self.label_noise,
            epochs=epochs or self.epochs,
            model=self.model if model == self.model.name else Choice.of(model),
            seed=seed,
            pixels=self.pixels,
            gradient_noise=self.gradient_noise,
            adversary=self.adversary,
            data=data.fingerprint(dataset),
            **vars(recipe),
        )


class Arm(NamedTuple):
    """A recipe in a setting.

    Attributes:
        label: in tables and figures; arms in different settings may share it.
        recipe: how the network is trained.
        setting: on what.
        tuned: what of recipe and setting a search chose on the validation data.
        seeds: how many the study has of it, where that is not the experiment's number.
    """

    label: str
    recipe: Recipe
    setting: Setting
    tuned: tuple[str, ...] = ()
    seeds: int | None = None


def each_in(settings: Iterable[Setting], recipes: Iterable[tuple[str, Recipe]]) -> tuple[Arm, ...]:
    """Each recipe, with its label, in each setting."""
    recipes = list(recipes)
    return tuple(Arm(label, recipe, setting) for setting in settings for label, recipe in recipes)


@dataclass(frozen=True)
class Claim:
    """A difference that somebody reported: ``measure`` of the arm ``treatment`` minus that of ``control``.

    ``batch_size`` says at which, where an experiment has several.
    """

    treatment: str
    control: str
    measure: str
    difference: float
    batch_size: int | None = None


@dataclass(frozen=True)
class Experiment:
    """A named set of runs: each arm is a recipe in a setting, repeated over seeds.

    Attributes:
        name: that of its page, and where the page tells of several, what sets this one apart.
        title: one line.
        arms: what is compared.
        claims: what the original proposal reports of it, from one run each.
        seeds: how many the study has of each arm that does not say itself.
        first_seed: the first of them.
        is_search: whether it chooses settings for others, with seeds that those do not have.
        published: whether their records are among the published ones.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...] = ()
    seeds: int = 10
    first_seed: int = 0
    is_search: bool = False
    published: bool = True

    def runs(self, dataset: str = "mnist", seeds: Iterable[int] | None = None, epochs: int | None = None) -> list[Run]:
        """All runs, seed by seed so that an interrupted sweep holds whole pairs.

        ``seeds`` None are each arm's own, ``epochs`` None are the setting's. ValueError for an unknown data set.
        """
        data.require_dataset(dataset)
        most = max((arm.seeds or 0 for arm in self.arms), default=0)
        return [
            arm.setting.run(arm.recipe, dataset, epochs, seed)
            for seed in (self.first_seeds(max(most, self.seeds)) if seeds is None else seeds)
            for arm in self.arms
            if seeds is not None or seed in self.first_seeds(arm.seeds or self.seeds)
        ]

    def taking(self, dataset: str) -> "Experiment":
        """The same with those arms alone that can train on ``dataset``: some settings have a data set of their own."""
        return replace(self, arms=tuple(arm for arm in self.arms if arm.setting.dataset in (None, dataset)))

    def first_seeds(self, count: int) -> range:
        """The first ``count`` of its seeds."""
        return range(self.first_seed, self.first_seed + count)

    def label(self, run: Run) -> str | None:
        """The label of the arm that ``run`` belongs to, whatever its data set, epochs and seed; None for none."""
        try:
            data.describe(run.dataset)
        except (ValueError, data.DataError):  # a file that is no more
            return None
        if run.dataset not in self._labels:
            self._labels[run.dataset] = {
                arm.setting.run(arm.recipe, run.dataset, epochs=1, seed=0): arm.label for arm in self.arms
            }
        return self._labels[run.dataset].get(replace(run, epochs=1, seed=0))

    @cached_property
    def _labels(self) -> dict[str, dict[Run, str]]:
        """The label of each arm's run of one epoch, by data set, as far as it was asked for."""
        return {}
