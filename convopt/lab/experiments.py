"""The experiments as data: which runs each consists of. Nothing here trains."""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from scipy.stats import qmc

from convopt.lab import data, networks
from convopt.lab.names import require_known
from convopt.lab.runs import Choice, Run


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the optimizer, its learning rate over time, and what is minimised (see ``Run``)."""

    optimizer: Choice
    schedule: str = "constant"
    annealing: Choice | None = None
    loss: Choice | None = None
    averaging: Choice | None = None


SGD = Recipe(Choice.of("SGD", lr=0.01, momentum=0.9))
ADAM = Recipe(Choice.of("Adam", lr=0.001))
ADAMW = Recipe(Choice.of("AdamW", lr=0.001))
V1 = Recipe(Choice.of("ConvolutionalSGD", lr=0.01, momentum=0.9, kernel_size=5))
LOCAL_LOSS = Recipe(Choice.of("LocalLossConvSGD", lr=0.01, momentum=0.9, kernel_size=5))


def v2(kernel_init: str, **options: object) -> Recipe:
    """ConvolutionalSGDv2 at the README's settings for the stress test."""
    settings = {"lr": 0.01, "momentum": 0.9, "kernel_size": 5, "kernel_lr": 0.005, "kernel_init": kernel_init}
    return Recipe(Choice.of("ConvolutionalSGDv2", **{**settings, **options}))


V2_UNIFORM = v2("uniform")
V2_GAUSSIAN = v2("gaussian")
V2_THREE_PART = v2("uniform", loss_weights=(0.5, 0.3, 0.2))


@dataclass(frozen=True)
class Setting:
    """What a group of runs has in common: everything but data set, recipe, epochs and seed."""

    n_train: int
    batch_size: int
    label_noise: float
    model: Choice
    epochs: int
    n_test: int = 1000
    pixels: str = "natural"
    gradient_noise: float = 0.0
    adversary: Choice | None = None
    dataset: str | None = None

    def run(self, recipe: Recipe, dataset: str, epochs: int | None, seed: int) -> Run:
        """One run in this setting; of a smaller data set it takes what there is.

        A setting that has a data set of its own keeps to it. Where its network does not take such inputs, another does.
        """
        dataset = self.dataset or dataset
        kind, _, n_train, n_test = data.describe(dataset)
        model = networks.fitting(self.model.name, kind)
        return Run(
            dataset=dataset,
            n_train=min(self.n_train, n_train),
            n_test=min(self.n_test, n_test),
            batch_size=self.batch_size,
            label_noise=self.label_noise,
            epochs=epochs or self.epochs,
            model=self.model if model == self.model.name else Choice.of(model),
            optimizer=recipe.optimizer,
            seed=seed,
            pixels=self.pixels,
            schedule=recipe.schedule,
            annealing=recipe.annealing,
            loss=recipe.loss,
            averaging=recipe.averaging,
            gradient_noise=self.gradient_noise,
            adversary=self.adversary,
            data=data.fingerprint(dataset),
        )


@dataclass(frozen=True)
class Claim:
    """A difference that somebody reported: ``measure`` of the arm ``treatment`` minus that of ``control``.

    ``batch_size`` says at which, where an experiment has several.
    """

    treatment: str
    control: str
    measure: str
    difference: float
    batch_size: int | None = None


@dataclass(frozen=True)
class Experiment:
    """A named set of runs: each arm is a recipe in a setting, repeated over seeds.

    Attributes:
        name: the stem of the notebook that tells of it, and where it tells of several, what sets this one apart.
        title: one line.
        arms: (label, recipe, setting). The label stands in tables and figures; arms in different settings may share it.
        claims: what the idea's first report says of it, from one run each.
        seeds: how many the study has.
        first_seed: the first of them.
        published: whether their records are among the published ones.
    """

    name: str
    title: str
    arms: tuple[tuple[str, Recipe, Setting], ...]
    claims: tuple[Claim, ...] = ()
    seeds: int = 10
    first_seed: int = 0
    published: bool = True

    def runs(self, dataset: str = "mnist", seeds: Iterable[int] | None = None, epochs: int | None = None) -> list[Run]:
        """All runs, seed by seed so that an interrupted sweep holds whole pairs.

        ``seeds`` None are the study's, ``epochs`` None are the setting's. ValueError for an unknown data set.
        """
        data.require_dataset(dataset)
        if seeds is None:
            seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [setting.run(recipe, dataset, epochs, seed) for seed in seeds for _, recipe, setting in self.arms]

    def label(self, run: Run) -> str | None:
        """The label of the arm that ``run`` belongs to, whatever its data set, epochs and seed; None for none."""
        try:
            data.describe(run.dataset)
        except (ValueError, data.DataError):  # a file that is no more
            return None
        key = run.dataset, run.epochs, run.seed
        if key not in self._labels:
            self._labels[key] = {setting.run(recipe, *key): label for label, recipe, setting in self.arms}
        return self._labels[key].get(run)

    @cached_property
    def _labels(self) -> dict[tuple[str, int, int], dict[Run, str]]:
        """The label of each arm's run, by data set, epochs and seed, as far as it was asked for."""
        return {}


