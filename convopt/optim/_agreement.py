"""What gradients agree on: products of two of them, averages of the products, and the factor that follows."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from convopt.optim._checks import is_distributed
from convopt.optim._outliers import judge, powers_of
from convopt.optim._scalars import Scalar, is_finite, is_readable, maximum, minimum, ratio, read, value_of, where, write
from convopt.optim._shards import Owner, by_owner, summed
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

    def judge(self, powers: list[Scalar]) -> bool | Tensor:
        """Whether gradients of these powers may teach, where they are compared with none yet. None change nothing."""
        if not powers:
            return True
        ordinary, usual = judge(sum(powers), value_of(self.learnt[-1]))
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


def products_over_ranks(
    params: list[Tensor], gradients: list[Tensor], others: list[Tensor], halves: bool = False
) -> Tensor:
    """:func:`products_of` what all ranks hold; the gradients, and the others, are this rank's parts."""
    if not any(map(is_distributed, params)):
        return products_of(gradients, others, halves)
    parts = dict(zip(params, zip(gradients, others, strict=True), strict=True))
    totals = [
        summed(products_of([parts[p][0] for p in members], [parts[p][1] for p in members], halves), owner)
        for owner, members in by_owner(params).items()
    ]
    return totals[0] if len(totals) == 1 else total_of(totals)


def powers_over_ranks(params: list[Tensor], gradients: list[Tensor]) -> list[Scalar]:
    """Numbers whose sum is the power of what all ranks hold of some gradients; these are this rank's parts."""
    parts = dict(zip(params, gradients, strict=True))
    powers: list[Scalar] = []
    for owner, members in by_owner(params).items():
        own = powers_of([parts[p] for p in members])
        powers += own if not owner else [sum_over_ranks(own, owner, members[0].device)]
    return powers


def sum_over_ranks(numbers: list[Scalar], owner: Owner, device: torch.device) -> Scalar:
    """The sum of numbers that each rank has of its own part."""
    if not owner:
        return sum(numbers)
    return value_of(summed(torch.as_tensor(sum(numbers), dtype=torch.float64, device=device), owner))


def total_of(products: list[Tensor]) -> Tensor:
    """The sum of several :func:`products_of`, in float64 and on the first one's device."""
    return torch.stack(_together(products)).double().sum(0)


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """Small tensors on one device."""
    device = tensors[0].device
    return tensors if all(each.device == device for each in tensors) else [each.to(device) for each in tensors]
