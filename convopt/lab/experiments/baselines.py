"""Page 11: every method at the best settings of its own random search, with the same number of trials."""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scipy.stats import qmc

from convopt.lab.experiments.arms import Arm, Experiment, Recipe, annealed, part_and_option, with_options
from convopt.lab.experiments.common import (
    ADAM,
    ADAMW,
    COSINE,
    SGD,
    STRESS,
    V1,
    WIENER_ADAMW,
    WIENER_SGD,
)
from convopt.lab.experiments.search import TUNING_SEED, Trial, chosen, is_chosen
from convopt.lab.runs import Choice

PAGE = "11-baselines"
SEARCH = "11-baselines-tuning"


@dataclass(frozen=True)
class SearchSpace:
    """What the random search of a method draws from.

    Attributes:
        recipe: its settings, but for what is searched.
        rates: least and largest learning rate; trials are spread over their logarithm.
        options: further options of the optimizer, or of what the name before a dot says ("loss.amount"), each with the
            values to draw from.
    """

    recipe: Recipe
    rates: tuple[float, float]
    options: tuple[tuple[str, Sequence[object]], ...] = ()


def _optimizer(name: str, **options: object) -> Recipe:
    return Recipe(Choice.of(name, **options))


SGD_RATES, ADAM_RATES = (0.0003, 0.1), (0.00003, 0.01)
SPACES = {
    "SGD": SearchSpace(SGD, SGD_RATES, (("momentum", (0.0, 0.9)),)),
    "Adam": SearchSpace(ADAM, ADAM_RATES),
    "AdamW": SearchSpace(ADAMW, ADAM_RATES, (("weight_decay", (0.01, 0.1, 1.0)),)),
    "NAdam": SearchSpace(_optimizer("NAdam"), ADAM_RATES),
    "Muon": SearchSpace(_optimizer("Muon"), (0.0001, 0.03)),
    "SGD, cosine": SearchSpace(replace(SGD, schedule=COSINE), SGD_RATES),
    "SGD, one cycle": SearchSpace(replace(SGD, schedule=Choice.of("one cycle")), SGD_RATES),
    "SGD, reduced on plateaus": SearchSpace(replace(SGD, schedule=Choice.of("plateau")), SGD_RATES),
    "SGD, Pflug's test": SearchSpace(
        replace(SGD, annealing=Choice.of("Pflug test")), SGD_RATES, (("annealing.burn_in", (200, 1000)),)
    ),
    "SGD, averaged weights": SearchSpace(
        replace(SGD, averaging=Choice.of("EMA")), SGD_RATES, (("averaging.decay", (0.99, 0.999, 0.9999)),)
    ),
    "SGD, label smoothing": SearchSpace(
        replace(SGD, loss=Choice.of("label smoothing")), SGD_RATES, (("loss.amount", (0.1, 0.2, 0.4)),)
    ),
    "SGD, generalised cross-entropy": SearchSpace(
        replace(SGD, loss=Choice.of("generalised cross-entropy")), SGD_RATES, (("loss.q", (0.3, 0.7)),)
    ),
    "Adam, cosine": SearchSpace(replace(ADAM, schedule=COSINE), ADAM_RATES),
    "LaplacianSmoothingSGD": SearchSpace(_optimizer("LaplacianSmoothingSGD"), SGD_RATES, (("sigma", (1.0, 3.0)),)),
    "Grokfast": SearchSpace(_optimizer("Grokfast"), ADAM_RATES, (("grokfast_lamb", (0.5, 2.0)),)),
    "Lion": SearchSpace(_optimizer("Lion"), (0.000003, 0.001)),
    "SAM": SearchSpace(_optimizer("SAM", momentum=0.9), SGD_RATES, (("rho", (0.05, 0.2)),)),
    "AdEMAMix": SearchSpace(_optimizer("AdEMAMix"), ADAM_RATES, (("alpha", (2.0, 5.0)),)),
    "Schedule-free SGD": SearchSpace(_optimizer("ScheduleFreeSGD"), (0.003, 1.0)),
    "Schedule-free AdamW": SearchSpace(_optimizer("ScheduleFreeAdamW"), ADAM_RATES),
    "ConvolutionalSGD": SearchSpace(V1, SGD_RATES, (("kernel_size", (3, 5)),)),
    "SGD + SNRAnnealing": SearchSpace(annealed(SGD), SGD_RATES),
    "Adam + SNRAnnealing": SearchSpace(annealed(ADAM), ADAM_RATES),
    "WienerSGD": SearchSpace(WIENER_SGD, SGD_RATES),
    "WienerAdamW": SearchSpace(WIENER_ADAMW, ADAM_RATES),
}
"""What is compared in the stress test, by label."""

