"""ConvolutionalSGDv2: shared 1-D and 2-D kernels, learned by gradient descent on a three-part loss."""

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from convopt.optim._base import (
    SmoothingOptimizer,
    check_number,
    grad_of,
    initial_kernel,
    is_at_rest,
    mean_statistics,
    smooth_flattened,
    together,
)
from convopt.theory.kernel_loss import three_part_loss, three_part_loss_derivative, through_softmax
from convopt.theory.smoothing import BLOCK, LineShifts, PictureShifts, Shifts, ShiftsInPieces, at_least_float32
from convopt.theory.snr import ema_powers


class ConvolutionalSGDv2(SmoothingOptimizer):
    r"""SGD with momentum on gradients that are convolved with learned, softmax-normalised kernels (v2 of the idea).

    There are two kernels per param group. The 2-D one smooths weights of Linear layers over (out, in), and those
    of Conv2d over (kH, kW) where the kernel fits there, else over (out, in) for each tap (kH, kW) apart where it
    fits. The 1-D one smooths all others, flattened. Padding is by reflection; a tensor with fewer elements than
    the kernel has taps passes through.

    Every ``kernel_update_every`` steps, parameter after parameter, the logits of its kernel take one step of plain
    gradient descent on

    .. math::  L_W = d\,(1 - \cos(g, W * g)) + s\,\mathrm{MSE}(W * g, \bar g) + v\,\mathrm{Var}(W * g)/\mathrm{Var}(g)

    with its exact gradient, where :math:`\bar g` is an exponential moving average of the gradients. The kernels
    follow the gradients alone: a closure or a loss is accepted, as by the other optimizers, but not needed. At a
    learning rate of 0 they rest.

    Args:
        params: parameters or param groups.
        lr: learning rate, a float or a tensor of one element.
        momentum, weight_decay, nesterov, maximize: as in torch.optim.SGD without dampening. Weight decay is added after
            smoothing.
        kernel_size: taps along each axis, odd.
        kernel_lr: learning rate of the logits.
        kernel_init: "gaussian" (logits are its log), another name of ``NAMED_KERNELS``, or a tensor of
            ``kernel_size`` taps or of ``kernel_size`` x ``kernel_size``. A tap of zero stays zero under a softmax,
            so "identity" is a kernel that never changes.
        loss_weights: (d, s, v), the weights of direction, signal and smoothness. The default moved the kernel
            behind the README's figures; the README's own three parts are (0.5, 0.3, 0.2).
        noise_estimation_momentum: the EMA's factor, in [0, 1). The EMA starts from the first gradient.
        kernel_update_every: steps from one update of the kernels to the next.

    Raises:
        ValueError: an option is outside its range.
    """

    _float32_state = ("signal",)
    _shared_kernels = ("logits_1d", "logits_2d")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        kernel_size: int = 5,
        kernel_lr: float = 0.005,
        kernel_init: str | Tensor = "gaussian",
        loss_weights: tuple[float, float, float] = (0.5, 1.0, 0.0),
        noise_estimation_momentum: float = 0.99,
        kernel_update_every: int = 5,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "kernel_size": kernel_size,
                "kernel_lr": kernel_lr,
                "kernel_init": kernel_init,
                "loss_weights": loss_weights,
                "noise_estimation_momentum": noise_estimation_momentum,
                "kernel_update_every": kernel_update_every,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_number("kernel_lr", options["kernel_lr"], at_least=0)
        check_number("noise_estimation_momentum", options["noise_estimation_momentum"], at_least=0, below=1)
        weights = options["loss_weights"]
        if not (isinstance(weights, tuple | list) and len(weights) == 3 and all(weight >= 0 for weight in weights)):
            raise ValueError(f"loss_weights must be (direction, signal, smoothness), none negative, got {weights!r}")
        every = options["kernel_update_every"]
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"kernel_update_every must be a positive integer, got {every!r}")

    def _initial_shared_state(self, group: dict[str, Any]) -> dict[str, Any]:
        init, size = group["kernel_init"], group["kernel_size"]
        return {
            "logits_1d": initial_kernel(init, size, ndim=1).log(),
            "logits_2d": initial_kernel(init, size, ndim=2).log().reshape(-1),
            "steps": 0,
        }

    def _kernels_of(self, group: dict[str, Any]) -> dict[str, Tensor]:
        size = group["kernel_size"]
        return {"kernel_1d": _kernel(group, "logits_1d"), "kernel_2d": _kernel(group, "logits_2d").view(size, size)}

    def _step_group(self, group: dict[str, Any], params: list[Tensor], loss: Tensor | float | None) -> None:
        resting = is_at_rest(group["lr"])
        layouts = {p: layout for p in params if (layout := _layout(p.shape, group["kernel_size"])) is not None}
        self._init_signals(list(layouts))
        if not resting:
            group["steps"] += 1
            self._update_signals(group, list(layouts))
        directions = {p: grad_of(p) for p in params}
        if resting or group["steps"] % group["kernel_update_every"]:
            for p, layout in list(layouts.items()):
                if pieces := self._pieces(group, p, layout):
                    smoothed = pieces.smooth_pieces(_kernel(group, _logits_name(layout)))
                    self._descend_in_pieces(group, p, pieces.gradient.shape, smoothed)
                    del layouts[p], directions[p]
            directions.update(_smooth(group, layouts))
        else:
            for p, layout in layouts.items():
                directions[p] = self._smooth_and_adapt(group, p, layout)
        self._descend(group, list(directions), list(directions.values()))

    def _init_signals(self, params: list[Tensor]) -> None:
        """Also at rest: of the state, a distributed checkpoint loads only what a step for show has made."""
        for p in params:
            grad, state = at_least_float32(grad_of(p)), self.state[p]
            if "signal" not in state:
                state["signal"] = grad.clone(memory_format=torch.preserve_format)
            elif state["signal"].dtype != grad.dtype:  # it came with a checkpoint in another precision
                state["signal"] = state["signal"].to(grad.dtype)

    def _update_signals(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if params:
            weight = 1 if group["steps"] == 1 else 1 - group["noise_estimation_momentum"]
            signals = [self.state[p]["signal"] for p in params]
            torch._foreach_lerp_(signals, [at_least_float32(grad_of(p)) for p in params], weight)

    def _smooth_and_adapt(self, group: dict[str, Any], p: Tensor, layout: "Layout") -> Tensor:
        """Smooth the gradient of ``p`` with its kernel as it is, then take one step of the kernel's logits."""
        name = _logits_name(layout)
        kernel = _kernel(group, name)
        shifts = self._shifts(group, p, layout)
        (smoothed,) = shifts.smooth(kernel)
        references = self._references(p, layout, smoothed.dtype)
        derivative = three_part_loss_derivative(smoothed, *references, group["loss_weights"])
        gradient = through_softmax(shifts.correlate([derivative]).float(), kernel)
        group[name] = torch.sub(group[name], gradient, alpha=group["kernel_lr"])
        return smoothed.view(p.shape)

    def _shifts(self, group: dict[str, Any], p: Tensor, layout: "Layout") -> Shifts:
        """Those of the gradient of ``p``."""
        if pieces := self._pieces(group, p, layout):
            return pieces
        folded = _fold(grad_of(p), layout)
        if layout == "flat":
            return LineShifts([folded], group["kernel_size"])
        return PictureShifts([folded], group["kernel_size"], step=_step(p.shape, layout))

    def _pieces(self, group: dict[str, Any], p: Tensor, layout: "Layout") -> ShiftsInPieces | None:
        """Those of a large gradient that the kernel sees as a line or as one picture, interleaved or not."""
        if not self._goes_in_pieces(p) or (layout == "matrix" and p.ndim == 4):
            return None
        return ShiftsInPieces(_fold(grad_of(p), layout), group["kernel_size"], _step(p.shape, layout))

    def _references(self, p: Tensor, layout: "Layout", dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the loss compares the smoothed gradient with: the gradient itself and its moving average."""
        return _fold(grad_of(p), layout).to(dtype), _fold(self.state[p]["signal"], layout).to(dtype)

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """What the kernels do to the gradients in place, as 0-dim tensors; empty before the first step.

        ``snr`` is the README's estimate, the sum of signal powers over the sum of noise powers; ``kernel_loss`` and
        ``cosine_similarity`` are means over the smoothed parameters.
        """
        losses, powers = [], []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and "signal" in self.state.get(p, {}):
                    layout = _layout(p.shape, group["kernel_size"])
                    assert layout is not None
                    kernel = _kernel(group, _logits_name(layout))
                    (smoothed,) = self._shifts(group, p, layout).smooth(kernel)
                    grad, signal = self._references(p, layout, smoothed.dtype)
                    losses.append(three_part_loss(smoothed, grad, signal, group["loss_weights"]))
                    powers.append(ema_powers(signal, grad))
        if not losses:
            return {}
        signal_power, noise_power = (torch.stack(parts).sum() for parts in zip(*powers, strict=True))
        return {"snr": signal_power / noise_power, **mean_statistics(losses)}


Layout = Literal["matrix", "taps", "flat"]


@lru_cache(maxsize=4096)
def _layout(shape: torch.Size, size: int) -> Layout | None:
    """How a tensor of ``shape`` is smoothed: over its last two axes, its first two, flattened, or not at all."""
    if len(shape) in (2, 4) and min(shape[-2:]) >= size:
        return "matrix"
    if len(shape) == 4 and min(shape[:2]) >= size:
        return "taps"
    return "flat" if shape.numel() >= size else None


def _fold(tensor: Tensor, layout: Layout) -> Tensor:
    """``tensor`` as a line, or as pictures, or as pictures that are interleaved along the last axis."""
    if layout == "flat":
        return tensor.reshape(-1)
    return tensor.reshape(len(tensor), -1) if layout == "taps" else tensor


def _step(shape: torch.Size, layout: Layout) -> int:
    """How many pictures are interleaved."""
    return shape[2:].numel() if layout == "taps" else 1


def _logits_name(layout: Layout) -> str:
    return "logits_1d" if layout == "flat" else "logits_2d"


def _kernel(group: dict[str, Any], name: str) -> Tensor:
    return torch.softmax(group[name], 0)


def _smooth(group: dict[str, Any], layouts: dict[Tensor, Layout]) -> dict[Tensor, Tensor]:
    """The smoothed gradient of each parameter, with the group's kernels as they are."""
    size = group["kernel_size"]
    flat = [p for p, layout in layouts.items() if layout == "flat"]
    directions = smooth_flattened([grad_of(p) for p in flat], size, _kernel(group, "logits_1d"))
    smoothed = dict(zip(flat, directions, strict=True))
    kernel = _kernel(group, "logits_2d")
    folded = {p: _fold(grad_of(p), layout) for p, layout in layouts.items() if layout != "flat"}
    steps = {p: _step(p.shape, layouts[p]) for p in folded}

    def alike(p: Tensor) -> Hashable:
        # To join large ones would cost a copy of them and save nothing.
        return p.device, folded[p].dtype, folded[p].shape[-1], steps[p], p if p.numel() > BLOCK else None

    for params in together(folded, key=alike):
        pictures = PictureShifts([folded[p] for p in params], size, step=steps[params[0]]).smooth(kernel)
        for p, picture in zip(params, pictures, strict=True):
            smoothed[p] = picture.view(p.shape)
    return smoothed
