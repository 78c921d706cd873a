"""What WienerSGD and WienerAdamW share: the filter and the annealing, but not the update."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convopt.optim._agreement import Annealer, new_agreement, powers_over_ranks, products_over_ranks, total_of
from convopt.optim._base import Direction, Part, SmoothingOptimizer
from convopt.optim._checks import (
    check_choice,
    check_flag,
    check_gradients,
    check_implementation,
    check_integer,
    check_number,
    check_share,
    grad_of,
    is_at_rest,
    is_distributed,
    named_groups,
    named_params,
)
from convopt.optim._plain import in_plain_mode
from convopt.optim._scalars import Scalar, is_eager, is_readable
from convopt.optim._shards import local, local_grad
from convopt.optim._turns import Turn, turn_of
from convopt.optim.coherence import CHOICES, Coherence, GridFilter, Seen, check_shards, keep
from convopt.optim.grids import check_grid

SECOND_ESTIMATES = ("previous step", "half batches")


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


class WienerOptimizer(SmoothingOptimizer):
    """What WienerSGD and WienerAdamW share: everything but the update.

    What annealing has learnt is one tensor that all param groups hold, so that it survives ``state_dict``, pickle,
    deepcopy, distributed checkpoints and the removal of any group.
    """

    _shared_options = ("second_estimate", "every", "snr_annealing", "onset", "power", "warmup", "annealing_ema")
    _takes_shards = True
    _exact_state = ("coherence", "usual_power")

    def __init__(self, params: Any, options: dict[str, Any]):
        self._filter = GridFilter()
        self._known_factor: Scalar | None = None
        self._is_first = True
        if options["fused"] is None and options["foreach"] is None and options["snr_annealing"]:
            options["fused"] = True
        super().__init__(params, options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint or pickle, or a checkpoint of the base optimizer."""
        self._filter, self._known_factor = GridFilter(), None
        super().__setstate__(state)

    @in_plain_mode
    def mark_half(self) -> None:
        """With ``second_estimate="half batches"``: the gradients so far are those of the first half of the batch.

        Call it once before each step, between two ``backward`` of half of the batch each, or of equally many
        micro-batches. The gradients of the halves must count the same in their sum, and nothing may rescale them from
        here to the step: neither GradScaler nor clipping. With DistributedDataParallel the ``backward`` before it must
        not be under ``no_sync()``: ranks that see halves of their own would part ways.

        Raises:
            RuntimeError: ``second_estimate`` is another, or a gradient is sparse or complex.
        """
        first = self.param_groups[0]
        if first["second_estimate"] != "half batches":
            raise RuntimeError('mark_half() needs an optimizer made with second_estimate="half batches"')
        parts = self._parts()
        for part in parts:
            check_gradients(part.params, self._takes_shards)
        if is_eager() and first["turn"] != 0:
            return
        for group, params, states in parts:
            for p, state in zip(params, states, strict=True):
                if group["grid"] is not None:
                    self._filter.init(group, p, state)
                    keep(state, self._filter.estimate(group, p), p.dtype)
                elif group["snr_annealing"]:
                    keep(state, grad_of(p), p.dtype)
            self.state.update(zip(params, states, strict=True))

    def snr(self) -> SNR:
        """What the optimizer has learnt about its gradients, for plots. Reading it waits for the device."""
        annealer, parameters = self._annealer(), {}
        for group, named in named_groups(self.param_groups):
            for name, p in named:
                if group["grid"] is not None and "coherence" in self.state.get(p, {}):
                    parameters[name] = self._filter.learnt(group, self.state[p])
        return SNR(annealer.rho(), float(annealer.factor()), parameters)

    def snr_scalars(self) -> dict[str, float]:
        """The same in few numbers, for a logger.

        ``rho``, ``factor`` and, for each parameter on a grid, the mean coherence over the frequencies of the lower and
        of the upper half: ``{"rho": 0.2, "factor": 0.9, "coherence/0.weight/low": 0.3, ...}``.
        """
        snr = self.snr()
        scalars = {"rho": snr.rho, "factor": snr.factor}
        for name, (frequency, coherence, _) in snr.parameters.items():
            for half, within in (("low", frequency < 0.5), ("high", frequency >= 0.5)):
                if within.any():  # a grid of one element has but one frequency
                    scalars[f"coherence/{name}/{half}"] = coherence[within].mean().item()
        return scalars

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_number("power", options["power"], at_least=0)
        for name in ("coherence_ema", "annealing_ema"):
            check_number(name, options[name], at_least=0, below=1)
        check_share("noise_weight", options["noise_weight"])
        check_share("onset", options["onset"])
        check_integer("warmup", options["warmup"], at_least=0)
        check_integer("every", options["every"], at_least=1)
        for name, known in {**CHOICES, "second_estimate": SECOND_ESTIMATES}.items():
            check_choice(name, options[name], known)
        check_flag("snr_annealing", options["snr_annealing"])
        check_implementation(options)

    def _check_params(self, group: dict[str, Any]) -> None:
        if group["grid"] is not None:
            for name, p in named_params(group):
                check_grid(group["grid"], p.shape, name)

    def _complete_groups(self) -> None:
        first = self.param_groups[0]
        shared = {"annealing": first.get("annealing"), "turn": first.get("turn", 0)}
        if shared["annealing"] is None:
            shared["annealing"] = new_agreement()
        for group in self.param_groups:
            group.update(shared)

    def _initial_group_state(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"annealing": new_agreement(), "turn": 0}

    def _shapes(self, group: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...] | None]:
        if group["grid"] is None:
            return {"second_estimate": tuple(p.shape), "coherence": None, "usual_power": ()}
        return {**self._filter.shapes(group, p)}

    def _option_changed(self, group: dict[str, Any], name: str) -> None:
        self._known_factor = None
        # What was learnt was of other frequencies, or the gain that is made of it is another.
        if name in ("grid", "noise_weight", *CHOICES):
            for p in group["params"]:
                self._filter.forget(p, self.state.get(p, {}), coherence=name in ("grid", "gain"))

    def _refuse(self, parts: list[Part]) -> None:
        self._is_first = not self.state
        for group, params, _ in parts:
            if group["grid"] is not None and any(map(is_distributed, params)):
                for name, p in named_params(group):
                    check_shards(group, name, p)
        if self.param_groups[0]["second_estimate"] != "half batches" or not self._turn().compares:
            return
        compared = [part for part in parts if part.group["grid"] is not None or part.group["snr_annealing"]]
        if compared and not any("second_estimate" in state for part in compared for state in part.states):
            raise RuntimeError(
                'second_estimate="half batches" needs mark_half() between the backward passes of the two halves'
            )

    def _init_state(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> bool:
        """At the first step zeros are made for second estimates as well, of which a comparison learns nothing.

        Of the state, a distributed checkpoint loads only what a first step has made.
        """
        on_grid = group["grid"] is not None
        new = on_grid and "coherence" not in state
        if new:
            self._filter.init(group, p, state)
        if self._is_first and group["second_estimate"] == "previous step" and (on_grid or group["snr_annealing"]):
            like = self._filter.estimate(group, p) if on_grid else grad_of(p)
            keep(state, torch.zeros_like(like), p.dtype)
            return True
        return new

    def _turn(self) -> Turn:
        first = self.param_groups[0]
        resting = all(is_at_rest(group["lr"]) for group in self.param_groups)
        every, count = (first["every"], first["turn"]) if is_eager() else (1, 0)  # a counter would be compiled in
        return turn_of(count, every, resting, first["second_estimate"] == "half batches")

    def _observe(self, parts: list[Part], loss: Tensor | float | None) -> tuple[Turn, dict[Tensor, Tensor]]:
        """Learn what the gradients say of signal and noise; the turn, and spectra that were made for it."""
        turn = self._turn()
        spectra: dict[Tensor, Tensor] = {}
        seen: list[Seen] = []
        for group, params, states in parts if turn.learns else ():
            if group["grid"] is not None:
                for p, state in zip(params, states, strict=True):
                    spectra[p] = spectrum = self._filter.spectrum(group, p)
                    seen.append(self._filter.observe(group, p, state, spectrum, turn))
        if turn.learns and self.param_groups[0]["snr_annealing"]:
            off_grid = [part for part in parts if part.group["grid"] is None]
            params = [p for part in off_grid for p in part.params]
            self._observe_agreement(seen, params, [state for part in off_grid for state in part.states], turn)
        self._forget_estimates(turn)
        return turn, spectra

    def _observe_agreement(
        self, on_grids: list[Seen], params: list[Tensor], states: list[dict[str, Any]], turn: Turn
    ) -> None:
        """Have the annealing learn from all parameters together: those on grids, and the others."""
        gradients = [local_grad(p) for p in params]
        products = [each.products for each in on_grids if each.products is not None]
        known = [i for i, state in enumerate(states) if turn.compares and "second_estimate" in state]
        if known:
            others = [local(states[i]["second_estimate"]) for i in known]
            compared = [gradients[i] for i in known]
            products.append(products_over_ranks([params[i] for i in known], compared, others, turn.halves))
        annealer = self._annealer(turn.every)
        may_teach: bool | Tensor = True
        if products:
            total = total_of(products)
            annealer = self._annealer(turn.every, total.device)
            may_teach = annealer.observe(total)
            if is_eager():
                self._known_factor = None
        elif turn.remembers:
            may_teach = annealer.judge([*[each.power for each in on_grids], *powers_over_ranks(params, gradients)])
        if turn.remembers:
            for p, state in zip(params, states, strict=True):
                keep(state, grad_of(p), grad_of(p).dtype, may_teach)

    def _forget_estimates(self, turn: Turn) -> None:
        """Drop second estimates that the next gradients are not to be compared with, and go on to the next turn."""
        for group in self.param_groups:
            for p in group["params"]:
                if (turn.halves or p.grad is None) and p in self.state:
                    self.state[p].pop("second_estimate", None)
            if group["turn"] != turn.following:
                group["turn"] = turn.following

    def _directions(self, part: Part, observed: tuple[Turn, dict[Tensor, Tensor]]) -> Sequence[Direction]:
        if part.group["grid"] is None:
            return [local_grad(p) for p in part.params]
        turn, spectra = observed
        return [
            self._filter.direction(part.group, p, state, spectra.get(p), cached=turn.every > 1)
            for p, state in zip(part.params, part.states, strict=True)
        ]

    def _factor(self) -> Scalar | None:
        first = self.param_groups[0]
        if not first["snr_annealing"]:
            return None
        if not is_readable(first["annealing"].device):
            return self._annealer().factor()
        if self._known_factor is None:
            self._known_factor = self._annealer().factor()
        return self._known_factor

    def _annealer(self, every: int | None = None, device: torch.device | None = None) -> Annealer:
        first = self.param_groups[0]
        if device is not None and first["annealing"].device != device:
            learnt = first["annealing"].to(device)
            for group in self.param_groups:
                group["annealing"] = learnt
        return Annealer(
            first["annealing"],
            first["onset"],
            first["power"],
            first["warmup"],
            first["annealing_ema"],
            every or first["every"],
        )