WIENER_SGD = Recipe(Choice.of("WienerSGD", lr=0.01, momentum=0.9))
WIENER_ADAMW = Recipe(Choice.of("WienerAdamW", lr=0.001))
WIENER_ALONE = Recipe(Choice.of("WienerSGD", lr=0.01, momentum=0.9, snr_annealing=False))
ANNEALING = Choice.of("SNRAnnealing")
PER_LAYER = Choice.of("SNRAnnealing per layer")
ANOTHER_SEEDS = Choice.of("replayed", shift=1)


def annealed(recipe: Recipe, annealing: Choice = ANNEALING) -> Recipe:
    """The recipe with SNRAnnealing around its optimizer."""
    return replace(recipe, annealing=annealing)


def with_lr(recipe: Recipe, lr: float, schedule: str = "constant") -> Recipe:
    """The recipe at another learning rate and schedule."""
    return replace(with_options(recipe, lr=lr), schedule=schedule)


def with_options(recipe: Recipe, part: str = "optimizer", /, **options: object) -> Recipe:
    """The recipe with these options of its optimizer, or of another ``part``: loss, averaging or annealing."""
    choice = getattr(recipe, part)
    return replace(recipe, **{part: Choice.of(choice.name, **{**dict(choice.options), **options})})


SMALL_NET = Choice.of("SimpleNet", hidden_size=64)
STRESS = Setting(n_train=5000, batch_size=8, label_noise=0.15, model=Choice.of("SimpleNet"), epochs=30)
PERMUTED = replace(STRESS, pixels="permuted")
STRESS_CLEAN = replace(STRESS, label_noise=0.0)
CLEAN = Setting(n_train=5000, batch_size=64, label_noise=0.0, model=Choice.of("SimpleNet"), epochs=20)
CONV_NOISE = Setting(n_train=5000, batch_size=8, label_noise=0.15, model=Choice.of("ConvNet"), epochs=12)
ABLATION = tuple(
    Setting(n_train=3000, batch_size=size, label_noise=0.1, model=SMALL_NET, epochs=15, n_test=500)
    for size in (8, 16, 32, 64)
)
KERNEL_DEMO = Setting(n_train=2000, batch_size=64, label_noise=0.0, model=Choice.of("SimpleNet"), epochs=10)

LEARNED_KERNELS = (
    ("LocalLossConvSGD", LOCAL_LOSS, STRESS),
    ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM, STRESS),
    ("ConvolutionalSGDv2 (gaussian)", V2_GAUSSIAN, STRESS),
    ("ConvolutionalSGDv2 (uniform, three-part loss)", V2_THREE_PART, STRESS),
)
"""Arms whose kernels follow a kernel loss in the stress test; two experiments tell of the same runs."""

LEARNING_RATES = {"SGD": (0.003, 0.01, 0.03, 0.1, 0.3), "Adam": (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01)}
"""What learning rates are chosen from, for optimizers of either kind."""


def _tuning() -> Iterable[tuple[str, Recipe, Setting]]:
    """Every learning rate of every recipe that is tuned, in its setting."""
    for label, recipe, setting, kind, schedule in (
        ("Adam, cosine", ADAM, STRESS, "Adam", "cosine"),
        ("SGD, cosine", SGD, STRESS_CLEAN, "SGD", "cosine"),
        ("SGD", SGD, CLEAN, "SGD", "constant"),
        ("Adam", ADAM, CLEAN, "Adam", "constant"),
        ("WienerSGD", WIENER_SGD, CLEAN, "SGD", "constant"),
        ("WienerAdamW", WIENER_ADAMW, CLEAN, "Adam", "constant"),
        ("Adam, cosine", ADAM, CONV_NOISE, "Adam", "cosine"),
    ):
        for lr in LEARNING_RATES[kind]:
            yield f"{label}, lr {lr:g}", with_lr(recipe, lr, schedule), setting


