"""Which parameters lie on a grid: how to say it, and how to find them."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convopt.optim._checks import check_integer


def spatial_axes(grid: Sequence[int]) -> tuple[int, ...]:
    """The axes to smooth along: all of ``(T,)`` and ``(H, W)``, the last two of ``(C, H, W)``."""
    return tuple(grid)[-2:]


def check_grid(grid: Sequence[int], shape: Sequence[int], name: str) -> None:
    """Raise ValueError unless ``grid`` is one to three positive integers that fold trailing axes of ``shape``."""
    if not isinstance(grid, list | tuple) or not 1 <= len(grid) <= 3:
        raise ValueError(f"grid must be (T,), (H, W) or (C, H, W), got {grid!r}")
    if any(isinstance(length, bool) or not isinstance(length, int) or length < 1 for length in grid):
        raise ValueError(f"grid must hold positive integers, got {grid!r}")
    trailing = [math.prod(shape[start:]) for start in range(len(shape))]
    if math.prod(grid) not in trailing:
        raise ValueError(
            f"grid {tuple(grid)} has {math.prod(grid)} elements, but no trailing axes of parameter {name} of shape "
            f"{tuple(shape)} multiply to that"
        )


def spatial_param_groups(
    model: nn.Module, sample_input: Any, *, smallest_kernel: int = 7
) -> tuple[list[dict[str, Any]], str]:
    """Param groups in which the weights that look at images have a ``grid``, and an account of what was found.

    One forward pass is traced. A grid is given to

    - the weight of a linear layer that takes a flattened image ``(C, H, W)`` or sequence ``(C, T)``;
    - a convolution's kernels of at least ``smallest_kernel`` along each spatial axis, as in a stem or a patch
      embedding.

    Everything else gets none, and so the plain update. Images are what comes as ``(batch, C, H, W)`` or
    ``(batch, C, T)`` from outside or out of a convolution or a pooling; activations and normalisations in between do
    no harm.

    Example::

        groups, account = spatial_param_groups(model, images[:1])
        print(account)
        optimizer = WienerSGD(groups, lr=0.01)

    Args:
        model: called with gradients disabled, in evaluation mode and with copies of its buffers; its training flags
            and torch's random state are as before afterwards.
        sample_input: what the model is called with: a tensor, a tuple of positional or a dict of keyword arguments.
        smallest_kernel: smaller ones have few frequencies to tell apart.

    Returns:
        Groups of named parameters for any optimizer, first the one without a grid, and a text with a line for each
        parameter that has one and its reason.

    Raises:
        TypeError: ``model`` is not a module, as where the two arguments are swapped.
        ValueError: ``smallest_kernel`` is not a positive integer, or a parameter is not initialised yet, as in a lazy
            module before its first forward pass.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}: the model comes first, then a sample input"
        )
    check_integer("smallest_kernel", smallest_kernel, at_least=1)
    names = {p: name for name, p in model.named_parameters()}
    for p, name in names.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"model must be initialised, but parameter {name} has no shape yet")
    tracer = _Tracer(names, smallest_kernel)
    args, kwargs = _as_arguments(sample_input)
    tracer.take_as_images([*args, *kwargs.values()])
    training = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device for p in names if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=[device.index for device in devices]), torch.no_grad(), tracer:
            torch.func.functional_call(model.eval(), buffers, args, kwargs)
    finally:
        for module, was_training in training:
            module.training = was_training
    return _groups(names, tracer.found), _account(names, tracer.found)


