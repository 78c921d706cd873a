"""LaplacianSmoothingSGD: a fixed kernel without end."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from convopt.optim._base import Direction, Part, SmoothingOptimizer
from convopt.optim._checks import check_number, grad_of
from convopt.theory._shifts import PIECE
from convopt.theory.kernels import decay_ratio
from convopt.theory.smoothing import at_least_float32


class LaplacianSmoothingSGD(SmoothingOptimizer):
    r"""SGD with momentum on gradients smoothed by the inverse of a Laplacian.

    Each gradient is flattened, and as a ring of N numbers multiplied by

    .. math::  A_\sigma^{-1} = (I - \sigma L)^{-1}

    with L the discrete Laplacian on the ring. At the angular frequency :math:`\omega` that is a gain of
    :math:`1 / (1 + 2 \sigma (1 - \cos \omega))`, between :math:`1 / (1 + 4 \sigma)` and 1: positive, so every step
    descends, and the gradient's mean stays. Nothing is learnt; a loss or closure is accepted but not needed.

    Rows whose gradient is zero by construction (an embedding's ``padding_idx``, masks) are moved, too. Give such
    parameters a group of their own with ``sigma=0``.

    Args:
        params: parameters or param groups.
        lr: learning rate, a float or a tensor of one element.
        momentum, weight_decay, nesterov, maximize: as in torch.optim.SGD without dampening. Weight decay is added after
            smoothing.
        sigma: strength, in elements squared, below 1e8; 0 leaves gradients as they are. The paper uses 1 to 3.

    Raises:
        ValueError: an option is outside its range.

    Source: Osher et al., Laplacian Smoothing Gradient Descent (arXiv:1806.06317), algorithm 1.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        sigma: float = 1.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "sigma": sigma,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_number("sigma", options["sigma"], at_least=0, below=1e8)

    def _directions(self, part: Part, observed: Any) -> Sequence[Direction]:
        sigma = part.group["sigma"]
        if sigma == 0:
            return [grad_of(p) for p in part.params]
        return self._smoothed(
            part,
            lambda grads: [smooth_on_ring(grad, sigma) for grad in grads],
            lambda line: _smooth_pieces_of_ring(at_least_float32(line), sigma, PIECE),
        )


def smooth_on_ring(gradient: Tensor, sigma: float) -> Tensor:
    r"""``(I - sigma L)^-1`` times the flattened gradient, in its shape; at least float32.

    With z the shift by one element and r in (0, 1) the ratio of the system's decaying solution,
    :math:`I - \sigma L = (\sigma / r) (1 - r z)(1 - r z^{-1})`, and :math:`1 / (1 - r z) = (1 + r z)(1 + r^2 z^2)(1 +
    r^4 z^4) \cdots`: a few shifted additions, because the powers soon vanish beside 1. The paper's Fourier transforms
    give the same to rounding; on a CPU they are slower by far, and by more where N has large prime factors.
    """
    flat = at_least_float32(gradient).reshape(-1)
    if not flat.numel():
        return flat.view(gradient.shape)
    ((_, smoothed),) = _smooth_pieces_of_ring(flat, sigma, len(flat))
    return smoothed.view(gradient.shape)


def _smooth_pieces_of_ring(flat: Tensor, sigma: float, length: int) -> Iterator[tuple[slice, Tensor]]:
    """:func:`smooth_on_ring` of a vector, so many elements at a time: which, and these smoothed."""
    ratio = decay_ratio(sigma)
    doublings = max(1, math.ceil(math.log2(math.log(torch.finfo(flat.dtype).eps / 4) / math.log(ratio))))
    reach = 2**doublings - 1
    for start in range(0, len(flat), length):
        end = min(start + length, len(flat))
        piece = _stretch_of_ring(flat, start - reach, end + reach)
        for shift in (2**i for i in range(doublings)):
            piece = torch.add(piece[shift:], piece[:-shift], alpha=ratio**shift)
            piece = torch.add(piece[:-shift], piece[shift:], alpha=ratio**shift)
        yield slice(start, end), piece.mul_((1 - ratio) ** 2)


def _stretch_of_ring(ring: Tensor, first: int, last: int) -> Tensor:
    """The elements from ``first`` to before ``last`` of a vector that goes round and round."""
    before, after = max(-first, 0), max(last - len(ring), 0)
    times = math.ceil(max(before, after) / len(ring))
    rounds = ring.repeat(times) if times > 1 else ring
    return torch.cat([rounds[len(rounds) - before :], ring[max(first, 0) : last], rounds[:after]])
