"""Page 10: training against an adversary."""

from collections.abc import Iterable
from dataclasses import replace

from convopt.lab.experiments.arms import Arm, Experiment
from convopt.lab.experiments.common import ADAM, CLEAN, SGD, V1, V2_UNIFORM, WIENER_SGD
from convopt.lab.runs import Choice

PAGE = "10-adversarial"


def _adversarial() -> Iterable[Arm]:
    """Training against an adversary, as the README recommends smoothing for."""
    recipes = (
        ("SGD", SGD),
        ("Adam", ADAM),
        ("ConvolutionalSGD", V1),
        ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM),
        ("WienerSGD", WIENER_SGD),
    )
    for name in ("FGSM", "PGD"):
        for epsilon in (0.1, 0.2):
            setting = replace(CLEAN, adversary=Choice.of(name, epsilon=epsilon))
            yield from (Arm(label, recipe, setting) for label, recipe in recipes)
    convnet = replace(CLEAN, model=Choice.of("ConvNet"), epochs=6, adversary=Choice.of("FGSM", epsilon=0.2))
    yield from (Arm(label, recipe, convnet) for label, recipe in recipes if label in ("SGD", "Adam", "WienerSGD"))


EXPERIMENTS = (
    Experiment(
        name="10-adversarial",
        title="Training against FGSM and PGD",
        arms=tuple(_adversarial()),
    ),
)
