"""SNRAnnealing: shrink the steps of any optimizer as its gradients stop agreeing with each other."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer, Rprop

from convopt.optim._attach import Active, Stage
from convopt.optim._checks import check_integer, check_number, check_saved, check_share, grad_of
from convopt.optim._outliers import judge, overwrite, powers_of
from convopt.optim._scalars import Scalar, is_finite, is_readable, maximum, minimum, ratio, read, value_of, where, write
from convopt.theory.smoothing import at_least_float32

LOWEST_RHO = 1e-4
"""What a reading of the agreement is at least: an estimate of almost nothing may be negative."""

LOWEST_SHARE = 1e-3
"""What the agreement is taken for at least, as a share of the reference: steps never vanish altogether."""

SIGNIFICANT = 3.0
"""Standard errors that an agreement must exceed to count as one: the largest of many is easily at two."""


class Agreement(NamedTuple):
    """What annealing has learnt: floats, or 0-dim tensors on a device.

    Attributes:
        steps: that the averages stand for.
        product: average of ``<g_t, g_{t-1}>``.
        power: average of ``|g_t|^2``.
        square: average of ``<g_t, g_{t-1}>^2``.
        largest: largest rho since the warm-up; 0 before.
        usual: how large ``|g_t|^2`` usually is; see ``convopt.optim._outliers``.
    """

    steps: Scalar
    product: Scalar
    power: Scalar
    square: Scalar
    largest: Scalar
    usual: Scalar

    @property
    def rho(self) -> Scalar:
        """The share of the gradients' power that is signal; nan before there were two gradients."""
        return ratio(self.product, self.power)

    def standard_error(self, ema: float, every: int) -> Scalar:
        """That of rho if there were no signal, from so many independent products of mean zero as are averaged."""
        memory = ema**every
        averaged = minimum(self.steps / every, (1 + memory) / (1 - memory))
        return ratio(ratio(self.square, averaged) ** 0.5, self.power)


class Annealer(NamedTuple):
    """The annealing itself: what it has learnt, a vector of float64, and its options.

    Attributes:
        learnt: an :class:`Agreement`, ``(6,)``; updated in place.
        onset, power, warmup, ema: see :class:`SNRAnnealing`.
        every: steps from one comparison of gradients to the next.
    """

    learnt: Tensor
    onset: float
    power: float
    warmup: int
    ema: float
    every: int = 1

    def observe(self, products: Tensor) -> bool | Tensor:
        """Take in :func:`products_of` two consecutive gradients, ``(2,)``; returns whether the later one may teach.

        Nothing is learnt from a gradient that may not teach, nor where one of the two was zero.
        """
        product, power = read(products.to(self.learnt.device, torch.float64))
        before = Agreement(*read(self.learnt))
        ordinary, usual = judge(power, before.usual)
        usable = ordinary & (product != 0) & is_finite(product)
        after = learn(before, where(usable, product, 0.0), where(usable, power, 0.0), self)
        values = [where(usable, new, old) for new, old in zip(after, before, strict=True)]
        write(self.learnt, [*values[:-1], usual])
        return ordinary

    def judge(self, powers: list[Scalar], gradients: list[Tensor]) -> bool | Tensor:
        """Whether gradients of these powers, and these, may teach, where they are compared with none yet."""
        power = sum([*powers, *(powers_of(gradients) if gradients else ())])
        ordinary, usual = judge(power, value_of(self.learnt[-1]))
        self.learnt[-1] = usual
        return ordinary

    def factor(self) -> Scalar:
        """What the step is multiplied by, in (0, 1]."""
        learnt = Agreement(*read(self.learnt))
        # The largest agreement there was; if none was significant, the least that would have been.
        reference = maximum(learnt.largest, SIGNIFICANT * learnt.standard_error(self.ema, self.every))
        share = ratio(learnt.rho, self.onset * reference)
        bounded = minimum(maximum(share, LOWEST_SHARE), 1.0)
        return where(learnt.steps > self.warmup, bounded**self.power, 1.0)

    def rho(self) -> float:
        """The agreement, at least 1e-4; nan before there were two gradients. Reading it waits for the device."""
        product, power = self.learnt[1:3].tolist()
        return max(product / power, LOWEST_RHO) if power else math.nan


def new_agreement() -> Tensor:
    """What an :class:`Annealer` has learnt before the first step."""
    return torch.zeros(len(Agreement._fields), dtype=torch.float64, device="cpu")


def learn(before: Agreement, product: Scalar, power: Scalar, annealer: Annealer) -> Agreement:
    """The averages with one more comparison in them: plain means at first, then exponential ones."""
    steps = before.steps + annealer.every
    weight = maximum(annealer.every / steps, 1 - annealer.ema**annealer.every)
    seen = before.product, before.power, before.square
    product, power, square = (
        average + weight * (new - average) for average, new in zip(seen, (product, power, product**2), strict=True)
    )
    largest = where(before.steps >= annealer.warmup, maximum(before.largest, ratio(product, power)), before.largest)
    return Agreement(steps, product, power, square, largest, before.usual)


