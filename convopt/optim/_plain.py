"""Steps compute alike whatever mode of torch surrounds them."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import ParamSpec, TypeVar

import torch

from convopt.optim._scalars import is_eager
from convopt.theory._ambient import in_full_precision

P = ParamSpec("P")
R = TypeVar("R")


def in_plain_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without gradients, without autocast and outside of inference mode.

    State that is made in inference mode could not be updated outside of it.
    """
    precise = in_full_precision(function)

    @functools.wraps(function)
    def in_mode(*args: P.args, **kwargs: P.kwargs) -> R:
        inference = is_eager() and torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if inference else nullcontext(), torch.no_grad():
            return precise(*args, **kwargs)

    return in_mode
