"""WeightAveraging: average any optimizer's weights over the last part of the run, wherever that lowers the loss."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convopt.optim._agreement import products_over_ranks
from convopt.optim._attach import Active, Stage
from convopt.optim._checks import check_integer, check_saved, check_share
from convopt.optim._scalars import is_finite, is_readable, read, where, write
from convopt.optim._shards import as_part_of, by_owner, local, local_grad, part_for, summed
from convopt.theory.smoothing import at_least_float32


class WeightAveraging(Stage):
    r"""Averages the weights of a training run, and tells whether the average is better than the last weights.

    With :math:`w_n` the weights at the n-th look, :math:`g_n` their gradient on the batch at hand and s the ``share``,

    .. math::
        \bar w_n = \bar w_{n-1} + \frac{w_n - \bar w_{n-1}}{1 + s (n - 1)}, \qquad
        c_n = \frac{\langle g_n, \bar w_{n-1} - w_n \rangle}{|g_n|\,|\bar w_{n-1} - w_n|}

    the average reaches back over a share s of the run so far, whatever the run's length: nothing has to be known in
    advance and no decay has to be chosen. Noise of the steps averages out, as it does when a learning rate is annealed,
    but the optimizer goes on at its full learning rate. Its updates are what they would be without this.

    The slope :math:`c_n` looks from the current weights towards the average. Where it is negative, averaged over the
    same share of the run, the loss falls in that direction: the weights bounce around something better. Where it is
    positive the weights still make progress, as they do at low learning rates, and the average lags behind. Then
    :meth:`averaged` leaves the weights as they are. The slope is of the first order: it does not see how the loss bends
    on the way to the average.

    Example::

        averaging = WeightAveraging(optimizer)
        for epoch in range(epochs):
            train_one_epoch(model, optimizer)
            with averaging.averaged():
                evaluate(model)
        with averaging.averaged():
            torch.save(model.state_dict(), "model.pt")

    Use it as it is with learning rate schedules, gradient accumulation (one look per optimizer step),
    DistributedDataParallel (averages and slope are the same on every rank) and GradScaler (a step that is skipped is
    not seen). It keeps one copy of the weights, in float32 at least. A deep copy or a pickle of it brings its optimizer
    along. A copy of the optimizer alone has none of it, as torch copies no hooks.

    Args:
        optimizer: a ``torch.optim.Optimizer``, whose parameters are averaged.
        model: where it has buffers that training changes, as the running statistics of batch normalisation, they are
            averaged, too. Without them, averaged weights would meet statistics of other weights.
        share: s, in (0, 1]: over which share of the run so far the average reaches back.
        every: steps from one look at weights and gradient to the next.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer, or is LBFGS, whose step takes many gradients; or ``model`` is
            no module.
        ValueError: an option is outside its range.
        RuntimeError: the optimizer's weights are averaged already. Or at a step, where a gradient is sparse or complex,
            a parameter is sharded as FullyShardedDataParallel does it, a fused optimizer is given gradients that
            GradScaler has not unscaled, or inside of :meth:`averaged`. Nothing has been updated then.

    Source: the average is the polynomial-decay averaging of Shamir and Zhang, Stochastic gradient descent for
    non-smooth optimization (arXiv:1212.1824), section 4, with eta = 1 / s - 1. The slope is ours.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module | None = None, share: float = 0.05, every: int = 4):
        check_share("share", share)
        check_integer("every", every, at_least=1)
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self._model, self._share, self._every = model, share, every
        self._steps = 0
        self._learnt = torch.zeros(2, dtype=torch.float64, device="cpu")
        self._averages: dict[Tensor, Tensor] = {}
        self._is_averaged = False
        super().__init__(optimizer)

    def helps(self) -> bool:
        """Whether the average is expected to be better than the last weights. Reading it waits for the device."""
        return self.slope() < 0

    def slope(self) -> float:
        """The cosine between the gradient and the way from the weights to their average, averaged; 0 at first.

        In [-1, 1]; negative where the loss falls towards the average. Reading it waits for the device.
        """
        return self._learnt[1].item()

    @contextmanager
    def averaged(self) -> Iterator[bool]:
        """Inside, the model has its averaged weights where that :meth:`helps`; afterwards its own again.

        Yields:
            Whether it has them.

        Raises:
            RuntimeError: inside of another ``averaged()``, or at a step inside of it.
        """
        if self._is_averaged:
            raise RuntimeError("the weights are averaged already: averaged() cannot be entered twice")
        if not self.helps():
            yield False
            return
        own = {tensor: local(tensor.detach()).clone() for tensor in self._averages}
        self._is_averaged = True
        try:
            _copy(self._averages)
            yield True
        finally:
            _copy(own)
            self._is_averaged = False

    def state_dict(self) -> dict[str, Any]:
        """Averages (of parameters, then buffers, in their order) and slope, to be saved beside the optimizer's state.

        Of a parameter that had no gradient yet there is its value: distributed checkpoints load into tensors.
        """
        return {
            "steps": self._steps,
            "learnt": self._learnt.clone(),
            "averages": [as_part_of(each, self._average_or_value(each).clone()) for each in self._all()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`. ValueError, before anything changes, if it is of other parameters."""
        tensors, averages = self._all(), state_dict["averages"]
        check_saved("an average", "averages", tensors, averages)
        self._averages = {tensor: part_for(tensor, average) for tensor, average in zip(tensors, averages, strict=True)}
        self._learnt = state_dict["learnt"].to(tensors[0].device, torch.float64, copy=True)
        self._steps = state_dict["steps"]

    def check(self, active: Active) -> None:
        """RuntimeError for a step while the weights are averaged: it would be lost."""
        if self._is_averaged:
            raise RuntimeError("no step inside of averaged(): the averaged weights are there to be evaluated")

    def observe(self, active: Active) -> None:
        """At every so many steps, take in the slope and the weights."""
        self._steps += 1
        if (self._steps - 1) % self._every:
            return
        params = [p for _, of_group in active for p in of_group]
        if not params:
            return
        tensors = [*params, *self._buffers()]
        averages = [self._average_of(each) for each in tensors]
        weights = [local(each.detach()).to(average.dtype) for each, average in zip(tensors, averages, strict=True)]
        ways = list(torch._foreach_sub(weights, averages))
        of_params = ways[: len(params)]
        distance = _norm(params, of_params)
        self._learn(products_over_ranks(params, [local_grad(p) for p in params], of_params), distance)
        looks = (self._steps - 1) // self._every
        for average, way in zip(averages, _unless_infinite(ways, distance), strict=True):
            average.add_(way, alpha=1 / (1 + self._share * looks))

    def _average_of(self, tensor: Tensor) -> Tensor:
        if tensor not in self._averages:
            self._averages[tensor] = self._average_or_value(tensor).clone()
        return self._averages[tensor]

    def _average_or_value(self, tensor: Tensor) -> Tensor:
        """What this rank holds of a tensor's average, or where there is none yet, of its value."""
        average = self._averages.get(tensor)
        return at_least_float32(local(tensor.detach())) if average is None else average

    def _learn(self, products: Tensor, distance: Tensor) -> None:
        """Take in the cosine between gradient and way, from their inner product, the gradient's power and the way."""
        product, power = products.unbind()
        cosine = product / (power.sqrt() * distance.to(power.device))
        self._learnt = self._learnt.to(power.device)
        (new,), (looks, slope) = read(-cosine.view(1)), read(self._learnt)
        # None where the weights are their average, as at first, or where a gradient is not finite.
        usable = is_finite(new)
        after = slope + (where(usable, new, slope) - slope) / (1 + self._share * looks)
        write(self._learnt, [where(usable, looks + 1, looks), after])

    def _buffers(self) -> list[Tensor]:
        return [] if self._model is None else [each for each in self._model.buffers() if each.is_floating_point()]

    def _all(self) -> list[Tensor]:
        return self._params() + self._buffers()


def _norm(params: list[Tensor], parts: list[Tensor]) -> Tensor:
    """Of a vector whose parts are spread like the parameters: 0-dim, float64, on the first one's device."""
    norms = dict(zip(params, torch._foreach_norm(parts), strict=True))
    device = parts[0].device
    squares = [
        summed(torch.stack([norms[p].to(device, torch.float64) for p in members]).square().sum(), owner)
        for owner, members in by_owner(params).items()
    ]
    return sum(squares[1:], squares[0]).sqrt()


def _unless_infinite(ways: list[Tensor], distance: Tensor) -> list[Tensor]:
    """The ways; none to go where their length is not finite: averages stay as they are when training has failed."""
    if is_readable(distance.device):
        return ways if math.isfinite(distance.item()) else [torch.zeros_like(way) for way in ways]
    return [torch.where(distance.isfinite().to(way.device), way, 0) for way in ways]


@torch.no_grad()
def _copy(values: dict[Tensor, Tensor]) -> None:
    for tensor, value in values.items():
        local(tensor).copy_(value)