class _Tracer(TorchFunctionMode):
    """Follows images through a forward pass.

    Attributes:
        found: for each parameter with a grid, the grid and what was seen.
    """

    def __init__(self, names: dict[nn.Parameter, str], smallest_kernel: int):
        super().__init__()
        self.names, self.smallest_kernel = names, smallest_kernel
        self.found: dict[nn.Parameter, tuple[tuple[int, ...], str]] = {}
        # By id, with the tensors themselves, so that no other tensor takes the id over.
        self.images: dict[int, tuple[Tensor, tuple[int, ...]]] = {}

    def take_as_images(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (3, 4):
                self._mark(value, value.shape[1:])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "linear" or name.startswith("conv"):
            arguments = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            self._look_at(name, arguments["input"], arguments["weight"])
        shown = result[0] if isinstance(result, tuple) and result else result  # of a pooling with indices the maxima
        if isinstance(shown, Tensor):
            self._follow(name, [value for value in args if isinstance(value, Tensor)], shown)
        return result

    def _look_at(self, name: str, x: Tensor, weight: Tensor) -> None:
        if not isinstance(weight, nn.Parameter) or weight not in self.names or weight in self.found:
            return
        shape = self._shape_of(x)
        if name == "linear" and shape is not None and x.ndim == 2 and math.prod(shape[1:]) > 1:
            self.found[weight] = _as_grid(shape), f"takes a flattened {shape}"
        spatial = tuple(weight.shape[2:])
        if name in ("conv1d", "conv2d") and min(spatial) >= self.smallest_kernel:
            self.found[weight] = spatial, f"is a convolution of {' x '.join(map(str, spatial))}"

    def _follow(self, name: str, inputs: list[Tensor], result: Tensor) -> None:
        comes_of_one = any(self._shape_of(x) is not None for x in inputs)
        if result.ndim in (3, 4) and (name in MAKES_IMAGES or (name in RESIZES and comes_of_one)):
            self._mark(result, result.shape[1:])
            return
        for x in inputs:
            shape = self._shape_of(x)
            if shape is None:
                continue
            kept = result.ndim and math.prod(result.shape[1:]) == math.prod(shape) and len(result) == len(x)
            if name in RESHAPES and kept:
                # An image flattened, or a flattened one as the image it was or another with as many elements.
                if result.ndim == 2 or tuple(result.shape[1:]) == shape or x.ndim == 2:
                    self._mark(result, shape if result.ndim == 2 else result.shape[1:])
                return
            if name in KEEPS and result.shape == x.shape:
                self._mark(result, shape)
                return

    def _mark(self, x: Tensor, shape: Sequence[int]) -> None:
        self.images[id(x)] = x, tuple(shape)

    def _shape_of(self, x: Any) -> tuple[int, ...] | None:
        return self.images[id(x)][1] if id(x) in self.images else None


RESHAPES = {"flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten", "ravel"}
RESIZES = {"interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "pad"}
"""What makes an image of another size out of one; of an embedding, say, it makes none."""

MAKES_IMAGES = {
    *("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"),
    *(
        f"{kind}_pool{n}d{suffix}"
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp", "fractional_max")
        for n in (1, 2)
        for suffix in ("", "_with_indices")
    ),
}
KEEPS = {
    *("relu", "relu_", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("softplus", "hardtanh", "hardswish", "hardsigmoid", "tanh", "sigmoid", "logsigmoid", "log_sigmoid", "softmax"),
    *("hardshrink", "softshrink", "tanhshrink", "softsign", "threshold", "_threshold", "normalize", "rms_norm"),
    *("clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "neg", "abs", "sin", "cos", "exp", "square"),
    *("__neg__", "__abs__", "__rsub__", "rsub", "__pow__", "pow", "sqrt", "log", "log1p"),
    *("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "local_response_norm"),
    *("batch_norm", "instance_norm", "group_norm", "layer_norm", "add", "sub", "mul", "div", "add_", "sub_", "mul_"),
    *("div_", "__add__", "__radd__", "__sub__", "__mul__", "__rmul__", "__truediv__", "__iadd__", "__imul__"),
    *("contiguous", "clone", "detach", "to", "float", "half", "bfloat16", "double", "type"),
}
"""Functions, by name, whose result shows the image that went in, if it has its shape."""


def _as_arguments(sample_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample_input, dict):
        return (), sample_input
    return (sample_input if isinstance(sample_input, tuple) else (sample_input,)), {}


def _as_grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``(C, H, W)`` as it is, ``(C, T)`` as images of one row: its channels are not smoothed over."""
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


def _groups(names: dict[nn.Parameter, str], found: dict[nn.Parameter, Any]) -> list[dict[str, Any]]:
    members: dict[tuple[int, ...] | None, list[tuple[str, nn.Parameter]]] = {None: []}
    for p, name in names.items():
        members.setdefault(found[p][0] if p in found else None, []).append((name, p))
    return [{"params": params, "grid": grid} for grid, params in members.items() if params]


def _account(names: dict[nn.Parameter, str], found: dict[nn.Parameter, Any]) -> str:
    lines = [f"{names[p]} {tuple(p.shape)}: grid {grid}, it {reason}" for p, (grid, reason) in found.items()]
    rest = len(names) - len(found)
    return "\n".join([*lines, f"{rest} of {len(names)} parameters have no grid and get the plain update"])
