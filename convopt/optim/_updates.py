"""The update laws of SGD and AdamW, one each. None writes to a gradient or a direction.

torch's fused updates go through memory as it lies and take all that they are given for one layout. They are used only
where that holds; elsewhere the plain ones compute the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from convopt.optim._checks import check_flag, check_learning_rate, check_number
from convopt.optim._scalars import Scalar, is_eager, is_readable

HALF_PRECISIONS = (torch.float16, torch.bfloat16)


class UpdateLaw(ABC):
    """How parameters move along directions.

    Attributes:
        buffers: names of the state that has its parameter's shape.
        counters: names of other state, and its shape.
        neutral: options of torch's own optimizer that this law does not have, and the value at which they do nothing.
    """

    buffers: ClassVar[tuple[str, ...]]
    counters: ClassVar[dict[str, tuple[int, ...]]] = {}
    neutral: ClassVar[dict[str, Any]]

    def check(self, options: dict[str, Any]) -> None:
        """Raise ValueError for an option that is out of range or not supported."""
        check_learning_rate(options["lr"])
        check_number("weight_decay", options["weight_decay"], at_least=0)
        for name, value in self.neutral.items():
            if options.get(name, value) != value:
                raise ValueError(f"{name} is not supported here and must be {value!r}, got {options[name]!r}")

    def init(self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> bool:
        """Make the buffers that are missing; whether any were."""
        missing = [(p, state) for p, state in zip(params, states, strict=True) if state.get(self.buffers[0]) is None]
        for p, state in missing:
            state.update({name: torch.zeros_like(p, memory_format=torch.preserve_format) for name in self.buffers})
        return bool(missing)

    def adopt(self, p: Tensor, state: dict[str, Any]) -> None:  # noqa: B027 (most laws need no other form)
        """Give state that came with a checkpoint the form that the update needs."""

    @abstractmethod
    def update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        directions: list[Tensor],
        states: list[dict[str, Any]],
        lr: float | Tensor,
    ) -> None:
        """One step of parameters on one device along directions of their shapes and dtypes, in place."""


class SGDLaw(UpdateLaw):
    """torch.optim.SGD without dampening: with momentum, Nesterov's or not, and coupled weight decay."""

    buffers = ("momentum_buffer",)
    neutral: ClassVar[dict[str, Any]] = {"dampening": 0, "differentiable": False}

    def check(self, options: dict[str, Any]) -> None:
        """Raise ValueError for an option that is out of range or not supported."""
        super().check(options)
        check_number("momentum", options["momentum"], at_least=0, below=1)
        for name in ("nesterov", "maximize"):
            check_flag(name, options[name])
        if options["nesterov"] and not options["momentum"]:
            raise ValueError("nesterov needs a momentum above 0, got momentum 0")

    def init(self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> bool:
        """Make the buffers of the momentum that are missing; none without one."""
        return bool(group["momentum"]) and super().init(group, params, states)

    def update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        directions: list[Tensor],
        states: list[dict[str, Any]],
        lr: float | Tensor,
    ) -> None:
        """One step of parameters on one device along directions of their shapes and dtypes, in place."""
        buffers = [state["momentum_buffer"] for state in states] if group["momentum"] else []
        # On a CPU, torch 2.13's fused SGD mixes up the elements of momentum in half precision.
        halves_on_cpu = params[0].device.type == "cpu" and params[0].dtype in HALF_PRECISIONS
        if not halves_on_cpu and may_fuse(group, params, directions, buffers):
            options = {name: group[name] for name in ("momentum", "nesterov", "weight_decay", "maximize")}
            torch._fused_sgd_(params, directions, buffers, lr=lr, dampening=0.0, is_first_step=False, **options)
            return
        if group["maximize"]:
            directions = list(torch._foreach_neg(directions))
        if group["weight_decay"]:
            directions = list(torch._foreach_add(directions, params, alpha=group["weight_decay"]))
        if buffers:
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, directions)
            if group["nesterov"]:
                directions = list(torch._foreach_add(directions, buffers, alpha=group["momentum"]))
            else:
                directions = buffers
        if isinstance(lr, Tensor):
            torch._foreach_sub_(params, torch._foreach_mul(directions, lr.reshape(())))
        else:
            torch._foreach_add_(params, directions, alpha=-lr)


