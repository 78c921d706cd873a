"""Page 10: training against an adversary."""

from dataclasses import replace

from convopt.lab.experiments.arms import Experiment, each_in
from convopt.lab.experiments.common import ADAM, CLEAN, SGD, SMOOTHING, WIENER_SGD
from convopt.lab.runs import Choice

PAGE = "10-adversarial"


CONVNET = replace(CLEAN, model=Choice.of("ConvNet"), epochs=6)

EXPERIMENTS = (
    Experiment(
        name="10-adversarial",
        title="Training against FGSM and PGD",
        arms=(
            *each_in(
                [
                    replace(CLEAN, adversary=Choice.of(name, epsilon=epsilon))
                    for name in ("FGSM", "PGD")
                    for epsilon in (0.1, 0.2)
                ],
                SMOOTHING,
            ),
            *each_in(
                [replace(CONVNET, adversary=Choice.of("FGSM", epsilon=0.2))],
                [("SGD", SGD), ("Adam", ADAM), ("WienerSGD", WIENER_SGD)],
            ),
        ),
    ),
)
