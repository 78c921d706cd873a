"""SNRAnnealing: shrink the steps of any optimizer as its gradients stop agreeing with each other."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from convopt.optim._base import check_integer, check_number, grad_of, is_at_rest, params_with_grad, together
from convopt.theory.smoothing import at_least_float32

LOWEST_RHO = 1e-4
"""The agreement is not taken for less: an estimate of almost nothing may be negative."""


class SNRAnnealing:
    r"""Multiplies an optimizer's learning rates by how well consecutive gradients still agree.

    With :math:`g_t` all gradients of step t as one vector and averages :math:`\overline{\cdot}` over steps,

    .. math::
        \rho_t = \frac{\overline{\langle g_t, g_{t-1}\rangle}}{\overline{|g_t|^2}}, \qquad
        f_t = \min\Bigl(1, \frac{\rho_t}{c \max_{s \le t} \rho_s}\Bigr)^{p}

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
        onset: c, in (0, 1]: steps shrink once the agreement is below this share of its largest value.
        power: p, not negative: how fast they shrink then.
        warmup: steps during which the factor is 1 and the maximum is not yet taken.
        ema: factor of the averages, in [0, 1); over the first steps they are plain means.
        read_every: steps from one reading of the factor by the host to the next. Where a learning rate is a float the
            host must know the factor, and on an accelerator reading it waits for the device. Learning rates that are
            tensors are scaled on the device and need no reading.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer, or is LBFGS, whose step takes many gradients.
        ValueError: an option is outside its range.
        RuntimeError: at a step, where a gradient is sparse or complex, a parameter is sharded, or a fused optimizer is
            given gradients that GradScaler has not unscaled. Nothing has been updated then.

    Source: the inner product of consecutive gradients as a test of stationarity is Pflug's (1983); see Chee and Toulis,
    Convergence diagnostics for stochastic gradient descent with constant learning rate (arXiv:1710.06382).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        onset: float = 0.8,
        power: float = 1.5,
        warmup: int = 200,
        ema: float = 0.999,
        read_every: int = 1,
    ):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError("LBFGS takes many gradients in one step and cannot be annealed")
        check_onset(onset)
        check_number("power", power, at_least=0)
        check_number("ema", ema, at_least=0, below=1)
        check_integer("warmup", warmup, at_least=0)
        check_integer("read_every", read_every, at_least=1)
        self.optimizer = optimizer
        self.onset, self.power, self.warmup, self.ema, self.read_every = onset, power, warmup, ema, read_every
        self._previous: dict[Tensor, Tensor] = {}
        self._statistics = new_statistics()
        self._unread = 0
        self._host_factor = 1.0
        self._set_aside: list[tuple[dict[str, Any], Any, Any]] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def factor(self) -> float:
        """What the next step's learning rates are multiplied by, in (0, 1]."""
        return annealing_factor(self._statistics, self.onset, self.power, self.warmup).item()

    def rho(self) -> float:
        """The agreement of consecutive gradients, at least 1e-4; nan before the second step."""
        return rho(self._statistics).item()

    def detach(self) -> None:
        """Leave the optimizer as it was. Its steps are no longer seen or scaled."""
        for hook in self._hooks:
            hook.remove()
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        """Statistics and previous gradients (in the order of the parameters), to be saved beside the optimizer's.

        Of a parameter without a previous gradient there are zeros: distributed checkpoints load into tensors.
        """
        return {
            "statistics": self._statistics.clone(),
            "previous": [self._previous[p] if p in self._previous else torch.zeros_like(p) for p in self._params()],
            "unread": self._unread,
            "host_factor": self._host_factor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`. ValueError if it is of an optimizer with another number of parameters."""
        params, previous = self._params(), state_dict["previous"]
        if len(params) != len(previous):
            raise ValueError(f"state_dict must hold {len(params)} previous gradients, got {len(previous)}")
        self._previous = {
            p: g.to(p.device, copy=True) for p, g in zip(params, previous, strict=True) if g is not None and g.any()
        }
        self._statistics = state_dict["statistics"].to(params[0].device, copy=True)
        self._unread, self._host_factor = state_dict["unread"], state_dict["host_factor"]

    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _grads(self) -> dict[Tensor, Tensor]:
        return {p: grad_of(p) for group in self.optimizer.param_groups for p in params_with_grad(group)}

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
                lr.mul_(annealing_factor(self._statistics, self.onset, self.power, self.warmup).to(lr.device))
            else:
                scaled = lr * self._host_factor
                self._set_aside.append((group, lr, scaled))
                group["lr"] = scaled

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._restore()
        if not all(is_at_rest(group["lr"]) for group in optimizer.param_groups):
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
        known = list(self._previous)
        if known:
            observed = agreement([grads[p] for p in known], [self._previous[p] for p in known])
            self._statistics = self._statistics.to(observed.device)
            update_statistics(self._statistics, observed, self.ema, self.warmup)
            torch._foreach_copy_([self._previous[p] for p in known], [grads[p] for p in known])
        for p, grad in grads.items():
            if p not in self._previous:
                self._previous[p] = grad.clone()
        self._unread += 1
        if self._unread >= self.read_every and any(
            not isinstance(group["lr"], Tensor) for group in self.optimizer.param_groups
        ):
            self._host_factor, self._unread = self.factor(), 0


def new_statistics() -> Tensor:
    """What annealing remembers beside gradients, float32: steps seen, the two averages, the largest rho."""
    return torch.zeros(4)


def powers(gradient: Tensor, other: Tensor, halves: bool = False) -> Tensor:
    """Signal and total power from two estimates of one gradient, along their last axis: ``(2, ...)``, float32.

    ``<gradient, other>`` and ``|gradient|^2``. With ``halves``, ``gradient`` is the sum of two halves' gradients and
    ``other`` the first half's; signal is then ``4 <other, gradient - other>``.
    """
    gradient = at_least_float32(gradient)
    other = other.to(gradient.dtype)
    signal = 4 * torch.linalg.vecdot(other, gradient - other) if halves else torch.linalg.vecdot(gradient, other)
    return torch.stack([signal, torch.linalg.vecdot(gradient, gradient)]).float()


def agreement(gradients: list[Tensor], others: list[Tensor], halves: bool = False) -> Tensor:
    """The :func:`powers` of all gradients as one vector, ``(2,)``, on the first one's device.

    They may be of several shapes, precisions and devices.
    """
    # Where tensors are small, calls cost more than numbers: those go together.
    lists = together(
        range(len(gradients)), key=lambda i: (gradients[i].device, i if gradients[i].numel() > 2**15 else None)
    )
    seen = [powers(_joined(gradients, indices), _joined(others, indices), halves) for indices in lists]
    return torch.stack([of_list.to(seen[0].device) for of_list in seen]).sum(0)


def update_statistics(statistics: Tensor, observed: Tensor, ema: float, warmup: int, steps: int = 1) -> None:
    """Take an :func:`agreement`, ``(2,)``, into ``statistics``, in place, where it stands for so many steps.

    One that is not finite, or of gradients that are all zero, leaves them as they are.
    """
    count, product, power, peak = statistics.unbind()
    weight = (steps / (count + steps)).clamp_min(1 - ema**steps)
    product, power = torch.lerp(statistics[1:3], observed, weight).unbind()
    peak = torch.maximum(peak, (count >= warmup) * _rho(product, power))
    new = torch.stack([count + steps, product, power, peak])
    statistics.copy_(torch.where(usable(observed), new, statistics))


def usable(observed: Tensor) -> Tensor:
    """Whether an :func:`agreement` tells something: 0-dim, bool.

    It does not if a gradient was not finite, nor if it is exactly 0, as when one of the two gradients was zero.
    """
    size = observed[0].abs()
    return (size > 0) & (size + observed[1] < math.inf)


def rho(statistics: Tensor) -> Tensor:
    """The share of the gradients' power that consecutive ones agree on; nan before there were two."""
    _, product, power, _ = statistics.unbind()
    return _rho(product, power)


def annealing_factor(statistics: Tensor, onset: float, power: float, warmup: int) -> Tensor:
    """``min(1, rho / (onset * largest rho)) ** power`` once the warm-up is over, before that 1: 0-dim, in (0, 1]."""
    count, product, total, peak = statistics.unbind()
    share = _rho(product, total) / (onset * peak)
    return torch.where(count > warmup, share.clamp_max(1) ** power, 1.0)


def check_onset(onset: Any) -> None:
    """Raise ValueError unless ``onset`` is in (0, 1]."""
    if isinstance(onset, bool) or not isinstance(onset, int | float) or not 0 < onset <= 1:
        raise ValueError(f"onset must be a number in (0, 1], got {onset!r}")


def _rho(product: Tensor, power: Tensor) -> Tensor:
    return (product / power).clamp_min(LOWEST_RHO)


def _joined(tensors: list[Tensor], indices: list[int]) -> Tensor:
    flat = [tensors[i].reshape(-1) for i in indices]
    return torch.cat(flat) if len(flat) > 1 else flat[0]
