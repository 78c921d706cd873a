"""Page 06: the stress test."""

from convopt.lab.experiments.arms import Arm, Claim, Experiment
from convopt.lab.experiments.common import ADAM, LEARNED_KERNELS, SGD, STRESS, V1

PAGE = "06-stress-test"

EXPERIMENTS = (
    Experiment(
        name="06-stress-test",
        title="Stress test: SimpleNet, batch 8, 15 % label noise",
        arms=(
            Arm("SGD", SGD, STRESS),
            Arm("Adam", ADAM, STRESS),
            Arm("ConvolutionalSGD", V1, STRESS),
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
)
