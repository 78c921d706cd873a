"""SNRAnnealing: shrink the steps of any optimizer as its gradients stop agreeing with each other."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from convopt.optim._base import check_number, params_with_grad
from convopt.theory.smoothing import at_least_float32

LOWEST_RHO = 1e-4
"""The agreement is not taken for less: an estimate of almost nothing may be negative."""


class SNRAnnealing:
    r"""Multiplies an optimizer's learning rates by how well consecutive gradients still agree.

    With :math:`g_t` all gradients of step t as one vector and averages :math:`\overline{\cdot}` over steps,

    .. math::
        \rho_t = \frac{\overline{\langle g_t, g_{t-1}\rangle}}{\overline{|g_t|^2}}, \qquad
        f_t = \Bigl(\frac{\rho_t}{\max_{s \le t} \rho_s}\Bigr)^{p}

    estimates the share of the gradients' power that is signal, SNR / (1 + SNR): noise of different batches is
    independent and cancels in the inner product. When a network starts fitting noise, its gradients stop agreeing and
    the steps shrink by themselves, without a schedule or a validation set.

    The factor of one step is applied to the next, because gradients may come from a closure that the step calls.
    Between steps, ``param_groups[...]["lr"]`` is what you or a scheduler set: the factor comes on top. (A closure that
    raises leaves it scaled until the next step or :meth:`detach`.)

    What it can see: gradients of different batches that share a signal. What it cannot: consecutive steps follow
    :math:`g_{t-1}`, which makes :math:`\rho` too low by an amount that grows with the learning rate; and noise that
    batches share, for example of samples seen in both.

    Use it as it is with gradient accumulation (one estimate per optimizer step), DistributedDataParallel (the averaged
    gradients, hence the factor, are the same on every rank) and GradScaler (a step that is skipped is not seen). It
    keeps one copy of the gradients.

    Args:
        optimizer: any ``torch.optim.Optimizer`` with learning rates in its param groups.
        power: p, not negative.
        warmup: steps during which the factor is 1 and the maximum is not yet taken.
        ema: factor of the averages, in [0, 1); over the first steps they are plain means.
        read_every: steps from one reading of the factor by the host to the next. Where a learning rate is a float the
            host must know the factor, and on an accelerator reading it waits for the device. Learning rates that are
            tensors are scaled on the device and need no reading.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer, or is LBFGS, whose step takes many gradients.
        ValueError: an option is outside its range.
        RuntimeError: at a step, where a gradient is sparse or complex, or a fused optimizer is given gradients that
            GradScaler has not unscaled. Nothing has been updated then.

    Source: the inner product of consecutive gradients as a test of stationarity is Pflug's (1983); see Chee and Toulis,
    Convergence diagnostics for stochastic gradient descent with constant learning rate (arXiv:1710.06382).
    """

    def __init__(
        self, optimizer: Optimizer, power: float = 1.0, warmup: int = 200, ema: float = 0.999, read_every: int = 1
    ):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError("LBFGS takes many gradients in one step and cannot be annealed")
        check_number("power", power, at_least=0)
        check_number("ema", ema, at_least=0, below=1)
        for name, value, least in (("warmup", warmup, 0), ("read_every", read_every, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        self.optimizer = optimizer
        self.power, self.warmup, self.ema, self.read_every = power, warmup, ema, read_every
        self._previous: dict[Tensor, Tensor] = {}
        self._statistics: dict[str, Tensor] | None = None
        self._unread = 0
        self._host_factor = 1.0
        self._set_aside: list[tuple[dict[str, Any], Any, Any]] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def factor(self) -> float:
        """What the next step's learning rates are multiplied by, in (0, 1]."""
        return self._device_factor().item() if self._statistics else 1.0

    def rho(self) -> float:
        """The agreement of consecutive gradients, at least 1e-4; nan before the second step."""
        return _rho(self._statistics).item() if self._statistics else float("nan")

    def detach(self) -> None:
        """Leave the optimizer as it was. Its steps are no longer seen or scaled."""
        for hook in self._hooks:
            hook.remove()
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        """Statistics and previous gradients (in the order of the parameters), to be saved beside the optimizer's."""
        return {
            "statistics": dict(self._statistics) if self._statistics else None,
            "previous": [self._previous.get(p) for p in self._params()],
            "unread": self._unread,
            "host_factor": self._host_factor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`. ValueError if it is of an optimizer with another number of parameters."""
        params, previous = self._params(), state_dict["previous"]
        if len(params) != len(previous):
            raise ValueError(f"state_dict must hold {len(params)} previous gradients, got {len(previous)}")
        self._previous = {p: g.to(p.device, copy=True) for p, g in zip(params, previous, strict=True) if g is not None}
        statistics = state_dict["statistics"]
        device = params[0].device
        self._statistics = statistics and {name: value.to(device, copy=True) for name, value in statistics.items()}
        self._unread, self._host_factor = state_dict["unread"], state_dict["host_factor"]

    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _grads(self) -> dict[Tensor, Tensor]:
        return {p: p.grad for group in self.optimizer.param_groups for p in params_with_grad(group)}

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._restore()  # a step that raised left its learning rates scaled
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "SNRAnnealing needs unscaled gradients, but this fused optimizer unscales them itself: "
                "call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        self._grads()
        for group in optimizer.param_groups:
            lr = group["lr"]
            if isinstance(lr, Tensor):
                self._set_aside.append((group, lr.clone(), None))
                lr.mul_(self._device_factor().to(lr.device) if self._statistics else 1.0)
            else:
                scaled = lr * self._host_factor
                self._set_aside.append((group, lr, scaled))
                group["lr"] = scaled

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._restore()
        rates = [group["lr"] for group in optimizer.param_groups]
        if any(isinstance(lr, Tensor) or lr for lr in rates):
            self._measure()

    def _restore(self) -> None:
        for group, lr, scaled in self._set_aside:
            if isinstance(lr, Tensor):
                group["lr"].copy_(lr)
            elif group["lr"] == scaled:
                group["lr"] = lr
        self._set_aside = []

    def _measure(self) -> None:
        """Take the gradients of the step that was just made into the averages."""
        grads = self._grads()
        # A parameter that had no gradient at the last step has none to compare with.
        self._previous = {p: g for p, g in self._previous.items() if p in grads}
        pairs = [(grads[p], g) for p, g in self._previous.items()]
        if pairs:
            device = pairs[0][0].device
            product = torch.stack([_inner(a, b).to(device) for a, b in pairs]).sum()
            power = torch.stack([_inner(a, a).to(device) for a, _ in pairs]).sum()
            self._update(product, power)
        for p, grad in grads.items():
            if p in self._previous:
                usable = grad.isfinite().all() & grad.any()
                self._previous[p] = torch.where(usable, grad, self._previous[p])
            else:
                self._previous[p] = grad.clone()
        self._unread += 1
        if self._unread >= self.read_every and any(
            not isinstance(group["lr"], Tensor) for group in self.optimizer.param_groups
        ):
            self._host_factor, self._unread = self.factor(), 0

    def _update(self, product: Tensor, power: Tensor) -> None:
        old = self._statistics or {
            "count": torch.zeros_like(power),
            "product": torch.zeros_like(power),
            "power": torch.zeros_like(power),
            "peak": torch.zeros_like(power),
        }
        usable = product.isfinite() & power.isfinite() & (power > 0)
        count = old["count"] + 1
        weight = torch.clamp_min(1 / count, 1 - self.ema)
        new = {
            "count": count,
            "product": torch.lerp(old["product"], product, weight),
            "power": torch.lerp(old["power"], power, weight),
        }
        new["peak"] = torch.where(count > self.warmup, torch.maximum(old["peak"], _rho(new)), old["peak"])
        self._statistics = {name: torch.where(usable, new[name], value) for name, value in old.items()}

    def _device_factor(self) -> Tensor:
        statistics = self._statistics
        annealed = (_rho(statistics) / statistics["peak"]) ** self.power
        return torch.where(statistics["count"] > self.warmup, annealed, 1.0)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, in float32 so that parameters of different precision add up."""
    return torch.dot(at_least_float32(a).reshape(-1), at_least_float32(b).reshape(-1)).float()


def _rho(statistics: dict[str, Tensor]) -> Tensor:
    return (statistics["product"] / statistics["power"]).clamp_min(LOWEST_RHO)
