"""torch's global settings do not reach into the theory: its values are the same under each of them."""

from collections.abc import Callable

import pytest
import torch
from surroundings import SURROUNDINGS, forget_constants
from torch import Tensor

from convopt.theory import kernel_loss, kernels, smoothing, snr, spectrum
from convopt.theory._shifts import ImageShifts, LineShifts, ShiftsInPieces

PUBLIC = kernels, smoothing, kernel_loss, spectrum, snr


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32, device="cpu")


LINE, OTHER, LONG, IMAGE = drawn(40), drawn(40, seed=1), drawn(5000), drawn(9, 12)
TAPS = torch.softmax(drawn(5), 0)
TAPS_2D = torch.softmax(drawn(9), 0)
STATISTICS = smoothing.shift_statistics(LINE, 5, OTHER)
GAIN, POWER = drawn(9, 12, seed=2).abs(), drawn(9, 12, seed=3).square()
WEIGHTS = (0.5, 1.0, 0.2)
BASES = tuple(spectrum.dct_matrix(length).float() for length in (9, 12))
UNIFORM = torch.full((5,), 0.2)

CALLS: dict[str, Callable[[], object]] = {
    **{f"{name} {ndim}-D": lambda name=name, ndim=ndim: kernels.NAMED_KERNELS[name](5, ndim)
       for name in kernels.NAMED_KERNELS for ndim in (1, 2)},
    "decay_ratio": lambda: kernels.decay_ratio(1.5),
    "laplacian_response": lambda: kernels.laplacian_response(LINE),
    "clip_to_simplex": lambda: kernels.clip_to_simplex(torch.stack([LINE, -LINE.abs()])),
    "from_logits": lambda: kernels.from_logits(IMAGE),
    "from_logits, half": lambda: kernels.from_logits(IMAGE.half()),
    "frequency_response": lambda: kernels.frequency_response(TAPS, LINE),
    "frequency_response 2-D": lambda: kernels.frequency_response(TAPS_2D.view(3, 3), LINE, OTHER),
    "minimum_response": lambda: kernels.minimum_response(UNIFORM),
    "is_positive_semidefinite": lambda: kernels.is_positive_semidefinite(UNIFORM),
    "ascent_gradient": lambda: kernels.ascent_gradient(UNIFORM),
    "ascent_gradient 2-D": lambda: kernels.ascent_gradient(torch.outer(UNIFORM, UNIFORM)),
    "project_positive_semidefinite": lambda: kernels.project_positive_semidefinite(UNIFORM),
    "check_symmetric": lambda: kernels.check_symmetric(UNIFORM),
    "smooth": lambda: smoothing.smooth(LINE, TAPS),
    "smooth 2-D": lambda: smoothing.smooth(IMAGE, TAPS_2D.view(3, 3), "symmetric"),
    "smoothing_matrix": lambda: smoothing.smoothing_matrix(TAPS, (9,)),
    "shift_statistics": lambda: smoothing.shift_statistics(LINE, 5, OTHER),
    "shift_statistics 2-D": lambda: smoothing.shift_statistics(IMAGE, 3),
    "mean_shift_statistics": lambda: smoothing.mean_shift_statistics([STATISTICS, STATISTICS]),
    "lines": lambda: LineShifts([LINE, LONG], 5).smooth(TAPS),
    "lines with a kernel each": lambda: LineShifts([LINE, LONG], 5).smooth(torch.stack([TAPS, TAPS])),
    "lines correlated": lambda: LineShifts([LINE, LONG], 5).correlate([OTHER, LONG]),
    "statistics of lines": lambda: LineShifts([LINE, LONG], 5).statistics(),
    "images": lambda: ImageShifts([IMAGE], 3, "symmetric").smooth(TAPS_2D),
    "images correlated": lambda: ImageShifts([IMAGE], 3, step=2).correlate([GAIN]),
    "in pieces": lambda: ShiftsInPieces(LONG, 5).smooth(TAPS),
    "in pieces correlated": lambda: ShiftsInPieces(IMAGE, 3).correlate([GAIN]),
    "local_loss": lambda: kernel_loss.local_loss(LINE, OTHER, 0.1),
    "three_part_loss": lambda: kernel_loss.three_part_loss(LINE, OTHER, LINE, WEIGHTS),
    "three_part_loss_derivative": lambda: kernel_loss.three_part_loss_derivative(LINE, OTHER, LINE, WEIGHTS),
    "local_loss_of_taps": lambda: kernel_loss.local_loss_of_taps(TAPS, STATISTICS, 0.1),
    "white_noise_weight": lambda: kernel_loss.white_noise_weight(0.5, 5),
    "three_part_loss_of_taps": lambda: kernel_loss.three_part_loss_of_taps(TAPS, STATISTICS, WEIGHTS),
    "cross_loss_of_taps": lambda: kernel_loss.cross_loss_of_taps(TAPS, STATISTICS),
    "wiener_taps": lambda: kernel_loss.wiener_taps(STATISTICS),
    "through_softmax": lambda: kernel_loss.through_softmax(drawn(5), TAPS),
    "through_normalisation": lambda: kernel_loss.through_normalisation(drawn(2, 5), torch.stack([TAPS, TAPS])),
    "frequencies": lambda: spectrum.frequencies(9),
    "dct_matrix": lambda: spectrum.dct_matrix(300),
    "basis": lambda: spectrum.fields_to_spectrum(drawn(300), [spectrum.basis(300, torch.float32, torch.device("cpu"))]),
    "dct": lambda: spectrum.dct(IMAGE, [0, 1]),
    "idct": lambda: spectrum.idct(IMAGE, [0, 1]),
    "fields_to_spectrum": lambda: spectrum.fields_to_spectrum(IMAGE, BASES),
    "spectrum_to_fields": lambda: spectrum.spectrum_to_fields(IMAGE.view(-1, 1), BASES),
    "lowest_frequencies": lambda: spectrum.lowest_frequencies(POWER, 0.1),
    "kernel_gain": lambda: spectrum.kernel_gain(UNIFORM, (300,)),
    "apply_gain": lambda: spectrum.apply_gain(IMAGE, GAIN),
    "cross_spectrum": lambda: spectrum.cross_spectrum(IMAGE, GAIN, [1]),
    "power_spectrum": lambda: spectrum.power_spectrum(IMAGE, [0, 1]),
    "radial_frequency": lambda: spectrum.radial_frequency((300, 7)),
    "radial_bins": lambda: spectrum.radial_bins((300, 7), 50),
    "radial_mean": lambda: spectrum.radial_mean(IMAGE, spectrum.radial_bins((9, 12), 4), 4),
    "make_bands, rings": lambda: spectrum.make_bands((9, 12), True, torch.float32, torch.device("cpu")),
    "make_bands, axes": lambda: spectrum.make_bands((9, 300), False, torch.float32, torch.device("cpu")),
    "wiener_gain": lambda: spectrum.wiener_gain(IMAGE, POWER),
    "energy_preserving": lambda: spectrum.energy_preserving(GAIN, POWER),
    "ema_powers": lambda: snr.ema_powers(LINE, OTHER),
    "ema_floors": lambda: snr.ema_floors(0.9),
    "ema_lag": lambda: snr.ema_lag(0.9),
    "per_sample_powers": lambda: snr.per_sample_powers(IMAGE),
    "half_batch_powers": lambda: snr.half_batch_powers(LINE, OTHER, 4),
    "big_small_powers": lambda: snr.big_small_powers(LINE, OTHER, 8, 2),
    "without_replacement": lambda: snr.without_replacement(LINE, LINE.square(), 4),
    "step_ratio": lambda: snr.step_ratio(LINE, OTHER, LINE.square(), 0.1),
}  # fmt: skip


