"""Combinations that are tuned alike: the same number of trials of learning rate, epochs and options for each."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import qmc

from convopt.lab.experiments.arms import Arm, Experiment, Recipe, Setting, part_and_option, with_options
from convopt.lab.experiments.common import STRESS
from convopt.lab.experiments.search import TUNING_SEED, Search, Trial, chosen, is_chosen

TUNED = ("learning rate", "epochs")
"""What is tuned in every cell, with as many trials, on the validation images."""

FIRST_SEED = 20
"""Of the comparisons: no seed of theirs has tuned anything."""

Options = dict[str, tuple[Any, ...]]
"""Further options that a search draws from, "part.option" or an optimizer's, with the values of each."""

HORIZONS = (3, 6, 12)
"""Epochs that are drawn. A schedule ends with the training, a constant rate is stopped."""

TRIALS = 6
"""Of the first search, of each cell."""

NEIGHBOURS = {"lower rate": (0.5, 1.0), "higher rate": (2.0, 1.0), "shorter": (1.0, 0.5), "longer": (1.0, 2.0)}
"""Trials of the second search: factors on the learning rate and the epochs of the best of the first."""


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        label: in tables and figures.
        recipe: its settings, but for what is drawn.
        rates: least and largest learning rate.
        options: what else is drawn.
        setting: what it trains on. Its epochs are drawn.
        horizons: from these.
    """

    label: str
    recipe: Recipe
    rates: tuple[float, float]
    options: Options
    setting: Setting = STRESS
    horizons: tuple[int, ...] = HORIZONS

    def first_trials(self) -> Iterator[dict[str, Any]]:
        """Settings: the same rates and epochs for all cells of an optimizer, a Latin hypercube of what else there is.

        Rates are spread evenly over their logarithm, and each number of epochs is tried with a low and a high one.
        """
        rates = np.geomspace(*self.rates, 2 * TRIALS + 1)[1::2]
        shares = qmc.LatinHypercube(d=max(1, len(self.options)), rng=zlib.crc32(self.label.encode())).random(TRIALS)
        for place, (rate, of_trial) in enumerate(zip(rates, shares, strict=True)):
            drawn = {"lr": float(f"{rate:.2g}"), "epochs": self.horizons[-1 - place % len(self.horizons)]}
            for (name, values), share in zip(self.options.items(), of_trial, strict=False):
                drawn[name] = values[int(share * len(values))]
            yield drawn

    def arm(self, settings: dict[str, Any], label: str = "") -> Arm:
        """The cell at the settings of a trial."""
        recipe = self.recipe
        for name, value in settings.items():
            if name != "epochs":
                part, option = part_and_option(name)
                recipe = with_options(recipe, part, **{option: value})
        return Arm(label or self.label, recipe, replace(self.setting, epochs=settings["epochs"]), TUNED)


@dataclass(frozen=True)
class Tuning:
    """Cells that are searched together, in two rounds.

    Attributes:
        name: the experiments that search are called after it.
        cells: by label.
    """

    name: str
    cells: dict[str, Cell]

    @property
    def first(self) -> str:
        """The name of the first search."""
        return f"{self.name}-search"

    @property
    def second(self) -> str:
        """The name of the second search."""
        return f"{self.name}-neighbours"

    @cached_property
    def searches(self) -> dict[str, Search]:
        """The trials of both, by name."""
        return {self.first: tuple(self._first()), self.second: tuple(self._second())}

    def _first(self) -> Iterator[Trial]:
        for label, cell in self.cells.items():
            for settings in cell.first_trials():
                yield Trial(label, settings, cell.arm(settings))

    def _second(self) -> Iterator[Trial]:
        """The best of the first search and its neighbours; none of a cell before that one is chosen."""
        for label, cell in self.cells.items():
            if not is_chosen(self.first, label):
                continue
            best = chosen(self.first, label)
            yield Trial(label, best, cell.arm(best))
            for rate, horizon in NEIGHBOURS.values():
                lr, epochs = float(f"{rate * best['lr']:.2g}"), max(1, round(horizon * best["epochs"]))
                settings = {**best, "lr": lr, "epochs": epochs}
                yield Trial(label, settings, cell.arm(settings))

    def is_tuned(self, label: str) -> bool:
        """Whether both searches of the cell with this label have chosen."""
        return is_chosen(self.second, label)

    def chosen_settings(self, label: str) -> dict[str, Any]:
        """The settings of the best trial of the cell with this label. KeyError where none is chosen."""
        return chosen(self.second, label)

    def arm(self, label: str) -> Arm:
        """The cell with this label at its chosen settings. KeyError where none is chosen."""
        return self.cells[label].arm(self.chosen_settings(label))

    def experiments(self, what: str) -> tuple[Experiment, Experiment]:
        """The two searches; ``what`` opens their titles."""
        titles = {
            self.first: f"{what}: {TRIALS} trials of each on the validation data",
            self.second: f"{what}: the best of those trials, and its neighbours",
        }
        return tuple(
            Experiment(
                name=name,
                title=title,
                arms=tuple(trial.arm for trial in self.searches[name]),
                seeds=1,
                first_seed=TUNING_SEED,
                is_search=True,
            )
            for name, title in titles.items()
        )
