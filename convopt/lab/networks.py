"""The networks of the study, and one registry of them. All take ``(batch, *shape)`` and return ``(batch, outputs)``.

Networks of tokens take ``(batch, T)`` and return ``(batch, T, vocabulary)``.
"""

import hashlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convopt.lab.data.dataset import Kind
from convopt.lab.names import did_you_mean, in_a_line, quoted
from convopt.lab.vision import torchvision


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
        """Shape ``(batch, *shape)`` of ``input_size`` numbers in, ``(batch, output_size)`` out."""
        return self.output(torch.relu(self.hidden2(torch.relu(self.hidden1(x.flatten(1))))))


class _OfFlattened(nn.Sequential):
    """Layers over inputs that are flattened first. No module does it, so that parameters keep their names."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


class DeepNet(_OfFlattened):
    """A perceptron with ``n_layers`` hidden layers of one width, with ReLU."""

    def __init__(self, input_size: int = 784, hidden_size: int = 64, output_size: int = 10, n_layers: int = 6):
        widths = [input_size] + [hidden_size] * n_layers
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden_size, output_size))


class IllConditionedNet(_OfFlattened):
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

    ReLU after pooling is the same function as before it, on a quarter of the values. ValueError for images whose sides
    are no multiples of 4.
    """

    def __init__(self, shape: tuple[int, ...] = (1, 28, 28), output_size: int = 10):
        channels, height, width = shape
        if height % 4 or width % 4:
            raise ValueError(f"ConvNet needs images whose sides are multiples of 4, got {height} x {width}")
        super().__init__(
            _ChannelsLast(),
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), output_size),
        )


class _ChannelsLast(nn.Module):
    """Images with the channel last in memory, where torch's CPU pooling is fast."""

    def forward(self, x: Tensor) -> Tensor:
        # Of one channel torch takes any layout for either, and would not change it.
        return (
            x.reshape(-1, *x.shape[2:], 1).movedim(-1, 1)
            if x.shape[1] == 1
            else x.contiguous(memory_format=torch.channels_last)
        )


class ConvNet1d(nn.Sequential):
    """Two convolutions of 5 taps along a series (32 and 64 channels), with pooling and ReLU, then a linear layer."""

    def __init__(self, shape: tuple[int, ...], output_size: int):
        channels, steps = shape
        if steps < 4:
            raise ValueError(f"ConvNet1d needs series of at least 4 steps, got {steps}")
        super().__init__(
            nn.Conv1d(channels, 32, 5, padding=2),
            nn.MaxPool1d(2),
            nn.ReLU(),
            nn.Conv1d(32, 64, 5, padding=2),
            nn.MaxPool1d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * (steps // 4), output_size),
        )


class GRULanguageModel(nn.Module):
    """An embedding, one layer of gated recurrent units and a linear layer: logits of the next token at each place."""

    def __init__(self, vocabulary: int, hidden_size: int = 96):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden_size)
        self.recurrent = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.output = nn.Linear(hidden_size, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape ``(batch, T)`` in, ``(batch, T, vocabulary)`` out."""
        return self.output(self.recurrent(self.embedding(tokens))[0])


class TabularNet(_OfFlattened):
    """A perceptron of two hidden layers with batch normalisation, for rows of a table."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int = 128):
        super().__init__(
            nn.Linear(input_size, hidden_size),
            nn.BatchNorm1d(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.BatchNorm1d(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, output_size),
        )


class ResNet(_OfFlattened):
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


def _resnet18(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """torchvision's ResNet-18 with a stem for small images: one 3x3 convolution, no pooling (He et al., 2016)."""
    network = torchvision().models.resnet18(num_classes=outputs)
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


class Network(NamedTuple):
    """A network that is known by name.

    Attributes:
        make: from the shape of an input, the number of outputs and the network's own options.
        kinds: of inputs that it takes.
    """

    make: Callable[..., nn.Module]
    kinds: tuple[Kind, ...]


def _of_flattened(cls: Callable[..., nn.Module], shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
    return cls(math.prod(shape), output_size=outputs, **options)


_NUMBERS: tuple[Kind, ...] = ("image", "series", "features")

NETWORKS: dict[str, Network] = {
    **{cls.__name__: Network(partial(_of_flattened, cls), _NUMBERS) for cls in (SimpleNet, DeepNet, IllConditionedNet)},
    "ConvNet": Network(ConvNet, ("image",)),
    "ResNet": Network(partial(_of_flattened, ResNet), _NUMBERS),
    "ResNet-18": Network(_resnet18, ("image",)),
    "ConvNet1d": Network(ConvNet1d, ("series",)),
    "TabularNet": Network(partial(_of_flattened, TabularNet), _NUMBERS),
    "GRULanguageModel": Network(lambda shape, outputs, **options: GRULanguageModel(outputs, **options), ("tokens",)),
}
"""Networks by name."""

IN_PLACE: dict[Kind, str] = {
    "image": "ConvNet",
    "series": "ConvNet1d",
    "features": "TabularNet",
    "tokens": "GRULanguageModel",
}
"""What is trained in place of a network that does not take such inputs."""


def make(name: str, shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
    """The network called ``name``, or of the reader's own function ``package.module:function``.

    That is called with the shape, the number of outputs and the options, as those of :data:`NETWORKS` are. ValueError
    for an unknown name, a function that cannot be imported or fails, or one that returns no module.
    """
    if name in NETWORKS:
        return NETWORKS[name].make(shape, outputs, **options)
    function = _imported(name)
    try:
        made = function(shape, outputs, **options)
    except Exception as error:  # of any kind: the function is the reader's
        raise ValueError(
            f"model {quoted(name)} fails when called with the shape {shape} and {outputs} outputs: {in_a_line(error)}"
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"model {quoted(name)} must return a torch.nn.Module, got {type(made).__name__}")
    return made


def require_network(name: object) -> None:
    """ValueError unless ``name`` is that of a network, or of a function that can be imported."""
    if name not in NETWORKS:
        _imported(name)


def _imported(name: object) -> Callable[..., Any]:
    """The function ``package.module:function``. Modules in the current folder are found, too, after all others."""
    module, _, function = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not function:
        raise ValueError(
            f"model must be one of {', '.join(NETWORKS)}, or package.module:function, got {quoted(name)}"
            f"{did_you_mean(name, NETWORKS)}"
        )
    if os.getcwd() not in sys.path:  # a program's path begins with the program's own folder
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:  # of any kind: importing executes the reader's module
        raise ValueError(f"model {quoted(name)} cannot be imported: {in_a_line(error)}") from error


def fingerprint(name: str, shape: tuple[int, ...], outputs: int) -> str:
    """What tells the reader's own network from what its name stood for before; empty for those of this package.

    The source of its module, its layers, and the shapes of its parameters.
    """
    if name in NETWORKS:
        return ""
    function = _imported(name)
    try:
        source = inspect.getsource(sys.modules[function.__module__])
    except (OSError, TypeError, KeyError, AttributeError):  # of what was not written in a file
        source = ""
    with torch.random.fork_rng(devices=[]):
        made = make(name, shape, outputs)
    shapes = [(key, tuple(value.shape)) for key, value in made.state_dict().items()]
    return hashlib.sha256(f"{source}{made}{shapes}".encode()).hexdigest()[:16]


def fitting(name: str, kind: Kind) -> str:
    """``name``, or what takes its place where that network does not take inputs of this kind."""
    return name if name not in NETWORKS or kind in NETWORKS[name].kinds else IN_PLACE[kind]
