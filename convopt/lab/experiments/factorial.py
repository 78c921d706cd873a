"""Page 15: gradient, step and optimizer in all combinations, each with its learning rate and its epochs tuned."""

import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import qmc

from convopt.lab.experiments.arms import Arm, Experiment, Recipe, Setting, annealed, part_and_option, with_options
from convopt.lab.experiments.common import ADAMW, COSINE, PERMUTED, SGD, STRESS, STRESS_CLEAN
from convopt.lab.experiments.search import TUNING_SEED, Trial, chosen, is_chosen
from convopt.lab.runs import Choice

PAGE = "15-factorial"

TUNED = ("learning rate", "epochs")
"""What is tuned in every cell, with as many trials, on the validation images."""

FIRST_SEED = 20
"""Of the comparisons: no seed of theirs has tuned anything."""

Options = dict[str, tuple[Any, ...]]
"""Further options that a search draws from, "part.option" or an optimizer's, with the values of each."""


@dataclass(frozen=True)
class Level:
    """One way to do a part of the training.

    Attributes:
        fields: of a recipe, that are set.
        options: what is drawn with it, beside learning rate and epochs.
    """

    fields: dict[str, Choice]
    options: Options


BASES = {
    "SGD": (SGD, (0.001, 0.1), {}),
    "AdamW": (ADAMW, (0.0001, 0.01), {}),
    "Muon": (
        Recipe(Choice.of("Muon", lr=0.003, precision="float32")),
        (0.0003, 0.03),
        {"auxiliary": (0.03, 0.1, 0.3)},
    ),
    "SAM": (Recipe(Choice.of("SAM", lr=0.01, momentum=0.9)), (0.001, 0.1), {"rho": (0.05, 0.2)}),
}
"""Optimizers, each with the least and largest learning rate that are drawn, and further options."""

WIDTHS = (7, 15)
GRADIENTS = {
    "raw gradient": Level({}, {}),
    "fixed kernel": Level({"filter": Choice.of("fixed kernel", kernel="binomial")}, {"filter.size": WIDTHS}),
    "Wiener filter": Level({"filter": Choice.of("WienerFilter")}, {}),
}
"""What the optimizer gets."""

STEPS = {
    "constant": Level({}, {}),
    "SNRAnnealing": Level({"annealing": Choice.of("SNRAnnealing")}, {}),
    "cosine": Level({"schedule": COSINE}, {}),
    "warm-up, stable, decay": Level({"schedule": Choice.of("warm-up, stable, decay")}, {}),
    "averaged weights": Level({"averaging": Choice.of("EMA")}, {"averaging.decay": (0.99, 0.999)}),
}
"""What becomes of the learning rate, or of the weights, over time."""

INPUTS = {
    "blurred inputs": Level({"inputs": Choice.of("blur")}, {"inputs.size": WIDTHS}),
    "shifted inputs": Level({"inputs": Choice.of("shift")}, {"inputs.pixels": (1, 2)}),
}
"""What stands beside the fixed kernel: the same smoothing of the inputs, and the usual augmentation."""

CONDITIONS = {
    "no label noise": STRESS_CLEAN,
    "30 % label noise": replace(STRESS, label_noise=0.3),
    "45 % label noise": replace(STRESS, label_noise=0.45),
    "permuted pixels": PERMUTED,
}
"""What differs from the stress test for a few of the combinations, each of which is tuned there again."""

ELSEWHERE = (
    ("SGD", "raw gradient", "cosine"),
    ("SGD", "fixed kernel", "cosine"),
    ("SGD", "Wiener filter", "cosine"),
    ("SGD", "raw gradient", "SNRAnnealing"),
)
"""Those few."""

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


def _cell(label: str, base: str, level: str, step: str, setting: Setting = STRESS) -> Cell:
    recipe, rates, options = BASES[base]
    of_gradient, of_step = {**GRADIENTS, **INPUTS}[level], STEPS[step]
    recipe = replace(recipe, **of_gradient.fields, **of_step.fields)
    options = {**options, **of_gradient.options, **of_step.options}
    return Cell(label, recipe, rates, options, setting)


