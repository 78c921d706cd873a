"""Global settings of torch that surround a call."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from convopt.theory import _shifts, _ways, kernel_loss, kernels, smoothing, snr, spectrum


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def only_deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic algorithms": only_deterministic_algorithms,
}


def forget_constants() -> None:
    """None are kept of those that the theory's modules have made."""
    for module in (_shifts, _ways, kernels, smoothing, kernel_loss, spectrum, snr):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
