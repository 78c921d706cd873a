"""Page 07: the ablation of the batch size, at given learning rates and at tuned ones."""

from collections.abc import Iterable
from dataclasses import replace

from convopt.lab.experiments.arms import Arm, Claim, Experiment, each_in, with_options
from convopt.lab.experiments.common import ABLATION, ADAM, SGD, V1, WIENER_ADAMW, WIENER_SGD, v2
from convopt.lab.experiments.search import TUNING_SEED, Trial, chosen

PAGE = "07-batch-size"

SIZES = (8, 16, 32, 64, 128, 256)
V2_ABLATION = v2("uniform", kernel_lr=0.01)


SETTINGS = {size: replace(ABLATION, batch_size=size) for size in SIZES}

RECIPES = (
    ("SGD", SGD),
    ("Adam", ADAM),
    ("ConvolutionalSGD", V1),
    ("ConvolutionalSGDv2 (uniform)", V2_ABLATION),
    ("WienerSGD", WIENER_SGD),
    ("WienerAdamW", WIENER_ADAMW),
)

ABLATION_RATES = {
    "SGD": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "Adam": (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01),
}
ABLATION_TUNED = (
    ("SGD", SGD, "SGD"),
    ("Adam", ADAM, "Adam"),
    ("ConvolutionalSGDv2 (uniform)", V2_ABLATION, "SGD"),
    ("WienerSGD", WIENER_SGD, "SGD"),
)


def _trials() -> Iterable[Trial]:
    """Every learning rate at every batch size."""
    for size, setting in SETTINGS.items():
        for label, recipe, kind in ABLATION_TUNED:
            for lr in ABLATION_RATES[kind]:
                arm = Arm(f"{label}, lr {lr:g}", with_options(recipe, lr=lr), setting)
                yield Trial(f"batch {size}: {label}", lr, arm)


SEARCHES = {"07-batch-size-tuning": tuple(_trials())}


def _tuned() -> Iterable[Arm]:
    """The ablation with every optimizer at the best rate for the size."""
    for size, setting in SETTINGS.items():
        for label, recipe, _ in ABLATION_TUNED:
            lr = chosen("07-batch-size-tuning", f"batch {size}: {label}")
            yield Arm(label, with_options(recipe, lr=lr), setting, ("learning rate",))


EXPERIMENTS = (
    Experiment(
        name="07-batch-size",
        title="Batch-size ablation at the original proposal's settings: 3000 images, 10 % label noise",
        arms=each_in(SETTINGS.values(), RECIPES),
        claims=tuple(
            Claim("ConvolutionalSGDv2 (uniform)", "SGD", "best", difference, size)
            for size, difference in ((8, 1.4), (16, -0.8), (32, -5.8), (64, -28.6))
        ),
    ),
    Experiment(
        name="07-batch-size-tuning",
        title="Batch-size ablation: learning rates, by accuracy on the validation images",
        arms=tuple(trial.arm for trial in SEARCHES["07-batch-size-tuning"]),
        seeds=2,
        first_seed=TUNING_SEED,
        is_search=True,
    ),
    Experiment(
        name="07-batch-size-tuned",
        title="Batch-size ablation, each learning rate tuned for each size",
        arms=tuple(_tuned()),
    ),
)
