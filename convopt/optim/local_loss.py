"""LocalLossConvSGD: a 1-D kernel of its own for each parameter, taught by a local loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convopt.optim._base import Direction, Part, Pieces
from convopt.optim._checks import check_number, grad_of, named_params
from convopt.optim._kernels import KernelOptimizer, initial_kernel, mean_statistics, together
from convopt.optim._outliers import new_usual_power, ordinary, select
from convopt.optim._scalars import read
from convopt.theory._shifts import LineShifts, ShiftsInPieces
from convopt.theory.kernel_loss import KernelLoss, local_loss, local_loss_of_taps, through_normalisation
from convopt.theory.kernels import clip_to_simplex
from convopt.theory.smoothing import ShiftStatistics, at_least_float32, smooth


class LocalLossConvSGD(KernelOptimizer):
    r"""SGD with momentum on gradients that are convolved with a kernel per parameter.

    Each gradient is flattened, reflect-padded and convolved; a gradient shorter than the kernel passes through.
    After the update the parameter's kernel takes one step of gradient descent on

    .. math::  L_W = -\cos(g, W * g) + \lambda\, \mathrm{Var}(W * g)

    with the exact gradient through the normalisation W / sum(W), is clipped at zero and divided by its sum.

    Rows whose gradient is zero by construction (an embedding's ``padding_idx``, masks) are moved, too. Give such
    parameters a group of their own with ``kernel_size=1``.

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

    _exact_state = ("kernel", "usual_power")

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

    def _shapes(self, group: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...] | None]:
        return {"kernel": (group["kernel_size"],), "usual_power": ()}

    def _init_state(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> bool:
        new = "kernel" not in state and p.numel() >= group["kernel_size"]
        if new:
            state["kernel"] = initial_kernel(group["kernel_init"], group["kernel_size"], ndim=1).to(p.device)
            state["usual_power"] = new_usual_power(p.device)
        return new

    def _directions(self, part: Part, observed: Any) -> Sequence[Direction]:
        size, gradients, large = part.group["kernel_size"], [grad_of(p) for p in part.params], self._go_in_pieces(part)
        directions: list[Direction] = list(gradients)
        long_enough = [i for i, gradient in enumerate(gradients) if gradient.numel() >= size]
        for some in together(long_enough, key=lambda i: (gradients[i].device, gradients[i].dtype, large[i])):
            lines, states = [gradients[i].reshape(-1) for i in some], [part.states[i] for i in some]
            kernels, shifts = torch.stack([state["kernel"] for state in states]), LineShifts(lines, size)
            if large[some[0]]:
                for i, line, kernel in zip(some, lines, kernels, strict=True):
                    directions[i] = Pieces((-1,), ShiftsInPieces(line, size).smooth_pieces(kernel))
            else:
                for i, smoothed in zip(some, shifts.smooth(kernels), strict=True):
                    directions[i] = smoothed.view(gradients[i].shape)
            self._adapt(part.group, states, kernels, shifts.statistics())
        return directions

    def _adapt(
        self, group: dict[str, Any], states: list[dict[str, Any]], kernels: Tensor, statistics: ShiftStatistics
    ) -> None:
        """Take one step of each kernel whose gradient is an ordinary one."""
        slopes = local_loss_of_taps(kernels, statistics, group["lambd"]).gradient
        slopes = through_normalisation(slopes, kernels.to(slopes.dtype))
        adapted = clip_to_simplex(torch.sub(kernels, slopes, alpha=group["local_lr"])).float()
        centre = kernels.shape[1] // 2
        # The mean power will do: what is usual is known of each parameter apart.
        may_teach, _ = ordinary(states, read(statistics.products[:, centre, centre].double()))
        adapted = select(may_teach, adapted, kernels)
        # Far from 1, squares leave the precision's range; the mean power need not show it.
        adapted = torch.where(adapted.isfinite().all(1, keepdim=True), adapted, kernels)
        torch._foreach_copy_([state["kernel"] for state in states], list(adapted.unbind()))

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
