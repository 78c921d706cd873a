"""The Wiener filter of parameters on grids: what their gradients' frequencies agree on, and the gain that follows."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.linalg import vector_norm

from convopt.optim._checks import grad_of, is_distributed
from convopt.optim._outliers import judge, new_usual_power, overwrite
from convopt.optim._scalars import Scalar, is_finite, is_readable, value_of
from convopt.optim._shards import check_rows, local, local_grad, owner_of, summed
from convopt.optim._turns import Turn
from convopt.optim.grids import spatial_axes
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

CHOICES = {"gain": ("radial", "separable"), "scale": ("energy", "unit dc"), "signal": ("magnitude", "positive part")}

NOISE_WEIGHT = 0.003
"""Of the noise, unless told otherwise. With 1 the filter is Wiener's, which loses accuracy on some tasks."""

NEGLECTED = 1e-3
"""Frequencies above those that hold all but this share of the filtered gradient's power are left out."""

Options: TypeAlias = Mapping[str, Any]
"""``grid``, ``coherence_ema`` and what else a param group says of the filter."""

State: TypeAlias = dict[str, Any]
"""Of one parameter: ``coherence``, ``usual_power`` and, between two gradients, ``second_estimate``."""


class Coherence(NamedTuple):
    """What has been learnt about one parameter: on the CPU, an entry per ring of frequencies.

    With a separable gain, the entries are the frequencies of the first axis, then those of the second.

    Attributes:
        frequency: as a share of each axis' Nyquist frequency, 0 the constant; of a ring the mean.
        coherence: SNR / (1 + SNR) at each frequency, not negative.
        gain: what the gradient is multiplied by, in the mean over the entry's frequencies.
    """

    frequency: Tensor
    coherence: Tensor
    gain: Tensor


class Seen(NamedTuple):
    """What a step has seen of one parameter.

    Attributes:
        products: with its second estimate, summed over frequencies, ``(2,)``, see ``products_of``; None without one.
        power: ``|g|^2``.
    """

    products: Tensor | None
    power: Scalar


def check_shards(options: Options, name: str, p: Tensor) -> None:
    """RuntimeError where a parameter is sharded, and not into whole grids one after the other."""
    if is_distributed(p):
        reason = f"which parts its grid {tuple(options['grid'])}: only rows that each hold whole grids can be sharded"
        check_rows(p, f"parameter {name}", reason)
        if owner_of(p) and p.numel() // p.shape[0] % math.prod(options["grid"]):
            raise RuntimeError(f"parameter {name} of shape {tuple(p.shape)} is sharded along its first axis, {reason}")


