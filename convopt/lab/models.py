"""The networks of the study. All take a flattened picture, ``(batch, pixels)``, and return logits."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


class SimpleNet(nn.Module):
    """A three-layer perceptron: input, hidden, hidden, output, with ReLU.

    Most of the study trains it, at batch 8, where an nn.Sequential costs a fifth of the forward pass.
    """

    def __init__(self, input_size: int = 784, hidden_size: int = 128, output_size: int = 10):
        super().__init__()
        self.hidden1 = nn.Linear(input_size, hidden_size)
        self.hidden2 = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, input_size)`` in, ``(batch, output_size)`` out."""
        return self.output(torch.relu(self.hidden2(torch.relu(self.hidden1(x)))))


class DeepNet(nn.Sequential):
    """A perceptron with ``n_layers`` hidden layers of one width, with ReLU."""

    def __init__(self, input_size: int = 784, hidden_size: int = 64, output_size: int = 10, n_layers: int = 6):
        widths = [input_size] + [hidden_size] * n_layers
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden_size, output_size))


class IllConditionedNet(nn.Sequential):
    """A three-layer perceptron whose initial weights are multiplied by 10, 0.1 and 5, layer by layer."""

    def __init__(self, input_size: int = 784, output_size: int = 10):
        hidden1 = min(256, max(64, input_size // 3))
        hidden2 = min(128, max(32, input_size // 6))
        super().__init__(
            nn.Linear(input_size, hidden1),
            nn.ReLU(),
            nn.Linear(hidden1, hidden2),
            nn.ReLU(),
            nn.Linear(hidden2, output_size),
        )
        linears = [layer for layer in self if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for layer, scale in zip(linears, (10.0, 0.1, 5.0), strict=True):
                layer.weight.mul_(scale)


class ConvNet(nn.Sequential):
    """Two 3x3 convolutions (16 and 32 channels), each with 2x2 max pooling and ReLU, then a linear layer.

    ReLU after pooling is the same function as before it, on a quarter of the values. ``image_size`` is the pixels along
    each side of the square, one-channel picture, a multiple of 4.
    """

    def __init__(self, image_size: int = 28, output_size: int = 10):
        if image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {image_size!r}")
        super().__init__(
            _Pictures(image_size),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (image_size // 4) ** 2, output_size),
        )


class _Pictures(nn.Module):
    """``(batch, n * n)`` as ``(batch, 1, n, n)`` with the channel last in memory, where torch's CPU pooling is fast."""

    def __init__(self, image_size: int):
        super().__init__()
        self.image_size = image_size

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, self.image_size, self.image_size, 1).movedim(-1, 1)


class ResNet(nn.Sequential):
    """A residual perceptron: an input layer, three residual blocks and an output layer."""

    def __init__(self, input_size: int = 784, hidden_size: int = 128, output_size: int = 10, n_blocks: int = 3):
        super().__init__(
            nn.Linear(input_size, hidden_size),
            nn.ReLU(),
            *(ResidualBlock(hidden_size) for _ in range(n_blocks)),
            nn.Linear(hidden_size, output_size),
        )


class ResidualBlock(nn.Module):
    """``relu(x + batchnorm(linear(relu(batchnorm(linear(x))))))``."""

    def __init__(self, width: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, width)`` in and out."""
        return torch.relu(x + self.residual(x))


def _convnet(grid: tuple[int, int], classes: int) -> nn.Module:
    height, width = grid
    if height != width:
        raise ValueError(f"ConvNet needs square pictures, got grid {grid}")
    return ConvNet(height, classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "SimpleNet": lambda grid, classes, **options: SimpleNet(math.prod(grid), output_size=classes, **options),
    "DeepNet": lambda grid, classes, **options: DeepNet(math.prod(grid), output_size=classes, **options),
    "IllConditionedNet": lambda grid, classes: IllConditionedNet(math.prod(grid), classes),
    "ConvNet": _convnet,
    "ResNet": lambda grid, classes, **options: ResNet(math.prod(grid), output_size=classes, **options),
}
"""Models by name, made from the grid of pixels, the number of classes and the model's own options."""