NAMES = {
    ", ".join(names): names
    for names in (
        *itertools.product(BASES, GRADIENTS, STEPS),
        *itertools.product(("SGD", "AdamW"), INPUTS, ("cosine",)),
    )
}
"""Optimizer, gradient or inputs, and step of all that is compared, by label."""

CELLS = {label: _cell(label, *names) for label, names in NAMES.items()}
"""What each of them is."""

CELLS_ELSEWHERE = {
    label: _cell(label, *names, setting)
    for condition, setting in CONDITIONS.items()
    for names in ELSEWHERE
    for label in [", ".join((*names, condition))]
}
"""The few under other conditions, by label."""

_ADAM_RATES = BASES["AdamW"][1]
_GROKFAST = Cell("Grokfast", Recipe(Choice.of("Grokfast")), _ADAM_RATES, {"grokfast_lamb": (0.5, 2.0)})
_SCHEDULE_FREE = Cell("Schedule-free AdamW", Recipe(Choice.of("ScheduleFreeAdamW")), _ADAM_RATES, {})


def _with_annealing(cell: Cell) -> Cell:
    return replace(cell, label=f"{cell.label} + SNRAnnealing", recipe=annealed(cell.recipe))


_RELATED = {
    "SGD": (
        # averages of gradients where SGD sums them up, so ten times its rates
        Cell("M-SVAG", Recipe(Choice.of("MSVAG"), schedule=COSINE), (0.01, 1.0), {}),
        Cell("SGDF", Recipe(Choice.of("SGDF"), schedule=COSINE), (0.01, 1.0), {}),
        Cell(
            "Gradient agreement filtering",
            Recipe(Choice.of("gradient agreement filtering", momentum=0.9), schedule=COSINE),
            (0.001, 0.1),
            {"threshold": (0.9, 0.97, 1.0)},
        ),
        Cell(
            "SGD, hypergradient",
            replace(SGD, annealing=Choice.of("hypergradient")),
            (0.001, 0.1),
            {"annealing.beta": (0.0003, 0.003, 0.03)},
        ),
        # half the epochs: it takes two gradients a step
        replace(
            _cell("SAM, as many gradients", "SAM", "raw gradient", "cosine"),
            horizons=tuple(round(epochs / 2) for epochs in HORIZONS),
        ),
    ),
    "AdamW": (
        Cell("Cautious AdamW", replace(ADAMW, filter=Choice.of("cautious"), schedule=COSINE), _ADAM_RATES, {}),
        Cell("MARS", Recipe(Choice.of("MARS", optimize_1d=True), schedule=COSINE), _ADAM_RATES, {}),
        # finds its rate, of which this is a factor
        Cell("Prodigy", Recipe(Choice.of("Prodigy"), schedule=COSINE), (0.1, 10.0), {}),
        _GROKFAST,
        _with_annealing(_GROKFAST),
        _SCHEDULE_FREE,
        _with_annealing(_SCHEDULE_FREE),
    ),
}
RELATED = {cell.label: cell for cells in _RELATED.values() for cell in cells}
"""Methods of others nearest to the study's, by label."""

BUILT_ON = {cell.label: base for base, cells in _RELATED.items() for cell in cells}
"""The optimizer that each of them builds on, by label."""

COMPARED_WITH = {
    gradient: {label: ", ".join((base, gradient, "cosine")) for label, base in BUILT_ON.items()}
    for gradient in ("raw gradient", "Wiener filter")
}
"""What each of them is compared with: that optimizer with a cosine, on two gradients."""

ANNEALED_AROUND = (_GROKFAST.label, _SCHEDULE_FREE.label)
"""Those that are also tuned with SNRAnnealing around them."""

RELATED_PAGE = f"{PAGE}-related"

