"""The losses that teach a kernel, with exact gradients in closed form: no finite differences, no autograd graph.

Each loss comes in two forms that agree:

- as a function of the smoothed gradient ``y = W * g``. With the derivative there, ``Shifts.correlate(derivative)`` is
  the gradient with respect to the taps. For one step of a kernel of two axes this is cheapest, and ConvolutionalSGDv2
  does it;
- as a function of the taps (``..._of_taps``), from statistics that are computed once per gradient, after which every
  kernel costs next to nothing: to look at the whole loss, or to minimise it. LocalLossConvSGD does it for the kernels
  of all parameters at once.

Through a softmax or a normalisation the gradient goes by one of the two functions at the end.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vecdot

from convopt.theory._ambient import in_full_precision
from convopt.theory._ways import ways
from convopt.theory.kernels import check_size
from convopt.theory.smoothing import ShiftStatistics, at_least_float32, check_same_shape


class KernelLoss(NamedTuple):
    """A kernel loss at one gradient.

    Attributes:
        value: the loss, a 0-dim tensor.
        cosine_similarity: cos(g, y), a 0-dim tensor, in [-1, 1] but for rounding; 0 where g or y is zero. Not finite
            where squares leave the precision's range, as of gradients near 1e-21 in float32.
    """

    value: Tensor
    cosine_similarity: Tensor


def local_loss(smoothed: Tensor, grad: Tensor, variance_weight: float) -> KernelLoss:
    """The original proposal's kernel loss: ``-cos(g, y) + lambda Var(y)``, with the population variance.

    Args:
        smoothed: y, any shape.
        grad: g, same shape and dtype.
        variance_weight: lambda, in units of 1 / gradient squared: the loss depends on the gradient's scale.

    In float32 (float64 for float64). ValueError for different shapes.
    """
    smoothed, grad = _alike(smoothed=smoothed, grad=grad)
    cosine = _cosine_parts(*ways().powers(smoothed, grad))[0]
    return KernelLoss(variance_weight * smoothed.var(correction=0) - cosine, cosine)


def three_part_loss(smoothed: Tensor, grad: Tensor, signal: Tensor, weights: tuple[float, float, float]) -> KernelLoss:
    """ConvolutionalSGDv2's loss: ``d (1 - cos(g, y)) + s mean((y - signal)^2) + v Var(y) / Var(g)``.

    Args:
        smoothed: y, any shape.
        grad: g, same shape and dtype. Where its variance is exactly 0, the last part is left out.
        signal: the estimate of the clean gradient, an EMA of g, same shape and dtype.
        weights: (d, s, v), the weights of direction, signal and smoothness.

    In float32 (float64 for float64). ValueError for different shapes.
    """
    direction, closeness, smoothness = weights
    smoothed, grad, signal = _alike(smoothed=smoothed, grad=grad, signal=signal)
    cosine = _cosine_parts(*ways().powers(smoothed, grad))[0]
    error = (smoothed - signal).square().mean()
    roughness = smoothed.var(correction=0) * _reciprocal(grad.var(correction=0))
    return KernelLoss(direction * (1 - cosine) + closeness * error + smoothness * roughness, cosine)


def three_part_loss_derivative(
    smoothed: Tensor, grad: Tensor, signal: Tensor, weights: tuple[float, float, float]
) -> Tensor:
    """The derivative of :func:`three_part_loss` with respect to y, in its shape; what it takes and raises, too."""
    direction, closeness, smoothness = weights
    y, g, signal = _alike(smoothed=smoothed, grad=grad, signal=signal)
    _, along_grad, along_smoothed = _cosine_parts(*ways().powers(y, g))
    slope = 2 * closeness / y.numel()
    derivative = (y * (direction * along_smoothed + slope)).addcmul_(g, along_grad, value=-direction)
    if closeness:
        derivative.sub_(signal, alpha=slope)
    if smoothness:
        scale = 2 * smoothness / y.numel() * _reciprocal(g.var(correction=0))
        derivative.addcmul_(y - y.mean(), scale)
    return derivative


def _alike(**gradients: Tensor) -> list[Tensor]:
    check_same_shape(**gradients)
    return [at_least_float32(gradient) for gradient in gradients.values()]


class TapsLoss(NamedTuple):
    """A kernel loss as a function of the taps.

    Attributes:
        value: the loss, a 0-dim tensor.
        gradient: its gradient with respect to the taps, in their shape.
    """

    value: Tensor
    gradient: Tensor


@in_full_precision
def local_loss_of_taps(taps: Tensor, statistics: ShiftStatistics, variance_weight: float) -> TapsLoss:
    """The original proposal's kernel loss ``-cos(g, W * g) + lambda Var(W * g)``; see :func:`local_loss`.

    With w the taps and A, b, m of :class:`~convopt.theory.smoothing.ShiftStatistics`:
    ``cos = w.b / sqrt(mean(g^2) w'Aw)`` and ``Var = w'Aw - (w.m)^2``.

    Args:
        taps: the kernel as it is, not normalised, any shape of as many elements as there are shifts; or ``(..., n)``,
            a kernel for each of the statistics.
        statistics: of g, or of several, stacked.
        variance_weight: lambda, in units of 1 / gradient squared.

    Returns:
        In the statistics' dtype. For a zero gradient, both are 0.

    Raises:
        ValueError: the number of taps does not fit.
    """
    w, along_taps, power = _quadratic_form(taps, statistics)
    cosine, cosine_gradient = _cosine_of_taps(w, along_taps, power, *_grad_products(statistics))
    variance, variance_gradient = _variance_of_taps(w, along_taps, power, statistics)
    return TapsLoss(
        variance_weight * variance - cosine,
        (variance_weight * variance_gradient - cosine_gradient).view(taps.shape),
    )


def white_noise_weight(centre: float, size: int) -> float:
    """The lambda Var(g) at which a white gradient teaches the original proposal's loss a centre tap of ``centre``.

    For white g of mean zero, signal or noise, the loss among kernels that sum to 1 is lowest where all other taps are
    equal, ``b = (1 - centre) / (size - 1)``; setting its slope from b to the centre to zero gives
    ``lambda Var(g) = b / (2 (centre - b) |w|^3)``.

    Args:
        centre: in (1 / size, 1]: at 1 / size the weight would be infinite.
        size: taps, odd, at least 3.

    Raises:
        ValueError: an argument is outside its range.
    """
    if check_size(size, "size") < 3 or not 1 / size < centre <= 1:
        raise ValueError(f"centre must be in (1 / size, 1] for a size of at least 3, got {centre!r} and {size!r}")
    other = (1 - centre) / (size - 1)
    norm = math.sqrt(centre**2 + (size - 1) * other**2)
    return other / (2 * (centre - other) * norm**3)


@in_full_precision
def three_part_loss_of_taps(taps: Tensor, statistics: ShiftStatistics, weights: tuple[float, float, float]) -> TapsLoss:
    """ConvolutionalSGDv2's loss; see :func:`three_part_loss`.

    Args:
        taps: the kernel as it is, not normalised, any shape of as many elements as there are shifts.
        statistics: of g, with the estimate of the clean gradient as the target.
        weights: (d, s, v), the weights of direction, signal and smoothness.

    Returns:
        In the statistics' dtype.

    Raises:
        ValueError: the number of taps does not fit.
    """
    direction, closeness, smoothness = weights
    w, along_taps, power = _quadratic_form(taps, statistics)
    middle, grad_power = _grad_products(statistics)
    cosine, cosine_gradient = _cosine_of_taps(w, along_taps, power, middle, grad_power)
    variance, variance_gradient = _variance_of_taps(w, along_taps, power, statistics)
    error = power - 2 * vecdot(w, statistics.target_products) + statistics.target_power
    error_gradient = 2 * (along_taps - statistics.target_products)
    scale = smoothness * _reciprocal(grad_power - statistics.means[..., w.shape[-1] // 2].square())
    return TapsLoss(
        direction * (1 - cosine) + closeness * error + scale * variance,
        (scale.unsqueeze(-1) * variance_gradient + closeness * error_gradient - direction * cosine_gradient).view(
            taps.shape
        ),
    )


@in_full_precision
def cross_loss_of_taps(taps: Tensor, statistics: ShiftStatistics) -> TapsLoss:
    """The cross-gradient loss ``-cos(g', W * g)``, with g' another batch's gradient as the statistics' target.

    Other than ``-cos(g, W * g)`` it speaks of the signal: ``E<g', W * g> = <s, W * s>``. Average the statistics over
    pairs of batches first, because the mean of a ratio is not the ratio of the means.

    Args:
        taps: the kernel as it is, not normalised, any shape of as many elements as there are shifts.
        statistics: of g, with g' as the target.

    Returns:
        In the statistics' dtype; both are 0 where a gradient is zero. The loss does not change when the taps or either
        gradient are multiplied by a positive number.

    Raises:
        ValueError: the number of taps does not fit.
    """
    w, along_taps, power = _quadratic_form(taps, statistics)
    cosine, gradient = _cosine_of_taps(w, along_taps, power, statistics.target_products, statistics.target_power)
    return TapsLoss(-cosine, -gradient.view(taps.shape))


@in_full_precision
def wiener_taps(statistics: ShiftStatistics) -> Tensor:
    """The taps that minimise :func:`cross_loss_of_taps`: ``A^-1 c``, Wiener's filter of finite length, ``(..., n)``.

    They also minimise ``|g' - W * g|^2``, which sets their scale; smoothing is free to choose another positive one. Of
    several minimisers (g is zero, or too short for so many taps) it is the one of least norm. Statistics that are not
    finite raise torch.linalg.LinAlgError.

    Source: Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949; the normal equations.
    """
    inverse: Tensor = torch.linalg.pinv(statistics.products, hermitian=True)
    return (inverse @ statistics.target_products.unsqueeze(-1)).squeeze(-1)


def _quadratic_form(taps: Tensor, statistics: ShiftStatistics) -> tuple[Tensor, Tensor, Tensor]:
    """The taps w as vectors, A w, and mean((W * g)^2) = w'Aw, which rounding must not make negative."""
    products = statistics.products
    if taps.numel() != products.shape[:-1].numel():
        raise ValueError(
            f"taps must have {products.shape[:-1].numel()} elements, one per shift, got shape {tuple(taps.shape)}"
        )
    w = taps.reshape(products.shape[:-1]).to(products.dtype)
    along_taps = (products @ w.unsqueeze(-1)).squeeze(-1)
    return w, along_taps, vecdot(w, along_taps).clamp_min(0)


def _grad_products(statistics: ShiftStatistics) -> tuple[Tensor, Tensor]:
    """b, the mean products of the gradient itself with its shifts, and its mean power."""
    centre = statistics.means.shape[-1] // 2
    return statistics.products[..., centre, :], statistics.products[..., centre, centre]


def _cosine_of_taps(
    w: Tensor, along_taps: Tensor, power: Tensor, target_products: Tensor, target_power: Tensor
) -> tuple[Tensor, Tensor]:
    """cos(target, W * g) and its gradient."""
    cosine, along_target, along_smoothed = _cosine_parts(power, target_power, vecdot(w, target_products))
    return cosine, target_products * along_target.unsqueeze(-1) - along_taps * along_smoothed.unsqueeze(-1)


def _variance_of_taps(
    w: Tensor, along_taps: Tensor, power: Tensor, statistics: ShiftStatistics
) -> tuple[Tensor, Tensor]:
    """Var(W * g) and its gradient."""
    mean = vecdot(w, statistics.means)
    return power - mean.square(), 2 * (along_taps - mean.unsqueeze(-1) * statistics.means)


def _cosine_parts(power: Tensor, target_power: Tensor, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos(target, y) from |y|^2, |target|^2 and <y, target>, and the factors of target and of -y in its derivative.

    All three are 0 where a vector is zero.
    """
    inverse_norms = torch.stack((power, target_power)).rsqrt().nan_to_num(nan=math.nan, posinf=0)
    inverse_norm, inverse_target = inverse_norms.unbind()
    along_target = inverse_norm * inverse_target
    cosine = product * along_target
    return cosine, along_target, cosine * inverse_norm * inverse_norm


def _reciprocal(x: Tensor) -> Tensor:
    """1 / x where x is positive, else 0."""
    return torch.where(x > 0, x.reciprocal(), 0)


def through_softmax(taps_gradient: Tensor, taps: Tensor) -> Tensor:
    """The gradient with respect to logits z of a loss whose gradient at the vector ``taps = softmax(z)`` is given."""
    return taps * (taps_gradient - torch.dot(taps, taps_gradient))


@in_full_precision
def through_normalisation(taps_gradient: Tensor, kernel: Tensor) -> Tensor:
    """The gradient with respect to vectors ``(..., n)`` of a loss whose gradient at ``kernel / sum(kernel)`` is given.

    Sums are over the last axis.
    """
    total = kernel.sum(-1, keepdim=True)
    along: Tensor = vecdot(kernel, taps_gradient).unsqueeze(-1)
    return (taps_gradient - along / total) / total
