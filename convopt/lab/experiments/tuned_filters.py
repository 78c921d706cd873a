"""Page 16: a cosine on raw and on smoothed gradients, each with its own learning rate and epochs, beyond MNIST."""

import itertools
from collections.abc import Iterable

from convopt.lab.experiments import factorial
from convopt.lab.experiments.arms import Arm, Experiment
from convopt.lab.experiments.beyond_mnist import (
    CIFAR_CONVNET,
    CIFAR_PERCEPTRON,
    DIGITS,
    FASHION,
    MNIST,
    PAGE,
    TASKS,
    label,
)
from convopt.lab.experiments.cells import FIRST_SEED, Cell, Tuning

RAW = "raw gradient"
GRADIENTS = (RAW, "fixed kernel", factorial.DEFAULT)
"""What the optimizer gets: names of the factorial."""

_ALL = tuple(itertools.product(("SGD", "AdamW", "Muon"), (*GRADIENTS, "Wiener filter")))
COMPARED = {
    MNIST: _ALL,
    FASHION: _ALL,
    CIFAR_PERCEPTRON: tuple(itertools.product(("Muon",), GRADIENTS)),
    # without the fixed kernel: it smooths the first layer alone, whose kernels are too small
    CIFAR_CONVNET: (("Muon", RAW), ("Muon", factorial.DEFAULT)),
    DIGITS: tuple(itertools.product(("SGD",), GRADIENTS)),
}
"""Optimizers and gradients that are compared, by task. The factorial has tuned those on MNIST."""


def arm_label(task: str, base: str, gradient: str) -> str:
    """Of an arm whose cosine was tuned for its gradient."""
    return label(task, base, gradient, "tuned for it")


def _cell(task: str, base: str, gradient: str) -> Cell:
    setting = TASKS[task].setting
    horizons = tuple(round(setting.epochs / part) for part in (4, 2, 1))
    return factorial.combination(arm_label(task, base, gradient), base, gradient, "cosine", setting, horizons)


_CELLS = [_cell(task, *pair) for task, pairs in COMPARED.items() if task != MNIST for pair in pairs]
_TUNING = Tuning(f"{PAGE}-tuned", {cell.label: cell for cell in _CELLS})

SEARCHES = _TUNING.searches


def _arm(task: str, base: str, gradient: str) -> Arm | None:
    """The combination at its chosen settings; None before they are chosen."""
    name = arm_label(task, base, gradient)
    of_factorial = ", ".join((base, gradient, "cosine"))
    tuning, cell = (factorial.TUNING, of_factorial) if task == MNIST else (_TUNING, name)
    return tuning.arm(cell)._replace(label=name) if tuning.is_tuned(cell) else None


def on(tasks: Iterable[str]) -> Experiment:
    """The comparison on those of the tasks with these names that it has."""
    arms = (_arm(task, *pair) for task in tasks for pair in COMPARED.get(task, ()))
    return Experiment(
        name=_TUNING.name,
        title="Some tasks: a cosine on raw and smoothed gradients, each with its own rate and epochs",
        arms=tuple(arm for arm in arms if arm is not None),
        first_seed=FIRST_SEED,
    )


EXPERIMENTS = (on(TASKS), *_TUNING.experiments("Some tasks, optimizers on raw and smoothed gradients"))
