"""What keeps torch's global settings out of the theory's numbers.

Default dtype and device are kept out where tensors are made: every constructor names both.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_BUILT = {
    "cpu": True,
    "cuda": torch.version.cuda or torch.version.hip,
    "mps": torch.backends.mps.is_built(),
    "xpu": getattr(torch.version, "xpu", None),
}
_DEVICES_OF_AUTOCAST = tuple(device for device, built in _BUILT.items() if built)
_is_enabled = torch.is_autocast_enabled  # looked up once: this is asked several times a step


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """``function`` with the values that it has outside of torch.autocast, which would round its matrix products."""

    @wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> T:
        for device in _DEVICES_OF_AUTOCAST:
            if _is_enabled(device):
                with torch.autocast(device, enabled=False):
                    return outside(*args, **kwargs)
        return function(*args, **kwargs)

    return outside


def constant(kept: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator of functions whose tensors depend on their arguments alone: the last ``kept`` results are kept.

    They are made outside of torch.inference_mode: what is made inside could take part in no later gradient. What is
    made under a dispatch mode is not kept: torch's fake tensors, which estimate memory, would turn up in real steps.
    Nor is anything kept while torch compiles a step, which would warn of it.
    """

    def keep(function: Callable[P, T]) -> Callable[P, T]:
        make = torch.inference_mode(False)(function)
        made_or_kept = lru_cache(maxsize=kept)(make)

        @wraps(function)
        def of(*args: P.args, **kwargs: P.kwargs) -> T:
            if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
                return make(*args, **kwargs)
            return made_or_kept(*args, **kwargs)  # type: ignore[arg-type]

        of.cache_clear = made_or_kept.cache_clear  # type: ignore[attr-defined]
        return of

    return keep
