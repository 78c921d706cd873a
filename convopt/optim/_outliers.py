"""Which gradients may teach: one that is not finite, or far larger than usual, leaves no trace in what is learnt.

How large gradients usually are is an exponential moving average of their power |g|^2. A gradient of more than ``LIMIT``
times that power teaches nothing. It still raises the average, by a bounded factor, so that gradients that stay so large
become usual after about a dozen steps.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convopt.optim._scalars import Scalar, is_finite, is_readable, minimum, where
from convopt.theory.smoothing import at_least_float32

LIMIT = 1e3
"""Times the usual power: about thirty times the usual norm."""

MEMORY = 0.99
"""Factor of the average."""

GROWTH = 100.0
"""Times the usual power: in the average, an outlier counts as no more."""


def judge(power: Scalar, usual: Scalar) -> tuple[bool | Tensor, Scalar]:
    """Whether a gradient of this power may teach, and what is usual from now on. ``usual`` is 0 before the first."""
    # Written out for floats: at every step of every parameter, the generic functions are too slow.
    if isinstance(power, float) and isinstance(usual, float):
        if not math.isfinite(power):
            return False, usual
        if usual == 0:
            return True, power
        return power <= LIMIT * usual, MEMORY * usual + (1 - MEMORY) * min(power, GROWTH * usual)
    finite, known = is_finite(power), usual > 0 if isinstance(usual, Tensor) else torch.tensor(usual > 0, device="cpu")
    average = where(known, MEMORY * usual + (1 - MEMORY) * minimum(power, GROWTH * usual), power)
    return finite & (~known | (power <= LIMIT * usual)), where(finite, average, usual)


def ordinary(
    states: list[dict[str, Any]], powers: Sequence[Scalar], update: bool = True
) -> tuple[list[bool | Tensor], list[bool | Tensor]]:
    """Which of several parameters' gradients may teach, by their ``powers``; which are the first.

    What is usual of each, ``state["usual_power"]``, is updated; unless ``update``, of those alone that are the first.
    """
    usual = [state["usual_power"] for state in states]
    if any(isinstance(power, Tensor) for power in powers):
        before = torch.stack(usual)
        verdicts, after = map(torch.as_tensor, judge(torch.stack([*map(torch.as_tensor, powers)]), before))
        first = before == 0
        torch._foreach_copy_(usual, list((after if update else torch.where(first, after, before)).unbind()))
        return list(verdicts.unbind()), list(first.unbind())
    known = [each.item() for each in usual]
    judged = [judge(power, old) for power, old in zip(powers, known, strict=True)]
    for each, old, (_, new) in zip(usual, known, judged, strict=True):
        if update or old == 0:
            each.fill_(new)
    return [verdict for verdict, _ in judged], [old == 0 for old in known]


def powers_of(gradients: list[Tensor]) -> list[Scalar]:
    """|g|^2 of each of some gradients on one device, in float64."""
    norms = torch._foreach_norm([at_least_float32(g) for g in gradients])
    if not is_readable(norms[0].device):
        return list(torch.stack(norms).double().square().unbind())
    powers: list[Scalar] = []
    for gradient, norm in zip(gradients, norms, strict=True):
        value = norm.item()
        if value in (0, math.inf):  # perhaps because the squares are out of float32's range
            value = torch.linalg.vector_norm(gradient, dtype=torch.float64).item()
        powers.append(value * value)
    return powers


def new_usual_power(device: torch.device) -> Tensor:
    """Of a parameter that has had no gradient."""
    return torch.zeros((), dtype=torch.float64, device=device)


def overwrite(kept: Tensor, gradient: Tensor, may_teach: bool | Tensor) -> None:
    """Keep a gradient as what the next is compared with: zeros, of which nothing is learnt, if it may not teach."""
    if may_teach is not True:
        gradient = torch.where(torch.as_tensor(may_teach, device=kept.device), gradient, 0)
    kept.copy_(gradient)


def select(may_teach: list[bool | Tensor], new: Tensor, old: Tensor) -> Tensor:
    """The rows of ``new`` of those that may teach, the others of ``old``."""
    if all(verdict is True for verdict in may_teach):
        return new
    verdicts = torch.stack([torch.as_tensor(verdict, device=new.device) for verdict in may_teach])
    return torch.where(verdicts.unsqueeze(1), new, old)
