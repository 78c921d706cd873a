"""Page 05: every optimizer on every network under standard conditions."""

from dataclasses import replace

from convopt.lab.experiments.arms import Experiment, each_in, with_options
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


MODELS = ("SimpleNet", "DeepNet", "IllConditionedNet", "ConvNet", "ResNet")

RECIPES = (
    ("SGD", SGD),
    ("Adam", ADAM),
    ("ConvolutionalSGD", with_options(V1, kernel_size=3)),
    ("LocalLossConvSGD", with_options(LOCAL_LOSS, kernel_size=3)),
    ("ConvolutionalSGDv2 (gaussian)", V2_GAUSSIAN),
    ("WienerSGD", WIENER_SGD),
    ("WienerAdamW", WIENER_ADAMW),
)
"""At the original proposal's settings for these conditions, kernels of 3 taps among them."""

EXPERIMENTS = (
    Experiment(
        name="05-standard",
        title="Standard conditions: clean labels, batch 64",
        arms=each_in([replace(CLEAN, model=Choice.of(model)) for model in MODELS], RECIPES),
    ),
)