def public_functions() -> set[str]:
    return {
        name
        for module in PUBLIC
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__ and name[0].islower()
    }


def test_every_public_function_is_called():
    # check_size returns an int, check_same_shape nothing; per_sample_gradients runs the model as its caller sets it.
    unseen = {"check_size", "per_sample_gradients", "extended", "source", "at_least_float32", "check_same_shape"}
    assert public_functions() - unseen <= {word for name in CALLS for word in name.replace(",", "").split()}


@pytest.fixture
def empty_caches():
    """No constants are kept from before the test, nor from it for the next."""
    forget_constants()
    yield forget_constants
    forget_constants()


def tensors_of(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, tuple | list) else []


@pytest.mark.parametrize("state", SURROUNDINGS)
@pytest.mark.parametrize("name", CALLS)
def test_the_values_are_those_without(name, state, empty_caches):
    expected = CALLS[name]()
    empty_caches()
    with SURROUNDINGS[state]():
        value = CALLS[name]()
    afterwards = CALLS[name]()
    for seen in (value, afterwards):
        if tensors_of(expected):
            assert [(t.dtype, t.device) for t in tensors_of(seen)] == [
                (t.dtype, t.device) for t in tensors_of(expected)
            ]
            torch.testing.assert_close(tensors_of(seen), tensors_of(expected), rtol=0, atol=0, equal_nan=True)
        else:
            assert seen == expected


@pytest.mark.parametrize("state", SURROUNDINGS)
def test_what_was_kept_from_then_lets_gradients_flow_afterwards(state, empty_caches):
    def loss(image: Tensor) -> Tensor:
        gain = spectrum.make_bands(image.shape, False, torch.float32, torch.device("cpu")).pooling[:, 0].view(9, 12)
        products = LineShifts([image.flatten(), LONG], 5).statistics().products
        return spectrum.apply_gain(image, gain).square().sum() + products.square().sum()

    with SURROUNDINGS[state](), torch.no_grad():
        loss(IMAGE)
    variable = IMAGE.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(variable), variable)
    assert gradient.isfinite().all()