def _harmless(model: str) -> Iterable[tuple[str, Recipe, Setting]]:
    """Clean labels, with SNRAnnealing and without."""
    for batch_size, epochs in ((8, 20), (64, 20), (64, 100)):
        setting = replace(CLEAN, model=Choice.of(model), batch_size=batch_size, epochs=epochs)
        for name, recipe in (("SGD", SGD), ("Adam", ADAM), ("AdamW", ADAMW)):
            yield name, recipe, setting
            yield f"{name} + SNRAnnealing", annealed(recipe), setting


WIENER_EXPERIMENTS = (
    Experiment(
        name="04-wiener",
        title="Stress test: the Wiener filter, annealing, and what could explain them",
        arms=(
            ("SGD", SGD, STRESS),
            ("Adam", ADAM, STRESS),
            ("Adam, cosine, tuned", with_lr(ADAM, 0.0001, "cosine"), STRESS),
            ("SGD + SNRAnnealing", annealed(SGD), STRESS),
            ("Adam + SNRAnnealing", annealed(ADAM), STRESS),
            ("WienerSGD without annealing", WIENER_ALONE, STRESS),
            ("WienerSGD", WIENER_SGD, STRESS),
            ("WienerAdamW", WIENER_ADAMW, STRESS),
            ("WienerSGD, another seed's factor", annealed(WIENER_ALONE, ANOTHER_SEEDS), STRESS),
            ("SGD, another seed's factor", annealed(SGD, ANOTHER_SEEDS), STRESS),
            ("SGD, clean labels, cosine, tuned", with_lr(SGD, 0.01, "cosine"), STRESS_CLEAN),
        ),
    ),
    Experiment(
        name="04-wiener-permuted",
        title="Stress test with the pixels permuted: no structure to find",
        arms=(
            ("SGD", SGD, PERMUTED),
            ("Adam", ADAM, PERMUTED),
            ("WienerSGD without annealing", WIENER_ALONE, PERMUTED),
            ("WienerSGD", WIENER_SGD, PERMUTED),
        ),
    ),
    Experiment(
        name="04-wiener-batch-size",
        title="Batch-size ablation: 3000 pictures, 10 % wrong labels",
        arms=tuple(
            (label, recipe, setting)
            for setting in ABLATION
            for label, recipe in (
                ("SGD", SGD),
                ("Adam", ADAM),
                ("WienerSGD", WIENER_SGD),
                ("WienerAdamW", WIENER_ADAMW),
            )
        ),
    ),
    Experiment(
        name="04-wiener-clean",
        title="Clean labels, batch 64, each learning rate tuned",
        arms=(
            ("SGD", with_lr(SGD, 0.03), CLEAN),
            ("Adam", with_lr(ADAM, 0.001), CLEAN),
            ("WienerSGD", with_lr(WIENER_SGD, 0.03), CLEAN),
            ("WienerAdamW", with_lr(WIENER_ADAMW, 0.003), CLEAN),
        ),
    ),
    Experiment(
        name="04-wiener-convnet",
        title="ConvNet, batch 8, 15 % wrong labels: annealing against a schedule",
        arms=(
            ("Adam", ADAM, CONV_NOISE),
            ("Adam + SNRAnnealing", annealed(ADAM), CONV_NOISE),
            ("Adam, cosine", with_lr(ADAM, 0.001, "cosine"), CONV_NOISE),
            ("Adam, cosine, tuned", with_lr(ADAM, 0.0003, "cosine"), CONV_NOISE),
        ),
    ),
    Experiment(
        name="04-wiener-harmless",
        title="Clean labels, SimpleNet: what SNRAnnealing costs where there is no noise to fit",
        arms=tuple(_harmless("SimpleNet")),
    ),
    Experiment(
        name="04-wiener-harmless-convnet",
        title="Clean labels, ConvNet: what SNRAnnealing costs where there is no noise to fit",
        arms=tuple(_harmless("ConvNet")),
    ),
    Experiment(
        name="04-wiener-options",
        title="Stress test: WienerSGD with one option changed",
        arms=(
            ("defaults", WIENER_SGD, STRESS),
            ("second estimate: half batches", with_options(WIENER_SGD, second_estimate="half batches"), STRESS),
            ("gain: separable", with_options(WIENER_SGD, gain="separable"), STRESS),
        ),
    ),
    Experiment(
        name="04-wiener-constants",
        title="Stress test: WienerSGD with one constant changed",
        arms=(
            ("defaults", WIENER_SGD, STRESS),
            ("scale: unit dc", with_options(WIENER_SGD, scale="unit dc"), STRESS),
            ("every: 1", with_options(WIENER_SGD, every=1), STRESS),
            ("coherence_ema: 0.99", with_options(WIENER_SGD, coherence_ema=0.99), STRESS),
            ("annealing_ema: 0.99", with_options(WIENER_SGD, annealing_ema=0.99), STRESS),
            ("warmup: 2000", with_options(WIENER_SGD, warmup=2000), STRESS),
            ("onset: 1", with_options(WIENER_SGD, onset=1.0), STRESS),
            ("power: 1", with_options(WIENER_SGD, power=1.0), STRESS),
            ("power: 2", with_options(WIENER_SGD, power=2.0), STRESS),
        ),
    ),
    Experiment(
        name="04-wiener-ideas",
        title="Two ideas more: a rho for each layer, smoothing of small convolution kernels",
        arms=(
            ("SGD + SNRAnnealing", annealed(SGD), STRESS),
            ("SGD + SNRAnnealing per layer", annealed(SGD, PER_LAYER), STRESS),
            ("Adam + SNRAnnealing", annealed(ADAM), STRESS),
            ("Adam + SNRAnnealing per layer", annealed(ADAM, PER_LAYER), STRESS),
            ("SGD", SGD, CONV_NOISE),
            ("WienerSGD without annealing", WIENER_ALONE, CONV_NOISE),
            ("WienerSGD without annealing, 3x3 kernels too", with_options(WIENER_ALONE, smallest_kernel=3), CONV_NOISE),
            ("WienerSGD", WIENER_SGD, CONV_NOISE),
            ("WienerSGD, 3x3 kernels too", with_options(WIENER_SGD, smallest_kernel=3), CONV_NOISE),
        ),
    ),
    Experiment(
        name="04-wiener-tuning",
        title="Learning rates, by accuracy on the validation pictures",
        arms=tuple(_tuning()),
        seeds=3,
    ),
)


