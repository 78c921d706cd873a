"""The methods that reconstruct fields: FieldAdam, and baselines whose width somebody has to choose."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from convopt import FieldAdam
from convopt.theory.fields import laplacian_eigenvalues
from convopt.theory.spectrum import apply_gain

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WIDTHS = (1, 3, 10, 30, 100, 300, 1000)

Make = Callable[[Tensor, float, Sequence[int], int, int], Optimizer]
"""From fields ``(seeds, *grid)``, a learning rate, the grid, batches in an epoch and steps in the run."""


class SmoothedAdam(Optimizer):
    """Adam in ``u = (I + width L)^(power / 2) x``, L the Laplacian, with one second moment for a field.

    With a power of 2 it is AdamUniform, with 1 its cheaper sibling; the second moment is a mean over the field, where
    AdamUniform takes the maximum. The mean gain is 1.

    Args:
        params: fields, ``(fields, *grid)``.
        lr: learning rate.
        grid: the trailing axes.
        width: lambda.
        power: of the gain ``(I + width L)^-power`` on the gradient.

    Source: Nicolet et al., Large Steps in Inverse Rendering of Geometry, ACM Transactions on Graphics 40(6), 2021.
    """

    def __init__(self, params: Sequence[Tensor], lr: float, grid: Sequence[int], width: float, power: int):
        gain = (1 + width * laplacian_eigenvalues(grid).float()) ** -power
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "gain": gain / gain.mean()})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters from their ``grad``."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state, filtered = self.state[p], apply_gain(p.grad, group["gain"])
                power = (p.grad * filtered).flatten(1).mean(1)
                if not state:
                    state.update(step=0, average=torch.zeros_like(p), power=torch.zeros_like(power))
                state["step"] += 1
                state["average"].lerp_(filtered, 1 - beta1)
                state["power"].lerp_(power, 1 - beta2)
                root = (state["power"] / (1 - beta2 ** state["step"])).sqrt()
                scale = group["lr"] / (1 - beta1 ** state["step"]) / (root + 1e-30)
                p.sub_(state["average"] * scale.view(-1, *[1] * (p.ndim - 1)))


def _adam(fields: Tensor, lr: float, grid: Sequence[int], batches: int, steps: int) -> Optimizer:
    return torch.optim.Adam([fields], lr=lr)


def _smoothed(width: float, power: int, fields: Tensor, lr: float, grid: Sequence[int], *_: int) -> Optimizer:
    return SmoothedAdam([fields], lr, grid, width, power)


def _ours(fields: Tensor, lr: float, grid: Sequence[int], batches: int, steps: int) -> Optimizer:
    return FieldAdam([fields], lr, grid=tuple(grid), batches=batches)


FIXED: dict[str, Make] = {
    f"width {width}, power {power}": partial(_smoothed, width, power) for power in (1, 2) for width in WIDTHS
}
METHODS: dict[str, Make] = {"Adam, cosine": _adam, "FieldAdam": _ours, **FIXED}
ANNEALED = {"Adam, cosine"}
"""Methods whose rates fall by a cosine."""
