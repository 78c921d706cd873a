"""Arithmetic that gives the same bits on every x86-64 processor, so that a recorded run can be had again to the last.

MKL, oneDNN, torch's own loops and NumPy's OpenBLAS choose their code by the processor. ``portable.PORTABLE`` holds them
to code that all have. One function is left: MKL's square root is rounded correctly on Intel's processors only, so
NumPy's takes its place.

Measured in November 2026, torch 2.11 on an Intel Xeon against torch 2.13 on an AMD EPYC: in forty steps of eight
optimizers on two networks at three batch sizes, all operations had the same bits. Without NumPy's, the square root
alone differed; without OPENBLAS_CORETYPE, NumPy's matrix products did.
"""

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convopt.lab.portable import PORTABLE


def is_asked_for() -> bool:
    """Whether this process has ``PORTABLE`` in its environment."""
    return all(os.environ.get(name) == value for name, value in PORTABLE.items())


@cache
def settle() -> str:
    """What this process's arithmetic is called: "portable" where that is asked for and can be had, else "native".

    Where it is portable, torch's square root of this process is another from then on.
    """
    if not is_asked_for() or platform.machine() not in ("x86_64", "AMD64"):
        return "native"
    _replace_square_root()
    return "portable"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many torch threads. With one, runs go to all cores side by side, and results do not depend on how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _square_root(x: Tensor) -> Tensor:
    """Correctly rounded, in the dtype and layout of torch's own."""
    if x.dtype not in (torch.float32, torch.float64):
        return _square_root(x.float()).to(x.dtype if x.is_floating_point() else torch.float32)
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))


def _square_root_in_place(x: Tensor) -> Tensor:
    return x.copy_(_square_root(x))


def _square_root_into(x: Tensor, *, out: Tensor) -> Tensor:
    return out.resize_(x.shape).copy_(_square_root(x))


_library: list[Any] = []  # what is registered lasts as long as this


def _replace_square_root() -> None:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that it takes the place of another
        library.impl("sqrt", _square_root, "CPU")
        library.impl("sqrt_", _square_root_in_place, "CPU")
        library.impl("sqrt.out", _square_root_into, "CPU")
    _library.append(library)