def smaller_kernel(recipe: Recipe) -> Recipe:
    """The recipe with a kernel of 3 taps, as the README has it under standard conditions."""
    return with_options(recipe, kernel_size=3)


def _standard() -> Iterable[tuple[str, Recipe, Setting]]:
    """Every optimizer at the README's settings on every network, without noise."""
    for model in ("SimpleNet", "DeepNet", "IllConditionedNet", "ConvNet", "ResNet"):
        setting = replace(CLEAN, model=Choice.of(model))
        yield "SGD", SGD, setting
        yield "Adam", ADAM, setting
        yield "ConvolutionalSGD", smaller_kernel(V1), setting
        yield "LocalLossConvSGD", smaller_kernel(LOCAL_LOSS), setting
        yield "ConvolutionalSGDv2 (gaussian)", V2_GAUSSIAN, setting
        yield "WienerSGD", WIENER_SGD, setting
        yield "WienerAdamW", WIENER_ADAMW, setting


SIZES = (8, 16, 32, 64, 128, 256)
V2_ABLATION = v2("uniform", kernel_lr=0.01)


def _batch_sizes() -> Iterable[tuple[str, Recipe, Setting]]:
    """The README's ablation, continued to larger batches."""
    for size in SIZES:
        setting = replace(ABLATION[0], batch_size=size)
        yield "SGD", SGD, setting
        yield "Adam", ADAM, setting
        yield "ConvolutionalSGD", V1, setting
        yield "ConvolutionalSGDv2 (uniform)", V2_ABLATION, setting
        yield "WienerSGD", WIENER_SGD, setting
        yield "WienerAdamW", WIENER_ADAMW, setting


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


def _batch_size_tuning() -> Iterable[tuple[str, Recipe, Setting]]:
    """Every learning rate at every batch size."""
    for size in SIZES:
        for label, recipe, kind in ABLATION_TUNED:
            for lr in ABLATION_RATES[kind]:
                yield f"{label}, lr {lr:g}", with_lr(recipe, lr), replace(ABLATION[0], batch_size=size)


CHOSEN_RATES = {
    "SGD": (0.0003, 0.001, 0.003, 0.003, 0.01, 0.03),
    "Adam": (0.0001, 0.0003, 0.0003, 0.0003, 0.001, 0.001),
    "ConvolutionalSGDv2 (uniform)": (0.001, 0.01, 0.01, 0.01, 0.01, 0.03),
    "WienerSGD": (0.01, 0.01, 0.01, 0.01, 0.03, 0.03),
}
"""The rates that are best on the validation pictures, by label; one for each of ``SIZES``."""


def _batch_sizes_tuned() -> Iterable[tuple[str, Recipe, Setting]]:
    """The ablation with every optimizer at the best rate for the size."""
    for position, size in enumerate(SIZES):
        for label, recipe, _ in ABLATION_TUNED:
            yield label, with_lr(recipe, CHOSEN_RATES[label][position]), replace(ABLATION[0], batch_size=size)


