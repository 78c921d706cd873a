"""WienerSGD and WienerAdamW: gradients pass the Wiener filter that their own coherence prescribes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from convopt.optim._base import check_integer, check_number, named_params, params_with_grad, restore_float32_state
from convopt.optim.annealing import (
    agreement,
    annealing_factor,
    check_onset,
    new_statistics,
    powers,
    rho,
    update_statistics,
    usable,
)
from convopt.optim.grids import check_grid, spatial_axes
from convopt.theory.smoothing import at_least_float32
from convopt.theory.spectrum import (
    Bands,
    energy_preserving,
    fields_to_spectrum,
    make_bands,
    spectrum_to_fields,
    wiener_gain,
)

CHOICES = {
    "gain": ("radial", "separable"),
    "scale": ("energy", "unit dc"),
    "second_estimate": ("previous step", "half batches"),
}
OF_THE_OPTIMIZER = ("second_estimate", "snr_annealing", "onset", "power", "warmup", "annealing_ema")
"""Options that are the same for all param groups."""


class Coherence(NamedTuple):
    """What an optimizer has learnt about one parameter: float32 on the CPU, an entry per ring of frequencies.

    With a separable gain, the entries are the frequencies of the first axis, then those of the second.

    Attributes:
        frequency: as a share of each axis' Nyquist frequency, 0 the constant; of a ring the mean.
        coherence: SNR / (1 + SNR) at each frequency, not negative.
        gain: what the gradient is multiplied by there; where separable, by the product over axes.
    """

    frequency: Tensor
    coherence: Tensor
    gain: Tensor


class SNR(NamedTuple):
    """What an optimizer has learnt about its gradients.

    Attributes:
        rho: share of the gradients' power that two estimates agree on, over all parameters; nan as long as there were
            no two, or without annealing.
        factor: what learning rates are multiplied by, in (0, 1].
        parameters: by name, for those on a grid that have been updated.
    """

    rho: float
    factor: float
    parameters: dict[str, Coherence]


class WienerOptimizer(Optimizer, ABC):
    """What WienerSGD and WienerAdamW share: everything but the update."""

    def __init__(self, params: Any, defaults: dict[str, Any]):
        if defaults["fused"] is None and defaults["foreach"] is None and defaults["snr_annealing"]:
            # The step size lives on the device then. Of torch's updates only the fused ones leave it there.
            defaults["fused"] = True
        self._known_bands: dict[Any, Bands] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not name are the defaults. ValueError names an option that is invalid."""
        options = {**self.defaults, **param_group}
        self._check_options(options)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if group["grid"] is not None:
                for name, p in named_params(group):
                    check_grid(group["grid"], p.shape, name)
        except ValueError:
            self.param_groups.pop()
            raise
        self._complete_groups()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill in the options that a checkpoint of the base optimizer, or an older one, lacks."""
        super().__setstate__(state)
        self._known_bands = {}
        self._complete_groups()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint, as in torch, or one of the base optimizer. Statistics stay float32."""
        grids = [group["grid"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, saved, grid in zip(self.param_groups, state_dict["param_groups"], grids, strict=True):
            if "grid" not in saved:
                group["grid"] = grid
        restore_float32_state(self, state_dict, ["coherence"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters from their ``grad``, which stays as it is.

        Args:
            closure: called once, before anything else, with gradients enabled: zero_grad, backward, return the loss.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a gradient is sparse or complex, or ``second_estimate`` is "half batches" and
                :meth:`mark_half` was not called since the last step. Nothing has been updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._init_group(group)
        params_of_groups = [params_with_grad(group) for group in self.param_groups]
        self._check_second_estimate(params_of_groups)
        # A rate of zero is a step for show, as distributed checkpoints make one.
        learns = any(isinstance(group["lr"], Tensor) or group["lr"] for group in self.param_groups)
        seen: list[Tensor] = []
        directions_of_groups: list[list[Tensor]] = []
        for group, params in zip(self.param_groups, params_of_groups, strict=True):
            directions_of_groups.append([])
            for p in params:
                direction = p.grad if group["grid"] is None else self._smooth(group, p, seen if learns else None)
                directions_of_groups[-1].append(direction)
        if self.defaults["snr_annealing"] and learns:
            self._compare_off_grid(params_of_groups, seen)
            self._anneal(seen)
        factor = self._factor() if self.defaults["snr_annealing"] else None
        for group, params, directions in zip(self.param_groups, params_of_groups, directions_of_groups, strict=True):
            self._forget(group)
            if params:
                if group["fused"]:
                    directions = [_laid_out_as(p, d) for p, d in zip(params, directions, strict=True)]
                self._update(group, params, directions, _scaled(group["lr"], factor, params[0].device))
        return loss

    @torch.no_grad()
    def mark_half(self) -> None:
        """With ``second_estimate="half batches"``: the gradients so far are those of the first half of the batch.

        Call it once before each step, between two ``backward`` of half of the batch each, or of equally many
        micro-batches. The gradients of the halves must count the same in their sum.

        Raises:
            RuntimeError: ``second_estimate`` is another, or a gradient is sparse or complex.
        """
        if not self._halves:
            raise RuntimeError('mark_half() needs an optimizer made with second_estimate="half batches"')
        for group in self.param_groups:
            for p in params_with_grad(group):
                if group["grid"] is not None:
                    gradient = at_least_float32(p.grad)
                    self._remember(p, fields_to_spectrum(gradient, self._bands(group, gradient).bases))
                elif self.defaults["snr_annealing"]:
                    self._remember(p, p.grad)

    def snr(self) -> SNR:
        """What the optimizer has learnt about its gradients, for plots. Reading it waits for the device."""
        parameters = {}
        for group in self.param_groups:
            for name, p in named_params(group):
                if "coherence" in self.state.get(p, {}):
                    learnt = self.state[p]["coherence"].cpu()
                    bands = self._bands(group, learnt)
                    gain = torch.cat(_gains(learnt, bands, group["scale"]))
                    parameters[name] = Coherence(bands.frequency, wiener_gain(*learnt), gain)
        return SNR(rho(self.param_groups[0]["annealing"]).item(), self._factor().item(), parameters)

    def snr_scalars(self) -> dict[str, float]:
        """The same in few numbers, for a logger.

        ``rho``, ``factor`` and, for each parameter on a grid, the mean coherence over the frequencies of the lower and
        of the upper half: ``{"rho": 0.2, "factor": 0.9, "coherence/0.weight/low": 0.3, ...}``.
        """
        snr = self.snr()
        scalars = {"rho": snr.rho, "factor": snr.factor}
        for name, (frequency, coherence, _) in snr.parameters.items():
            scalars[f"coherence/{name}/low"] = coherence[frequency < 0.5].mean().item()
            scalars[f"coherence/{name}/high"] = coherence[frequency >= 0.5].mean().item()
        return scalars

    def _check_options(self, options: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "power"):
            check_number(name, options[name], at_least=0)
        for name in ("coherence_ema", "annealing_ema"):
            check_number(name, options[name], at_least=0, below=1)
        check_onset(options["onset"])
        check_integer("warmup", options["warmup"], at_least=0)
        for name, known in CHOICES.items():
            if options[name] not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {options[name]!r}")
        for name in OF_THE_OPTIMIZER:
            if options[name] != self.defaults[name]:
                raise ValueError(f"{name} must be {self.defaults[name]!r} in all param groups, got {options[name]!r}")
        if options["fused"] and options["foreach"]:
            raise ValueError("fused and foreach must not both be True")

    @abstractmethod
    def _update(
        self, group: dict[str, Any], params: list[Tensor], directions: list[Tensor], lr: float | Tensor
    ) -> None:
        """The base optimizer's step along ``directions``."""

    def _complete_groups(self) -> None:
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if self.param_groups:
            # In a group, and as one tensor, it survives state_dict, pickle, deepcopy and distributed checkpoints.
            self.param_groups[0].setdefault("annealing", new_statistics())

    def _check_second_estimate(self, params_of_groups: list[list[Tensor]]) -> None:
        if self._halves and not any(
            "second_estimate" in self.state.get(p, {}) for params in params_of_groups for p in params
        ):
            raise RuntimeError(
                'second_estimate="half batches" needs mark_half() between the backward passes of the two halves'
            )

    def _smooth(self, group: dict[str, Any], p: Tensor, seen: list[Tensor] | None) -> Tensor:
        """The gradient after the filter. What it says of signal and noise goes into the state and ``seen``, if any."""
        state, gradient = self.state[p], at_least_float32(p.grad)
        bands = self._bands(group, gradient)
        # In one piece: glibc's malloc then keeps it from one step to the next and spares hundreds of page faults.
        workspace = None if torch.compiler.is_compiling() else gradient.new_empty(2, gradient.numel())
        spectrum = fields_to_spectrum(gradient, bands.bases, workspace)
        if seen is not None:
            if "second_estimate" in state:
                observed = powers(spectrum, state["second_estimate"], self._halves)
                seen.append(observed.sum(1))
                average = torch.lerp(state["coherence"], observed @ bands.pooling, 1 - group["coherence_ema"])
                state["coherence"].copy_(torch.where(usable(seen[-1]), average, state["coherence"]))
            if not self._halves:
                self._remember(p, spectrum)
        spectrum *= _response(_gains(state["coherence"], bands, group["scale"]), bands).unsqueeze(1)
        return spectrum_to_fields(spectrum, bands.bases, workspace).to(p.dtype).view(p.shape)

    def _init_group(self, group: dict[str, Any]) -> None:
        """Make what the group's parameters need. torch.compile runs a method of this name instead of tracing it."""
        for p in group["params"]:
            if p.grad is not None and group["grid"] is not None and "coherence" not in self.state[p]:
                bands = self._bands(group, at_least_float32(p.grad))
                self.state[p]["coherence"] = torch.zeros(2, len(bands.weights), device=p.device)

    def _bands(self, group: dict[str, Any], like: Tensor) -> Bands:
        key = (spatial_axes(group["grid"]), group["gain"] == "radial", like.dtype, like.device)
        if key not in self._known_bands:
            self._known_bands[key] = make_bands(*key)
        return self._known_bands[key]

    def _compare_off_grid(self, params_of_groups: list[list[Tensor]], seen: list[Tensor]) -> None:
        """What the gradients without a grid say of signal and noise goes into ``seen``."""
        groups = zip(self.param_groups, params_of_groups, strict=True)
        off_grid = [p for group, params in groups if group["grid"] is None for p in params]
        known = [p for p in off_grid if "second_estimate" in self.state[p]]
        if known:
            others = [self.state[p]["second_estimate"] for p in known]
            seen.append(agreement([p.grad for p in known], others, self._halves))
        if not self._halves:
            for p in off_grid:
                self._remember(p, p.grad)

    def _remember(self, p: Tensor, gradient: Tensor) -> None:
        """Keep ``gradient``, as it is or as a spectrum, as what the next one is compared with."""
        state = self.state[p]
        if "second_estimate" in state:
            state["second_estimate"].copy_(gradient)
        else:
            state["second_estimate"] = gradient.to(p.dtype, copy=True)

    def _anneal(self, seen: list[Tensor]) -> None:
        if seen:
            statistics = self.param_groups[0]["annealing"].to(seen[0].device)
            self.param_groups[0]["annealing"] = statistics
            observed = torch.stack([of_params.to(statistics.device) for of_params in seen]).sum(0)
            update_statistics(statistics, observed, self.defaults["annealing_ema"], self.defaults["warmup"])

    def _forget(self, group: dict[str, Any]) -> None:
        """Drop second estimates that the next gradients are not to be compared with."""
        for p in group["params"]:
            if p in self.state and (self._halves or p.grad is None):
                self.state[p].pop("second_estimate", None)

    @property
    def _halves(self) -> bool:
        return self.defaults["second_estimate"] == "half batches"

    def _factor(self) -> Tensor:
        options = [self.defaults[name] for name in ("onset", "power", "warmup")]
        return annealing_factor(self.param_groups[0]["annealing"], *options)


class WienerSGD(WienerOptimizer):
    """SGD."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        *,
        grid: Sequence[int] | None = None,
        coherence_ema: float = 0.99,
        gain: str = "radial",
        scale: str = "energy",
        second_estimate: str = "previous step",
        snr_annealing: bool = True,
        onset: float = 0.8,
        power: float = 1.5,
        warmup: int = 200,
        annealing_ema: float = 0.999,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        defaults = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        super().__init__(params, defaults)

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_number("momentum", options["momentum"], at_least=0, below=1)
        if options["nesterov"] and not options["momentum"]:
            raise ValueError("nesterov needs a momentum above 0, got 0")

    def _update(
        self, group: dict[str, Any], params: list[Tensor], directions: list[Tensor], lr: float | Tensor
    ) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in params] if group["momentum"] else []
        sgd(
            params,
            directions,
            buffers,
            lr=lr,
            dampening=0,
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            **_implementation(group),
        )
        for p, buffer in zip(params, buffers, strict=False):
            self.state[p]["momentum_buffer"] = buffer


class WienerAdamW(WienerOptimizer):
    """AdamW."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        grid: Sequence[int] | None = None,
        coherence_ema: float = 0.99,
        gain: str = "radial",
        scale: str = "energy",
        second_estimate: str = "previous step",
        snr_annealing: bool = True,
        onset: float = 0.8,
        power: float = 1.5,
        warmup: int = 200,
        annealing_ema: float = 0.999,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        defaults = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        super().__init__(params, defaults)

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        for i, beta in enumerate(options["betas"]):
            check_number(f"betas[{i}]", beta, at_least=0, below=1)
        check_number("eps", options["eps"], at_least=0)

    def _init_group(self, group: dict[str, Any]) -> None:
        super()._init_group(group)
        for p in group["params"]:
            if p.grad is not None and "step" not in self.state[p]:
                state = self.state[p]
                # Where torch's AdamW keeps it: on the device only if the update is fused.
                state["step"] = torch.tensor(0.0, device=p.device if group["fused"] else "cpu")
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _update(
        self, group: dict[str, Any], params: list[Tensor], directions: list[Tensor], lr: float | Tensor
    ) -> None:
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(
            params,
            directions,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            # What foreach asks for where the step size is a tensor.
            capturable=bool(group["foreach"]) and isinstance(lr, Tensor) and not torch.compiler.is_compiling(),
            **_implementation(group),
        )


def _gains(learnt: Tensor, bands: Bands, scale: str) -> list[Tensor]:
    """The Wiener gain over the bands of each index, scaled; ones where nothing has been learnt yet."""
    parts = zip(learnt.split(bands.sizes, 1), bands.weights.split(bands.sizes), strict=True)
    gains = []
    for (signal, total), weights in parts:
        gain = wiener_gain(signal, total)
        if scale == "energy":
            gains.append(energy_preserving(gain, total, weights))
        else:
            gains.append(torch.where(gain[0] > 0, gain / gain[0], 1.0))
    return gains


def _response(gains: list[Tensor], bands: Bands) -> Tensor:
    """The gain at each frequency, ``(frequencies,)``."""
    return reduce(torch.mul, (gain.index_select(0, index) for gain, index in zip(gains, bands.index, strict=True)))


def _scaled(lr: float | Tensor, factor: Tensor | None, device: torch.device) -> float | Tensor:
    """The step size; on an accelerator a tensor, because reading it would wait for the device."""
    if factor is None:
        return lr
    scaled = factor.to(device) * (lr.to(device).reshape(()) if isinstance(lr, Tensor) else lr)
    return scaled.item() if device.type == "cpu" and not torch.compiler.is_compiling() else scaled


def _implementation(group: dict[str, Any]) -> dict[str, bool | None]:
    """Which of torch's updates to use. Fused ones cannot be compiled, and the plain ones compile to the same."""
    if torch.compiler.is_compiling():
        return {"foreach": False, "fused": False}
    return {"foreach": group["foreach"], "fused": group["fused"]}


def _laid_out_as(p: Tensor, direction: Tensor) -> Tensor:
    """``direction`` in the memory layout of ``p``: torch's fused updates on a CPU take the two for the same."""
    return direction if direction.stride() == p.stride() else torch.empty_like(p).copy_(direction)
