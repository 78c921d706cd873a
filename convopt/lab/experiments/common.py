"""Recipes and settings that several pages share."""

from dataclasses import replace

from convopt.lab.experiments.arms import Arm, Recipe, Setting
from convopt.lab.runs import Choice
from convopt.optim.coherence import NOISE_WEIGHT

SGD = Recipe(Choice.of("SGD", lr=0.01, momentum=0.9))
ADAM = Recipe(Choice.of("Adam", lr=0.001))
ADAMW = Recipe(Choice.of("AdamW", lr=0.001))
V1 = Recipe(Choice.of("ConvolutionalSGD", lr=0.01, momentum=0.9, kernel_size=5))
LOCAL_LOSS = Recipe(Choice.of("LocalLossConvSGD", lr=0.01, momentum=0.9, kernel_size=5))


def v2(kernel_init: str, **options: object) -> Recipe:
    """ConvolutionalSGDv2 at the original proposal's settings for the stress test."""
    settings = {"lr": 0.01, "momentum": 0.9, "kernel_size": 5, "kernel_lr": 0.005, "kernel_init": kernel_init}
    return Recipe(Choice.of("ConvolutionalSGDv2", **{**settings, **options}))


V2_UNIFORM = v2("uniform")
V2_GAUSSIAN = v2("gaussian")
V2_THREE_PART = v2("uniform", loss_weights=(0.5, 0.3, 0.2))

WIENER_SGD = Recipe(Choice.of("WienerSGD", lr=0.01, momentum=0.9))
WIENER_ADAMW = Recipe(Choice.of("WienerAdamW", lr=0.001))
FILTER = Choice.of("WienerFilter", signal="magnitude", noise_weight=NOISE_WEIGHT)
"""As it is by default. A filter whose options are not named is Wiener's own, as in most of the study."""
WIENER_ALONE = Recipe(Choice.of("WienerSGD", lr=0.01, momentum=0.9, snr_annealing=False))

SMOOTHING = (
    ("SGD", SGD),
    ("Adam", ADAM),
    ("ConvolutionalSGD", V1),
    ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM),
    ("WienerSGD", WIENER_SGD),
)
"""Smoothing of each kind and two baselines, by their labels."""

COSINE = Choice.of("cosine")

SMALL_NET = Choice.of("SimpleNet", hidden_size=64)
STRESS = Setting(n_train=5000, batch_size=8, label_noise=0.15, model=Choice.of("SimpleNet"), epochs=30)
PERMUTED = replace(STRESS, pixels="permuted")
STRESS_CLEAN = replace(STRESS, label_noise=0.0)
CLEAN = Setting(n_train=5000, batch_size=64, label_noise=0.0, model=Choice.of("SimpleNet"), epochs=20)
CONV_NOISE = Setting(n_train=5000, batch_size=8, label_noise=0.15, model=Choice.of("ConvNet"), epochs=12)
ABLATION = Setting(n_train=3000, batch_size=8, label_noise=0.1, model=SMALL_NET, epochs=15, n_test=500)

LEARNED_KERNELS = (
    Arm("LocalLossConvSGD", LOCAL_LOSS, STRESS),
    Arm("ConvolutionalSGDv2 (uniform)", V2_UNIFORM, STRESS),
    Arm("ConvolutionalSGDv2 (gaussian)", V2_GAUSSIAN, STRESS),
    Arm("ConvolutionalSGDv2 (uniform, three-part loss)", V2_THREE_PART, STRESS),
)
"""Arms whose kernels follow a kernel loss in the stress test; two experiments tell of the same runs."""