# Searched apart: but for its epochs, a trial of SAM may be the same in both.
_SEARCHED = {PAGE: {**CELLS, **CELLS_ELSEWHERE}, RELATED_PAGE: RELATED}
_CELLS = {label: cell for cells in _SEARCHED.values() for label, cell in cells.items()}


def _searches_of(label: str) -> tuple[str, str]:
    """The names of the two searches of the cell with this label."""
    name = RELATED_PAGE if label in RELATED else PAGE
    return f"{name}-search", f"{name}-neighbours"


def _first(cells: Iterable[str]) -> Iterable[Trial]:
    for label in cells:
        for settings in _CELLS[label].first_trials():
            yield Trial(label, settings, _CELLS[label].arm(settings))


def _second(cells: Iterable[str]) -> Iterable[Trial]:
    """The best of the first search and its neighbours; none of a cell before that one is chosen."""
    for label in cells:
        first, _ = _searches_of(label)
        if not is_chosen(first, label):
            continue
        best = chosen(first, label)
        yield Trial(label, best, _CELLS[label].arm(best))
        for rate, horizon in NEIGHBOURS.values():
            lr, epochs = float(f"{rate * best['lr']:.2g}"), max(1, round(horizon * best["epochs"]))
            settings = {**best, "lr": lr, "epochs": epochs}
            yield Trial(label, settings, _CELLS[label].arm(settings))


SEARCHES = {
    f"{name}-{which}": tuple(trials(cells))
    for name, cells in _SEARCHED.items()
    for which, trials in (("search", _first), ("neighbours", _second))
}


def is_tuned(label: str) -> bool:
    """Whether both searches of the cell with this label have chosen."""
    return is_chosen(_searches_of(label)[1], label)


def chosen_settings(label: str) -> dict[str, Any]:
    """The settings of the best trial of the cell with this label. KeyError where none is chosen."""
    return chosen(_searches_of(label)[1], label)


SUMMARIZED = tuple(
    f"SGD, {names}"
    for names in (
        "raw gradient, constant",
        "raw gradient, SNRAnnealing",
        "raw gradient, cosine",
        "fixed kernel, cosine",
        "Wiener filter, cosine",
        "shifted inputs, cosine",
    )
)
"""What summaries of the study speak of first: it has more seeds."""

SEEDS_OF_SUMMARIZED = 40


def _comparison(name: str, title: str, cells: Iterable[str]) -> Experiment:
    """The cells with these labels at their chosen settings; none before it is chosen."""
    arms = tuple(
        _CELLS[label].arm(chosen_settings(label))._replace(seeds=SEEDS_OF_SUMMARIZED if label in SUMMARIZED else None)
        for label in cells
        if is_tuned(label)
    )
    return Experiment(name=name, title=title, arms=arms, first_seed=FIRST_SEED)


def _search(name: str, title: str) -> Experiment:
    arms = tuple(trial.arm for trial in SEARCHES[name])
    return Experiment(name=name, title=title, arms=arms, seeds=1, first_seed=TUNING_SEED, is_search=True)


EXPERIMENTS = (
    _comparison(
        PAGE, "Stress test: gradient, step and optimizer in all combinations, each with rate and epochs tuned", CELLS
    ),
    _comparison(
        f"{PAGE}-conditions",
        "Other shares of noisy labels, permuted pixels: a few combinations, tuned in each",
        CELLS_ELSEWHERE,
    ),
    _comparison(
        RELATED_PAGE,
        "Stress test: methods of others, each with rate and epochs tuned",
        dict.fromkeys((*RELATED, *(label for of_one in COMPARED_WITH.values() for label in of_one.values()))),
    ),
    _search(f"{PAGE}-search", "Stress test: six trials of each combination on the validation images"),
    _search(f"{PAGE}-neighbours", "Stress test: the best of six trials, and its neighbours"),
    _search(f"{RELATED_PAGE}-search", "Stress test: six trials of each method of others on the validation images"),
    _search(f"{RELATED_PAGE}-neighbours", "Stress test: the best of six trials of each, and its neighbours"),
)
