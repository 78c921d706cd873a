"""Estimating how much of a gradient is signal and how much noise.

A batch's gradient is ``g = s + n``: the signal s is the gradient over all samples, n the noise of the draw. For a batch
of B samples ``E|n|^2 = S / B``, with S the noise power of one sample's gradient, the trace of their covariance.

All estimators return signal and noise power apart. Average each over batches *before* dividing, and do not clamp before
averaging: the mean of a ratio is not the ratio of the means, and an unbiased estimate of a small power is now and then
negative.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from convopt.theory.smoothing import at_least_float32, check_same_shape


class Powers(NamedTuple):
    """Estimates in units of gradient squared, in float32 (float64 for float64 gradients).

    Attributes:
        signal: of ``|s|^2``, 0-dim.
        noise: of the noise power, 0-dim; of one sample's gradient (S), unless the function says otherwise.
    """

    signal: Tensor
    noise: Tensor


def ema_powers(signal: Tensor, grad: Tensor) -> Powers:
    """Signal and noise power as the original proposal estimates them: ``|signal|^2`` and ``|grad - signal|^2``.

    Their ratio is the original proposal's SNR. It is biased: what is left of the noise in the average counts as signal
    (see :func:`ema_floors`), and drift of the signal counts as noise (see :func:`ema_lag`).

    Args:
        signal: exponential moving average of the gradients, any shape.
        grad: the current gradient, same shape.

    Returns:
        Powers whose noise is that of the batch's gradient. Values that are not finite spread.

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(signal=signal, grad=grad)
    signal, grad = at_least_float32(signal), at_least_float32(grad)
    return Powers(signal.square().sum(), (grad - signal).square().sum())


class EMAFloors(NamedTuple):
    """What :func:`ema_powers` reports, once it has settled, for gradients that are white noise and nothing else.

    Attributes:
        signal: signal power over the true noise power, ``(1 - beta) / (1 + beta)``.
        snr: ratio of the powers, with the deviation taken from the new average, ``(1 - beta) / (2 beta^2)``.
        snr_from_previous: the same with the deviation from the average before it took the gradient in,
            ``(1 - beta) / 2``, where the signal is the new average.
    """

    signal: float
    snr: float
    snr_from_previous: float


def ema_floors(beta: float) -> EMAFloors:
    """The floors of the EMA's estimates on pure noise, for a factor ``beta`` in (0, 1); ValueError otherwise.

    With ``m <- beta m + (1 - beta) g`` the settled variance of m is ``(1 - beta) / (1 + beta)`` of that of g; g differs
    from the m before it by ``2 / (1 + beta)``, and from the m after it by ``beta`` times that difference.
    """
    _check_beta(beta)
    return EMAFloors((1 - beta) / (1 + beta), (1 - beta) / (2 * beta**2), (1 - beta) / 2)


def ema_lag(beta: float) -> float:
    """By how many steps the EMA lags behind a signal that drifts at a steady rate: ``beta / (1 - beta)``.

    A drift of v per step therefore adds ``(beta / (1 - beta))^2 |v|^2`` to the noise power. ``beta`` is in (0, 1);
    ValueError otherwise.
    """
    _check_beta(beta)
    return beta / (1 - beta)