def products_of(gradients: list[Tensor], others: list[Tensor], halves: bool = False) -> Tensor:
    """Signal and total power of all gradients as one vector, from a second estimate of each: ``(2,)``, float64.

    ``<g, other>`` and ``|g|^2``. With ``halves``, g is the sum of two halves' gradients and ``other`` the first half's;
    the signal is then ``4 <other, g - other>``. Gradients may be of several shapes, precisions and devices.
    """
    lines = [at_least_float32(gradient).reshape(-1) for gradient in gradients]
    pairs = [(line, other.reshape(-1).to(line.dtype)) for line, other in zip(lines, others, strict=True)]
    total = _sum_of_products(pairs, halves)
    if is_readable(total.device) and not 1e-30 < total[1].item() < 1e30:  # near the ends of float32's range
        total = _sum_of_products([(line.double(), other.double()) for line, other in pairs], halves)
    return total


def _sum_of_products(pairs: list[tuple[Tensor, Tensor]], halves: bool) -> Tensor:
    signals = [4 * torch.dot(other, g - other) if halves else torch.dot(g, other) for g, other in pairs]
    powers = [torch.dot(g, g) for g, _ in pairs]
    return torch.stack(_together([*signals, *powers])).double().view(2, -1).sum(1)


def total_of(products: list[Tensor]) -> Tensor:
    """The sum of several :func:`products_of`, in float64 and on the first one's device."""
    return torch.stack(_together(products)).double().sum(0)


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """Small tensors on one device."""
    device = tensors[0].device
    return tensors if all(each.device == device for each in tensors) else [each.to(device) for each in tensors]