def _label_noise() -> Iterable[tuple[str, Recipe, Setting]]:
    for rate in (0.0, 0.15, 0.3, 0.45):
        setting = replace(STRESS, label_noise=rate)
        for label, recipe in (("SGD", SGD), ("Adam", ADAM), ("ConvolutionalSGD", V1), ("WienerSGD", WIENER_SGD)):
            yield label, recipe, setting


def _gradient_noise() -> Iterable[tuple[str, Recipe, Setting]]:
    for power in (0.0, 1.0, 4.0):
        setting = replace(CLEAN, gradient_noise=power)
        yield "SGD", SGD, setting
        yield "Adam", ADAM, setting
        yield "ConvolutionalSGD", V1, setting
        yield "ConvolutionalSGDv2 (uniform)", V2_UNIFORM, setting
        yield "WienerSGD", WIENER_SGD, setting


def _adversarial() -> Iterable[tuple[str, Recipe, Setting]]:
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
            yield from ((label, recipe, setting) for label, recipe in recipes)
    convnet = replace(CLEAN, model=Choice.of("ConvNet"), epochs=6, adversary=Choice.of("FGSM", epsilon=0.2))
    yield from ((label, recipe, convnet) for label, recipe in recipes if label in ("SGD", "Adam", "WienerSGD"))


def pixel_kernel(kernel: str, size: int) -> Recipe:
    """SGD with the first layer's gradient smoothed over the pixels by a fixed kernel, its norm kept."""
    return with_options(SGD, pixel_kernel=(kernel, size))


STRESS_DIGITS = replace(STRESS, dataset="digits")
BLURRED = replace(STRESS, pixels="blurred")
STEP_OF_V1 = Recipe(replace(V1.optimizer, name="RawDirectionSGD"))
STEP_OF_V2 = Recipe(replace(V2_UNIFORM.optimizer, name="RawDirectionSGDv2"))
V1_AT_STEP_OF_SGD = Recipe(replace(V1.optimizer, name="RawLengthSGD"))

CONTROLS = (
    Experiment(
        name="09-controls-pixels",
        title="Stress test: is it the pixels' neighbourhood?",
        arms=(
            ("SGD", SGD, STRESS),
            ("ConvolutionalSGD", V1, STRESS),
            ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM, STRESS),
            ("WienerSGD without annealing", WIENER_ALONE, STRESS),
            ("SGD", SGD, PERMUTED),
            ("ConvolutionalSGD", V1, PERMUTED),
            ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM, PERMUTED),
            ("WienerSGD without annealing", WIENER_ALONE, PERMUTED),
            ("SGD", SGD, BLURRED),
        ),
    ),
    Experiment(
        name="09-controls-layers",
        title="Stress test: which layers gain from smoothing?",
        arms=(
            ("SGD", SGD, STRESS),
            ("ConvolutionalSGD", V1, STRESS),
            ("ConvolutionalSGD, first layer only", with_options(V1, smoothed="first layer"), STRESS),
            ("ConvolutionalSGD, other layers only", with_options(V1, smoothed="other layers"), STRESS),
        ),
    ),
    Experiment(
        name="09-controls-step",
        title="Stress test: is it the direction, or only a shorter step?",
        arms=(
            ("SGD", SGD, STRESS),
            ("ConvolutionalSGD", V1, STRESS),
            ("SGD at v1's step", STEP_OF_V1, STRESS),
            ("ConvolutionalSGD at SGD's step", V1_AT_STEP_OF_SGD, STRESS),
            ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM, STRESS),
            ("SGD at v2's step", STEP_OF_V2, STRESS),
        ),
    ),
    Experiment(
        name="09-controls-kernels",
        title="Stress test: fixed kernels over the pixels, at SGD's step",
        arms=(
            ("SGD", SGD, STRESS),
            ("binomial 3x3", pixel_kernel("binomial", 3), STRESS),
            ("binomial 7x7", pixel_kernel("binomial", 7), STRESS),
            ("binomial 15x15", pixel_kernel("binomial", 15), STRESS),
            ("uniform 5x5 (not PSD)", pixel_kernel("uniform", 5), STRESS),
            ("WienerSGD without annealing", WIENER_ALONE, STRESS),
        ),
    ),
    Experiment(
        name="09-controls-label-noise",
        title="Stress test at other rates of wrong labels",
        arms=tuple(_label_noise()),
    ),
    Experiment(
        name="09-controls-digits",
        title="Stress test on scikit-learn's digits",
        arms=(
            ("SGD", SGD, STRESS_DIGITS),
            ("Adam", ADAM, STRESS_DIGITS),
            ("ConvolutionalSGD", V1, STRESS_DIGITS),
            ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM, STRESS_DIGITS),
            ("WienerSGD", WIENER_SGD, STRESS_DIGITS),
        ),
    ),
    Experiment(
        name="09-controls-gradient-noise",
        title="Clean labels, batch 64, white noise added to every gradient",
        arms=tuple(_gradient_noise()),
    ),
)