def per_sample_powers(gradients: Tensor) -> Powers:
    """Unbiased powers from the gradients of each sample of one batch.

    ``S = sum_i |g_i - mean|^2 / (B - 1)`` and ``|s|^2 = |mean|^2 - S / B``. Unbiased for samples drawn independently;
    a batch drawn without replacement from few samples agrees with their mean too well, and ``|s|^2`` comes out low.

    Args:
        gradients: one per sample, ``(B, ...)``, B at least 2.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if gradients.ndim == 0 or len(gradients) < 2:
        raise ValueError(f"gradients must hold at least two samples, got shape {tuple(gradients.shape)}")
    batch, gradients = len(gradients), at_least_float32(gradients)
    mean = gradients.mean(0)
    noise = (gradients - mean).square().sum() / (batch - 1)
    return Powers(mean.square().sum() - noise / batch, noise)


def half_batch_powers(first: Tensor, second: Tensor, half: int) -> Powers:
    """Unbiased powers from the mean gradients of two halves of a batch: ``<a, b>`` and ``(half / 2) |a - b|^2``.

    Args:
        first: mean gradient over the first half, any shape.
        second: mean gradient over the other half, same shape.
        half: samples in each half.

    Raises:
        ValueError: shapes differ, or ``half`` is not positive.
    """
    check_same_shape(first=first, second=second)
    if half < 1:
        raise ValueError(f"half must be positive, got {half!r}")
    first, second = at_least_float32(first), at_least_float32(second)
    return Powers((first * second).sum(), half / 2 * (first - second).square().sum())


def big_small_powers(big: Tensor, small: Tensor, big_batch: int, small_batch: int) -> Powers:
    """Unbiased powers from the mean gradients of a big and of a small batch: the gradient noise scale.

    ``|s|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)`` and ``S = (|g_b|^2 - |g_B|^2) / (1 / b - 1 / B)``. The small batch may
    be part of the big one.

    Args:
        big: mean gradient over the big batch, any shape.
        small: mean gradient over the small batch, same shape.
        big_batch: B, samples in the big batch.
        small_batch: b, samples in the small batch, fewer.

    Raises:
        ValueError: shapes differ, or not ``0 < small_batch < big_batch``.

    Source: McCandlish et al., An Empirical Model of Large-Batch Training (arXiv:1812.06162), appendix A.1.
    """
    check_same_shape(big=big, small=small)
    if not 0 < small_batch < big_batch:
        raise ValueError(f"small_batch must be positive and below big_batch, got {small_batch!r} and {big_batch!r}")
    big_power, small_power = (at_least_float32(gradient).square().sum() for gradient in (big, small))
    return Powers(
        (big_batch * big_power - small_batch * small_power) / (big_batch - small_batch),
        (small_power - big_power) / (1 / small_batch - 1 / big_batch),
    )


Power = TypeVar("Power", float, Tensor)


def without_replacement(product: Power, power: Power, batches: int) -> Power:
    """Signal power from the product of two batches' gradients where an epoch draws each sample once.

    The batches of an epoch add up to the whole training set, so the noises of two of them are not independent: they
    correlate by ``-1 / (M - 1)``. The product's expectation is ``|s|^2 - N / (M - 1)``, with N the noise power of a
    batch; with ``power = |s|^2 + N`` that gives ``|s|^2 = ((M - 1) product + power) / M``.

    Args:
        product: mean of ``<g_1, g_2>`` over pairs of batches of one epoch, at the same parameters; or of the products
            at each frequency, any shape.
        power: mean of ``|g|^2``, same shape.
        batches: M, batches in an epoch, at least 2.

    Raises:
        ValueError: there are fewer than two batches.
    """
    if batches < 2:
        raise ValueError(f"batches must be at least 2, got {batches!r}")
    return ((batches - 1) * product + power) / batches


class StepRatio(NamedTuple):
    """What two products of gradients say of a step of plain SGD that lies between them.

    Attributes:
        curvature: mean curvature along the step, ``E[g' H g] / E|g|^2``, in units of loss per parameter squared.
        best: the learning rate that lowers the expected loss most in one step, over the one that was used.
    """

    curvature: Tensor
    best: Tensor


def step_ratio(same_point: Tensor, consecutive: Tensor, power: Tensor, lr: float) -> StepRatio:
    """Curvature and best step from what a step changes in the product of two gradients.

    Two gradients at one point have ``E<g, g'> = |s|^2 = S``. With a step ``-lr g`` between them the second one's signal
    is ``s - lr H g``, on a quadratic, and ``E<g, g'> = S - lr E[g' H g]``. The expected loss after a step of length
    ``eta`` is ``- eta S + eta^2 E[g' H g] / 2``, least at ``eta = S / E[g' H g]``: where consecutive gradients are
    orthogonal.

    Args:
        same_point: mean product of gradients of two batches at the same parameters, S; any shape.
        consecutive: mean product of a gradient and that of the step before, same shape.
        power: mean of ``|g|^2``, same shape.
        lr: of the steps, without momentum, positive.

    Raises:
        ValueError: ``lr`` is not positive, or shapes differ.

    Source: the statistic is hypergradient descent's, Baydin et al., Online learning rate adaptation with hypergradient
    descent (arXiv:1703.04782), equation 5. That a greedy step is not the best one over many: Wu et al., Understanding
    short-horizon bias in stochastic meta-optimization (arXiv:1803.02021).
    """
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr!r}")
    check_same_shape(same_point=same_point, consecutive=consecutive, power=power)
    lost = same_point - consecutive
    return StepRatio(lost / (lr * power), same_point / lost)


def per_sample_gradients(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The gradient of each sample's loss with respect to each parameter, by name: ``(B, *parameter.shape)``.

    Takes B times the memory of one gradient. The model's parameters and their ``grad`` stay as they are. Not for models
    that mix samples, as batch normalisation does while training, or that draw random numbers, as dropout does.

    Args:
        model: in the mode its gradients are wanted for.
        loss: of a batch of outputs and targets, a mean or a sum; it is called with batches of one.
        inputs: ``(B, ...)``.
        targets: ``(B, ...)``.

    Raises:
        ValueError: there are not as many inputs as targets.
    """
    if len(inputs) != len(targets):
        raise ValueError(f"inputs and targets must be as many, got {len(inputs)} and {len(targets)}")
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def sample_loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, values, (x.unsqueeze(0),)), y.unsqueeze(0))

    gradients: dict[str, Tensor] = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))(
        parameters, inputs, targets
    )
    return gradients


def _check_beta(beta: float) -> None:
    if not 0 < beta < 1:
        raise ValueError(f"beta must be between 0 and 1, got {beta!r}")
