"""WienerSGD and WienerAdamW: gradients pass the Wiener filter that their own coherence prescribes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from convopt.optim._base import (
    check_integer,
    check_number,
    complete_options,
    grad_of,
    is_at_rest,
    named_params,
    params_with_grad,
    restore_float32_state,
)
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
    lowest_frequencies,
    make_bands,
    spectrum_to_fields,
    wiener_gain,
)

CHOICES = {
    "gain": ("radial", "separable"),
    "scale": ("energy", "unit dc"),
    "second_estimate": ("previous step", "half batches"),
}
HALF_PRECISIONS = (torch.float16, torch.bfloat16)
NEGLECTED = 1e-3
"""Frequencies above those that hold all but this share of the filtered gradient's power are left out."""
OF_THE_OPTIMIZER = ("second_estimate", "every", "snr_annealing", "onset", "power", "warmup", "annealing_ema")
"""Options that are the same for all param groups."""


class Coherence(NamedTuple):
    """What an optimizer has learnt about one parameter: float32 on the CPU, an entry per ring of frequencies.

    With a separable gain, the entries are the frequencies of the first axis, then those of the second.

    Attributes:
        frequency: as a share of each axis' Nyquist frequency, 0 the constant; of a ring the mean.
        coherence: SNR / (1 + SNR) at each frequency, not negative.
        gain: what the gradient is multiplied by, in the mean over the entry's frequencies.
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
            # Of torch's updates only the fused ones take a step size that an accelerator has computed.
            defaults["fused"] = True
        self._known_bands: dict[Any, Bands] = {}
        self._known_filters: dict[Tensor, tuple[list[Tensor], Tensor]] = {}
        self._known_factor: float | Tensor | None = None
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
        self._known_bands, self._known_filters, self._known_factor = {}, {}, None
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
                Not with GradScaler: nobody would unscale its gradients.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a gradient is sparse or complex, a parameter is sharded, or ``second_estimate`` is
                "half batches" and :meth:`mark_half` was not called since the last step. Nothing has been updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params_of_groups = [params_with_grad(group) for group in self.param_groups]
        first = not self.state
        for group in self.param_groups:
            self._init_group(group, first)
        compares, remembers = self._turn()
        self._check_second_estimate(params_of_groups, compares)
        filtered = self._learn(params_of_groups, compares, remembers) if compares or remembers else {}
        factor = self._factor() if self.defaults["snr_annealing"] else None
        for group, params in zip(self.param_groups, params_of_groups, strict=True):
            self._forget(group)
            if params:
                directions = [
                    grad_of(p) if group["grid"] is None else filtered[p] if p in filtered else self._smooth(group, p)
                    for p in params
                ]
                if group["fused"]:
                    directions = [_laid_out_as(p, d) for p, d in zip(params, directions, strict=True)]
                self._update(group, params, directions, _scaled(group["lr"], factor, params[0].device))
        self._advance()
        return loss

    @torch.no_grad()
    def mark_half(self) -> None:
        """With ``second_estimate="half batches"``: the gradients so far are those of the first half of the batch.

        Call it once before each step, between two ``backward`` of half of the batch each, or of equally many
        micro-batches. The gradients of the halves must count the same in their sum, and nothing may rescale them from
        here to the step: neither GradScaler nor clipping. With DistributedDataParallel the ``backward`` before it must
        not be under ``no_sync()``: ranks that see halves of their own would part ways.

        Raises:
            RuntimeError: ``second_estimate`` is another, or a gradient is sparse or complex.
        """
        if not self._halves:
            raise RuntimeError('mark_half() needs an optimizer made with second_estimate="half batches"')
        compares = torch.compiler.is_compiling() or self.param_groups[0]["turn"] == 0
        for group in self.param_groups:
            params = params_with_grad(group)
            self._init_group(group)
            for p in params if compares else ():
                if group["grid"] is not None:
                    self._remember(p, self._spectrum(group, p))
                elif self.defaults["snr_annealing"]:
                    self._remember(p, grad_of(p))

    def snr(self) -> SNR:
        """What the optimizer has learnt about its gradients, for plots. Reading it waits for the device."""
        parameters = {}
        for group in self.param_groups:
            for name, p in named_params(group):
                if "coherence" in self.state.get(p, {}):
                    learnt = self.state[p]["coherence"].cpu()
                    bands = self._bands(group, learnt)
                    response, _ = _response(learnt, bands, group["scale"])
                    gain = response.flatten() @ bands.pooling
                    parameters[name] = Coherence(bands.frequency, wiener_gain(*learnt), gain)
        return SNR(rho(self.param_groups[0]["annealing"]).item(), float(self._factor()), parameters)

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
        check_integer("every", options["every"], at_least=1)
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
        complete_options(self)
        if self.param_groups:
            # In a group, and as one tensor, it survives state_dict, pickle, deepcopy and distributed checkpoints.
            self.param_groups[0].setdefault("annealing", new_statistics())
            self.param_groups[0].setdefault("turn", 0)

    def _init_group(self, group: dict[str, Any], first: bool = False) -> None:
        """Make what the group's parameters need. torch.compile runs a method of this name instead of tracing it.

        At the first step zeros are made for second estimates as well, of which a comparison learns nothing: of the
        state, a distributed checkpoint loads only what a first step has made.
        """
        for p in group["params"]:
            if p.grad is not None and group["grid"] is not None and "coherence" not in self.state[p]:
                bands = self._bands(group, at_least_float32(grad_of(p)))
                self.state[p]["coherence"] = torch.zeros(2, len(bands.weights), device=p.device)
            if p.grad is not None and first and not self._halves:
                if group["grid"] is not None:
                    self._remember(p, torch.zeros_like(self._spectrum(group, p)))
                elif self.defaults["snr_annealing"]:
                    self._remember(p, torch.zeros_like(grad_of(p)))

    @property
    def _learns(self) -> bool:
        return not all(is_at_rest(group["lr"]) for group in self.param_groups)

    def _turn(self) -> tuple[bool, bool]:
        """Whether this step compares its gradients with a second estimate, and whether the next one is to."""
        learns = self._learns
        if torch.compiler.is_compiling():  # a counter would be compiled in
            return learns, learns and not self._halves
        turn = self.param_groups[0]["turn"]
        return learns and turn == 0, learns and turn == self.defaults["every"] - 1 and not self._halves

    def _advance(self) -> None:
        if self._learns and not torch.compiler.is_compiling():
            self.param_groups[0]["turn"] = (self.param_groups[0]["turn"] + 1) % self.defaults["every"]

    @property
    def _steps(self) -> int:
        """How many steps a comparison stands for."""
        return 1 if torch.compiler.is_compiling() else self.defaults["every"]

    @property
    def _halves(self) -> bool:
        return bool(self.defaults["second_estimate"] == "half batches")

    def _check_second_estimate(self, params_of_groups: list[list[Tensor]], compares: bool) -> None:
        if not (self._halves and compares and any(params_of_groups)):
            return
        if not any("second_estimate" in self.state.get(p, {}) for params in params_of_groups for p in params):
            raise RuntimeError(
                'second_estimate="half batches" needs mark_half() between the backward passes of the two halves'
            )

    def _learn(self, params_of_groups: list[list[Tensor]], compares: bool, remembers: bool) -> dict[Tensor, Tensor]:
        """What the gradients say of signal and noise goes into the statistics; returns those that could be filtered.

        They are filtered at once, while their spectra are at hand.
        """
        filtered: dict[Tensor, Tensor] = {}
        seen: list[Tensor] = []
        off_grid: list[Tensor] = []
        for group, params in zip(self.param_groups, params_of_groups, strict=True):
            if group["grid"] is None:
                off_grid += params
                continue
            for p in params:
                spectrum = self._spectrum(group, p)
                if compares and "second_estimate" in self.state[p]:
                    seen.append(self._learn_coherence(group, p, spectrum))
                if remembers:
                    self._remember(p, spectrum)
                filtered[p] = self._smooth(group, p, spectrum)
        if self.defaults["snr_annealing"]:
            known = [p for p in off_grid if "second_estimate" in self.state[p]]
            if compares and known:
                others = [self.state[p]["second_estimate"] for p in known]
                seen.append(agreement([grad_of(p) for p in known], others, self._halves))
            if remembers:
                for p in off_grid:
                    self._remember(p, grad_of(p))
            if seen:
                self._learn_agreement(seen)
        return filtered

    def _learn_coherence(self, group: dict[str, Any], p: Tensor, spectrum: Tensor) -> Tensor:
        """Takes a comparison into the parameter's statistics and returns its sum over all frequencies."""
        learnt, bands = self.state[p]["coherence"], self._bands(group, spectrum)
        observed = powers(spectrum, self.state[p]["second_estimate"], self._halves)
        total = observed.sum(1)
        # The average starts at zero: only ratios of its entries matter.
        average = torch.lerp(learnt, observed @ bands.pooling, 1 - group["coherence_ema"] ** self._steps)
        learnt.copy_(torch.where(usable(total), average, learnt))
        self._known_filters.pop(p, None)
        return total

    def _learn_agreement(self, seen: list[Tensor]) -> None:
        statistics = self.param_groups[0]["annealing"].to(seen[0].device)
        self.param_groups[0]["annealing"] = statistics
        observed = torch.stack([of_params.to(statistics.device) for of_params in seen]).sum(0)
        ema, warmup = self.defaults["annealing_ema"], self.defaults["warmup"]
        update_statistics(statistics, observed, ema, warmup, self._steps)
        self._known_factor = None

    def _remember(self, p: Tensor, gradient: Tensor) -> None:
        """Keep ``gradient``, as it is or as a spectrum, as what the next one is compared with."""
        state = self.state[p]
        if "second_estimate" in state:
            state["second_estimate"].copy_(gradient)
        else:
            state["second_estimate"] = gradient.to(p.dtype, copy=True)

    def _forget(self, group: dict[str, Any]) -> None:
        """Drop second estimates that the next gradients are not to be compared with."""
        for p in group["params"]:
            if p in self.state and (self._halves or p.grad is None):
                self.state[p].pop("second_estimate", None)

    def _spectrum(self, group: dict[str, Any], p: Tensor) -> Tensor:
        gradient = at_least_float32(grad_of(p))
        return fields_to_spectrum(gradient, self._bands(group, gradient).bases)

    def _smooth(self, group: dict[str, Any], p: Tensor, spectrum: Tensor | None = None) -> Tensor:
        """The gradient after the filter; its ``spectrum``, where it is at hand, is used up."""
        gradient = at_least_float32(grad_of(p))
        if torch.compiler.is_compiling():
            bases, response = self._make_filter(group, p, gradient)
        else:
            if p not in self._known_filters:
                self._known_filters[p] = self._make_filter(group, p, gradient)
            bases, response = self._known_filters[p]
        if spectrum is None:
            spectrum = fields_to_spectrum(gradient, bases)
        else:
            by_axis = spectrum.view(*[basis.shape[1] for basis in bases], -1)
            spectrum = by_axis[tuple(slice(len(basis)) for basis in bases)].reshape(len(response), -1)
        spectrum *= response
        return spectrum_to_fields(spectrum, bases).to(p.dtype).view(p.shape)

    def _make_filter(self, group: dict[str, Any], p: Tensor, gradient: Tensor) -> tuple[list[Tensor], Tensor]:
        """The bases of the frequencies that pass, and by what each is multiplied, ``(frequencies, 1)``."""
        bands = self._bands(group, gradient)
        response, power = _response(self.state[p]["coherence"], bands, group["scale"])
        bases = list(bands.bases)
        # Shorter products; but to know how short, an accelerator would have to be waited for.
        if gradient.device.type == "cpu" and not torch.compiler.is_compiling():
            lengths = lowest_frequencies(response.square() * power, NEGLECTED)
            response = response[tuple(slice(length) for length in lengths)]
            bases = [basis[:length] for basis, length in zip(bases, lengths, strict=True)]
        return bases, response.to(gradient.dtype).reshape(-1, 1)

    def _bands(self, group: dict[str, Any], like: Tensor) -> Bands:
        key = (spatial_axes(group["grid"]), group["gain"] == "radial", like.dtype, like.device)
        if key not in self._known_bands:
            self._known_bands[key] = make_bands(*key)
        return self._known_bands[key]

    def _factor(self) -> float | Tensor:
        """What learning rates are multiplied by; on an accelerator a 0-dim tensor."""
        if torch.compiler.is_compiling():
            return self._make_factor()
        if self._known_factor is None:
            self._known_factor = self._make_factor()
        return self._known_factor

    def _make_factor(self) -> float | Tensor:
        options = [self.defaults[name] for name in ("onset", "power", "warmup")]
        factor = annealing_factor(self.param_groups[0]["annealing"], *options)
        # To know the number, an accelerator would have to be waited for.
        return factor if factor.device.type != "cpu" or torch.compiler.is_compiling() else factor.item()


