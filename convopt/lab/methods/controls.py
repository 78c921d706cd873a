"""What the controls change about an optimizer: one thing, all else as it was."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convopt.lab.methods.method import ANNEALINGS, FILTERS, OPTIMIZERS, Grid, Optimizers, Setup, Wrapper, stepping
from convopt.lab.methods.ours import smoothing
from convopt.lab.runs import Choice
from convopt.optim import ConvolutionalSGD, ConvolutionalSGDv2
from convopt.optim._base import Part, SmoothingOptimizer
from convopt.theory.kernels import NAMED_KERNELS
from convopt.theory.spectrum import apply_gain, kernel_gain


class _RawDirection(SmoothingOptimizer):
    """Steps as long as the smoothed gradient's, parameter by parameter, but along the gradient itself."""

    _elementwise = False

    def _update(self, part: Part, directions: list[Tensor], lr: Any) -> None:
        super()._update(part, _with_lengths_of([p.grad for p in part.params], directions), lr)


class RawDirectionSGD(_RawDirection, ConvolutionalSGD):
    """SGD at the effective step of ConvolutionalSGD."""


class RawDirectionSGDv2(_RawDirection, ConvolutionalSGDv2):
    """SGD at the effective step of ConvolutionalSGDv2."""


class RawLengthSGD(ConvolutionalSGD):
    """ConvolutionalSGD at the effective step of SGD: along the smoothed gradient, as long as the gradient."""

    _elementwise = False

    def _update(self, part: Part, directions: list[Tensor], lr: Any) -> None:
        super()._update(part, _with_lengths_of(directions, [p.grad for p in part.params]), lr)


OPTIMIZERS |= {cls.__name__: smoothing(cls) for cls in (RawDirectionSGD, RawDirectionSGDv2, RawLengthSGD)}


def _with_lengths_of(directions: list[Tensor], lengths: list[Tensor]) -> list[Tensor]:
    """The ``directions``, each scaled to the norm of its counterpart; a zero one stays zero."""
    scales = [
        wanted / has for wanted, has in zip(torch._foreach_norm(lengths), torch._foreach_norm(directions), strict=True)
    ]
    return torch._foreach_mul(directions, [scale.nan_to_num(0.0, 0.0, 0.0) for scale in scales])


def _fitting(size: int, grid: Grid) -> int:
    """Taps along each axis, odd: ``size``, or as many as the grid has room for."""
    return min(size, min(grid) - 1 + min(grid) % 2)


def smooth_over_pixels(optimizer: Optimizer, weight: nn.Parameter, grid: Grid | None, kernel: str, size: int) -> None:
    """From now on ``optimizer`` sees the gradient of ``weight`` smoothed over the pixels by a fixed kernel.

    The gradient keeps its norm, so that smoothing does not shorten the step.

    Args:
        optimizer: its gradients are changed in place before each of its steps.
        weight: of the layer that takes the flattened images.
        grid: pixels along height and width.
        kernel: a name of ``NAMED_KERNELS``.
        size: taps along each axis, odd; a kernel that does not fit the grid is made as large as it can be.

    Raises:
        ValueError: the grid has not two axes, or the weight is not one of a layer that takes flattened images of it.
    """
    if grid is None or len(grid) != 2 or weight.ndim != 2 or weight.shape[1] % math.prod(grid):
        raise ValueError(
            "a fixed kernel smooths the first layer's weight over the pixels of flattened images: needs a grid of two "
            f"axes and a weight (out, pixels), got grid {grid} and a weight of shape {tuple(weight.shape)}"
        )
    # The kernel is a product of one for each axis, so two small matrices do what transforms do in thrice the time.
    taps = NAMED_KERNELS[kernel](_fitting(size, grid), 1)
    rows, columns = (apply_gain(torch.eye(length), kernel_gain(taps, (length,))) for length in grid)

    def smooth(*_: Any) -> None:
        smoothed = rows.T @ (weight.grad.view(-1, *grid) @ columns)
        (weight.grad,) = _with_lengths_of([smoothed.view_as(weight)], [weight.grad])

    optimizer.register_step_pre_hook(smooth)


def around_fixed_kernel(optimizers: Optimizers, setup: Setup, kernel: str, size: int) -> dict[str, Any]:
    """:func:`smooth_over_pixels` around the optimizer that has the first layer's weight. Nothing is kept."""
    weight = next(setup.model.parameters())
    for optimizer in optimizers.values():
        if any(weight is p for group in optimizer.param_groups for p in group["params"]):
            smooth_over_pixels(stepping(optimizer), weight, setup.dataset.grid, kernel, size)
    return {}


FILTERS["fixed kernel"] = Wrapper(around_fixed_kernel)


def blurred(inputs: Tensor, grid: Grid, size: int) -> Tensor:
    """Inputs whose last axes are the grid, smoothed by the binomial kernel of ``size`` taps along each axis.

    A kernel that does not fit the grid is made as large as it can be.
    """
    return apply_gain(inputs, kernel_gain(NAMED_KERNELS["binomial"](_fitting(size, grid), len(grid)), grid))


def add_gradient_noise(optimizers: Iterable[Optimizer], power: float, seed: int) -> None:
    """From now on all gradients that the optimizers see have white noise of ``power`` times their own power in them."""
    generator = torch.Generator().manual_seed(seed)

    def add(optimizer: Optimizer, *_: Any) -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            scale = (power * p.grad.square().mean()).sqrt()
            p.grad.add_(torch.randn(p.shape, generator=generator) * scale)

    for optimizer in optimizers:
        optimizer.register_step_pre_hook(add)


class Replay:
    """Multiplies the learning rates of an optimizer's steps by given factors, one after the other."""

    def __init__(self, optimizer: Optimizer, factors: Sequence[float]):
        self._factors = factors
        self._step = 0
        self._lr = [group["lr"] for group in optimizer.param_groups]
        optimizer.register_step_pre_hook(self._before_step)

    def factor(self) -> float:
        """Of the last step."""
        return self._factors[max(self._step - 1, 0)]

    def state_dict(self) -> dict[str, Any]:
        """What is kept from step to step."""
        return {"step": self._step}

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        for group, lr in zip(optimizer.param_groups, self._lr, strict=True):
            group["lr"] = lr * self._factors[self._step]
        self._step += 1


def replay_of_another_seed(optimizers: Optimizers, setup: Setup, shift: int) -> dict[str, Replay]:
    """Each step times the factor that SNRAnnealing had at the same step of the run whose seed is larger by ``shift``.

    The same decay, then, but deaf to what goes on in this run.
    """
    from convopt.lab.trainer import factors  # which trains with all methods, so it needs this module first

    other = replace(setup.run, seed=setup.run.seed + shift, annealing=Choice.of("SNRAnnealing"))
    seen = factors(other)
    return {name: Replay(optimizer, seen[name]) for name, optimizer in optimizers.items()}


def mean_factor(attached: dict[str, Any]) -> dict[str, float]:
    """The mean of the factors on the learning rates."""
    return {"annealing_factor": sum(each.factor() for each in attached.values()) / len(attached)}


ANNEALINGS["replayed"] = Wrapper(replay_of_another_seed, mean_factor)
