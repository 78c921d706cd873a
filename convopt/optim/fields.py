"""FieldAdam: Adam for parameters that are fields, smoothed as far as the measurements have not yet resolved them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convopt.optim._base import Direction, Part, SmoothingOptimizer
from convopt.optim._checks import check_implementation, check_integer, grad_of, is_at_rest, named_groups, named_params
from convopt.optim._rings import Rings, fit_laws, is_due, learn_rings, rings_of
from convopt.optim._updates import AdamWLaw
from convopt.theory.fields import PowerLaw, prior_law
from convopt.theory.smoothing import at_least_float32
from convopt.theory.spectrum import fields_to_spectrum, spectrum_to_fields


class Learnt(NamedTuple):
    """What has been learnt about one field.

    Attributes:
        law: the ratio of signal and noise of the whole gradient, a power law for each field.
        eigenvalue: of the Laplacian, the mean of each ring: ``w^2`` at a low angular frequency w.
        gain: the mean gain on each ring, ``(fields, rings)``.
    """

    law: PowerLaw
    eigenvalue: Tensor
    gain: Tensor


class FieldLaw(AdamWLaw):
    """AdamW with one second moment for a whole field: ``<g, K g>`` over the field's size, as AdamUniform has it."""

    def init(self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> bool:
        """Make the averages and the counters of steps that are missing."""
        if group["grid"] is None:
            return super().init(group, params, states)
        missing = [(p, state) for p, state in zip(params, states, strict=True) if "exp_avg" not in state]
        for p, state in missing:
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            self.adopt(p, state)
        return bool(missing)

    def update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        directions: list[Tensor],
        states: list[dict[str, Any]],
        lr: float | Tensor,
    ) -> None:
        """One step of parameters on one device along directions of their shapes and dtypes, in place."""
        if group["grid"] is None:
            super().update(group, params, directions, states, lr)
            return
        beta1, beta2 = group["betas"]
        for p, direction, state in zip(params, directions, states, strict=True):
            state["step"] += 1
            if not p.numel():
                continue
            average, step, power = state["exp_avg"], state["step"], state["power"]
            average.lerp_(direction, 1 - beta1)
            # Counted apart from the steps, which a checkpoint of AdamW brings. Before the first, a step is at rest.
            root = (power / (1 - beta2 ** max(state["averaged"], 1))).sqrt() + group["eps"]
            scale = lr / (1 - beta1**step) / root
            if group["weight_decay"]:
                p.mul_(1 - lr * group["weight_decay"])
            move = at_least_float32(average).reshape(len(power), -1) * scale[:, None]
            p.add_(move.view(p.shape).to(p.dtype), alpha=1 if group["maximize"] else -1)


