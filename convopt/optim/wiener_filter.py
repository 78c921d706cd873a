"""WienerFilter: give any optimizer gradients that pass the Wiener filter."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from convopt.optim._attach import Active, Stage
from convopt.optim._checks import (
    check_choice,
    check_integer,
    check_keys,
    check_not_differentiable,
    check_number,
    check_share,
    grad_of,
    named_groups,
)
from convopt.optim._shards import local
from convopt.optim._turns import Turn, turn_of
from convopt.optim.coherence import CHOICES, NOISE_WEIGHT, Coherence, GridFilter, Options, State, check_shards
from convopt.optim.grids import check_grid


class WienerFilter(Stage):
    """Filters an optimizer's gradients by how much of each frequency is signal.

    Parameters in param groups with a ``grid`` are filtered as :class:`WienerSGD` does it; all others stay as they are.
    During the step ``p.grad`` holds the filtered gradient, afterwards the gradient as it was, also after a step that
    raised. With :class:`SNRAnnealing` on the same optimizer, in either order, that observes the gradients unfiltered.

    Example::

        groups, account = spatial_param_groups(model, images[:1])
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        filter = WienerFilter(optimizer)

    Its gains are small and depend on the data. Around a cosine that was tuned without it, it gains on MNIST with noisy
    labels, and certainly loses on none of nineteen tasks. With learning rate and epochs tuned on both sides no gain is
    certain; there Wiener's own filter gains on MNIST. On the one series that was tried no gain is shown. On the three
    tasks whose training images were moved and mirrored it showed none, either.

    It keeps one copy of the gradients on grids. A deep copy or a pickle of it brings its optimizer along. A copy of the
    optimizer alone is not filtered, as torch copies no hooks.

    Args:
        optimizer: a ``torch.optim.Optimizer``, of which at least one param group has a ``grid``.
        coherence_ema: factor of the averages of the powers over steps, in [0, 1).
        gain: "radial" or "separable", see :class:`WienerSGD`.
        scale: "energy" or "unit dc", see :class:`WienerSGD`.
        signal: "magnitude" or "positive part", see :class:`WienerSGD`.
        noise_weight: in (0, 1], see :class:`WienerSGD`.
        every: gradients are compared at every so many steps; the averages' memory in steps stays the same.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer, or is LBFGS, whose step takes many gradients.
        ValueError: an option is outside its range; no group has a grid; or a grid does not multiply to trailing axes of
            a parameter.
        RuntimeError: the optimizer is filtered already. Or at a step, where a gradient is sparse or complex, a
            parameter is sharded so that its grid is parted, or a fused optimizer is given gradients that GradScaler has
            not unscaled. Nothing has been updated then.

    Source: as for :class:`WienerSGD`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        coherence_ema: float = 0.998,
        gain: str = "radial",
        scale: str = "energy",
        signal: str = "magnitude",
        noise_weight: float = NOISE_WEIGHT,
        every: int = 4,
    ):
        check_number("coherence_ema", coherence_ema, at_least=0, below=1)
        choices = {"gain": gain, "scale": scale, "signal": signal}
        for name, choice in choices.items():
            check_choice(name, choice, CHOICES[name])
        check_share("noise_weight", noise_weight)
        check_integer("every", every, at_least=1)
        self._options = {"coherence_ema": coherence_ema, "noise_weight": noise_weight, **choices}
        self._every, self._count = every, 0
        self._state: dict[Tensor, State] = {}
        self._grids: dict[Tensor, Any] = {}
        self._filter = GridFilter()
        self._spectra: dict[Tensor, Tensor] = {}
        super().__init__(optimizer)
        if not any(self._on_grids()):
            self.detach()
            raise ValueError(
                "no param group of the optimizer has a grid: declare one, or make the groups by spatial_param_groups"
            )

    def coherence(self) -> dict[str, Coherence]:
        """What has been learnt about each parameter on a grid, by name. Reading it waits for the device."""
        return {
            name: self._filter.learnt(options, self._state[p])
            for options, name, p in self._on_grids()
            if p in self._state
        }

    def state_dict(self) -> dict[str, Any]:
        """What has been learnt of each parameter on a grid, in their order, to be saved beside the optimizer's state.

        Of a parameter that was not updated yet there are zeros: distributed checkpoints load into tensors.
        """
        parameters = []
        for options, _, p in self._on_grids():
            state = {name: tensor.clone() for name, tensor in self._state.get(p, {}).items()}
            parameters.append({**self._filter.zeros(options, p.detach()), **state})
        return {"count": self._count, "parameters": parameters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`. ValueError, before anything changes, if it is of other parameters or grids."""
        check_keys(state_dict, ("count", "parameters"))
        on_grids, saved = list(self._on_grids()), state_dict["parameters"]
        if len(on_grids) != len(saved):
            raise ValueError(f"state_dict must hold {len(on_grids)} parameters on grids, got {len(saved)}")
        for (options, name, p), state in zip(on_grids, saved, strict=True):
            for key, shape in self._filter.shapes(options, p).items():
                if tuple(state[key].shape) != shape:
                    raise ValueError(
                        f"{key} of parameter {name} must have shape {shape}, got {tuple(state[key].shape)}: the "
                        "state_dict is of another network, grid or gain"
                    )
        self._state = {
            p: {key: tensor.clone().to(p.device) for key, tensor in state.items()}
            for (_, _, p), state in zip(on_grids, saved, strict=True)
        }
        self._count, self._filter = state_dict["count"], GridFilter()

    def check(self, active: Active) -> None:
        """Raise an error where a grid does not fit, or the optimizer filters its gradients itself.

        Groups that have lost their grids, as by a checkpoint from before there were any, have them again.
        """
        check_not_differentiable(self.optimizer, type(self).__name__)
        if any("coherence_ema" in group for group in self.optimizer.param_groups):
            raise RuntimeError(f"{type(self.optimizer).__name__} filters its gradients itself")
        for group in self.optimizer.param_groups:
            known = [self._grids[p] for p in group["params"] if p in self._grids]
            if known and "grid" not in group:
                group["grid"] = known[0]
        for options, name, p in self._on_grids():
            check_grid(options["grid"], p.shape, name)
            check_shards(options, name, p)
            grid = tuple(options["grid"])
            if self._grids.setdefault(p, grid) != grid:
                self._grids[p] = grid
                self._filter.forget(p, self._state.get(p, {}))

    def observe(self, active: Active) -> None:
        """Compare the gradients on grids with those of an earlier step."""
        turn = turn_of(self._count, self._every, resting=False)
        self._count = turn.following
        self._spectra = {}
        present = {p for _, params in active for p in params}
        for options, _, p in self._on_grids():
            if p not in present:
                self._state.get(p, {}).pop("second_estimate", None)
            elif turn.learns:
                self._observe(options, p, turn)

    def _observe(self, options: Options, p: Tensor, turn: Turn) -> None:
        state = self._state.setdefault(p, {})
        self._filter.init(options, p, state)
        self._spectra[p] = self._filter.spectrum(options, p)
        self._filter.observe(options, p, state, self._spectra[p], turn)

    def filter(self, active: Active) -> dict[Tensor, Tensor]:
        """The filtered gradients of the parameters on grids, in the layout of their gradients."""
        spectra, self._spectra = self._spectra, {}
        filtered = {}
        for group, params in active:
            if group.get("grid") is None:
                continue
            options = {**self._options, "grid": group["grid"]}
            for p in params:
                state = self._state.setdefault(p, {})
                self._filter.init(options, p, state)
                direction = self._filter.direction(options, p, state, spectra.get(p), cached=self._every > 1)
                # torch's fused optimizers take the gradient's layout for the parameter's.
                filtered[p] = torch.empty_like(grad_of(p))
                local(filtered[p]).copy_(direction)
        return filtered

    def _on_grids(self) -> Iterator[tuple[Options, str, Tensor]]:
        """The parameters on grids, with their options and names."""
        for group, named in named_groups(self.optimizer.param_groups):
            if group.get("grid") is not None:
                options = {**self._options, "grid": group["grid"]}
                for name, p in named:
                    yield options, name, p
