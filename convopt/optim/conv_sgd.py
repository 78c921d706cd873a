"""ConvolutionalSGD: one 1-D kernel, adapted by whether the loss fell."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from convopt.optim._base import Direction, Part
from convopt.optim._checks import check_number
from convopt.optim._kernels import KernelOptimizer, initial_kernel, smooth_flattened
from convopt.theory._shifts import ShiftsInPieces


class ConvolutionalSGD(KernelOptimizer):
    r"""SGD with momentum on gradients that are convolved with one 1-D kernel (v1 of the idea).

    Each gradient is flattened, reflect-padded and convolved; a gradient shorter than the kernel passes through.
    After a step whose loss is known, the kernel follows a heuristic:

    .. math::
        W \leftarrow \begin{cases} W + \eta_W e_{centre} & \text{if the loss fell since the last step} \\
        0.9\, W + 0.1\, U & \text{otherwise} \end{cases}, \qquad W \leftarrow W / \textstyle\sum_i W_i

    with U the uniform kernel (with ``maximize``, where the loss rose). Without a loss the kernel stays as it is.

    Where torch.distributed runs several ranks, their kernels stay the same only if they learn the same loss: pass its
    average over the ranks. A closure, or a loss that gradients can flow through, is one rank's own and refused. (The
    optimizer does not average them itself, because that would hang wherever only some ranks make a step.)

    Rows whose gradient is zero by construction (an embedding's ``padding_idx``, masks) are moved, too. Give such
    parameters a group of their own with ``kernel_size=1``.

    Args:
        params: parameters or param groups.
        lr: learning rate, a float or a tensor of one element.
        momentum, weight_decay, nesterov, maximize: as in torch.optim.SGD without dampening. Weight decay is added after
            smoothing.
        kernel_size: taps, odd.
        kernel_lr: by how much the centre tap grows after a step whose loss fell.
        kernel_init: "uniform", another name of ``NAMED_KERNELS``, or a tensor of ``kernel_size`` taps.

    Raises:
        ValueError: an option is outside its range.
        RuntimeError: at a step on one of several ranks, given a closure or a loss that is not averaged over the ranks.
    """

    _group_kernels = ("kernel",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        kernel_size: int = 5,
        kernel_lr: float = 0.001,
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
                "kernel_lr": kernel_lr,
                "kernel_init": kernel_init,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _check_loss(self, closure: Callable[[], Any] | None, loss: Any) -> None:
        """RuntimeError for a loss of one of several ranks."""
        if several_ranks() and (closure is not None or (isinstance(loss, Tensor) and loss.requires_grad)):
            raise RuntimeError(
                f"loss must be the average over all {dist.get_world_size()} ranks, got "
                f"{'a closure' if closure is not None else 'a loss with a graph'}, which is of one rank: average "
                "loss.detach() with torch.distributed.all_reduce and pass it as step(loss=average)"
            )

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_number("kernel_lr", options["kernel_lr"], at_least=0)

    def _initial_group_state(self, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "kernel": initial_kernel(group["kernel_init"], group["kernel_size"], ndim=1),
            # nan before there was one: distributed checkpoints load a tensor only in a tensor's place.
            "previous_loss": torch.tensor(math.nan, dtype=torch.float64, device="cpu"),
        }

    def _kernels_of(self, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"kernel": group["kernel"]}

    def _directions(self, part: Part, observed: Any) -> Sequence[Direction]:
        kernel, size = part.group["kernel"], part.group["kernel_size"]
        directions = self._smoothed(
            part,
            lambda grads: smooth_flattened(grads, size, kernel),
            lambda line: ShiftsInPieces(line, size).smooth_pieces(kernel),
        )
        if observed is not None:
            if not isinstance(observed, Tensor):  # made where it is needed: to copy it there, the host would wait
                observed = torch.full((), observed, dtype=torch.float64, device=kernel.device)
            self._follow(part.group, observed.to(kernel.device, torch.float64))
        return directions

    def _follow(self, group: dict[str, Any], loss: Tensor) -> None:
        """Adapt the kernel to the loss. One that is not finite says nothing, and the next is compared with the last."""
        previous = group["previous_loss"].to(loss.device)
        fell = loss > previous if group["maximize"] else loss < previous
        comparable = loss.isfinite() & previous.isfinite()
        group["kernel"] = torch.where(
            comparable, adapt_to_loss(group["kernel"], fell, group["kernel_lr"]), group["kernel"]
        )
        group["previous_loss"] = torch.where(loss.isfinite(), loss, previous)


def several_ranks() -> bool:
    """Whether this process is one of several that torch.distributed runs."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def adapt_to_loss(kernel: Tensor, fell: bool | Tensor, kernel_lr: float) -> Tensor:
    """v1's heuristic: ``kernel`` (float32, ``(k,)``) after a step. ``fell`` may be a 0-dim bool tensor."""
    if isinstance(fell, Tensor):
        if_fell, if_not = (adapt_to_loss(kernel, outcome, kernel_lr) for outcome in (True, False))
        return torch.where(fell.to(kernel.device), if_fell, if_not)
    if fell:
        adapted = kernel.clone()
        adapted[kernel.numel() // 2].add_(kernel_lr)
    else:
        adapted = 0.9 * kernel + 0.1 / kernel.numel()
    return adapted / adapted.sum()
