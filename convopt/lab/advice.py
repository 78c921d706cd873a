"""When to use smoothing: pieces of advice, each with the comparison that it stands or falls with."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from convopt.lab import experiments
from convopt.lab.experiments import Experiment
from convopt.lab.report import HEADINGS, Table, condition, difference
from convopt.lab.stats import holm, verdict
from convopt.lab.study import Results

LOWER_IS_BETTER = ("stability", "seconds_per_epoch")


@dataclass(frozen=True)
class Advice:
    """To use a method in a situation, or not to; ``treatment`` against ``control`` tells whether that is right.

    Attributes:
        situation: when.
        use: whether one should.
        experiment: the name of the one that compares them.
        treatment: the label of the method's arm.
        control: the label of the arm that it is held against.
        measure: of ``report.measured``.
        setting: which of the experiment's settings, by ``report.condition``'s names; all where it has but one.
    """

    situation: str
    use: bool
    experiment: str
    treatment: str
    control: str
    measure: str = "final"
    setting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def claimed(self) -> int:
        """The sign of the difference if the advice is right."""
        return 1 if self.use == (self.measure not in LOWER_IS_BETTER) else -1

    def comparison(self) -> Experiment:
        """The experiment with the two arms alone."""
        whole = experiments.find(self.experiment)
        arms = [
            arm
            for arm in whole.arms
            if arm.label in (self.treatment, self.control)
            and self.setting.items() <= condition(arm.setting.run(arm.recipe, "mnist", None, 0)).items()
        ]
        return replace(whole, arms=tuple(arms))


V1, V2_UNIFORM, V2_GAUSSIAN = "ConvolutionalSGD", "ConvolutionalSGDv2 (uniform)", "ConvolutionalSGDv2 (gaussian)"

OF_THE_PROPOSAL = (
    *(
        Advice(f"batches of {size}, {rates}", size <= 16, experiment, V2_UNIFORM, "SGD", "best", {"batch_size": size})
        for rates, experiment in (("untuned rates", "07-batch-size"), ("tuned rates", "07-batch-size-tuned"))
        for size in (8, 16, 64, 256)
    ),
    Advice("15 % label noise", True, "06-stress-test", V1, "SGD"),
    Advice("15 % label noise", True, "06-stress-test", V2_UNIFORM, "SGD"),
    Advice("15 % label noise, all tuned", True, "11-baselines", V1, "SGD"),
    Advice("45 % label noise", True, "09-controls-label-noise", V1, "SGD", setting={"label_noise": 0.45}),
    Advice("unsteady training, 15 % label noise", True, "06-stress-test", V1, "SGD", "stability"),
    Advice("unsteady training, 15 % label noise", True, "06-stress-test", V2_UNIFORM, "SGD", "stability"),
    Advice(
        "unsteady training, an ill-conditioned network",
        True,
        "05-standard",
        V1,
        "SGD",
        setting={"model": "IllConditionedNet"},
    ),
    Advice(
        "unsteady training, an ill-conditioned network",
        True,
        "05-standard",
        V2_GAUSSIAN,
        "SGD",
        setting={"model": "IllConditionedNet"},
    ),
    *(
        Advice(
            f"adversarial training, PGD-10 at {size}", True, "10-adversarial", label, "SGD", "pgd", {"adversary": name}
        )
        for size, name in ((0.1, "PGD, 0.1"), (0.2, "PGD, 0.2"))
        for label in (V1, V2_UNIFORM)
    ),
    Advice("clean labels, batches of 64", False, "05-standard", V1, "SGD", setting={"model": "SimpleNet"}),
    Advice("clean labels, batches of 64", False, "05-standard", V2_GAUSSIAN, "SGD", setting={"model": "SimpleNet"}),
    Advice("speed is critical", False, "06-stress-test", V1, "SGD", "seconds_per_epoch"),
    Advice("speed is critical", False, "06-stress-test", V2_UNIFORM, "SGD", "seconds_per_epoch"),
)
"""The original proposal's table of when to use smoothing and when not."""

TUNED = "15 % label noise, rate and epochs tuned"

OF_THIS_STUDY = (
    *(
        Advice(TUNED, use, "15-factorial", f"{base}, {treatment}", f"{base}, {control}", "confirmation")
        for base in ("SGD", "AdamW")
        for use, treatment, control in (
            (True, "Wiener filter, cosine", "raw gradient, cosine"),
            (True, "fixed kernel, cosine", "raw gradient, cosine"),
            (True, "Wiener filter, cosine", "fixed kernel, cosine"),
            (True, "raw gradient, SNRAnnealing", "raw gradient, constant"),
            (False, "raw gradient, SNRAnnealing", "raw gradient, cosine"),
        )
    ),
    *(
        Advice(
            "pixels in no order, rate and epochs tuned",
            False,
            "15-factorial-conditions",
            f"SGD, {gradient}, cosine, permuted pixels",
            "SGD, raw gradient, cosine, permuted pixels",
            "confirmation",
        )
        for gradient in ("fixed kernel", "Wiener filter")
    ),
    *(
        Advice(
            "adversarial training, PGD-10 at 0.1",
            False,
            "10-adversarial",
            "WienerSGD",
            control,
            "pgd",
            {"adversary": "PGD, 0.1"},
        )
        for control in ("SGD", "Adam")
    ),
    Advice("speed is critical", False, "04-wiener", "WienerSGD", "SGD", "seconds_per_epoch"),
)
"""What the study has to say of its own methods: arms that were tuned alike are compared."""


def judge(
    advice: Sequence[Advice], results_of: Callable[[Sequence[Experiment]], Sequence[Results]], name: str
) -> Table:
    """A row per piece of advice: the paired difference over seeds that it stands on, and whether that bears it out.

    Args:
        advice: the rows.
        results_of: of several experiments, each one's results: ``Study.together`` for one.
        name: of the CSV file.

    p-values are Holm's over the rows of the same experiment.
    """
    results = results_of([piece.comparison() for piece in advice])
    found = [
        difference(of_one.arms[piece.treatment], of_one.arms[piece.control], piece.measure)
        for piece, of_one in zip(advice, results, strict=True)
    ]
    corrected = [math.nan] * len(advice)
    for experiment in {piece.experiment for piece in advice}:
        rows = [row for row, piece in enumerate(advice) if piece.experiment == experiment]
        for row, p in zip(rows, holm([found[row].p for row in rows]), strict=True):
            corrected[row] = p
    return Table(
        pd.DataFrame(
            {
                "situation": piece.situation,
                "advice": "use" if piece.use else "do not use",
                "difference": f"{piece.treatment} minus {piece.control}",
                "measure": {**HEADINGS, "seconds_per_epoch": "seconds per epoch"}[piece.measure],
                "measured": comparison.interval,
                "p, Holm": p,
                "verdict": verdict(comparison.interval, p, piece.claimed),
            }
            for piece, comparison, p in zip(advice, found, corrected, strict=True)
        ),
        name,
        signed=True,
        index=2,
    )