class GridFilter:
    """Learns and applies the filters. What it learns lives in the states that it is given; it keeps what can be redone.

    A state's ``coherence``, ``(2, bands)``, holds averages over steps of the signal's power and of the total power.
    """

    def __init__(self) -> None:
        self._bands: dict[Any, Bands] = {}
        self._made: dict[Tensor, tuple[list[Tensor], Tensor]] = {}

    def shapes(self, options: Options, p: Tensor) -> dict[str, tuple[int, ...]]:
        """The shapes of a parameter's state."""
        bands = self.bands(options, torch.float32, torch.device("cpu"))
        frequencies = math.prod(len(basis) for basis in bands.bases)
        return {
            "coherence": (2, len(bands.weights)),
            "usual_power": (),
            "second_estimate": tuple(p.shape) if is_distributed(p) else (frequencies, p.numel() // frequencies),
        }

    def zeros(self, options: Options, p: Tensor) -> State:
        """The state of a parameter of which nothing has been learnt, with a second estimate that teaches nothing."""
        dtypes = {"coherence": at_least_float32(p[:0]).dtype, "usual_power": torch.float64, "second_estimate": p.dtype}
        shapes = self.shapes(options, p)
        state = {name: torch.zeros(shapes[name], dtype=dtype, device=p.device) for name, dtype in dtypes.items()}
        return {**state, "second_estimate": torch.zeros_like(p)} if is_distributed(p) else state

    def bands(self, options: Options, dtype: torch.dtype, device: torch.device) -> Bands:
        """The bands of the options' grid."""
        key = spatial_axes(options["grid"]), options["gain"] == "radial", dtype, device
        if key not in self._bands:
            self._bands[key] = make_bands(*key)
        return self._bands[key]

    def init(self, options: Options, p: Tensor, state: State) -> None:
        """Make the state of a parameter, anew if it was made for another grid or kind of gain."""
        gradient = at_least_float32(local_grad(p))
        bands = len(self.bands(options, gradient.dtype, gradient.device).weights)
        if "coherence" not in state or state["coherence"].shape != (2, bands):
            self.forget(p, state)
            state["coherence"] = torch.zeros(2, bands, dtype=gradient.dtype, device=p.device)
            state["usual_power"] = new_usual_power(p.device)

    def spectrum(self, options: Options, p: Tensor) -> Tensor:
        """What this rank holds of the gradient, in the basis of the DCT: ``(frequencies, fields)``."""
        gradient = at_least_float32(local_grad(p))
        return fields_to_spectrum(gradient, self.bands(options, gradient.dtype, gradient.device).bases)

    def estimate(self, options: Options, p: Tensor) -> Tensor:
        """The gradient in the form in which it is kept for a comparison.

        Of a sharded parameter it is the gradient itself, whose shape tells a checkpoint which rank has which part.
        """
        return grad_of(p) if is_distributed(p) else self.spectrum(options, p)

    def observe(self, options: Options, p: Tensor, state: State, spectrum: Tensor, turn: Turn) -> "Seen":
        """Learn from a gradient by its spectrum."""
        other, owner = state.get("second_estimate") if turn.compares else None, owner_of(p)
        if other is not None and is_distributed(p):
            bases = self.bands(options, spectrum.dtype, spectrum.device).bases
            other = fields_to_spectrum(local(other).to(spectrum.dtype), bases)
        observed = None if other is None else summed(band_products(spectrum, other, turn.halves), owner)
        products = None if observed is None else observed.sum(1)
        power = products[1] if products is not None else summed(vector_norm(spectrum).double().square(), owner)
        ordinary, usual = judge(value_of(power), value_of(state["usual_power"]))
        state["usual_power"].copy_(usual) if isinstance(usual, Tensor) else state["usual_power"].fill_(usual)
        if observed is not None and products is not None:
            product = value_of(products[0])
            usable = ordinary & is_finite(product) & (product != 0)
            if usable is not False:
                self._learn(options, p, state, observed, usable, turn)
        if turn.remembers:
            keep(state, grad_of(p) if is_distributed(p) else spectrum, p.dtype, ordinary)
        return Seen(products, value_of(power))

    def _learn(
        self, options: Options, p: Tensor, state: State, observed: Tensor, usable: bool | Tensor, turn: Turn
    ) -> None:
        learnt, bands = state["coherence"], self.bands(options, observed.dtype, observed.device)
        pooled = observed.to(learnt.dtype) @ bands.pooling.to(learnt.dtype)
        # The average starts at zero: only ratios of its entries matter.
        average = torch.lerp(learnt, pooled, 1 - options["coherence_ema"] ** turn.every)
        learnt.copy_(average if usable is True else torch.where(torch.as_tensor(usable), average, learnt))
        self._made.pop(p, None)

    def direction(self, options: Options, p: Tensor, state: State, spectrum: Tensor | None, cached: bool) -> Tensor:
        """What this rank holds of the gradient, after the filter. Its ``spectrum``, where it is at hand, is used up.

        ``cached`` says that the filter will serve again before more is learnt.
        """
        gradient = at_least_float32(local_grad(p))
        bases, response = self._filter(options, p, state, gradient, cached)
        if spectrum is None:
            spectrum = fields_to_spectrum(gradient, bases)
        else:
            by_axis = spectrum.view(*[basis.shape[1] for basis in bases], -1)
            spectrum = by_axis[tuple(slice(len(basis)) for basis in bases)].reshape(len(response), -1)
        spectrum *= response
        return spectrum_to_fields(spectrum, bases).to(p.dtype).view(gradient.shape)

    def forget(self, p: Tensor, state: State, coherence: bool = True) -> None:
        """Forget the filter of a parameter, and unless ``coherence`` is False what it was made from."""
        self._made.pop(p, None)
        if coherence:
            for name in ("coherence", "usual_power", "second_estimate"):
                state.pop(name, None)

    def _filter(
        self, options: Options, p: Tensor, state: State, gradient: Tensor, cached: bool
    ) -> tuple[list[Tensor], Tensor]:
        """The bases of the frequencies that pass, and by what each is multiplied, ``(frequencies, 1)``."""
        made = self._made.get(p) if cached else None
        if made is not None and made[1].dtype == gradient.dtype and made[1].device == gradient.device:
            return made
        bands = self.bands(options, gradient.dtype, gradient.device)
        response, power = scaled_gain(state["coherence"], bands, options)
        bases = list(bands.bases)
        if is_readable(gradient.device):  # elsewhere the host would have to wait to know how short the products may be
            lengths = lowest_frequencies(response.square() * power, NEGLECTED)
            response = response[tuple(slice(length) for length in lengths)]
            bases = [basis[:length] for basis, length in zip(bases, lengths, strict=True)]
        made = bases, response.to(gradient.dtype).reshape(-1, 1)
        if cached:
            self._made[p] = made
        return made

    def learnt(self, options: Options, state: State) -> Coherence:
        """What has been learnt about a parameter, for plots."""
        learnt = state["coherence"].cpu()
        bands = self.bands(options, torch.float32, learnt.device)
        response, _ = scaled_gain(learnt, bands, options)
        gain = response.flatten() @ bands.pooling.to(response.dtype)
        return Coherence(bands.frequency, wiener_gain(*learnt), gain)


def band_products(spectrum: Tensor, other: Tensor, halves: bool) -> Tensor:
    """For each frequency, over all fields, ``<G, other>`` and ``|G|^2``: ``(2, frequencies)``, in the spectrum's dtype.

    With ``halves`` the first is ``4 <other, G - other>``; see ``products_of``.
    """
    other = other.to(spectrum.dtype)
    vecdot = torch.linalg.vecdot
    signal = 4 * vecdot(other, spectrum - other) if halves else vecdot(spectrum, other)
    return torch.stack([signal, vecdot(spectrum, spectrum)])


def keep(state: State, gradient: Tensor, dtype: torch.dtype, ordinary: bool | Tensor = True) -> None:
    """Keep a gradient, as it is or as a spectrum, as what the next one is compared with; zeros if it may not teach."""
    if "second_estimate" not in state:
        state["second_estimate"] = torch.zeros_like(gradient, dtype=dtype)
    overwrite(local(state["second_estimate"]), local(gradient), ordinary)


def scaled_gain(learnt: Tensor, bands: Bands, options: Options) -> tuple[Tensor, Tensor]:
    """The scaled gain at each frequency of the grid, ones where nothing has been learnt; and the power there."""
    signal, power = learnt
    coherence = wiener_gain(signal.abs() if options["signal"] == "magnitude" else signal, power)
    gain = coherence / torch.lerp(coherence, torch.ones_like(coherence), options["noise_weight"])
    if bands.rings is not None:
        gain, power = gain[bands.rings], power[bands.rings]
    elif len(bands.sizes) == 2:
        gain, power = (torch.outer(*torch.split(values, list(bands.sizes))) for values in (gain, power))
    by = energy_preserving(gain, power) if options["scale"] == "energy" else 1 / gain.flatten()[0]
    known = by < math.inf
    return torch.where(known, gain * by, 1.0), torch.where(known, power, 1.0)
