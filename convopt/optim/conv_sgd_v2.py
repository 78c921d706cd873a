"""ConvolutionalSGDv2: shared 1-D and 2-D kernels, learned by gradient descent on a three-part loss."""

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from convopt.optim._base import Direction, Part, Pieces
from convopt.optim._checks import check_integer, check_number, grad_of, is_at_rest, is_number, params_with_grad
from convopt.optim._kernels import KernelOptimizer, initial_kernel, mean_statistics, smooth_flattened, together
from convopt.optim._outliers import new_usual_power, ordinary, powers_of
from convopt.theory._shifts import BLOCK, ImageShifts, LineShifts, Shifts, ShiftsInPieces
from convopt.theory.kernel_loss import three_part_loss, three_part_loss_derivative, through_softmax
from convopt.theory.smoothing import at_least_float32
from convopt.theory.snr import ema_powers


class ConvolutionalSGDv2(KernelOptimizer):
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

    Rows whose gradient is zero by construction (an embedding's ``padding_idx``, masks) are moved, too. Give such
    parameters a group of their own with ``kernel_size=1``.

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
            behind the original proposal's figures; the three parts that its text gives are (0.5, 0.3, 0.2).
        noise_estimation_momentum: the EMA's factor, in [0, 1). The EMA starts from the first gradient.
        kernel_update_every: steps from one update of the kernels to the next.

    Raises:
        ValueError: an option is outside its range.
    """

    _exact_state = ("signal", "usual_power")
    _group_kernels = ("logits_1d", "logits_2d")

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
        are_three = isinstance(weights, tuple | list) and len(weights) == 3
        if not are_three or not all(is_number(weight) and 0 <= float(weight) < math.inf for weight in weights):
            raise ValueError(
                f"loss_weights must be (direction, signal, smoothness), finite and none negative, got {weights!r}"
            )
        check_integer("kernel_update_every", options["kernel_update_every"], at_least=1)

    def _initial_group_state(self, group: dict[str, Any]) -> dict[str, Any]:
        init, size = group["kernel_init"], group["kernel_size"]
        return {
            "logits_1d": initial_kernel(init, size, ndim=1).log(),
            "logits_2d": initial_kernel(init, size, ndim=2).log().reshape(-1),
            "steps": 0,
        }

    def _kernels_of(self, group: dict[str, Any]) -> dict[str, Tensor]:
        size = group["kernel_size"]
        return {"kernel_1d": _kernel(group, "logits_1d"), "kernel_2d": _kernel(group, "logits_2d").view(size, size)}

    def _shapes(self, group: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...] | None]:
        return {"signal": tuple(p.shape), "usual_power": ()}

    def _init_state(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> bool:
        """Also at rest: of the state, a distributed checkpoint loads only what a step for show has made."""
        if _layout(p.shape, group["kernel_size"]) is None:
            return False
        precision = at_least_float32(grad_of(p)).dtype
        new = "signal" not in state
        if new:
            state["signal"] = torch.zeros_like(p, dtype=precision, memory_format=torch.preserve_format)
            state["usual_power"] = new_usual_power(p.device)
        elif state["signal"].dtype != precision:  # it came with a checkpoint in another precision
            state["signal"] = state["signal"].to(precision)
        return new

    def _directions(self, part: Part, observed: Any) -> Sequence[Direction]:
        group, seen = part.group, self._seen(part)
        directions: list[Direction] = [grad_of(p) for p in part.params]
        resting = is_at_rest(group["lr"])
        group["steps"] += not resting
        adapts = not resting and group["steps"] % group["kernel_update_every"] == 0
        may_teach = [] if resting else _update_signals(group, seen, adapts)
        if adapts:
            pairs = zip(seen, may_teach, strict=True)
            smoothed: Sequence[Direction] = [_smooth_and_adapt(group, each, verdict) for each, verdict in pairs]
        else:
            smoothed = _smooth(group, seen)
        for each, direction in zip(seen, smoothed, strict=True):
            directions[each.place] = direction
        return directions

    def _seen(self, part: Part) -> list["Seen"]:
        """The gradients that a kernel smooths."""
        seen = []
        for place, (p, state, large) in enumerate(zip(part.params, part.states, self._go_in_pieces(part), strict=True)):
            layout = _layout(p.shape, part.group["kernel_size"])
            if layout is not None:
                in_pieces = large and not (layout == "matrix" and p.ndim == 4)
                seen.append(Seen(place, grad_of(p), state, layout, in_pieces))
        return seen

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """What the kernels do to the gradients in place, as 0-dim tensors; empty before the first step.

        ``snr`` is the original proposal's estimate, the sum of signal powers over the sum of noise powers;
        ``kernel_loss`` and ``cosine_similarity`` are means over the smoothed parameters.
        """
        losses, powers = [], []
        for group in self.param_groups:
            params = [p for p in params_with_grad(group) if "signal" in self.state.get(p, {})]
            for seen in self._seen(Part(group, params, [self.state[p] for p in params])):
                (smoothed,) = _shifts(group, seen).smooth(_kernel(group, _logits_name(seen.layout)))
                grad, signal = _references(seen, smoothed.dtype)
                losses.append(three_part_loss(smoothed, grad, signal, group["loss_weights"]))
                powers.append(ema_powers(signal, grad))
        if not losses:
            return {}
        signal_power, noise_power = (torch.stack(parts).sum() for parts in zip(*powers, strict=True))
        return {"snr": signal_power / noise_power, **mean_statistics(losses)}


Layout = Literal["matrix", "taps", "flat"]


class Seen(NamedTuple):
    """A gradient that a kernel smooths.

    Attributes:
        place: of its parameter among those that have a gradient.
        gradient: as it is.
        state: of its parameter.
        layout: how the kernel sees it.
        large: whether it is smoothed piece by piece; then the kernel sees it as a line or as one image.
    """

    place: int
    gradient: Tensor
    state: dict[str, Any]
    layout: Layout
    large: bool


def _update_signals(group: dict[str, Any], seen: list[Seen], adapts: bool) -> list[bool | Tensor]:
    """Move the averages of gradients by those that are ordinary; which are."""
    if not seen:
        return []
    grads, states = [at_least_float32(each.gradient) for each in seen], [each.state for each in seen]
    may_teach, first = ordinary(states, powers_of(grads), update=adapts)
    _move([state["signal"] for state in states], grads, 1 - group["noise_estimation_momentum"], first, may_teach)
    return may_teach


def _move(
    averages: list[Tensor],
    grads: list[Tensor],
    weight: float,
    first: list[bool | Tensor],
    may_teach: list[bool | Tensor],
) -> None:
    """Move averages of gradients in place by those that may teach, and begin them with the first."""
    if all(isinstance(verdict, bool) for verdict in may_teach):
        moved = [i for i, verdict in enumerate(may_teach) if verdict]
        begun, known = [i for i in moved if first[i]], [i for i in moved if not first[i]]
        for i in begun:
            averages[i].copy_(grads[i])
        if known:
            torch._foreach_lerp_([averages[i] for i in known], [grads[i] for i in known], weight)
        return
    for average, grad, is_first, verdict in zip(averages, grads, first, may_teach, strict=True):
        moved_by = torch.where(torch.as_tensor(is_first), grad, torch.lerp(average, grad, weight))
        average.copy_(torch.where(torch.as_tensor(verdict), moved_by, average))


def _smooth_and_adapt(group: dict[str, Any], seen: Seen, may_teach: bool | Tensor) -> Tensor:
    """The smoothed gradient; then the logits take a step, unless it leaves the precision's range.

    A tap of zero, whose logit is -inf, stays as it is.
    """
    name = _logits_name(seen.layout)
    kernel, shifts = _kernel(group, name), _shifts(group, seen)
    (smoothed,) = shifts.smooth(kernel)
    if may_teach is not False:
        derivative = three_part_loss_derivative(smoothed, *_references(seen, smoothed.dtype), group["loss_weights"])
        gradient = through_softmax(shifts.correlate([derivative]).float(), kernel)
        adapted = torch.sub(group[name], gradient, alpha=group["kernel_lr"])
        usable = (adapted.isfinite() | (adapted == group[name])).all()
        group[name] = torch.where(usable & may_teach, adapted, group[name])
    return smoothed.view(seen.gradient.shape)


def _smooth(group: dict[str, Any], seen: list[Seen]) -> list[Direction]:
    """The smoothed gradients, with the group's kernels as they are; large ones in pieces."""
    size, directions = group["kernel_size"], [cast(Direction, each.gradient) for each in seen]
    kernels = {name: _kernel(group, name) for name in ("logits_1d", "logits_2d")}
    folded = [_fold(each.gradient, each.layout) for each in seen]
    steps = [_step(each.gradient.shape, each.layout) for each in seen]
    for i, each in enumerate(seen):
        if each.large:
            pieces = ShiftsInPieces(folded[i], size, steps[i]).smooth_pieces(kernels[_logits_name(each.layout)])
            directions[i] = Pieces(tuple(folded[i].shape), pieces)
    flat = [i for i, each in enumerate(seen) if not each.large and each.layout == "flat"]
    lines = smooth_flattened([seen[i].gradient for i in flat], size, kernels["logits_1d"])
    for i, line in zip(flat, lines, strict=True):
        directions[i] = line

    def alike(i: int) -> Hashable:
        # To join large ones would cost a copy of them and save nothing.
        gradient = folded[i]
        return gradient.device, gradient.dtype, gradient.shape[-1], steps[i], i if gradient.numel() > BLOCK else None

    for some in together((i for i, each in enumerate(seen) if not each.large and each.layout != "flat"), key=alike):
        images = ImageShifts([folded[i] for i in some], size, step=steps[some[0]]).smooth(kernels["logits_2d"])
        for i, image in zip(some, images, strict=True):
            directions[i] = image.view(seen[i].gradient.shape)
    return directions


def _shifts(group: dict[str, Any], seen: Seen) -> Shifts:
    """Those of a gradient."""
    folded, step = _fold(seen.gradient, seen.layout), _step(seen.gradient.shape, seen.layout)
    if seen.large:
        return ShiftsInPieces(folded, group["kernel_size"], step)
    if seen.layout == "flat":
        return LineShifts([folded], group["kernel_size"])
    return ImageShifts([folded], group["kernel_size"], step=step)


def _references(seen: Seen, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the loss compares the smoothed gradient with: the gradient itself and its moving average."""
    return _fold(seen.gradient, seen.layout).to(dtype), _fold(seen.state["signal"], seen.layout).to(dtype)


@lru_cache(maxsize=4096)
def _layout(shape: torch.Size, size: int) -> Layout | None:
    """How a tensor of ``shape`` is smoothed: over its last two axes, its first two, flattened, or not at all."""
    if len(shape) in (2, 4) and min(shape[-2:]) >= size:
        return "matrix"
    if len(shape) == 4 and min(shape[:2]) >= size:
        return "taps"
    return "flat" if shape.numel() >= size else None


def _fold(tensor: Tensor, layout: Layout) -> Tensor:
    """``tensor`` as a line, or as images, or as images that are interleaved along the last axis."""
    if layout == "flat":
        return tensor.reshape(-1)
    return tensor.reshape(len(tensor), -1) if layout == "taps" else tensor


def _step(shape: torch.Size, layout: Layout) -> int:
    """How many images are interleaved."""
    return shape[2:].numel() if layout == "taps" else 1


def _logits_name(layout: Layout) -> str:
    return "logits_1d" if layout == "flat" else "logits_2d"


def _kernel(group: dict[str, Any], name: str) -> Tensor:
    return torch.softmax(group[name], 0)