class FieldAdam(SmoothingOptimizer):
    r"""Adam for parameters that are fields: images, volumes, textures; no width to choose.

    Of a parameter with a ``grid``, the gradient passes a gain :math:`K` in the basis of the DCT-II. With :math:`\ell`
    the eigenvalue of the Laplacian at each frequency,

    .. math::
        K \propto \log(1 + R), \quad R = c\, \ell^{-s}, \quad
        x \leftarrow x - \eta\, \frac{\overline{K g}}{\sqrt{\overline{\langle g, K g \rangle / n}}}

    where :math:`R` is the signal-to-noise ratio of the gradient of all data at the start, and the bars are Adam's
    averages. With this gain, one early stop is the best one for all frequencies: see :mod:`convopt.theory.fields`.

    The scale c and the exponent s are fitted, for each field, to what gradients show at rings of equal frequency. Their
    signal is the mean product of consecutive gradients over blocks of 8, 16, 32, ... steps. Each ring keeps the block
    that establishes most signal, because what has been learnt no longer shows in the gradient. Their noise is that of
    the last gradients. Until the first block is complete, R is that of a field with edges. A field learns nothing from
    a gradient that is not finite, or has thirty times its usual norm. The average in the denominator starts anew with
    the first gain that is learned.

    It is made for measurements that are about linear in the field, and an early stop: choose the last step by held-out
    measurements. Where they are not, as in waveform inversion and adversarial attacks, the best fixed smoothing did
    better. Where a field has flat parts and edges, a penalty on its total variation does better. A step takes two
    transforms, many times what Adam's takes; on an accelerator it waits for the device.

    Parameters without a grid get AdamW. Constraints are yours: project after the step.

    Example::

        image = torch.nn.Parameter(torch.zeros(3, 128, 128))
        optimizer = FieldAdam([image], lr=0.01, grid=(128, 128), batches=len(loader))

    Args:
        params: parameters or param groups. A group's ``grid`` says that trailing axes of its parameters are a field:
            ``(T,)``, ``(H, W)`` or ``(D, H, W)``. Axes before it count fields, as channels; each has a gain of its own.
        lr: learning rate, a float or a tensor of one element: about by how much values change in a step.
        betas: factors of the averages of directions and of their power, in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled.
        grid: of groups that do not name one; None for AdamW.
        batches: how many batches the data are; None where each batch is drawn anew, and all steps so far count.
        every: after how many steps a law is fitted again.
        maximize: ascend.
        foreach, fused: as in torch, for parameters without a grid.

    Raises:
        ValueError: an option is out of its range, or a grid does not multiply to trailing axes of a parameter.

    Source: the normalisation is that of AdamUniform, Nicolet et al., Large Steps in Inverse Rendering of Geometry, ACM
    Transactions on Graphics 40(6), 2021.
    """

    _law = FieldLaw()
    _exact_state = ("previous", "rings", "counts", "law", "fitted", "power", "usual_power")
    _elementwise = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        grid: Sequence[int] | None = None,
        batches: int | None = None,
        every: int = 10,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        self._rings: dict[Any, Rings] = {}
        self._gains: dict[Tensor, Tensor] = {}
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "grid": grid,
                "batches": batches,
                "every": every,
                "maximize": maximize,
                "foreach": foreach,
                "fused": fused,
            },
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint or pickle."""
        self._rings, self._gains = {}, {}
        super().__setstate__(state)

    def learnt(self) -> dict[str, Learnt]:
        """By name, what has been learnt about each parameter on a grid, on the CPU."""
        found = {}
        for group, named in named_groups(self.param_groups):
            for name, p in named:
                if group["grid"] is not None and "law" in self.state.get(p, {}):
                    law = self.state[p]["law"].cpu()
                    rings = self._rings_of(group, law)
                    found[name] = Learnt(PowerLaw(*law), rings.pooled, rings.means(rings.gain(law)).T)
        return found

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        if options["batches"] is not None:
            check_integer("batches", options["batches"], at_least=1)
        check_integer("every", options["every"], at_least=1)
        check_implementation(options)

    def _check_params(self, group: dict[str, Any]) -> None:
        if group["grid"] is not None:
            for name, p in named_params(group):
                check_field(group["grid"], p.shape, name)

    def _shapes(self, group: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...] | None]:
        if group["grid"] is None:
            return {}
        fields, size = p.numel() // math.prod(group["grid"]), math.prod(group["grid"])
        rings = len(self._rings_of(group, torch.zeros((), dtype=torch.float32, device="cpu")).sizes)
        return {
            "previous": (size, fields),
            "rings": (6, fields, rings),
            "law": (2, fields),
            "power": (fields,),
            **dict.fromkeys(("usual_power", "fitted"), (fields,)),
            "counts": (2, fields),
            "seen": None,
            "averaged": None,
        }

    def _option_changed(self, group: dict[str, Any], name: str) -> None:
        if name == "grid":
            for p in group["params"]:
                self.state.pop(p, None)
                self._gains.pop(p, None)

    def _init_state(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> bool:
        if group["grid"] is None or not p.numel():
            return False
        like = at_least_float32(p.detach()[:0])
        if "law" in state:  # perhaps of a checkpoint in another precision
            for name in ("previous", "rings", "counts", "law", "power"):
                state[name] = state[name].to(like.dtype)
            return False
        shapes = self._shapes(group, p)
        for name in ("previous", "rings", "counts", "power"):
            state[name] = like.new_zeros(shapes[name] or ())
        state["law"] = torch.stack(prior_law(len(state["power"]), len(group["grid"]))).to(like)
        state["rings"][5] = math.inf
        for name, dtype in {"usual_power": torch.float64, "fitted": torch.bool}.items():
            state[name] = torch.zeros_like(state["power"], dtype=dtype)
        state["seen"] = state["averaged"] = 0
        return True

    def _observe(self, parts: list[Part], loss: Tensor | float | None) -> dict[Tensor, Tensor]:
        """Learn from the gradients on grids; their directions."""
        return {
            p: self._observe_field(part.group, p, state)
            for part in parts
            if part.group["grid"] is not None
            for p, state in zip(part.params, part.states, strict=True)
            if p.numel()
        }

    def _observe_field(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Tensor:
        gradient = at_least_float32(grad_of(p))
        rings = self._rings_of(group, gradient)
        spectrum = fields_to_spectrum(gradient, rings.bases)
        active = not is_at_rest(group["lr"])
        if active and learn_rings(state, spectrum, rings) and is_due(state, group["every"]):
            fit_laws(state, rings, group)
            self._gains[p] = rings.gain(state["law"])
        if p not in self._gains:
            self._gains[p] = rings.gain(state["law"])
        filtered = self._gains[p] * spectrum
        if active:
            state["averaged"] += 1
            state["power"].lerp_(torch.linalg.vecdot(spectrum, filtered, dim=0) / len(spectrum), 1 - group["betas"][1])
        return spectrum_to_fields(filtered, rings.bases).view(p.shape)

    def _directions(self, part: Part, observed: dict[Tensor, Tensor]) -> Sequence[Direction]:
        return [observed[p] if p in observed else grad_of(p) for p in part.params]

    def _rings_of(self, group: dict[str, Any], like: Tensor) -> Rings:
        key = tuple(group["grid"]), like.dtype, like.device
        if key not in self._rings:
            self._rings[key] = rings_of(*key)
        return self._rings[key]


def check_field(grid: Any, shape: Sequence[int], name: str) -> None:
    """Raise ValueError unless ``grid`` is one to three positive integers that are the trailing axes of ``shape``."""
    if not isinstance(grid, list | tuple) or not 1 <= len(grid) <= 3:
        raise ValueError(f"grid must be (T,), (H, W) or (D, H, W), got {grid!r}")
    for length in grid:
        check_integer("each length of grid", length, at_least=1)
    if math.prod(grid) not in [math.prod(shape[start:]) for start in range(len(shape))]:
        raise ValueError(
            f"grid {tuple(grid)} has {math.prod(grid)} elements, but no trailing axes of parameter {name} of shape "
            f"{tuple(shape)} multiply to that: channels come before the grid"
        )
