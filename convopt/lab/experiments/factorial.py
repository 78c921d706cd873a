"""Page 15: gradient, step and optimizer in all combinations, each with its learning rate and its epochs tuned."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from convopt.lab.experiments.arms import Experiment, Recipe, Setting, annealed
from convopt.lab.experiments.cells import FIRST_SEED, HORIZONS, Cell, Options, Tuning
from convopt.lab.experiments.common import ADAMW, COSINE, FILTER, PERMUTED, SGD, STRESS, STRESS_CLEAN
from convopt.lab.runs import Choice

PAGE = "15-factorial"


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

DEFAULT = "WienerFilter's default"
FILTERS = {DEFAULT: Level({"filter": FILTER}, {})}
"""What stands beside Wiener's own filter: that of the package."""

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


def combination(
    label: str, base: str, level: str, step: str, setting: Setting = STRESS, horizons: tuple[int, ...] = HORIZONS
) -> Cell:
    """The combination of an optimizer, a gradient or inputs, and a step, by their names."""
    recipe, rates, options = BASES[base]
    of_gradient, of_step = {**GRADIENTS, **FILTERS, **INPUTS}[level], STEPS[step]
    recipe = replace(recipe, **of_gradient.fields, **of_step.fields)
    options = {**options, **of_gradient.options, **of_step.options}
    return Cell(label, recipe, rates, options, setting, horizons)


NAMES = {
    ", ".join(names): names
    for names in (
        *itertools.product(BASES, GRADIENTS, STEPS),
        *itertools.product(("SGD", "AdamW"), INPUTS, ("cosine",)),
        *itertools.product(("SGD", "AdamW", "Muon"), FILTERS, ("cosine",)),
    )
}
"""Optimizer, gradient or inputs, and step of all that is compared, by label."""

CELLS = {label: combination(label, *names) for label, names in NAMES.items()}
"""What each of them is."""

CELLS_ELSEWHERE = {
    label: combination(label, *names, setting)
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
        combination(
            "SAM, as many gradients",
            "SAM",
            "raw gradient",
            "cosine",
            horizons=tuple(round(epochs / 2) for epochs in HORIZONS),
        ),
    ),
    "AdamW": (
        Cell("Cautious AdamW", replace(ADAMW, filter=Choice.of("cautious"), schedule=COSINE), _ADAM_RATES, {}),
        Cell("MARS", Recipe(Choice.of("MARS", optimize_1d=True), schedule=COSINE), _ADAM_RATES, {}),
        # the eigenbasis of the smaller side alone, its authors' cheaper variant: a step takes a tenth of the time
        Cell("SOAP", Recipe(Choice.of("SOAP", max_precondition_dim=256), schedule=COSINE), _ADAM_RATES, {}),
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

TUNING = Tuning(PAGE, {**CELLS, **CELLS_ELSEWHERE})
"""Of all combinations."""

# Searched apart: but for its epochs, a trial of SAM may be the same in both.
_TUNINGS = TUNING, Tuning(RELATED_PAGE, RELATED)
_TUNING_OF = {label: tuning for tuning in _TUNINGS for label in tuning.cells}

SEARCHES = {name: search for tuning in _TUNINGS for name, search in tuning.searches.items()}


def chosen_settings(label: str) -> dict[str, Any]:
    """The settings of the best trial of the cell with this label. KeyError where none is chosen."""
    return _TUNING_OF[label].chosen_settings(label)


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


def _comparison(name: str, title: str, labels: Iterable[str]) -> Experiment:
    """The cells with these labels at their chosen settings; none before it is chosen."""
    tuned = (label for label in labels if _TUNING_OF[label].is_tuned(label))
    arms = tuple(
        _TUNING_OF[label].arm(label)._replace(seeds=SEEDS_OF_SUMMARIZED if label in SUMMARIZED else None)
        for label in tuned
    )
    return Experiment(name=name, title=title, arms=arms, first_seed=FIRST_SEED)


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
    *_TUNINGS[0].experiments("Stress test, all combinations"),
    *_TUNINGS[1].experiments("Stress test, methods of others"),
)
