"""A small network on scikit-learn's digits, trained by a plain loop: what trainers are compared with."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from convopt import ConvolutionalSGDv2, LocalLossConvSGD, SNRAnnealing, WienerAdamW, WienerSGD
from convopt.lab import data
from convopt.lab.vision import torchvision

torchvision()  # some trainers import torchvision, which not every pair of wheels can do by itself

BATCH = 32
DIGITS = data.load("digits")
X, Y = DIGITS.train.x.flatten(1)[: 36 * BATCH], DIGITS.train.y[: 36 * BATCH]
ANNEALING = {"warmup": 5, "power": 1.0}
ANNEALED = {"snr_annealing": True, "annealing_ema": 0.9, **ANNEALING}


class Network(nn.Sequential):
    """Its first layer looks at images of 8 x 8."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        super().__init__(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def groups(self) -> list[dict]:
        first, *others = self.parameters()
        return [{"params": [first], "grid": (8, 8)}, {"params": others}]


OPTIMIZERS: dict[str, Callable[[Network], torch.optim.Optimizer]] = {
    "ConvolutionalSGDv2": lambda model: ConvolutionalSGDv2(model.parameters(), lr=0.03, kernel_size=3, kernel_lr=0.1),
    "LocalLossConvSGD": lambda model: LocalLossConvSGD(
        model.parameters(), lr=0.03, local_lr=0.05, kernel_init="gaussian"
    ),
    "WienerSGD": lambda model: WienerSGD(model.groups(), lr=0.1, **ANNEALED),
    "WienerAdamW": lambda model: WienerAdamW(model.groups(), lr=0.01, **ANNEALED),
    "AdamW with SNRAnnealing": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
}
for_each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def annealing_of(name: str, optimizer: torch.optim.Optimizer) -> SNRAnnealing | None:
    """What is attached to the optimizer called ``name``, if anything."""
    return SNRAnnealing(optimizer, ema=0.9, **ANNEALING) if name == "AdamW with SNRAnnealing" else None


def batches() -> list[tuple[Tensor, Tensor]]:
    """One epoch, 36 of them, in the order of the data."""
    return list(zip(X.split(BATCH), Y.split(BATCH), strict=True))


def plain_loop(name: str, epochs: int, accumulate: int = 1) -> Network:
    """The network after ``epochs``, where each step takes the mean gradient of so many batches."""
    model = Network()
    optimizer = OPTIMIZERS[name](model)
    annealing = annealing_of(name, optimizer)
    for _ in range(epochs):
        for i, (x, y) in enumerate(batches()):
            (nn.functional.cross_entropy(model(x), y) / accumulate).backward()
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    if annealing is not None:
        assert annealing.factor() < 1
    return model


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return (model(DIGITS.test.x.flatten(1)).argmax(1) == DIGITS.test.y).float().mean().item()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    assert differences(model, other) == []


def differences(model: nn.Module, other: nn.Module) -> list[str]:
    """The names of the parameters that are not bit for bit the same."""
    pairs: Iterable = zip(model.named_parameters(), other.parameters(), strict=True)
    return [name for (name, p), q in pairs if not torch.equal(p, q)]


def assert_close(model: nn.Module, other: nn.Module) -> None:
    """The same to the rounding of sums in another order."""
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