ANNEALABLE = (
    "SGD",
    "Adam",
    "AdamW",
    "Muon",
    "LaplacianSmoothingSGD",
    "Lion",
    "SAM",
    "AdEMAMix",
    "ConvolutionalSGD",
)
"""Methods that are also tuned, with the same budget, with SNRAnnealing around them; for some that is said above.

Grokfast and schedule-free AdamW stand on page 15.
"""

ANNEALED = {
    name: replace(SPACES[label], recipe=annealed(SPACES[label].recipe))
    for label in ANNEALABLE
    if (name := f"{label} + SNRAnnealing") not in SPACES
}
SPACES |= ANNEALED

TRIALS = 6
"""First trials of each method, a random search."""

LOWER_RATES = (1 / 2, 1 / 4, 1 / 8)
"""Further trials: factors on the learning rate of the best of the first, for most methods the lowest one drawn."""


def trials(label: str) -> list[Recipe]:
    """The method's first trials: a Latin hypercube, so that learning rates are drawn equally evenly for all."""
    space = SPACES[label]
    sampler = qmc.LatinHypercube(d=1 + len(space.options), rng=zlib.crc32(label.encode()))
    low, high = (math.log(rate) for rate in space.rates)
    drawn = []
    for first, *others in sampler.random(TRIALS):
        recipe = with_options(space.recipe, lr=float(f"{math.exp(low + first * (high - low)):.2g}"))
        for (name, values), share in zip(space.options, others, strict=True):
            part, option = part_and_option(name)
            recipe = with_options(recipe, part, **{option: values[int(share * len(values))]})
        drawn.append(recipe)
    return drawn


def lower_trials(label: str) -> list[Recipe]:
    """The method's further trials: the best of the first ones at lower rates; none before that one is chosen."""
    if not is_chosen(SEARCH, label):
        return []
    place, _ = chosen(SEARCH, label)
    return [_at_lower_rate(trials(label)[place], factor) for factor in LOWER_RATES]


def best_trial(label: str) -> Recipe:
    """The method at the best of all its trials. KeyError where none is chosen."""
    place, factor = chosen(SEARCH, label)
    return _at_lower_rate(trials(label)[place], factor)


def _at_lower_rate(recipe: Recipe, factor: float) -> Recipe:
    return with_options(recipe, lr=float(f"{factor * dict(recipe.optimizer.options)['lr']:.2g}"))


def _search() -> Iterable[Trial]:
    """All trials; the value of one is its place among the first, and the factor on the learning rate of that one."""
    for label in SPACES:
        for place, recipe in enumerate(trials(label)):
            yield Trial(label, [place, 1], Arm(label, recipe, STRESS))
        for factor, recipe in zip(LOWER_RATES, lower_trials(label), strict=False):
            yield Trial(label, [chosen(SEARCH, label)[0], factor], Arm(label, recipe, STRESS))


SEARCHES = {SEARCH: tuple(_search())}

COMPARED = tuple(label for label in SPACES if is_chosen(SEARCH, label) and label not in ANNEALED)
"""What the page compares: methods whose search is done."""


def _at_best_trial(labels: Iterable[str]) -> tuple[Arm, ...]:
    return tuple(Arm(label, best_trial(label), STRESS, ("learning rate", "options")) for label in labels)


EXPERIMENTS = (
    Experiment(
        name="11-baselines",
        title="Stress test: every method at its best trial's settings",
        arms=_at_best_trial(COMPARED),
    ),
    Experiment(
        name="11-baselines-annealed",
        title="Stress test: methods with SNRAnnealing and without, each at its best trial's settings",
        arms=_at_best_trial((*ANNEALABLE, *(f"{label} + SNRAnnealing" for label in ANNEALABLE), "WienerSGD")),
    ),
    Experiment(
        name="11-baselines-tuning",
        title="Stress test: random search on the validation images",
        arms=tuple(trial.arm for trial in SEARCHES[SEARCH]),
        seeds=1,
        first_seed=TUNING_SEED,
        is_search=True,
    ),
)
