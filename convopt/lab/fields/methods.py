"""The methods that reconstruct fields: FieldAdam, and baselines whose width somebody has to choose."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from convopt import FieldAdam
from convopt.theory.fields import laplacian_eigenvalues
from convopt.theory.spectrum import apply_gain

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WIDTHS = (1, 3, 10, 30, 100, 300, 1000)
WEIGHTS = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
"""Of a penalty on total variation."""

Make = Callable[[Tensor, float, Sequence[int], int, int], Optimizer]
"""From fields ``(seeds, *grid)``, a learning rate, the grid, batches in an epoch and steps in the run."""


class SmoothedAdam(Optimizer):
    """Adam in ``u = (I + width L)^(power / 2) x``, L the Laplacian, with one second moment for a field.

    With a power of 2 it is nearly AdamUniform, with 1 its cheaper sibling. The second moment is a mean over the field,
    where AdamUniform takes the maximum. A field's mean is smoothed like its lowest other frequency, so that the gain is
    a power law's everywhere; AdamUniform leaves it alone. The mean gain is 1.

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


class TotalVariationAdam(torch.optim.Adam):
    """Adam on the loss plus ``weight`` times the total variation of fields ``(fields, *grid)``.

    Source: Rudin, Osher and Fatemi, Nonlinear total variation based noise removal algorithms, Physica D 60, 1992.
    """

    def __init__(self, params: Sequence[Tensor], lr: float, weight: float):
        super().__init__(params, lr)
        self._weight = weight

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters from their ``grad``, to which the penalty's gradient is added."""
        for p in self.param_groups[0]["params"]:
            p.grad.add_(total_variation_gradient(p.detach()), alpha=self._weight)
        super().step()


def total_variation_gradient(fields: Tensor, smoothness: float = 1e-3) -> Tensor:
    """The gradient of ``sum of sqrt(|grad x|^2 + smoothness^2)``, with forward differences, for ``(fields, *grid)``."""
    fields = fields.requires_grad_()
    squares = torch.full_like(fields, smoothness**2)
    for axis in range(1, fields.ndim):
        squares = squares + fields.diff(dim=axis, append=fields.narrow(axis, -1, 1)).square()
    return torch.autograd.grad(squares.sqrt().sum(), fields)[0]


def _adam(fields: Tensor, lr: float, grid: Sequence[int], batches: int, steps: int) -> Optimizer:
    return torch.optim.Adam([fields], lr=lr)


def _smoothed(width: float, power: int, fields: Tensor, lr: float, grid: Sequence[int], *_: int) -> Optimizer:
    return SmoothedAdam([fields], lr, grid, width, power)


def _penalized(weight: float, fields: Tensor, lr: float, *_: Any) -> Optimizer:
    return TotalVariationAdam([fields], lr, weight)


def _ours(fields: Tensor, lr: float, grid: Sequence[int], batches: int, steps: int) -> Optimizer:
    return FieldAdam([fields], lr, grid=tuple(grid), batches=batches)


FIXED: dict[str, Make] = {
    f"width {width}, power {power}": partial(_smoothed, width, power) for power in (1, 2) for width in WIDTHS
}
PENALIZED: dict[str, Make] = {f"total variation {weight:g}": partial(_penalized, weight) for weight in WEIGHTS}
METHODS: dict[str, Make] = {
    "SGD": partial(_smoothed, 0, 1),
    "Adam": _adam,
    "Adam, cosine": _adam,
    "FieldAdam": _ours,
    **FIXED,
    **PENALIZED,
}
"""SGD has momentum and, so that the same rates serve, the second moment of a whole field; so have the fixed widths."""

ANNEALED = {"Adam, cosine", *PENALIZED}
"""Methods whose rates fall by a cosine."""