class WienerSGD(WienerOptimizer):
    r"""SGD with momentum on gradients that pass a Wiener filter, with steps annealed by their signal-to-noise ratio.

    Of a parameter with a ``grid``, the gradient is seen as many pictures. In the basis of the orthonormal DCT-II, with
    :math:`G_t` and :math:`G_{t-1}` the gradients of consecutive batches, averages over pictures, over rings of equal
    radial frequency :math:`\omega` and, exponentially, over steps,

    .. math::
        S = \overline{G_t G_{t-1}}, \quad P = \overline{G_t^2}, \quad h = \frac{\max(S, 0)}{P}, \quad
        G_t \leftarrow h \sqrt{\frac{\sum P}{\sum h^2 P}} \; G_t

    estimate the signal's power, that of signal and noise, and Wiener's filter :math:`h`: their coherence, SNR /
    (1 + SNR), at each frequency. There is no kernel size and no kernel learning rate. No gain is negative, so that each
    filtered gradient still descends; the scale keeps the gradient's power, so that a learning rate of SGD carries over.
    Where no frequency stands out, and for parameters without a grid, this is SGD.

    Consecutive batches draw their noise independently, so it cannot pass for signal. But the step between them follows
    :math:`G_{t-1}`, and that makes S too low.

    The step is then annealed as :class:`SNRAnnealing` does it, from all gradients together, but at once. Between steps
    ``param_groups[...]["lr"]`` is what you or a scheduler set. One previous gradient is kept for both.

    Example::

        groups, account = spatial_param_groups(model, images[:1])
        print(account)
        optimizer = WienerSGD(groups, lr=0.01)

    Args:
        params: parameters or param groups. A group's ``grid`` says how trailing axes of its parameters form a picture:
            ``(H, W)``; ``(C, H, W)``, where channels are not smoothed over; ``(T,)`` for a time axis. The weight of a
            linear layer over flattened pictures has its fan-in folded so; a convolution's kernel ``(kh, kw)`` is a
            picture itself. None for none.
        lr: learning rate, a float or a tensor of one element.
        momentum: in [0, 1).
        nesterov: whether the momentum is Nesterov's.
        weight_decay: coupled, added after the filter.
        grid: of groups that do not say.
        coherence_ema: factor of the average of S and P over steps, in [0, 1).
        gain: "radial", the same in all directions; or "separable", a product of one gain per axis.
        scale: "energy", as above; or "unit dc", which leaves the mean over the picture as it is, as a kernel that sums
            to 1 does.
        second_estimate: what a gradient is compared with: that of the "previous step"; or "half batches", for gradients
            that are accumulated: call :meth:`mark_half` between the two halves. Then S has no bias.
        every: gradients are compared at every so many steps; the averages' memory in steps stays the same.
        snr_annealing: whether steps are annealed; with ``onset``, ``power``, ``warmup`` and ``annealing_ema`` as in
            :class:`SNRAnnealing`, for all groups alike.
        maximize: ascend.
        foreach: as in torch.
        fused: as in torch; with annealing, fused is the default, because the other implementations wait for an
            accelerator to know the step size.

    Raises:
        ValueError: an option is out of its range, or a grid does not multiply to trailing axes of a parameter.

    Source: Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949. That kernels are best
    fitted to a second gradient is the idea of :func:`convopt.theory.kernel_loss.cross_loss_of_taps`.
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
        second_estimate: str = "previous step",
        every: int = 4,
        snr_annealing: bool = True,
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

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_number("momentum", options["momentum"], at_least=0, below=1)
        if options["nesterov"] and not options["momentum"]:
            raise ValueError("nesterov needs a momentum above 0, got 0")

    def _update(
        self, group: dict[str, Any], params: list[Tensor], directions: list[Tensor], lr: float | Tensor
    ) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in params] if group["momentum"] else []
        implementation = _implementation(group)
        if implementation["fused"] and any(p.device.type == "cpu" and p.dtype in HALF_PRECISIONS for p in params):
            # There, torch 2.13's fused SGD mixes up the elements of momentum buffers.
            implementation = {"foreach": True, "fused": False}
        sgd(
            params,
            directions,
            buffers,
            lr=lr,  # type: ignore[arg-type]  # torch's own SGD gives it tensors, too
            dampening=0,
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            **implementation,
        )
        for p, buffer in zip(params, buffers, strict=False):
            self.state[p]["momentum_buffer"] = buffer


class WienerAdamW(WienerOptimizer):
    """AdamW on gradients that pass a Wiener filter, with steps annealed by their signal-to-noise ratio.

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
        second_estimate: str = "previous step",
        every: int = 4,
        snr_annealing: bool = True,
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

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        for i, beta in enumerate(options["betas"]):
            if isinstance(beta, Tensor):
                raise ValueError(f"betas must be floats, got {options['betas']!r}")
            check_number(f"betas[{i}]", beta, at_least=0, below=1)
        check_number("eps", options["eps"], at_least=0)

    def _init_group(self, group: dict[str, Any], first: bool = False) -> None:
        super()._init_group(group, first)
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


