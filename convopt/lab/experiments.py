"""The experiments as data: which runs each consists of. Nothing here trains."""

from collections.abc import Iterable
from dataclasses import dataclass

from convopt.lab.runs import Choice, Run

AVAILABLE = {"mnist": (5000, 1000), "digits": (1200, 397)}
"""Pictures there are to train on and to report, per data set; experiments take at most these."""

SGD = Choice.of("SGD", lr=0.01, momentum=0.9)
ADAM = Choice.of("Adam", lr=0.001)
V1 = Choice.of("ConvolutionalSGD", lr=0.01, momentum=0.9, kernel_size=5)
LOCAL_LOSS = Choice.of("LocalLossConvSGD", lr=0.01, momentum=0.9, kernel_size=5)


def v2(kernel_init: str, **options: object) -> Choice:
    """ConvolutionalSGDv2 at the README's settings for the stress test."""
    return Choice.of(
        "ConvolutionalSGDv2",
        **{"lr": 0.01, "momentum": 0.9, "kernel_size": 5, "kernel_lr": 0.005, "kernel_init": kernel_init, **options},
    )


V2_UNIFORM = v2("uniform")
V2_GAUSSIAN = v2("gaussian")
V2_THREE_PART = v2("uniform", loss_weights=(0.5, 0.3, 0.2))


@dataclass(frozen=True)
class Setting:
    """What a group of runs has in common: everything but data set, optimizer, epochs and seed."""

    n_train: int
    batch_size: int
    label_noise: float
    model: Choice
    epochs: int
    n_test: int = 1000

    def run(self, optimizer: Choice, dataset: str, epochs: int | None, seed: int) -> Run:
        """One run in this setting; of a smaller data set it takes what there is."""
        n_train, n_test = AVAILABLE[dataset]
        return Run(
            dataset=dataset,
            n_train=min(self.n_train, n_train),
            n_test=min(self.n_test, n_test),
            batch_size=self.batch_size,
            label_noise=self.label_noise,
            epochs=epochs or self.epochs,
            model=self.model,
            optimizer=optimizer,
            seed=seed,
        )


@dataclass(frozen=True)
class Claim:
    """A difference that somebody reported: ``measure`` of the arm ``treatment`` minus that of ``control``."""

    treatment: str
    control: str
    measure: str
    difference: float


@dataclass(frozen=True)
class Experiment:
    """A named set of runs: each arm is an optimizer in a setting, repeated over seeds.

    Attributes:
        name: the stem of the notebook that tells of it.
        title: one line.
        arms: (label, optimizer, setting). The label stands in tables and figures.
        claims: what the idea's first report says of it, from one run each.
    """

    name: str
    title: str
    arms: tuple[tuple[str, Choice, Setting], ...]
    claims: tuple[Claim, ...] = ()

    def runs(self, dataset: str = "mnist", seeds: Iterable[int] = range(10), epochs: int | None = None) -> list[Run]:
        """All runs, seed by seed so that an interrupted sweep holds whole pairs; ``epochs`` None is the setting's."""
        return [setting.run(optimizer, dataset, epochs, seed) for seed in seeds for _, optimizer, setting in self.arms]

    def label(self, run: Run) -> str | None:
        """The label of the arm that ``run`` belongs to, whatever its data set, epochs and seed; None for none."""
        for label, optimizer, setting in self.arms:
            if run == setting.run(optimizer, run.dataset, run.epochs, run.seed):
                return label
        return None


STRESS = Setting(n_train=5000, batch_size=8, label_noise=0.15, model=Choice.of("SimpleNet"), epochs=30)
KERNEL_DEMO = Setting(n_train=2000, batch_size=64, label_noise=0.0, model=Choice.of("SimpleNet"), epochs=10)

LEARNED_KERNELS = (
    ("LocalLossConvSGD", LOCAL_LOSS, STRESS),
    ("ConvolutionalSGDv2 (uniform)", V2_UNIFORM, STRESS),
    ("ConvolutionalSGDv2 (gaussian)", V2_GAUSSIAN, STRESS),
    ("ConvolutionalSGDv2 (uniform, three-part loss)", V2_THREE_PART, STRESS),
)
"""Arms whose kernels follow a kernel loss in the stress test; two experiments tell of the same runs."""

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
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
            ),
        ),
    )
}


def find(name: str) -> Experiment:
    """The experiment called ``name``; ValueError lists the known ones."""
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    return EXPERIMENTS[name]
