"""LaplacianSmoothingSGD: a fixed kernel without end."""

import math
from typing import Any

import torch
from torch import Tensor

from convopt.optim._base import SmoothingOptimizer, grad_of
from convopt.theory.kernels import decay_ratio
from convopt.theory.smoothing import PIECE, at_least_float32, goes_in_pieces


class LaplacianSmoothingSGD(SmoothingOptimizer):
    r"""SGD with momentum on gradients smoothed by the inverse of a Laplacian.

    Each gradient is flattened, and as a ring of N numbers multiplied by

    .. math::  A_\sigma^{-1} = (I - \sigma L)^{-1}

    with L the discrete Laplacian on the ring. At the angular frequency :math:`\omega` that is a gain of
    :math:`1 / (1 + 2 \sigma (1 - \cos \omega))`, between :math:`1 / (1 + 4 \sigma)` and 1: positive, so every step
    descends, and the gradient's mean stays. Nothing is learnt; a loss or closure is accepted but not needed.

    Args:
        params: parameters or param groups.
        lr: learning rate, a float or a tensor of one element.
        momentum, weight_decay, nesterov, maximize: as in torch.optim.SGD without dampening. Weight decay is added after
            smoothing.
        sigma: strength, positive, in elements squared. The paper uses 1 to 3.

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
        if not options["sigma"] > 0:
            raise ValueError(f"sigma must be positive, got {options['sigma']!r}")

    def _kernels_of(self, group: dict[str, Any]) -> dict[str, Tensor]:
        return {}

    def _step_group(self, group: dict[str, Any], params: list[Tensor], loss: Tensor | float | None) -> None:
        self._descend(group, params, [smooth_on_ring(grad_of(p), group["sigma"]) for p in params])


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
    ratio = decay_ratio(sigma)
    doublings = max(1, math.ceil(math.log2(math.log(torch.finfo(flat.dtype).eps / 4) / math.log(ratio))))
    reach = 2**doublings - 1
    around = flat.repeat(math.ceil(reach / len(flat)))
    rest = torch.cat([around[-reach:], flat, around[:reach]])
    pieces = []
    while len(rest) > 2 * reach:
        piece = rest[: PIECE + 2 * reach] if goes_in_pieces(rest) else rest
        rest = rest[len(piece) - 2 * reach :]
        for shift in (2**i for i in range(doublings)):
            piece = torch.add(piece[shift:], piece[:-shift], alpha=ratio**shift)
            piece = torch.add(piece[:-shift], piece[shift:], alpha=ratio**shift)
        pieces.append(piece.mul_((1 - ratio) ** 2))
    return torch.cat(pieces).view(gradient.shape) if len(pieces) > 1 else pieces[0].view(gradient.shape)
