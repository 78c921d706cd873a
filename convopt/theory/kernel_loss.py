"""The losses that teach a kernel, as functions of the smoothed gradient.

For each loss there is its value and, in closed form, its derivative with respect to ``y = W * g``. The exact
gradient with respect to the taps is then ``Shifts.correlate(derivative)``, and through a softmax or a normalisation
one of the two functions at the end: no finite differences and no autograd graph.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class KernelLoss(NamedTuple):
    """A kernel loss at one gradient.

    Attributes:
        value: the loss, a 0-dim tensor.
        cosine_similarity: cos(g, y), a 0-dim tensor in [-1, 1]; 0 where g or y is zero.
    """

    value: Tensor
    cosine_similarity: Tensor


def local_loss(smoothed: Tensor, grad: Tensor, variance_weight: float) -> KernelLoss:
    """The README's kernel loss: ``-cos(g, y) + lambda Var(y)``, with the population variance.

    Args:
        smoothed: y, any shape.
        grad: g, same shape and dtype.
        variance_weight: lambda, in units of 1 / gradient squared: the loss depends on the gradient's scale.
    """
    cosine = _cosine_parts(smoothed.reshape(-1), grad.reshape(-1))[0]
    return KernelLoss(variance_weight * smoothed.var(correction=0) - cosine, cosine)


def local_loss_derivative(smoothed: Tensor, grad: Tensor, variance_weight: float) -> Tensor:
    """The derivative of :func:`local_loss` with respect to y, flattened."""
    y, g = smoothed.reshape(-1), grad.reshape(-1)
    _, along_grad, along_smoothed = _cosine_parts(y, g)
    slope = 2 * variance_weight / y.numel()
    return torch.addcmul(y * (along_smoothed + slope), g, along_grad, value=-1).sub_(slope * y.mean())


def three_part_loss(smoothed: Tensor, grad: Tensor, signal: Tensor, weights: tuple[float, float, float]) -> KernelLoss:
    """ConvolutionalSGDv2's loss: ``d (1 - cos(g, y)) + s mean((y - signal)^2) + v Var(y) / Var(g)``.

    Args:
        smoothed: y, any shape.
        grad: g, same shape and dtype. Where it is constant, the last part is left out.
        signal: the estimate of the clean gradient, an EMA of g, same shape and dtype.
        weights: (d, s, v), the weights of direction, signal and smoothness.
    """
    direction, closeness, smoothness = weights
    cosine = _cosine_parts(smoothed.reshape(-1), grad.reshape(-1))[0]
    error = (smoothed - signal).square().mean()
    roughness = smoothed.var(correction=0) * _reciprocal(grad.var(correction=0))
    return KernelLoss(direction * (1 - cosine) + closeness * error + smoothness * roughness, cosine)


def three_part_loss_derivative(
    smoothed: Tensor, grad: Tensor, signal: Tensor, weights: tuple[float, float, float]
) -> Tensor:
    """The derivative of :func:`three_part_loss` with respect to y, flattened."""
    direction, closeness, smoothness = weights
    y, g = smoothed.reshape(-1), grad.reshape(-1)
    _, along_grad, along_smoothed = _cosine_parts(y, g)
    slope = 2 * closeness / y.numel()
    derivative = torch.addcmul(y * (direction * along_smoothed + slope), g, along_grad, value=-direction)
    if closeness:
        derivative.sub_(signal.reshape(-1), alpha=slope)
    if smoothness:
        scale = 2 * smoothness / y.numel() * _reciprocal(g.var(correction=0))
        derivative.addcmul_(y - y.mean(), scale)
    return derivative


def _cosine_parts(y: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos(g, y) of two vectors, and the factors of g and of -y in its derivative with respect to y.

    All three are 0 where a vector is zero.
    """
    squared_norms = torch.stack((torch.dot(y, y), torch.dot(g, g)))
    inverse_y, inverse_g = squared_norms.rsqrt().nan_to_num(nan=math.nan, posinf=0).unbind()
    along_grad = inverse_y * inverse_g
    cosine = torch.dot(y, g) * along_grad
    return cosine, along_grad, cosine * inverse_y * inverse_y


def _reciprocal(x: Tensor) -> Tensor:
    """1 / x where x is positive, else 0."""
    return torch.where(x > 0, x.reciprocal(), 0)


def through_softmax(taps_gradient: Tensor, taps: Tensor) -> Tensor:
    """The gradient with respect to logits z of a loss whose gradient at the vector ``taps = softmax(z)`` is given."""
    return taps * (taps_gradient - torch.dot(taps, taps_gradient))


def through_normalisation(taps_gradient: Tensor, kernel: Tensor) -> Tensor:
    """The gradient with respect to a vector of a loss whose gradient at ``kernel / sum(kernel)`` is given."""
    total = kernel.sum()
    return (taps_gradient - torch.dot(kernel, taps_gradient) / total) / total