def _response(learnt: Tensor, bands: Bands, scale: str) -> tuple[Tensor, Tensor]:
    """The scaled Wiener gain at each frequency of the grid, ones where nothing has been learnt; and the power there."""
    gain, power = wiener_gain(*learnt), learnt[1]
    if bands.rings is not None:
        gain, power = gain[bands.rings], power[bands.rings]
    elif len(bands.sizes) == 2:
        gain, power = (torch.outer(*torch.split(values, list(bands.sizes))) for values in (gain, power))
    by = energy_preserving(gain, power) if scale == "energy" else 1 / gain.flatten()[0]
    known = by < math.inf
    return torch.where(known, gain * by, 1.0), torch.where(known, power, 1.0)


def _scaled(lr: float | Tensor, factor: float | Tensor | None, device: torch.device) -> float | Tensor:
    """The step size; on a CPU, where reading a tensor waits for nothing, always a float."""
    if isinstance(lr, Tensor) and device.type == "cpu" and not torch.compiler.is_compiling():
        lr = lr.item()
    if factor is None:
        return lr
    factor = factor.to(device) if isinstance(factor, Tensor) else factor
    return (lr.to(device).reshape(()) if isinstance(lr, Tensor) else lr) * factor


def _implementation(group: dict[str, Any]) -> dict[str, Any]:
    """Which of torch's updates to use. Fused ones cannot be compiled, and the plain ones compile to the same."""
    if torch.compiler.is_compiling():
        return {"foreach": False, "fused": False}
    return {"foreach": group["foreach"], "fused": group["fused"]}


def _laid_out_as(p: Tensor, direction: Tensor) -> Tensor:
    """``direction`` in the memory layout of ``p``: torch's fused updates on a CPU take the two for the same."""
    return direction if direction.stride() == p.stride() else torch.empty_like(p).copy_(direction)
