"""WeightAveraging: average any optimizer's weights over the last part of the run, wherever that lowers the loss."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convopt.optim._agreement import products_over_ranks
from convopt.optim._attach import Active, Stage
from convopt.optim._checks import check_integer, check_keys, check_saved, check_share
from convopt.optim._scalars import is_finite, is_readable, read, where, write
from convopt.optim._shards import as_part_of, by_owner, local, local_grad, part_for, summed
from convopt.theory.smoothing import at_least_float32

Key: TypeAlias = Tensor | str
"""A parameter, or a buffer's name: modules put other tensors in the place of their buffers."""


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
        self._averages: dict[Key, Tensor] = {}
        self._is_inside = False
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
        if self._is_inside:
            raise RuntimeError("averaged() cannot be entered twice")
        self._is_inside = True
        own: dict[Key, Tensor] = {}
        try:
            if self.helps():
                now = {key: local(tensor.detach()) for key, tensor in self._tensors().items()}
                averages = {key: each for key, each in self._averages.items() if _fits(each, now.get(key))}
                own = {key: now[key].clone() for key in averages}
                _copy(now, averages)
            yield bool(own)
        finally:
            self._is_inside = False
            # By name: a module may have put others in the place of its buffers.
            _copy({key: local(tensor.detach()) for key, tensor in self._tensors().items()}, own)

    def state_dict(self) -> dict[str, Any]:
        """Averages (of parameters, then buffers, in their order) and slope, to be saved beside the optimizer's state.

        Of a parameter that had no gradient yet there is its value: distributed checkpoints load into tensors.
        """
        tensors = self._tensors()
        return {
            "steps": self._steps,
            "learnt": self._learnt.clone(),
            "averages": [
                as_part_of(tensor, self._averages[key] if key in self._averages else _value(tensor)).clone()
                for key, tensor in tensors.items()
            ],
            "known": torch.tensor([key in self._averages for key in tensors], device="cpu"),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`. ValueError, before anything changes, if it is of other parameters."""
        check_keys(state_dict, ("steps", "learnt", "averages"))
        tensors, averages = self._tensors(), state_dict["averages"]
        check_saved("an average", "averages", list(tensors.values()), averages)
        # An earlier version's checkpoint does not tell.
        known = state_dict["known"].tolist() if "known" in state_dict else [True] * len(averages)
        saved = zip(tensors.items(), averages, known, strict=True)
        self._averages = {key: part_for(tensor, average) for (key, tensor), average, is_known in saved if is_known}
        self._learnt = state_dict["learnt"].to(self._params()[0].device, torch.float64, copy=True)
        self._steps = state_dict["steps"]

    def __getstate__(self) -> dict[str, Any]:
        """RuntimeError inside of :meth:`averaged`: the averaged weights would be the copy's own."""
        if self._is_inside:
            raise RuntimeError("no copy inside of averaged(): the averaged weights would become its own")
        return self.__dict__

    def check(self, active: Active) -> None:
        """RuntimeError for a step while the weights may be averaged: it would be lost."""
        if self._is_inside:
            raise RuntimeError("no step inside of averaged(): the averaged weights are there to be evaluated")

    def observe(self, active: Active) -> None:
        """At every so many steps, take in the slope and the weights."""
        self._steps += 1
        if (self._steps - 1) % self._every:
            return
        params = [p for _, of_group in active for p in of_group]
        if not params:
            return
        tensors = self._averaged_tensors(params)
        weights = [local(tensors[key].detach()).to(average.dtype) for key, average in self._averages.items()]
        ways = list(torch._foreach_sub(weights, list(self._averages.values())))
        way_of = dict(zip(self._averages, ways, strict=True))
        of_params = [way_of[p] for p in params]
        distance = _norm(params, of_params)
        self._learn(products_over_ranks(params, [local_grad(p) for p in params], of_params), distance)
        looks = (self._steps - 1) // self._every
        moves = zip(self._averages.items(), weights, _unless_infinite(ways, distance), strict=True)
        for (key, average), weight, way in moves:
            average.add_(way, alpha=1 / (1 + self._share * looks))
            if isinstance(key, str):  # a buffer may hold what has no mean, as the infinities of a mask
                average.copy_(torch.where(way.isfinite(), average, weight))

    def _averaged_tensors(self, with_grad: list[Tensor]) -> dict[Key, Tensor]:
        """What has an average from now on: what had one before, ``with_grad``, and buffers."""
        tensors, new = self._tensors(), set(with_grad)
        averages = {}
        for key, tensor in tensors.items():
            if _fits(self._averages.get(key), tensor):
                averages[key] = self._averages[key]
            elif isinstance(key, str) or key in new:
                averages[key] = _value(tensor).clone()
        self._averages = averages
        return tensors

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

    def _tensors(self) -> dict[Key, Tensor]:
        """What may have an average, as it is now."""
        named = () if self._model is None else self._model.named_buffers()
        return {**{p: p for p in self._params()}, **{name: each for name, each in named if _is_averageable(each)}}


def _is_averageable(buffer: Tensor) -> bool:
    """Whether a buffer holds numbers, each in a place of its own, so that others can be put there."""
    if not buffer.is_floating_point() or buffer.layout != torch.strided:
        return False
    return all(stride or size < 2 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))


def _value(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in float32 at least."""
    return at_least_float32(local(tensor.detach()))


def _fits(average: Tensor | None, tensor: Tensor | None) -> bool:
    return average is not None and tensor is not None and average.shape == local(tensor).shape


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
def _copy(tensors: dict[Key, Tensor], values: dict[Key, Tensor]) -> None:
    """Put values into tensors of the same key."""
    for key, value in values.items():
        if _fits(value, tensors.get(key)):
            tensors[key].copy_(value)