class AdamWLaw(UpdateLaw):
    """torch.optim.AdamW: decoupled weight decay."""

    buffers = ("exp_avg", "exp_avg_sq")
    counters: ClassVar[dict[str, tuple[int, ...]]] = {"step": ()}
    neutral: ClassVar[dict[str, Any]] = {"amsgrad": False, "differentiable": False, "decoupled_weight_decay": True}

    def check(self, options: dict[str, Any]) -> None:
        """Raise ValueError for an option that is out of range or not supported."""
        # Without weight decay, Adam is AdamW.
        coupled = {} if options["weight_decay"] else {"decoupled_weight_decay": True}
        super().check({**options, **coupled})
        betas = options["betas"]
        if not (isinstance(betas, tuple | list) and len(betas) == 2) or any(isinstance(beta, Tensor) for beta in betas):
            raise ValueError(f"betas must be two floats, got {betas!r}")
        for i, beta in enumerate(betas):
            check_number(f"betas[{i}]", beta, at_least=0, below=1)
        check_number("eps", options["eps"], at_least=0)

    def init(self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> bool:
        """Make the averages and the counters of steps that are missing."""
        new = super().init(group, params, states)
        if new:
            for p, state in zip(params, states, strict=True):
                self.adopt(p, state)
        return new

    def adopt(self, p: Tensor, state: dict[str, Any]) -> None:
        """Keep the counter of steps on the parameter's device, where torch's AdamW has it only if it is fused."""
        if state:
            state["step"] = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32, device=p.device)

    def update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        directions: list[Tensor],
        states: list[dict[str, Any]],
        lr: float | Tensor,
    ) -> None:
        """One step of parameters on one device along directions of their shapes and dtypes, in place."""
        averages, squares = ([state[name] for state in states] for name in self.buffers)
        steps = [state["step"] for state in states]
        beta1, beta2 = group["betas"]
        options = {name: group[name] for name in ("weight_decay", "eps", "maximize")}
        options |= {"lr": lr, "beta1": beta1, "beta2": beta2, "amsgrad": False}
        if may_fuse(group, params, directions, averages, squares):
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(params, directions, averages, squares, [], steps, **options)
            return
        adamw(
            params,
            directions,
            averages,
            squares,
            [],
            steps,
            foreach=group.get("foreach") is not False and is_eager(),
            fused=False,
            # Else a device would be waited for, to read the counter.
            capturable=params[0].device.type == "cuda",
            **options,
        )


def may_fuse(group: dict[str, Any], *lists: Sequence[Tensor]) -> bool:
    """Whether the group's ``fused``, where it has one, allows a fused update, and all that it takes for granted holds.

    Each parameter, its direction and its buffers are dense, of one layout and one shape; all tensors are of one dtype
    and on one device that has such updates; and nothing is compiled.
    """
    first = lists[0][0]
    if not group.get("fused", True) or not is_eager() or first.device.type not in ("cpu", "cuda"):
        return False
    for tensors in zip(*[each for each in lists if each], strict=True):
        shape = tensors[0].shape
        image = len(shape) == 4 and not tensors[0].is_contiguous()
        for tensor in tensors:
            dense = tensor.is_contiguous(memory_format=torch.channels_last) if image else tensor.is_contiguous()
            if not (dense and tensor.shape == shape and tensor.dtype == first.dtype and tensor.device == first.device):
                return False
    return True


def step_size(lr: float | Tensor, factor: Scalar | None, device: torch.device) -> float | Tensor:
    """The learning rate times the factor; a float where it can be read, because torch's updates are faster with one."""
    if isinstance(lr, Tensor):
        lr = lr.item() if is_readable(lr.device) else lr.to(device).reshape(())
    if factor is None:
        return lr
    size = lr * (factor.to(device) if isinstance(factor, Tensor) else factor)
    return size.to(torch.float32) if isinstance(size, Tensor) and size.dtype == torch.float64 else size
