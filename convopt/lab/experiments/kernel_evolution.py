"""Page 08: how kernels change in training."""

from convopt.lab.experiments.arms import Arm, Experiment, Setting
from convopt.lab.experiments.common import LEARNED_KERNELS, STRESS, V1, WIENER_SGD
from convopt.lab.runs import Choice

PAGE = "08-kernel-evolution"

KERNEL_DEMO = Setting(n_train=2000, batch_size=64, label_noise=0.0, model=Choice.of("SimpleNet"), epochs=10)

EXPERIMENTS = (
    Experiment(
        name="08-kernel-evolution",
        title="Kernel evolution: v1's demo at batch 64, and the stress test",
        arms=(
            Arm("ConvolutionalSGD", V1, KERNEL_DEMO),
            *LEARNED_KERNELS,
            Arm("WienerSGD", WIENER_SGD, STRESS),
        ),
    ),
)
