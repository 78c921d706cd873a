"""The optimizers that the tests run over, a model and its data."""

import pytest
import torch
from torch import nn

from convopt import ConvolutionalSGD, ConvolutionalSGDv2, LocalLossConvSGD, optim

EXPORTED = {name: getattr(optim, name) for name in optim.__all__}
OURS = {
    name: each for name, each in EXPORTED.items() if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)
}
"""All of them by name. The experiments have the same table, but the tests of the optimizers need no experiments."""

OPTIMIZERS = [ConvolutionalSGD, LocalLossConvSGD, ConvolutionalSGDv2]
for_each_optimizer = pytest.mark.parametrize("optimizer_class", OPTIMIZERS)


def convolutional_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Weights of every layout: a 3x3 and a 5x5 convolution, two linear layers, biases, one shorter than a kernel."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 64, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    ).to(dtype)


def batches(n: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 1, 8, 8, generator=generator).to(dtype),
            torch.randint(3, (8,), generator=generator),
        )
        for _ in range(n)
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list, with_loss: bool = True) -> list[float]:
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step(loss=loss) if with_loss else optimizer.step()
        losses.append(loss.item())
    return losses
