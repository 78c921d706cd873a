"""Pages 04 and 18: the Wiener filter and the annealing, and the controls of both."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from convopt.lab.experiments.arms import Arm, Experiment, Recipe, annealed, each_in, with_options
from convopt.lab.experiments.common import (
    ABLATION,
    ADAM,
    ADAMW,
    CLEAN,
    CONV_NOISE,
    COSINE,
    PERMUTED,
    SGD,
    STRESS,
    STRESS_CLEAN,
    WIENER_ADAMW,
    WIENER_ALONE,
    WIENER_SGD,
)
from convopt.lab.experiments.search import TUNING_SEED, Trial, chosen
from convopt.lab.runs import Choice

PAGE = "04-wiener"

FOUR = (("SGD", SGD), ("Adam", ADAM), ("WienerSGD", WIENER_SGD), ("WienerAdamW", WIENER_ADAMW))
"""The Wiener optimizers and what they are built on, by their labels."""

PER_LAYER = Choice.of("SNRAnnealing per layer")
ANOTHER_SEEDS = Choice.of("replayed", shift=1)

LEARNING_RATES = {"SGD": (0.003, 0.01, 0.03, 0.1, 0.3), "Adam": (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01)}
"""What learning rates are chosen from, for optimizers of either kind."""


CANDIDATES = {
    "stress test: Adam, cosine": (replace(ADAM, schedule=COSINE), STRESS, LEARNING_RATES["Adam"]),
    "stress test, clean labels: SGD, cosine": (replace(SGD, schedule=COSINE), STRESS_CLEAN, LEARNING_RATES["SGD"]),
    "clean labels: SGD": (SGD, CLEAN, LEARNING_RATES["SGD"]),
    "clean labels: Adam": (ADAM, CLEAN, LEARNING_RATES["Adam"]),
    "clean labels: WienerSGD": (WIENER_SGD, CLEAN, LEARNING_RATES["SGD"]),
    "clean labels: WienerAdamW": (WIENER_ADAMW, CLEAN, LEARNING_RATES["Adam"]),
    "ConvNet: Adam, cosine": (replace(ADAM, schedule=COSINE), CONV_NOISE, LEARNING_RATES["Adam"]),
}
"""What is tuned, by the name of the choice: the recipe, its setting, and the learning rates."""


def _trials() -> Iterable[Trial]:
    """Every learning rate of everything that is tuned."""
    for choice, (recipe, setting, rates) in CANDIDATES.items():
        label = choice.partition(": ")[2]
        for lr in rates:
            yield Trial(choice, lr, Arm(f"{label}, lr {lr:g}", with_options(recipe, lr=lr), setting))


SEARCHES = {"04-wiener-tuning": tuple(_trials())}


def _tuned(label: str, choice: str) -> Arm:
    """What is tuned, at the learning rate that the search chose."""
    recipe, setting, _ = CANDIDATES[choice]
    return Arm(label, with_options(recipe, lr=chosen("04-wiener-tuning", choice)), setting, ("learning rate",))


def _harmless(model: str) -> tuple[Arm, ...]:
    """Clean labels, with SNRAnnealing and without."""
    settings = [
        replace(CLEAN, model=Choice.of(model), batch_size=batch_size, epochs=epochs)
        for batch_size, epochs in ((8, 20), (64, 20), (64, 100))
    ]
    plain = {"SGD": SGD, "Adam": ADAM, "AdamW": ADAMW}
    both = [((name, recipe), (f"{name} + SNRAnnealing", annealed(recipe))) for name, recipe in plain.items()]
    return each_in(settings, itertools.chain.from_iterable(both))


def _with_small_kernels(recipe: Recipe) -> Recipe:
    """The recipe with convolution kernels of 3x3 smoothed, too."""
    return with_options(recipe, smallest_kernel=3)


EXPERIMENTS = (
    Experiment(
        name="04-wiener",
        title="Stress test: the Wiener filter, annealing, and what could explain them",
        arms=(
            Arm("SGD", SGD, STRESS),
            Arm("Adam", ADAM, STRESS),
            _tuned("Adam, cosine, tuned", "stress test: Adam, cosine"),
            Arm("SGD + SNRAnnealing", annealed(SGD), STRESS),
            Arm("Adam + SNRAnnealing", annealed(ADAM), STRESS),
            Arm("WienerSGD without annealing", WIENER_ALONE, STRESS),
            Arm("WienerSGD", WIENER_SGD, STRESS),
            Arm("WienerAdamW", WIENER_ADAMW, STRESS),
            Arm("WienerSGD, another seed's factor", annealed(WIENER_ALONE, ANOTHER_SEEDS), STRESS),
            Arm("SGD, another seed's factor", annealed(SGD, ANOTHER_SEEDS), STRESS),
            _tuned("SGD, clean labels, cosine, tuned", "stress test, clean labels: SGD, cosine"),
        ),
    ),
    Experiment(
        name="04-wiener-permuted",
        title="Stress test with the pixels permuted: no structure to find",
        arms=(
            Arm("SGD", SGD, PERMUTED),
            Arm("Adam", ADAM, PERMUTED),
            Arm("WienerSGD without annealing", WIENER_ALONE, PERMUTED),
            Arm("WienerSGD", WIENER_SGD, PERMUTED),
        ),
    ),
    Experiment(
        name="04-wiener-batch-size",
        title="Batch-size ablation: 3000 images, 10 % label noise",
        arms=each_in([replace(ABLATION, batch_size=size) for size in (8, 16, 32, 64)], FOUR),
    ),
    Experiment(
        name="04-wiener-clean",
        title="Clean labels, batch 64, each learning rate tuned",
        arms=(
            _tuned("SGD", "clean labels: SGD"),
            _tuned("Adam", "clean labels: Adam"),
            _tuned("WienerSGD", "clean labels: WienerSGD"),
            _tuned("WienerAdamW", "clean labels: WienerAdamW"),
        ),
    ),
    Experiment(
        name="04-wiener-convnet",
        title="ConvNet, batch 8, 15 % label noise: annealing against a schedule",
        arms=(
            Arm("Adam", ADAM, CONV_NOISE),
            Arm("Adam + SNRAnnealing", annealed(ADAM), CONV_NOISE),
            Arm("Adam, cosine", replace(ADAM, schedule=COSINE), CONV_NOISE),
            _tuned("Adam, cosine, tuned", "ConvNet: Adam, cosine"),
        ),
    ),
    Experiment(
        name="04-wiener-harmless",
        title="Clean labels, SimpleNet: what SNRAnnealing costs where there is no noise to fit",
        arms=_harmless("SimpleNet"),
    ),
    Experiment(
        name="04-wiener-harmless-convnet",
        title="Clean labels, ConvNet: what SNRAnnealing costs where there is no noise to fit",
        arms=_harmless("ConvNet"),
    ),
    Experiment(
        name="04-wiener-options",
        title="Stress test: WienerSGD with one option changed",
        arms=(
            Arm("defaults", WIENER_SGD, STRESS),
            Arm("second estimate: half batches", with_options(WIENER_SGD, second_estimate="half batches"), STRESS),
            Arm("gain: separable", with_options(WIENER_SGD, gain="separable"), STRESS),
        ),
    ),
    Experiment(
        name="04-wiener-constants",
        title="Stress test: WienerSGD with one constant changed",
        arms=(
            Arm("defaults", WIENER_SGD, STRESS),
            Arm("scale: unit dc", with_options(WIENER_SGD, scale="unit dc"), STRESS),
            Arm("every: 1", with_options(WIENER_SGD, every=1), STRESS),
            Arm("coherence_ema: 0.99", with_options(WIENER_SGD, coherence_ema=0.99), STRESS),
            Arm("annealing_ema: 0.99", with_options(WIENER_SGD, annealing_ema=0.99), STRESS),
            Arm("warmup: 2000", with_options(WIENER_SGD, warmup=2000), STRESS),
            Arm("onset: 1", with_options(WIENER_SGD, onset=1.0), STRESS),
            Arm("power: 1", with_options(WIENER_SGD, power=1.0), STRESS),
            Arm("power: 2", with_options(WIENER_SGD, power=2.0), STRESS),
        ),
    ),
    Experiment(
        name="04-wiener-ideas",
        title="Two ideas more: a rho for each layer, smoothing of small convolution kernels",
        arms=(
            Arm("SGD + SNRAnnealing", annealed(SGD), STRESS),
            Arm("SGD + SNRAnnealing per layer", annealed(SGD, PER_LAYER), STRESS),
            Arm("Adam + SNRAnnealing", annealed(ADAM), STRESS),
            Arm("Adam + SNRAnnealing per layer", annealed(ADAM, PER_LAYER), STRESS),
            Arm("SGD", SGD, CONV_NOISE),
            Arm("WienerSGD without annealing", WIENER_ALONE, CONV_NOISE),
            Arm(
                "WienerSGD without annealing, 3x3 kernels too",
                with_options(WIENER_ALONE, smallest_kernel=3),
                CONV_NOISE,
            ),
            Arm("WienerSGD", WIENER_SGD, CONV_NOISE),
            Arm("WienerSGD, 3x3 kernels too", with_options(WIENER_SGD, smallest_kernel=3), CONV_NOISE),
        ),
    ),
    Experiment(
        name="04-wiener-tuning",
        title="Learning rates, by accuracy on the validation images",
        arms=tuple(trial.arm for trial in SEARCHES["04-wiener-tuning"]),
        seeds=3,
        first_seed=TUNING_SEED,
        is_search=True,
    ),
)