@dataclass(frozen=True)
class Rival:
    """A method that is tuned by random search.

    Attributes:
        recipe: its settings, but for what is searched.
        rates: least and largest learning rate; trials are spread over their logarithm.
        options: further options of the optimizer, or of what the name before a dot says ("loss.amount"), each with the
            values to draw from.
    """

    recipe: Recipe
    rates: tuple[float, float]
    options: tuple[tuple[str, Sequence[object]], ...] = ()


def part_and_option(name: str) -> tuple[str, str]:
    """``"loss.amount"`` taken apart; an option without a part is the optimizer's."""
    part, _, option = name.rpartition(".")
    return part or "optimizer", option


def _optimizer(name: str, **options: object) -> Recipe:
    return Recipe(Choice.of(name, **options))


SGD_RATES, ADAM_RATES = (0.0003, 0.1), (0.00003, 0.01)
RIVALS = {
    "SGD": Rival(SGD, SGD_RATES, (("momentum", (0.0, 0.9)),)),
    "Adam": Rival(ADAM, ADAM_RATES),
    "AdamW": Rival(ADAMW, ADAM_RATES, (("weight_decay", (0.01, 0.1, 1.0)),)),
    "NAdam": Rival(_optimizer("NAdam"), ADAM_RATES),
    "Muon": Rival(_optimizer("Muon"), (0.0001, 0.03)),
    "SGD, cosine": Rival(replace(SGD, schedule="cosine"), SGD_RATES),
    "SGD, one cycle": Rival(replace(SGD, schedule="one cycle"), SGD_RATES),
    "SGD, reduced on plateaus": Rival(replace(SGD, schedule="plateau"), SGD_RATES),
    "SGD, Pflug's test": Rival(
        replace(SGD, annealing=Choice.of("Pflug test")), SGD_RATES, (("annealing.burn_in", (200, 1000)),)
    ),
    "SGD, averaged weights": Rival(
        replace(SGD, averaging=Choice.of("EMA")), SGD_RATES, (("averaging.decay", (0.99, 0.999, 0.9999)),)
    ),
    "SGD, label smoothing": Rival(
        replace(SGD, loss=Choice.of("label smoothing")), SGD_RATES, (("loss.amount", (0.1, 0.2, 0.4)),)
    ),
    "SGD, generalised cross-entropy": Rival(
        replace(SGD, loss=Choice.of("generalised cross-entropy")), SGD_RATES, (("loss.q", (0.3, 0.7)),)
    ),
    "Adam, cosine": Rival(replace(ADAM, schedule="cosine"), ADAM_RATES),
    "LaplacianSmoothingSGD": Rival(_optimizer("LaplacianSmoothingSGD"), SGD_RATES, (("sigma", (1.0, 3.0)),)),
    "Grokfast": Rival(_optimizer("Grokfast"), ADAM_RATES, (("grokfast_lamb", (0.5, 2.0)),)),
    "Lion": Rival(_optimizer("Lion"), (0.000003, 0.001)),
    "SAM": Rival(_optimizer("SAM", momentum=0.9), SGD_RATES, (("rho", (0.05, 0.2)),)),
    "AdEMAMix": Rival(_optimizer("AdEMAMix"), ADAM_RATES, (("alpha", (2.0, 5.0)),)),
    "Schedule-free SGD": Rival(_optimizer("ScheduleFreeSGD"), (0.003, 1.0)),
    "Schedule-free AdamW": Rival(_optimizer("ScheduleFreeAdamW"), ADAM_RATES),
    "ConvolutionalSGD": Rival(V1, SGD_RATES, (("kernel_size", (3, 5)),)),
    "SGD + SNRAnnealing": Rival(annealed(SGD), SGD_RATES),
    "Adam + SNRAnnealing": Rival(annealed(ADAM), ADAM_RATES),
    "WienerSGD": Rival(WIENER_SGD, SGD_RATES),
    "WienerAdamW": Rival(WIENER_ADAMW, ADAM_RATES),
}
"""What is compared in the stress test, by label."""

