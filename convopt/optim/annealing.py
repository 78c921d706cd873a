"""SNRAnnealing: shrink the steps of any optimizer as its gradients stop agreeing with each other."""

import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, Adafactor, Optimizer, Rprop

from convopt.optim._agreement import Annealer, new_agreement
from convopt.optim._attach import Active, Stage
from convopt.optim._checks import check_integer, check_keys, check_not_differentiable, check_number, check_share
from convopt.optim._compared import Compared, Sampled, Whole, compared
from convopt.optim._shards import local_grad
from convopt.optim._turns import turn_of


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
    gradients, hence the factor, are the same on every rank), fully_shard (products are summed over ranks) and
    GradScaler (a step that is skipped is not seen). A deep copy or a pickle of it brings its optimizer along. A copy of
    the optimizer alone is not annealed, as torch copies no hooks.

    It keeps one copy of the gradients of a small network. Of one with more than four times ``sample`` elements it
    compares and keeps a fixed random sample: the two averages are estimated without bias, and the cost does not grow
    with the network.

    Args:
        optimizer: a ``torch.optim.Optimizer`` with learning rates in its param groups that it reads at each step.
        onset: c, in (0, 1]: steps shrink once the agreement is below this share of its largest value.
        power: p, not negative: how fast they shrink then.
        warmup: steps during which the factor is 1 and the maximum is not yet taken.
        ema: factor of the averages, in [0, 1); over the first steps they are plain means.
        read_every: comparisons from one reading of the factor by the host to the next. Where a learning rate is a float
            the host must know the factor, and on an accelerator reading it waits for the device. Learning rates that
            are tensors are scaled on the device and need no reading.
        sample: how many of a large network's coordinates are compared; None for all of any network.
        every: consecutive gradients are compared at every so many steps; the averages' memory in steps stays the same.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer; it is a wrapper without step hooks around something unknown;
            or it does not scale each step by its learning rate, as Adafactor, ASGD, LBFGS and Rprop.
        ValueError: an option is outside its range.
        RuntimeError: the optimizer is annealed already. Or at a step, where a gradient is sparse or complex, a
            parameter is sharded as FullyShardedDataParallel does it or so that it cannot be sampled, or a fused
            optimizer is given gradients that GradScaler has not unscaled. Nothing has been updated then.

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
        sample: int | None = 2**18,
        every: int = 4,
    ):
        check_share("onset", onset)
        check_number("power", power, at_least=0)
        check_number("ema", ema, at_least=0, below=1)
        check_integer("warmup", warmup, at_least=0)
        check_integer("read_every", read_every, at_least=1)
        check_integer("every", every, at_least=1)
        if sample is not None:
            check_integer("sample", sample, at_least=1)
        self._annealer = Annealer(new_agreement(), onset, power, warmup, ema, every)
        self._read_every, self._sample = read_every, sample
        self._compared: Compared = Whole()
        self._of: list[Tensor] = []
        self._count = self._unread = 0
        self._host_factor = 1.0
        super().__init__(optimizer)

    def factor(self) -> float:
        """What the last step's learning rates were multiplied by, in (0, 1], if the host has read it since."""
        return float(self._annealer.factor())

    def rho(self) -> float:
        """The agreement of consecutive gradients, at least 1e-4; nan before the first comparison."""
        return self._annealer.rho()

    def state_dict(self) -> dict[str, Any]:
        """Statistics and previous gradients (in the order of the parameters), to be saved beside the optimizer's.

        Of a parameter without a previous gradient there are zeros: distributed checkpoints load into tensors. Of a
        large network there is the sample of the gradients.
        """
        return {
            "statistics": self._annealer.learnt.clone(),
            **self._comparing().saved(self._params()),
            "count": self._count,
            "unread": self._unread,
            "host_factor": self._host_factor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`. ValueError, before anything changes, if it is of other parameters."""
        params = self._params()
        kept = self._comparing()
        kept.check(state_dict, params)
        check_keys(state_dict, ("statistics", "unread", "host_factor"))
        if state_dict["statistics"].shape != self._annealer.learnt.shape:
            raise ValueError(
                f"statistics of the state_dict must have shape {tuple(self._annealer.learnt.shape)}, "
                f"got {tuple(state_dict['statistics'].shape)}"
            )
        kept.load(state_dict, params)
        learnt = state_dict["statistics"].to(params[0].device, torch.float64, copy=True)
        self._annealer = self._annealer._replace(learnt=learnt)
        self._count = state_dict.get("count", 0)  # a checkpoint from before there was `every` has none
        self._unread, self._host_factor = state_dict["unread"], state_dict["host_factor"]

    def check(self, active: Active) -> None:
        """RuntimeError if the optimizer anneals itself or its parameters are sharded in a way that cannot be sampled.

        TypeError if its steps do not follow its groups' ``lr``.
        """
        if isinstance(self.optimizer, ASGD | Adafactor | Rprop):
            raise TypeError(f"{type(self.optimizer).__name__} does not scale each step by lr: it cannot be annealed")
        check_not_differentiable(self.optimizer, type(self).__name__)
        for group in self.optimizer.param_groups:
            if not isinstance(group.get("lr"), Real | Tensor):
                raise TypeError(
                    f"{type(self.optimizer).__name__} has no learning rate to scale: its param groups must have lr as "
                    f"a number, got {group.get('lr')!r}"
                )
        if any(group.get("snr_annealing") for group in self.optimizer.param_groups):
            raise RuntimeError(
                f"{type(self.optimizer).__name__} anneals itself: make it with snr_annealing=False, or do without "
                "SNRAnnealing"
            )
        if active:
            self._comparing()

    def observe(self, active: Active) -> None:
        """Compare the gradients with those of an earlier step."""
        kept = self._comparing()
        turn = turn_of(self._count, self._annealer.every, resting=False)
        self._count, self._unread = turn.following, self._unread + turn.compares
        if not turn.learns:
            return
        seen = kept.look({p: local_grad(p) for _, params in active for p in params})
        ordinary: bool | Tensor = True
        products = kept.products(seen) if turn.compares else None
        if products is not None:
            self._move_to(products.device)
            ordinary = self._annealer.observe(products)
        elif not turn.compares:
            ordinary = self._annealer.judge(kept.powers(seen))
        if turn.remembers:
            kept.keep(seen, ordinary)

    def scaled(self, group: dict[str, Any]) -> float | Tensor:
        """The group's learning rate times the factor: a new tensor for a tensor, which several groups may share."""
        lr: float | Tensor = group["lr"]
        if isinstance(lr, Tensor):  # in its own dtype: torch's fused updates take no other
            scaled = lr * self._annealer.factor()
            return scaled.to(lr.dtype) if lr.is_floating_point() else scaled
        return lr * self._read_factor()

    def _read_factor(self) -> float:
        if self._unread >= self._read_every:
            self._host_factor, self._unread = self.factor(), 0
        return self._host_factor

    def _comparing(self) -> Compared:
        """What is kept of the gradients; a sample is drawn anew when the optimizer's parameters change."""
        params = self._params()
        if len(params) != len(self._of) or not all(map(operator.is_, params, self._of)):
            new = compared(params, self._sample)
            if isinstance(new, Sampled) or isinstance(self._compared, Sampled) or not self._of:
                self._compared, self._count = new, 0
            self._of = params
        return self._compared

    def _move_to(self, device: torch.device) -> None:
        if self._annealer.learnt.device != device:
            self._annealer = self._annealer._replace(learnt=self._annealer.learnt.to(device))
