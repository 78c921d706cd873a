"""Page 16: does it do harm? Many tasks, two optimizers, learning rates around the tuned one."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from convopt.lab.experiments.arms import Arm, Experiment, Recipe, Setting, annealed, averaged, with_options
from convopt.lab.experiments.cells import FIRST_SEED
from convopt.lab.experiments.common import ADAMW, COSINE, FILTER, SGD, STRESS
from convopt.lab.experiments.search import TUNING_SEED, Trial, chosen, is_chosen
from convopt.lab.runs import Choice

PAGE = "16-beyond-mnist"
SEARCH = f"{PAGE}-search"

FILTERS = f"{PAGE}-filters"

RATES = {
    "SGD": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
    "AdamW": (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01),
}
"""Learning rates that are tried, about a factor of three apart."""

FACTORS = {"a third of the tuned rate": 1 / 3, "the tuned rate": 1.0, "three times the tuned rate": 3.0}
"""On the rate that is best for the optimizer alone."""

PIECES = {
    "alone": lambda recipe: recipe,
    "SNRAnnealing": annealed,
    "WeightAveraging": averaged,
}
"""What is attached to the optimizer."""

BASES = {"SGD": SGD, "AdamW": ADAMW}


@dataclass(frozen=True)
class Task:
    """Data, network and length of the training.

    Attributes:
        setting: with a data set of its own.
        noisy_images: whether they are images whose labels are noisy.
        has_grid: whether the inputs of some layer are pixels or moments in time, which a filter can smooth over.
        inputs: how they are augmented, if they are.
    """

    setting: Setting
    noisy_images: bool = False
    has_grid: bool = False
    inputs: Choice | None = None


def _setting(dataset: str, model: str, epochs: int, noise: float = 0.0, batch_size: int = 32) -> Setting:
    return Setting(
        dataset=dataset,
        model=Choice.of(model),
        epochs=epochs,
        label_noise=noise,
        batch_size=batch_size,
        n_train=5000,
    )


def _text(windows: int, epochs: int) -> Setting:
    return replace(_setting("tiny-shakespeare", "GRULanguageModel", epochs), n_train=windows, n_test=300)


EMBEDDED = ("digits", "diabetes")
"""Data sets that come with the packages."""

MNIST = "MNIST, 15 % noise"
FASHION = "Fashion-MNIST, 15 % noise"
CIFAR_CONVNET = "CIFAR-10, human labels, ConvNet"
CIFAR_AUGMENTED = "CIFAR-10, human labels, ConvNet, augmented"
CIFAR_PERCEPTRON = "CIFAR-10, human labels"
DIGITS = "digits, 15 % noise"

AUGMENTED = Choice.of("shift", pixels=4, flip=True)
"""As is usual on CIFAR-10."""

TASKS = {
    MNIST: Task(replace(STRESS, dataset="mnist", epochs=12), True, has_grid=True),
    "Fashion-MNIST": Task(_setting("fashion-mnist", "SimpleNet", 20), has_grid=True),
    FASHION: Task(_setting("fashion-mnist", "SimpleNet", 20, 0.15), True, has_grid=True),
    "Fashion-MNIST, 40 % noise": Task(_setting("fashion-mnist", "SimpleNet", 20, 0.4), True, has_grid=True),
    "Fashion-MNIST, 15 % noise, ConvNet": Task(_setting("fashion-mnist", "ConvNet", 6, 0.15), True, has_grid=True),
    "Fashion-MNIST, 40 % noise, ConvNet": Task(_setting("fashion-mnist", "ConvNet", 6, 0.4), True, has_grid=True),
    CIFAR_CONVNET: Task(_setting("cifar10n-worst", "ConvNet", 6), True, has_grid=True),
    CIFAR_AUGMENTED: Task(_setting("cifar10n-worst", "ConvNet", 6), True, has_grid=True, inputs=AUGMENTED),
    "CIFAR-10, one person's labels, ConvNet, augmented": Task(
        _setting("cifar10n-random", "ConvNet", 6), True, has_grid=True, inputs=AUGMENTED
    ),
    "CIFAR-10, most people's labels, ConvNet, augmented": Task(
        _setting("cifar10n-aggregate", "ConvNet", 6), has_grid=True, inputs=AUGMENTED
    ),
    CIFAR_PERCEPTRON: Task(_setting("cifar10n-worst", "SimpleNet", 12), True, has_grid=True),
    "CIFAR-10, one person's labels": Task(_setting("cifar10n-random", "SimpleNet", 12), True, has_grid=True),
    "CIFAR-10, most people's labels": Task(_setting("cifar10n-aggregate", "SimpleNet", 12), has_grid=True),
    "CIFAR-10, clean labels": Task(_setting("cifar10n-clean", "SimpleNet", 12), has_grid=True),
    "Crop": Task(_setting("crop", "SimpleNet", 30), has_grid=True),
    "Crop, 15 % noise": Task(_setting("crop", "SimpleNet", 30, 0.15), has_grid=True),
    "Crop, ConvNet1d": Task(_setting("crop", "ConvNet1d", 15), has_grid=True),
    "Crop, 15 % noise, ConvNet1d": Task(_setting("crop", "ConvNet1d", 15, 0.15), has_grid=True),
    "adult": Task(_setting("adult", "TabularNet", 10)),
    "adult, 15 % noise": Task(_setting("adult", "TabularNet", 10, 0.15)),
    "California housing": Task(_setting("california-housing", "TabularNet", 20)),
    "tiny Shakespeare": Task(_text(2000, 3)),
    "tiny Shakespeare, one pass": Task(_text(6000, 1)),
    DIGITS: Task(_setting("digits", "SimpleNet", 40, 0.15, 16), True, has_grid=True),
    "diabetes": Task(_setting("diabetes", "SimpleNet", 40, batch_size=16)),
}
"""By name."""


def tasks(dataset: str) -> list[str]:
    """Their names; of those on "digits" alone that need no other data than what comes with the packages."""
    return [name for name, task in TASKS.items() if dataset != "digits" or task.setting.dataset in EMBEDDED]


def label(task: str, base: str, *more: str) -> str:
    """Of an arm: its task, its optimizer, and what else there is to say."""
    return ", ".join((f"{task} | {base}", *more))


def _recipe(name: str, base: str, lr: float) -> Recipe:
    return replace(with_options(BASES[base], lr=lr), inputs=TASKS[name].inputs)


def _trials() -> Iterator[Trial]:
    """The same learning rates for the optimizer alone and with a cosine, of which half the epochs are tried, too."""
    for (name, task), base in itertools.product(TASKS.items(), BASES):
        constant, cosine = (label(name, base, step) for step in ("constant", "cosine"))
        for lr in RATES[base]:
            yield Trial(constant, {"lr": lr}, Arm(constant, _recipe(name, base, lr), task.setting))
            for epochs in dict.fromkeys(max(1, task.setting.epochs // share) for share in (1, 2)):
                recipe = replace(_recipe(name, base, lr), schedule=COSINE)
                setting = replace(task.setting, epochs=epochs)
                yield Trial(cosine, {"lr": lr, "epochs": epochs}, Arm(cosine, recipe, setting))


SEARCHES = {SEARCH: tuple(_trials())}


def _arms(name: str) -> Iterator[Arm]:
    """Of a task and each optimizer all pieces at all rates, and the cosine; none before the search has chosen."""
    setting = TASKS[name].setting
    for base in BASES:
        constant = label(name, base, "constant")
        if not (is_chosen(SEARCH, constant) and is_chosen(SEARCH, label(name, base, "cosine"))):
            continue
        tuned = chosen(SEARCH, constant)["lr"]
        for (rate, factor), (piece, attach) in itertools.product(FACTORS.items(), PIECES.items()):
            recipe = attach(_recipe(name, base, float(f"{factor * tuned:.3g}")))
            yield Arm(label(name, base, rate, piece), recipe, setting, ("learning rate of the optimizer alone",))
        yield _with_cosine(name, base)


def _with_cosine(name: str, base: str) -> Arm:
    """The optimizer with a cosine, at the chosen learning rate and epochs."""
    cosine = label(name, base, "cosine")
    best = chosen(SEARCH, cosine)
    recipe = replace(_recipe(name, base, best["lr"]), schedule=COSINE)
    return Arm(cosine, recipe, replace(TASKS[name].setting, epochs=best["epochs"]), ("learning rate", "epochs"))


def on(tasks: Iterable[str]) -> Experiment:
    """The comparison on the tasks with these names alone."""
    return Experiment(
        name=PAGE,
        title="Many tasks: what each piece adds to an optimizer, at learning rates around the tuned one",
        arms=tuple(arm for name in tasks for arm in _arms(name)),
        first_seed=FIRST_SEED,
    )


ATTACHED = {
    "Wiener's filter": Choice.of("WienerFilter"),
    "WienerFilter's default": FILTER,
}
"""Filters, by what sets them apart."""


def with_filters(tasks: Iterable[str]) -> Experiment:
    """Filters around each optimizer with its tuned cosine, at the same settings, on those tasks that have a grid."""
    arms, tuned = [], ("learning rate and epochs without the filter",)
    for name, base in itertools.product((name for name in tasks if TASKS[name].has_grid), BASES):
        if is_chosen(SEARCH, label(name, base, "cosine")):
            without = _with_cosine(name, base)
            arms.append(without)
            for which, choice in ATTACHED.items():
                recipe = replace(without.recipe, filter=choice)
                arms.append(Arm(label(name, base, "cosine", which), recipe, without.setting, tuned))
    return Experiment(
        name=FILTERS,
        title="Many tasks: filters around an optimizer with a tuned cosine, at the settings tuned without them",
        arms=tuple(arms),
        first_seed=FIRST_SEED,
    )


SELDOM = f"{PAGE}-every"

SELDOM_ON = (MNIST, "Crop", "California housing", DIGITS)
"""Tasks on which gradients are compared at every fourth step, too, as SNRAnnealing does by default."""


def comparing_seldom(tasks: Iterable[str]) -> Experiment:
    """SNRAnnealing at the optimizer's tuned rate, with gradients compared at each step and at every fourth."""
    arms = []
    for name, base in itertools.product((name for name in tasks if name in SELDOM_ON), BASES):
        if is_chosen(SEARCH, label(name, base, "constant")):
            often = annealed(_recipe(name, base, chosen(SEARCH, label(name, base, "constant"))["lr"]))
            for every in (1, 4):
                recipe = often if every == 1 else with_options(often, "annealing", every=every)
                tuned = ("learning rate of the optimizer alone",)
                arms.append(Arm(label(name, base, f"every={every}"), recipe, TASKS[name].setting, tuned))
    return Experiment(
        name=SELDOM,
        title="Four tasks: SNRAnnealing that compares gradients at each step, and at every fourth",
        arms=tuple(arms),
        first_seed=FIRST_SEED,
    )


EXPERIMENTS = (
    on(TASKS),
    with_filters(TASKS),
    comparing_seldom(TASKS),
    Experiment(
        name=SEARCH,
        title="Many tasks: learning rates, and of a cosine the number of epochs, on the validation data",
        arms=tuple(trial.arm for trial in SEARCHES[SEARCH]),
        seeds=1,
        first_seed=TUNING_SEED,
        is_search=True,
    ),
)