ANNEALABLE = (
    "SGD",
    "Adam",
    "AdamW",
    "Muon",
    "LaplacianSmoothingSGD",
    "Grokfast",
    "Lion",
    "SAM",
    "AdEMAMix",
    "Schedule-free AdamW",
    "ConvolutionalSGD",
)
"""Rivals that are also tuned, with the same budget, with SNRAnnealing around them; for some that is said above."""

ANNEALED = {
    name: replace(RIVALS[label], recipe=annealed(RIVALS[label].recipe))
    for label in ANNEALABLE
    if (name := f"{label} + SNRAnnealing") not in RIVALS
}
RIVALS |= ANNEALED

TRIALS = 6
"""First trials of each rival, a random search."""

LOWER_RATES = (1 / 2, 1 / 4, 1 / 8)
"""Further trials: factors on the learning rate of the best of the first, for most rivals the lowest one drawn."""

TUNING_SEED = 10
"""The first that no published comparison uses."""


def trials(label: str) -> list[Recipe]:
    """The rival's first trials: a Latin hypercube, so that learning rates are drawn equally evenly for all rivals."""
    rival = RIVALS[label]
    sampler = qmc.LatinHypercube(d=1 + len(rival.options), rng=zlib.crc32(label.encode()))
    low, high = (math.log(rate) for rate in rival.rates)
    drawn = []
    for first, *others in sampler.random(TRIALS):
        recipe = with_options(rival.recipe, lr=float(f"{math.exp(low + first * (high - low)):.2g}"))
        for (name, values), share in zip(rival.options, others, strict=True):
            part, option = part_and_option(name)
            recipe = with_options(recipe, part, **{option: values[int(share * len(values))]})
        drawn.append(recipe)
    return drawn


CHOSEN_TRIALS: dict[str, tuple[int, float]] = {
    "SGD": (3, 1),
    "Adam": (1, 1 / 2),
    "AdamW": (1, 1),
    "NAdam": (2, 1),
    "Muon": (3, 1 / 2),
    "SGD, cosine": (4, 1),
    "SGD, one cycle": (2, 1),
    "SGD, reduced on plateaus": (3, 1),
    "SGD, Pflug's test": (5, 1 / 4),
    "SGD, averaged weights": (5, 1 / 2),
    "SGD, label smoothing": (0, 1 / 2),
    "SGD, generalised cross-entropy": (3, 1),
    "Adam, cosine": (5, 1),
    "LaplacianSmoothingSGD": (3, 1 / 2),
    "Grokfast": (5, 1),
    "Lion": (2, 1),
    "SAM": (4, 1),
    "AdEMAMix": (0, 1 / 4),
    "Schedule-free SGD": (4, 1 / 2),
    "Schedule-free AdamW": (0, 1),
    "ConvolutionalSGD": (2, 1),
    "SGD + SNRAnnealing": (5, 1 / 2),
    "Adam + SNRAnnealing": (4, 1),
    "WienerSGD": (0, 1),
    "WienerAdamW": (3, 1 / 2),
    "AdamW + SNRAnnealing": (3, 1),
    "Muon + SNRAnnealing": (1, 1),
    "LaplacianSmoothingSGD + SNRAnnealing": (0, 1),
    "Grokfast + SNRAnnealing": (1, 1 / 2),
    "Lion + SNRAnnealing": (3, 1 / 2),
    "SAM + SNRAnnealing": (3, 1 / 2),
    "AdEMAMix + SNRAnnealing": (2, 1),
    "Schedule-free AdamW + SNRAnnealing": (5, 1 / 2),
    "ConvolutionalSGD + SNRAnnealing": (0, 1),
}
"""By rival: which of its first trials is best on the validation pictures, and which factor on that one's rate."""


COMPARED = tuple(label for label in RIVALS if label in CHOSEN_TRIALS and label not in ANNEALED)
"""Rivals that the page compares: those whose search is done."""


def lower_trials(label: str) -> list[Recipe]:
    """The rival's further trials: the best of the first ones at lower rates; none before that one is chosen."""
    if label not in CHOSEN_TRIALS:
        return []
    best = trials(label)[CHOSEN_TRIALS[label][0]]
    return [_at_lower_rate(best, factor) for factor in LOWER_RATES]


def best_trial(label: str) -> Recipe:
    """The rival at the best of all its trials."""
    place, factor = CHOSEN_TRIALS[label]
    return _at_lower_rate(trials(label)[place], factor)


def _at_lower_rate(recipe: Recipe, factor: float) -> Recipe:
    return with_options(recipe, lr=float(f"{factor * dict(recipe.optimizer.options)['lr']:.2g}"))


