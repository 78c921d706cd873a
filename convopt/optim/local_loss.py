"""LocalLossConvSGD: a 1-D kernel of its own for each parameter, taught by a local loss."""

from typing import Any

import torch
from torch import Tensor

from convopt.optim._base import (
    SmoothingOptimizer,
    check_number,
    grad_of,
    initial_kernel,
    mean_statistics,
    named_params,
    together,
)
from convopt.theory.kernel_loss import KernelLoss, local_loss, local_loss_of_taps, through_normalisation
from convopt.theory.kernels import clip_to_simplex
from convopt.theory.smoothing import LineShifts, ShiftsInPieces, at_least_float32, smooth


class LocalLossConvSGD(SmoothingOptimizer):
    r"""SGD with momentum on gradients that are convolved with a kernel per parameter.

    Each gradient is flattened, reflect-padded and convolved; a gradient shorter than the kernel passes through.
    After the update the parameter's kernel takes one step of gradient descent on

    .. math::  L_W = -\cos(g, W * g) + \lambda\, \mathrm{Var}(W * g)

    with the exact gradient through the normalisation W / sum(W), is clipped at zero and divided by its sum.

    Args:
        params: parameters or param groups.
        lr: learning rate, a float or a tensor of one element.
        momentum, weight_decay, nesterov, maximize: as in torch.optim.SGD without dampening. Weight decay is added after
            smoothing.
        kernel_size: taps, odd.
        local_lr: learning rate of the kernels.
        lambd: :math:`\lambda`, the weight of the variance, in units of 1 / gradient squared.
        kernel_init: "uniform", another name of ``NAMED_KERNELS``, or a tensor of ``kernel_size`` taps.

    Raises:
        ValueError: an option is outside its range.
    """

    _float32_state = ("kernel",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        kernel_size: int = 5,
        local_lr: float = 0.001,
        lambd: float = 0.1,
        kernel_init: str | Tensor = "uniform",
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "kernel_size": kernel_size,
                "local_lr": local_lr,
                "lambd": lambd,
                "kernel_init": kernel_init,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_number("local_lr", options["local_lr"], at_least=0)
        check_number("lambd", options["lambd"], at_least=0)

    def _kernels_of(self, group: dict[str, Any]) -> dict[str, Tensor]:
        return {name: self.state[p]["kernel"] for name, p in named_params(group) if "kernel" in self.state.get(p, {})}

    def _step_group(self, group: dict[str, Any], params: list[Tensor], loss: Tensor | float | None) -> None:
        directions = {p: grad_of(p) for p in params}
        long_enough = [p for p in params if p.numel() >= group["kernel_size"]]
        for some in together(long_enough, key=lambda p: (p.device, directions[p].dtype, self._goes_in_pieces(p))):
            kernels, shifts = self._kernels_and_shifts(group, some)
            if self._goes_in_pieces(some[0]):
                for p, kernel in zip(some, kernels, strict=True):
                    pieces = ShiftsInPieces(grad_of(p).view(-1), group["kernel_size"]).smooth_pieces(kernel)
                    self._descend_in_pieces(group, p, (-1,), pieces)
                    del directions[p]
            else:
                for p, direction in zip(some, shifts.smooth(kernels), strict=True):
                    directions[p] = direction.view(p.shape)
            self._adapt(group, some, kernels, shifts)
        self._descend(group, list(directions), list(directions.values()))

    def _kernels_and_shifts(self, group: dict[str, Any], params: list[Tensor]) -> tuple[Tensor, LineShifts]:
        """The parameters' kernels, stacked, and the shifts of their flattened gradients."""
        size = group["kernel_size"]
        for p in params:
            if "kernel" not in self.state[p]:
                self.state[p]["kernel"] = initial_kernel(group["kernel_init"], size, ndim=1).to(p.device)
        kernels = torch.stack([self.state[p]["kernel"] for p in params])
        return kernels, LineShifts([grad_of(p).reshape(-1) for p in params], size)

    def _adapt(self, group: dict[str, Any], params: list[Tensor], kernels: Tensor, shifts: LineShifts) -> None:
        """Take one step of all those kernels."""
        slopes = local_loss_of_taps(kernels, shifts.statistics(), group["lambd"]).gradient
        slopes = through_normalisation(slopes.float(), kernels)
        adapted = clip_to_simplex(torch.sub(kernels, slopes, alpha=group["local_lr"]))
        torch._foreach_copy_([self.state[p]["kernel"] for p in params], adapted.unbind())

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """Means over the smoothed parameters for the gradients in place: ``kernel_loss``, ``cosine_similarity``."""
        losses = [
            _local_loss(group, p, state["kernel"])
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and "kernel" in (state := self.state.get(p, {}))
        ]
        return mean_statistics(losses)


def _local_loss(group: dict[str, Any], p: Tensor, kernel: Tensor) -> KernelLoss:
    grad = at_least_float32(grad_of(p)).reshape(-1)
    return local_loss(smooth(grad, kernel), grad, group["lambd"])
