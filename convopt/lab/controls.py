"""What the controls change about an optimizer: one thing, all else as it was."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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


def _with_lengths_of(directions: list[Tensor], lengths: list[Tensor]) -> list[Tensor]:
    """The ``directions``, each scaled to the norm of its counterpart; a zero one stays zero."""
    scales = [
        wanted / has for wanted, has in zip(torch._foreach_norm(lengths), torch._foreach_norm(directions), strict=True)
    ]
    return torch._foreach_mul(directions, [scale.nan_to_num(0.0, 0.0, 0.0) for scale in scales])


def smoothed_groups(model: nn.Module, which: str) -> list[dict[str, Any]]:
    """Param groups in which only the "first layer" or only the "other layers" are smoothed.

    In the others the kernel has a single tap. ValueError for another ``which``.
    """
    if which not in ("first layer", "other layers"):
        raise ValueError(f'smoothed must be "first layer" or "other layers", got {which!r}')
    named = list(model.named_parameters())
    layer = named[0][0].rpartition(".")[0]
    first = [(name, p) for name, p in named if name.rpartition(".")[0] == layer]
    others = [(name, p) for name, p in named if name.rpartition(".")[0] != layer]
    smoothed, plain = (first, others) if which == "first layer" else (others, first)
    return [{"params": smoothed}, {"params": plain, "kernel_size": 1}]


def smooth_over_pixels(
    optimizer: torch.optim.Optimizer, weight: nn.Parameter, grid: tuple[int, int], kernel: str, size: int
) -> None:
    """From now on ``optimizer`` sees the gradient of ``weight`` smoothed over the pixels by a fixed kernel.

    The gradient keeps its norm, so that smoothing does not shorten the step.

    Args:
        optimizer: its gradients are changed in place before each of its steps.
        weight: of the layer that takes the flattened pictures.
        grid: pixels along height and width.
        kernel: a name of ``NAMED_KERNELS``.
        size: taps along each axis, odd; a kernel that does not fit the grid is made as large as it can be.
    """
    largest = min(grid) - 1 + min(grid) % 2
    gain = kernel_gain(NAMED_KERNELS[kernel](min(size, largest), 2), grid)

    def smooth(*_: Any) -> None:
        smoothed = apply_gain(weight.grad.view(-1, *grid), gain).view_as(weight)
        (weight.grad,) = _with_lengths_of([smoothed], [weight.grad])

    optimizer.register_step_pre_hook(smooth)


def blurred(inputs: Tensor, grid: tuple[int, ...], size: int) -> Tensor:
    """Inputs whose last axes are the grid, smoothed by the binomial kernel of ``size`` taps along each axis."""
    return apply_gain(inputs, kernel_gain(NAMED_KERNELS["binomial"](size, len(grid)), grid))


def add_gradient_noise(optimizer: torch.optim.Optimizer, power: float, seed: int) -> None:
    """From now on every gradient that ``optimizer`` sees has white noise of ``power`` times its own power in it."""
    generator = torch.Generator().manual_seed(seed)

    def add(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            scale = (power * p.grad.square().mean()).sqrt()
            p.grad.add_(torch.randn(p.shape, generator=generator) * scale)

    optimizer.register_step_pre_hook(add)


def loss_function(
    choice: Choice | None, default: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
) -> Callable[[Tensor, Tensor], Tensor]:
    """From outputs, ``(batch, classes)``, and targets the loss, 0-dim, in nats where it is a cross-entropy.

    None stands for ``default``, the task's own. Of labels, "label smoothing" has the ``amount`` given to all classes
    alike, and "generalised cross-entropy" is ``(1 - p ** q) / q`` of the label's probability p (Zhang and Sabuncu,
    arXiv:1805.07836, equation 6). ValueError for another name.
    """
    if choice is None:
        return default
    options = dict(choice.options)
    if choice.name == "label smoothing":
        return nn.CrossEntropyLoss(label_smoothing=options["amount"])
    if choice.name == "generalised cross-entropy":
        return lambda logits, y: generalised_cross_entropy(logits, y, options["q"])
    raise ValueError(f'loss must be "label smoothing" or "generalised cross-entropy", got {choice.name!r}')


def generalised_cross_entropy(logits: Tensor, y: Tensor, q: float) -> Tensor:
    """The mean of ``(1 - p ** q) / q``, p the label's probability: cross-entropy at q to 0, absolute error at 1."""
    probability = logits.softmax(1).gather(1, y[:, None])
    return ((1 - probability**q) / q).mean()
