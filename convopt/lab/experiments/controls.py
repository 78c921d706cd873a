"""Page 09: controls, each of which changes one thing."""

from dataclasses import replace

from convopt.lab.experiments.arms import Arm, Experiment, Recipe, each_in, with_options
from convopt.lab.experiments.common import (
    CLEAN,
    PERMUTED,
    SGD,
    SMOOTHING,
    STRESS,
    V1,
    V2_UNIFORM,
    WIENER_ALONE,
)

PAGE = "09-controls"

BLURRED = replace(STRESS, pixels="blurred")
STEP_OF_V1 = Recipe(replace(V1.optimizer, name="RawDirectionSGD"))
STEP_OF_V2 = Recipe(replace(V2_UNIFORM.optimizer, name="RawDirectionSGDv2"))
V1_AT_STEP_OF_SGD = Recipe(replace(V1.optimizer, name="RawLengthSGD"))

FILTERS = (
    ("SGD", SGD),
    ("ConvolutionalSGD", V1),
    ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM),
    ("WienerSGD without annealing", WIENER_ALONE),
)
"""Smoothing of each kind alone, without annealing."""


def pixel_kernel(kernel: str, size: int) -> Recipe:
    """SGD with the first layer's gradient smoothed over the pixels by a fixed kernel, its norm kept."""
    return with_options(SGD, pixel_kernel=(kernel, size))


EXPERIMENTS = (
    Experiment(
        name="09-controls-pixels",
        title="Stress test: is it the pixels' neighbourhood?",
        arms=(*each_in((STRESS, PERMUTED), FILTERS), Arm("SGD", SGD, BLURRED)),
    ),
    Experiment(
        name="09-controls-layers",
        title="Stress test: which layers gain from smoothing?",
        arms=(
            Arm("SGD", SGD, STRESS),
            Arm("ConvolutionalSGD", V1, STRESS),
            Arm("ConvolutionalSGD, first layer only", with_options(V1, smoothed="first layer"), STRESS),
            Arm("ConvolutionalSGD, other layers only", with_options(V1, smoothed="other layers"), STRESS),
        ),
    ),
    Experiment(
        name="09-controls-step",
        title="Stress test: is it the direction, or only a shorter step?",
        arms=(
            Arm("SGD", SGD, STRESS),
            Arm("ConvolutionalSGD", V1, STRESS),
            Arm("SGD at v1's step", STEP_OF_V1, STRESS),
            Arm("ConvolutionalSGD at SGD's step", V1_AT_STEP_OF_SGD, STRESS),
            Arm("ConvolutionalSGDv2 (uniform)", V2_UNIFORM, STRESS),
            Arm("SGD at v2's step", STEP_OF_V2, STRESS),
        ),
    ),
    Experiment(
        name="09-controls-kernels",
        title="Stress test: fixed kernels over the pixels, at SGD's step",
        arms=(
            Arm("SGD", SGD, STRESS),
            Arm("binomial 3x3", pixel_kernel("binomial", 3), STRESS),
            Arm("binomial 7x7", pixel_kernel("binomial", 7), STRESS),
            Arm("binomial 15x15", pixel_kernel("binomial", 15), STRESS),
            Arm("uniform 5x5 (not PSD)", pixel_kernel("uniform", 5), STRESS),
            Arm("WienerSGD without annealing", WIENER_ALONE, STRESS),
        ),
    ),
    Experiment(
        name="09-controls-label-noise",
        title="Stress test at other levels of label noise",
        arms=each_in(
            [replace(STRESS, label_noise=rate) for rate in (0.0, 0.15, 0.3, 0.45)],
            [(label, recipe) for label, recipe in SMOOTHING if recipe != V2_UNIFORM],
        ),
    ),
    Experiment(
        name="09-controls-digits",
        title="Stress test on scikit-learn's digits",
        arms=each_in([replace(STRESS, dataset="digits")], SMOOTHING),
    ),
    Experiment(
        name="09-controls-gradient-noise",
        title="Clean labels, batch 64, white noise added to every gradient",
        arms=each_in([replace(CLEAN, gradient_noise=power) for power in (0.0, 1.0, 4.0)], SMOOTHING),
    ),
)