class SNRAnnealing(Stage):
    r"""Multiplies an optimizer's learning rates by how well consecutive gradients agree.

    With :math:`g_t` all gradients of step t as one vector and averages :math:`\overline{\cdot}` over steps,

    .. math::
        \rho_t = \frac{\overline{\langle g_t, g_{t-1}\rangle}}{\overline{|g_t|^2}}, \qquad
        f_t = \min\Bigl(1, \frac{\rho_t}{c\, \max(\max_{s \le t} \rho_s,\; 3 \sigma_t)}\Bigr)^{p}

    estimates the share of the gradients' power that is signal, SNR / (1 + SNR): noise of different batches is
    independent and cancels in the inner product. When a network starts fitting noise, its gradients stop agreeing and
    the steps shrink, without a schedule or a validation set.

    :math:`\sigma_t` is the standard error of rho where there is no signal. If no agreement exceeds three standard
    errors after the warm-up, as where the learning rate is much too high, there is no signal to measure against. The
    reference is then :math:`3 \sigma_t`, so that steps shrink until gradients agree.

    The gradients are those that the step finds: after its closure, before the optimizer changes anything. Their factor
    acts in the same step. Whoever looks at ``param_groups[...]["lr"]`` outside of the optimizer's own update sees what
    you or a scheduler set, also after a step that raised. The factor comes on top.

    It is no safe replacement for a schedule. The agreement looks one step ahead: directions that bend strongly outweigh
    those in which there is far to go (short-horizon bias, arXiv:1803.02021). On many tasks it shrinks steps too early
    where the learning rate is not too high, above all with noisy labels; see :class:`WeightAveraging`.

    What it can see: gradients of different batches that share a signal. What it cannot: consecutive steps follow
    :math:`g_{t-1}`, which makes :math:`\rho` too low by an amount that grows with the learning rate; and noise that
    batches share, for example of samples seen in both. A gradient that is not finite, or has more than thirty times the
    usual norm, teaches nothing.

    Use it as it is with gradient accumulation (one estimate per optimizer step), DistributedDataParallel (the averaged
    gradients, hence the factor, are the same on every rank) and GradScaler (a step that is skipped is not seen). It
    keeps one copy of the gradients. A deep copy or a pickle of it brings its optimizer along. A copy of the optimizer
    alone is not annealed, as torch copies no hooks.

    Args:
        optimizer: a ``torch.optim.Optimizer`` with learning rates in its param groups that it reads at each step.
        onset: c, in (0, 1]: steps shrink once the agreement is below this share of its largest value.
        power: p, not negative: how fast they shrink then.
        warmup: steps during which the factor is 1 and the maximum is not yet taken.
        ema: factor of the averages, in [0, 1); over the first steps they are plain means.
        read_every: steps from one reading of the factor by the host to the next. Where a learning rate is a float the
            host must know the factor, and on an accelerator reading it waits for the device. Learning rates that are
            tensors are scaled on the device and need no reading.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer; it is a wrapper without step hooks around something unknown;
            or it does not scale each step by its learning rate, as LBFGS and Rprop.
        ValueError: an option is outside its range.
        RuntimeError: the optimizer is annealed already. Or at a step, where a gradient is sparse or complex, a
            parameter is sharded, or a fused optimizer is given gradients that GradScaler has not unscaled. Nothing has
            been updated then.

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
        check_share("onset", onset)
        check_number("power", power, at_least=0)
        check_number("ema", ema, at_least=0, below=1)
        check_integer("warmup", warmup, at_least=0)
        check_integer("read_every", read_every, at_least=1)
        self._annealer = Annealer(new_agreement(), onset, power, warmup, ema)
        self._read_every = read_every
        self._previous: dict[Tensor, Tensor] = {}
        self._unread = 0
        self._host_factor = 1.0
        super().__init__(optimizer)

    def factor(self) -> float:
        """What the last step's learning rates were multiplied by, in (0, 1], if the host has read it since."""
        return float(self._annealer.factor())

    def rho(self) -> float:
        """The agreement of consecutive gradients, at least 1e-4; nan before the second step."""
        return self._annealer.rho()

    def state_dict(self) -> dict[str, Any]:
        """Statistics and previous gradients (in the order of the parameters), to be saved beside the optimizer's.

        Of a parameter without a previous gradient there are zeros: distributed checkpoints load into tensors.
        """
        previous = self._previous
        return {
            "statistics": self._annealer.learnt.clone(),
            "previous": [previous[p].clone() if p in previous else torch.zeros_like(p) for p in self._params()],
            "unread": self._unread,
            "host_factor": self._host_factor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`. ValueError, before anything changes, if it is of other parameters."""
        params, previous = self._params(), state_dict["previous"]
        check_saved("a previous gradient", "previous gradients", params, previous)
        if state_dict["statistics"].shape != self._annealer.learnt.shape:
            raise ValueError(
                f"statistics of the state_dict must have shape {tuple(self._annealer.learnt.shape)}, "
                f"got {tuple(state_dict['statistics'].shape)}"
            )
        self._previous = {
            p: gradient.to(p.device, copy=True) for p, gradient in zip(params, previous, strict=True) if gradient.any()
        }
        learnt = state_dict["statistics"].to(params[0].device, torch.float64, copy=True)
        self._annealer = self._annealer._replace(learnt=learnt)
        self._unread, self._host_factor = state_dict["unread"], state_dict["host_factor"]

    def check(self, active: Active) -> None:
        """RuntimeError if the optimizer anneals itself, TypeError if its steps do not follow its groups' ``lr``."""
        if isinstance(self.optimizer, Rprop):
            raise TypeError("Rprop reads lr at its first step only: its steps cannot be annealed")
        for group in self.optimizer.param_groups:
            if not isinstance(group.get("lr"), int | float | Tensor):
                raise TypeError(
                    f"{type(self.optimizer).__name__} has no learning rate to scale: its param groups must have lr as "
                    f"a number, got {group.get('lr')!r}"
                )
        if any(group.get("snr_annealing") for group in self.optimizer.param_groups):
            raise RuntimeError(
                f"{type(self.optimizer).__name__} anneals itself: make it with snr_annealing=False, or do without "
                "SNRAnnealing"
            )

    def observe(self, active: Active) -> None:
        """Compare the gradients with those of the step before."""
        gradients = {p: grad_of(p) for _, params in active for p in params}
        # A parameter that had no gradient at the last step has none to compare with.
        previous = {p: g for p, g in self._previous.items() if p in gradients and g.shape == p.shape}
        ordinary: bool | Tensor = True
        if previous:
            products = products_of([gradients[p] for p in previous], list(previous.values()))
            self._move_to(products.device)
            ordinary = self._annealer.observe(products)
        remember(previous, gradients, ordinary)
        self._previous = previous
        self._unread += 1

    def scaled(self, group: dict[str, Any]) -> float | Tensor:
        """The group's learning rate times the factor: a new tensor for a tensor, which several groups may share."""
        lr: float | Tensor = group["lr"]
        if isinstance(lr, Tensor):  # in its own dtype: torch's fused updates take no other
            return (lr * self._annealer.factor()).to(lr.dtype)
        return lr * self._read_factor()

    def _read_factor(self) -> float:
        if self._unread >= self._read_every:
            self._host_factor, self._unread = self.factor(), 0
        return self._host_factor

    def _move_to(self, device: torch.device) -> None:
        if self._annealer.learnt.device != device:
            self._annealer = self._annealer._replace(learnt=self._annealer.learnt.to(device))


def remember(previous: dict[Tensor, Tensor], gradients: dict[Tensor, Tensor], may_teach: bool | Tensor) -> None:
    """Keep copies of gradients in ``previous``; zeros, with which nothing is compared, if they may not teach."""
    known = [p for p in gradients if p in previous]
    if may_teach is True and known:
        torch._foreach_copy_([previous[p] for p in known], [gradients[p] for p in known])
    else:
        for p in known:
            overwrite(previous[p], gradients[p], may_teach)
    for p, gradient in gradients.items():
        if p not in previous:
            previous[p] = gradient.clone()
