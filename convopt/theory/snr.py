"""Estimating the signal-to-noise ratio of a gradient."""

from torch import Tensor


def ema_powers(signal: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise power as the README estimates them.

    Args:
        signal: exponential moving average of the gradients, any shape.
        grad: the current gradient, same shape.

    Returns:
        ``(|signal|^2, |grad - signal|^2)``, two 0-dim tensors in units of gradient squared. Their ratio is the
        README's SNR. It is biased: what is left of the noise in the EMA counts as signal, and drift as noise.
    """
    return signal.square().sum(), (grad - signal).square().sum()
