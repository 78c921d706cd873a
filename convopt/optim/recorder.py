"""A history of kernels and their statistics that the user attaches to an optimizer."""

from typing import Any

import torch
from torch import Tensor

from convopt.optim._checks import check_integer, check_number, grad_of
from convopt.optim._kernels import KernelOptimizer
from convopt.optim.local_loss import LocalLossConvSGD
from convopt.theory.snr import ema_powers


class KernelRecorder:
    """Records an optimizer's kernels, SNR, kernel loss and cosine similarity while it trains.

    Optimizers keep no history, because it would grow for as long as they train. Attach a recorder for as long as
    you want to look::

        with KernelRecorder(optimizer, every=10) as recorder:
            train(...)
        recorder.history["kernel_1d"]

    Args:
        optimizer: ConvolutionalSGD, LocalLossConvSGD or ConvolutionalSGDv2.
        every: steps from one entry to the next.
        beta: factor of the EMA of gradients behind the SNR, for an optimizer that keeps none itself, in [0, 1).

    Raises:
        TypeError: ``optimizer`` has no kernels.
        ValueError: ``every`` is not a positive integer, or ``beta`` is outside its range.
    """

    def __init__(self, optimizer: KernelOptimizer, every: int = 1, beta: float = 0.99):
        if not isinstance(optimizer, KernelOptimizer):
            raise TypeError(
                "optimizer must have learned kernels (ConvolutionalSGD, LocalLossConvSGD or ConvolutionalSGDv2), got "
                f"{type(optimizer).__name__}"
            )
        check_integer("every", every, at_least=1)
        check_number("beta", beta, at_least=0, below=1)
        self.every = every
        self.beta = beta
        self.steps = 0
        self._entries: list[dict[str, Any]] = []
        self._signals: dict[Tensor, Tensor] = {}
        self._is_due = False
        self._handles = optimizer.register_step_pre_hook(self._expect), optimizer.register_step_post_hook(self._record)

    def __enter__(self) -> "KernelRecorder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Stop recording; what was recorded stays."""
        for handle in self._handles:
            handle.remove()

    @property
    def history(self) -> dict[str, list[Any]]:
        """The columns ``step`` (ints), each kernel (nested lists of floats) and each statistic (floats)."""
        columns = {name: None for entry in self._entries for name in entry}
        values = [
            {name: value.tolist() if isinstance(value, Tensor) else value for name, value in entry.items()}
            for entry in self._entries
        ]
        return {column: [value.get(column) for value in values] for column in columns}

    def _expect(self, *_: Any) -> None:
        self._is_due = True

    @torch.no_grad()
    def _record(self, optimizer: KernelOptimizer, args: Any, kwargs: Any) -> None:
        if not self._is_due:  # a subclass's step, whose base class's has been recorded
            return
        self._is_due = False
        self.steps += 1
        own_snr = isinstance(optimizer, LocalLossConvSGD)  # v2 has one, v1 no statistics
        if own_snr:
            self._follow(optimizer)
        if self.steps % self.every:
            return
        statistics = optimizer.statistics() if hasattr(optimizer, "statistics") else {}
        if own_snr and _with_grad(optimizer):
            statistics["snr"] = self._snr(optimizer)
        self._entries.append({"step": self.steps, **optimizer.kernels(), **statistics})

    def _follow(self, optimizer: KernelOptimizer) -> None:
        """Move the averages of the gradients in place."""
        for p in _with_grad(optimizer):
            grad = grad_of(p).float()
            self._signals.setdefault(p, grad.clone()).lerp_(grad, 1 - self.beta)

    def _snr(self, optimizer: KernelOptimizer) -> Tensor:
        powers = [ema_powers(self._signals[p], grad_of(p)) for p in _with_grad(optimizer)]
        signal_power, noise_power = (torch.stack(parts).sum() for parts in zip(*powers, strict=True))
        return signal_power / noise_power


def _with_grad(optimizer: KernelOptimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
