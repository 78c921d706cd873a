"""Page 05: every optimizer on every network under standard conditions."""

from collections.abc import Iterable
from dataclasses import replace

from convopt.lab.experiments.arms import Arm, Experiment, Recipe, with_options
from convopt.lab.experiments.common import (
    ADAM,
    CLEAN,
    LOCAL_LOSS,
    SGD,
    V1,
    V2_GAUSSIAN,
    WIENER_ADAMW,
    WIENER_SGD,
)
from convopt.lab.runs import Choice

PAGE = "05-standard"


def smaller_kernel(recipe: Recipe) -> Recipe:
    """The recipe with a kernel of 3 taps, as the README has it under standard conditions."""
    return with_options(recipe, kernel_size=3)


def _standard() -> Iterable[Arm]:
    """Every optimizer at the README's settings on every network, without noise."""
    for model in ("SimpleNet", "DeepNet", "IllConditionedNet", "ConvNet", "ResNet"):
        setting = replace(CLEAN, model=Choice.of(model))
        yield Arm("SGD", SGD, setting)
        yield Arm("Adam", ADAM, setting)
        yield Arm("ConvolutionalSGD", smaller_kernel(V1), setting)
        yield Arm("LocalLossConvSGD", smaller_kernel(LOCAL_LOSS), setting)
        yield Arm("ConvolutionalSGDv2 (gaussian)", V2_GAUSSIAN, setting)
        yield Arm("WienerSGD", WIENER_SGD, setting)
        yield Arm("WienerAdamW", WIENER_ADAMW, setting)


EXPERIMENTS = (
    Experiment(
        name="05-standard",
        title="Standard conditions: clean labels, batch 64",
        arms=tuple(_standard()),
    ),
)