def _at_best_trial(labels: Iterable[str]) -> tuple[tuple[str, Recipe, Setting], ...]:
    return tuple((label, best_trial(label), STRESS) for label in labels)


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        *WIENER_EXPERIMENTS,
        *CONTROLS,
        Experiment(
            name="05-standard",
            title="Standard conditions: clean labels, batch 64",
            arms=tuple(_standard()),
        ),
        Experiment(
            name="07-batch-size",
            title="Batch-size ablation at the README's settings: 3000 pictures, 10 % wrong labels",
            arms=tuple(_batch_sizes()),
            claims=tuple(
                Claim("ConvolutionalSGDv2 (uniform)", "SGD", "best", difference, size)
                for size, difference in ((8, 1.4), (16, -0.8), (32, -5.8), (64, -28.6))
            ),
        ),
        Experiment(
            name="07-batch-size-tuning",
            title="Batch-size ablation: learning rates, by accuracy on the validation pictures",
            arms=tuple(_batch_size_tuning()),
            seeds=2,
            first_seed=TUNING_SEED,
        ),
        Experiment(
            name="07-batch-size-tuned",
            title="Batch-size ablation, each learning rate tuned for each size",
            arms=tuple(_batch_sizes_tuned()),
        ),
        Experiment(
            name="10-adversarial",
            title="Training against FGSM and PGD",
            arms=tuple(_adversarial()),
        ),
        Experiment(
            name="11-rivals",
            title="Stress test: every rival at its best trial's settings",
            arms=_at_best_trial(COMPARED),
        ),
        Experiment(
            name="11-rivals-annealed",
            title="Stress test: rivals with SNRAnnealing and without, each at its best trial's settings",
            arms=_at_best_trial((*ANNEALABLE, *(f"{label} + SNRAnnealing" for label in ANNEALABLE), "WienerSGD")),
        ),
        Experiment(
            name="11-rivals-tuning",
            title="Stress test: random search on the validation pictures",
            arms=tuple(
                (label, recipe, STRESS) for label in RIVALS for recipe in (*trials(label), *lower_trials(label))
            ),
            seeds=1,
            first_seed=TUNING_SEED,
        ),
        Experiment(
            name="06-stress-test",
            title="Stress test: SimpleNet, batch 8, 15 % wrong labels",
            arms=(
                ("SGD", SGD, STRESS),
                ("Adam", ADAM, STRESS),
                ("ConvolutionalSGD", V1, STRESS),
                *LEARNED_KERNELS,
            ),
            claims=(
                Claim("ConvolutionalSGD", "SGD", "best", 3.4),
                Claim("ConvolutionalSGD", "Adam", "best", 1.7),
                Claim("ConvolutionalSGD", "ConvolutionalSGDv2 (uniform)", "best", 1.2),
                Claim("ConvolutionalSGDv2 (uniform)", "SGD", "final", 6.3),
                Claim("ConvolutionalSGDv2 (uniform)", "Adam", "final", 2.3),
                Claim("ConvolutionalSGDv2 (uniform)", "ConvolutionalSGD", "final", 2.8),
                Claim("ConvolutionalSGDv2 (uniform)", "SGD", "stability", -0.13),
                Claim("ConvolutionalSGDv2 (uniform)", "Adam", "stability", -0.16),
                Claim("ConvolutionalSGD", "SGD", "stability", 0.31),
            ),
        ),
        Experiment(
            name="08-kernel-evolution",
            title="Kernel evolution: v1's demo at batch 64, and the stress test",
            arms=(
                ("ConvolutionalSGD", V1, KERNEL_DEMO),
                *LEARNED_KERNELS,
                ("WienerSGD", WIENER_SGD, STRESS),
            ),
        ),
    )
}


PAGES = ("04-wiener", "07-batch-size", "09-controls", "11-rivals")
"""Pages that tell of several experiments. The names of these begin with the page's name."""


def page_of(name: str) -> str:
    """The page that tells of the experiment called ``name``."""
    return next((page for page in PAGES if name == page or name.startswith(f"{page}-")), name)


def find(name: str) -> Experiment:
    """The experiment called ``name``; ValueError lists the known ones."""
    require_known("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


def on_page(name: str) -> list[Experiment]:
    """All experiments of the page called ``name``, or the experiment called so; ValueError lists the known ones."""
    require_known("experiment", name, {*EXPERIMENTS, *PAGES})
    return [found for found in EXPERIMENTS.values() if name in (page_of(found.name), found.name)]


def published_runs() -> list[Run]:
    """Every run of the published experiments, once."""
    published = (experiment for experiment in EXPERIMENTS.values() if experiment.published)
    return list(dict.fromkeys(run for experiment in published for run in experiment.runs()))
