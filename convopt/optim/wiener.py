"""WienerSGD and WienerAdamW: gradients pass the Wiener filter that their own coherence prescribes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from convopt.optim._updates import AdamWLaw
from convopt.optim._wiener import WienerOptimizer
from convopt.optim.coherence import NOISE_WEIGHT


class WienerSGD(WienerOptimizer):
    r"""SGD with momentum on gradients that pass a Wiener filter; on request, steps follow their signal-to-noise ratio.

    Of a parameter with a ``grid``, the gradient is seen as many images. In the basis of the orthonormal DCT-II, with
    :math:`G_t` and :math:`G_{t-1}` the gradients of consecutive batches, averages over images, over rings of equal
    radial frequency :math:`\omega` and, exponentially, over steps,

    .. math::
        S = \overline{G_t G_{t-1}}, \quad P = \overline{G_t^2}, \quad h = \frac{|S|}{|S| + \mu (P - |S|)}, \quad
        G_t \leftarrow h \sqrt{\frac{\sum P}{\sum h^2 P}} \; G_t

    estimate the signal's power, that of signal and noise, and a Wiener filter in which the noise counts :math:`\mu`
    times. With a small :math:`\mu` it holds back only what is nearly all noise. Wiener's own, :math:`\mu = 1`, is the
    best estimate of the gradient, but what it holds back is hardly learnt. There is no kernel size and no kernel
    learning rate. No gain is negative, so that no filtered gradient points uphill; the scale keeps the gradient's
    power, so that a learning rate of SGD carries over. Where no frequency stands out, and for parameters without a
    grid, this is SGD.

    Consecutive batches draw their noise independently, so it cannot pass for signal. But the step between them follows
    :math:`G_{t-1}`, and that makes S too low, below zero where steps overshoot. What overshoots is no noise: hence the
    magnitude.

    With ``snr_annealing`` the step is then annealed as :class:`SNRAnnealing` does it, from all gradients together, but
    at once. Between steps ``param_groups[...]["lr"]`` is what you or a scheduler set. One previous gradient is kept for
    both.

    Example::

        groups, account = spatial_param_groups(model, images[:1])
        print(account)
        optimizer = WienerSGD(groups, lr=0.01)

    Args:
        params: parameters or param groups. A group's ``grid`` says how trailing axes of its parameters form an image:
            ``(H, W)``; ``(C, H, W)``, where channels are not smoothed over; ``(T,)`` for a time axis. The weight of a
            linear layer over flattened images has its fan-in folded so; a convolution's kernel ``(kh, kw)`` is an
            image itself. None for none.
        lr: learning rate, a float or a tensor of one element.
        momentum: in [0, 1).
        nesterov: whether the momentum is Nesterov's.
        weight_decay: coupled, added after the filter.
        grid: of groups that do not say.
        coherence_ema: factor of the average of S and P over steps, in [0, 1).
        gain: "radial", the same in all directions; or "separable", a product of one gain per axis.
        scale: "energy", as above; or "unit dc", which leaves the mean over the image as it is, as a kernel that sums
            to 1 does. That divides by the gain of one frequency, a noisy estimate: steps can become a hundred times too
            large. It is there for comparison.
        signal: the "magnitude" of S, as above; or its "positive part", max(S, 0).
        noise_weight: mu, in (0, 1]. With 1 and the positive part the filter is Wiener's, which does harm on some tasks.
        second_estimate: what a gradient is compared with: that of the "previous step"; or "half batches", for gradients
            that are accumulated: call :meth:`mark_half` between the two halves. Then S has no bias.
        every: gradients are compared at every so many steps; the averages' memory in steps stays the same.
        snr_annealing: whether steps are annealed, which on many tasks does harm; with ``onset``, ``power``, ``warmup``
            and ``annealing_ema`` as in :class:`SNRAnnealing`, for all groups alike.
        maximize: ascend.
        foreach: as in torch.
        fused: as in torch; with annealing, fused is the default, because the other implementations wait for an
            accelerator to know the step size.

    Raises:
        ValueError: an option is out of its range, or a grid does not multiply to trailing axes of a parameter.

    Source: Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949; with a weight of the
    noise, Lim and Oppenheim, Enhancement and Bandwidth Compression of Noisy Speech (Proceedings of the IEEE 1979). That
    kernels are best fitted to a second gradient is the idea of
    :func:`convopt.theory.kernel_loss.cross_loss_of_taps`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        *,
        grid: Sequence[int] | None = None,
        coherence_ema: float = 0.998,
        gain: str = "radial",
        scale: str = "energy",
        signal: str = "magnitude",
        noise_weight: float = NOISE_WEIGHT,
        second_estimate: str = "previous step",
        every: int = 4,
        snr_annealing: bool = False,
        onset: float = 0.8,
        power: float = 1.5,
        warmup: int = 200,
        annealing_ema: float = 0.999,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "grid": grid,
                "coherence_ema": coherence_ema,
                "gain": gain,
                "scale": scale,
                "signal": signal,
                "noise_weight": noise_weight,
                "second_estimate": second_estimate,
                "every": every,
                "snr_annealing": snr_annealing,
                "onset": onset,
                "power": power,
                "warmup": warmup,
                "annealing_ema": annealing_ema,
                "maximize": maximize,
                "foreach": foreach,
                "fused": fused,
            },
        )


class WienerAdamW(WienerOptimizer):
    """AdamW on gradients that pass a Wiener filter; on request, steps are annealed by their signal-to-noise ratio.

    Filter, annealing and all options that are not named here are those of :class:`WienerSGD`; the filtered gradient
    goes into both of AdamW's averages.

    Args:
        params: parameters or param groups with or without a ``grid``.
        lr: learning rate, a float or a tensor of one element.
        betas: factors of AdamW's averages, in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled, and annealed like the step.

    Raises:
        ValueError: an option is out of its range, or a grid does not multiply to trailing axes of a parameter.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv:1711.05101); see :class:`WienerSGD`.
    """

    _law = AdamWLaw()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        grid: Sequence[int] | None = None,
        coherence_ema: float = 0.998,
        gain: str = "radial",
        scale: str = "energy",
        signal: str = "magnitude",
        noise_weight: float = NOISE_WEIGHT,
        second_estimate: str = "previous step",
        every: int = 4,
        snr_annealing: bool = False,
        onset: float = 0.8,
        power: float = 1.5,
        warmup: int = 200,
        annealing_ema: float = 0.999,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "grid": grid,
                "coherence_ema": coherence_ema,
                "gain": gain,
                "scale": scale,
                "signal": signal,
                "noise_weight": noise_weight,
                "second_estimate": second_estimate,
                "every": every,
                "snr_annealing": snr_annealing,
                "onset": onset,
                "power": power,
                "warmup": warmup,
                "annealing_ema": annealing_ema,
                "maximize": maximize,
                "foreach": foreach,
                "fused": fused,
            },
        )
