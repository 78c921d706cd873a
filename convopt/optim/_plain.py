"""Steps compute alike whatever mode of torch surrounds them."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

from convopt.optim._scalars import is_eager

P = ParamSpec("P")
R = TypeVar("R")

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def in_plain_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without gradients, without autocast and outside of inference mode.

    Under autocast, matrix products would round to half precision. State that is made in inference mode could not be
    updated outside of it.
    """

    @functools.wraps(function)
    def in_mode(*args: P.args, **kwargs: P.kwargs) -> R:
        autocast = [device for device in AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
        inference = is_eager() and torch.is_inference_mode_enabled()
        if not (autocast or inference):
            with torch.no_grad():
                return function(*args, **kwargs)
        with ExitStack() as modes:
            if inference:
                modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.no_grad())
            for device in autocast:
                modes.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return in_mode
