"""Numbers that a step learns: one formula for floats on the host and for 0-dim tensors on a device.

Where a tensor's values can be read without waiting, arithmetic on Python's floats is twenty times faster than on
tensors of one element. On an accelerator, and while torch compiles a step, nothing is read and they stay tensors.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor
"""A float, or a 0-dim tensor of float64."""


def is_eager() -> bool:
    """Whether this call is run, and not compiled by torch."""
    return not torch.compiler.is_compiling()


def is_readable(device: torch.device) -> bool:
    """Whether values on ``device`` can be read without waiting: on a CPU, unless torch compiles this call."""
    return device.type == "cpu" and is_eager()


def read(vector: Tensor) -> list[Scalar]:
    """The elements of a vector, as floats where they can be read, else as 0-dim tensors."""
    return vector.tolist() if is_readable(vector.device) else list(vector.unbind())


def value_of(number: Tensor) -> Scalar:
    """A 0-dim tensor's value where it can be read, else the tensor."""
    return number.item() if is_readable(number.device) else number


def write(vector: Tensor, values: Sequence[Scalar]) -> None:
    """Put numbers of :func:`read` back into a vector, in place."""
    if any(isinstance(value, Tensor) for value in values):
        vector.copy_(torch.stack([torch.as_tensor(v, dtype=vector.dtype, device=vector.device) for v in values]))
    else:
        vector.copy_(torch.tensor(values, dtype=vector.dtype, device="cpu"))


def where(condition: bool | Tensor, value: Scalar, otherwise: Scalar) -> Scalar:
    """``value`` if the condition holds, else ``otherwise``."""
    if isinstance(condition, Tensor):
        return torch.where(condition, value, otherwise)
    return value if condition else otherwise


def maximum(first: Scalar, second: Scalar) -> Scalar:
    """The larger of two numbers."""
    return where(first >= second, first, second)


def minimum(first: Scalar, second: Scalar) -> Scalar:
    """The smaller of two numbers."""
    return where(first <= second, first, second)


def ratio(numerator: Scalar, denominator: Scalar) -> Scalar:
    """A quotient; nan for a zero denominator."""
    if isinstance(denominator, Tensor):
        return torch.where(denominator == 0, math.nan, numerator / denominator)
    return numerator / denominator if denominator else math.nan


def is_finite(value: Scalar) -> bool | Tensor:
    """Whether a number is neither nan nor infinite."""
    return value.isfinite() if isinstance(value, Tensor) else math.isfinite(value)
