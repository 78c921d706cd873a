"""In the DCT's basis, smoothing is a pointwise gain, and Wiener's gain is the one that leaves the least error."""

import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convopt.theory import kernels, spectrum
from convopt.theory.smoothing import smooth

NAMES = st.sampled_from(list(kernels.NAMED_KERNELS))


def field(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_the_dct_is_scipys_and_its_inverse_undoes_it(shape, data, dtype):
    axes = data.draw(st.lists(st.integers(-len(shape), -1), min_size=1, unique=True))
    x = field(*shape).to(dtype)
    transformed = spectrum.dct(x, axes)
    assert transformed.dtype == dtype
    expected = torch.from_numpy(scipy.fft.dctn(x.numpy(), axes=axes, norm="ortho"))
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(transformed, expected, **tolerance)
    torch.testing.assert_close(spectrum.idct(transformed, axes), x, **tolerance)


@given(NAMES, st.sampled_from([1, 3, 5, 7]), st.integers(7, 20), st.integers(7, 20), st.sampled_from([1, 2]))
def test_a_gain_on_the_dct_is_the_convolution_with_symmetric_boundaries(name, size, height, width, ndim):
    kernel = kernels.NAMED_KERNELS[name](size, ndim).double()
    shape = (height,) if ndim == 1 else (height, width)
    x = field(*shape)
    gain = spectrum.kernel_gain(kernel, shape)
    torch.testing.assert_close(spectrum.apply_gain(x, gain), smooth(x, kernel, "symmetric"), rtol=0, atol=1e-12)


@given(st.integers(0, 1000))
def test_a_gain_that_is_nowhere_negative_never_points_uphill(seed):
    x, gain = field(3, 6, 5, seed=seed), field(6, 5, seed=seed + 1).abs()
    assert (x * spectrum.apply_gain(x, gain)).sum() >= 0


def test_the_cross_spectrum_of_independent_estimates_is_the_signals_power_without_bias():
    signal = spectrum.idct(torch.tensor([3.0, 0.0, 1.0, 0.0]).double(), [0])
    a, b = (signal + 2 * field(20_000, 4, seed=seed) for seed in (0, 1))
    error = 5 * 4.5 / 20_000**0.5  # five standard errors of a product of noises of power 4, with signal
    torch.testing.assert_close(
        spectrum.cross_spectrum(a, b, [1]), torch.tensor([9.0, 0.0, 1.0, 0.0]).double(), rtol=0, atol=2 * error
    )
    torch.testing.assert_close(
        spectrum.power_spectrum(a, [1]), torch.tensor([13.0, 4.0, 5.0, 4.0]).double(), rtol=0, atol=2 * error
    )


def test_a_spectrum_has_the_axes_in_the_order_asked_for_and_keeps_the_power():
    x = field(5, 4, 3)
    assert spectrum.power_spectrum(x, [2, 0]).shape == (3, 5)
    torch.testing.assert_close(spectrum.power_spectrum(x, [0, 1, 2]).sum(), x.square().sum())
    torch.testing.assert_close(spectrum.power_spectrum(x, [0, 2]), spectrum.power_spectrum(x, [2, 0]).T)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 8))
def test_radial_bins_are_rings_from_the_constant_to_the_highest_frequency(shape, count):
    bins, radius = spectrum.radial_bins(shape, count), spectrum.radial_frequency(shape)
    assert bins.shape == tuple(shape)
    assert bins.flatten()[0] == 0
    assert bins.min() >= 0
    assert bins.max() <= count - 1
    order = radius.flatten().argsort()
    assert (bins.flatten()[order].diff() >= 0).all()
    means = spectrum.radial_mean(radius, bins, count)
    for ring in range(count):
        members = radius[bins == ring]
        torch.testing.assert_close(means[ring], members.mean() if len(members) else torch.tensor(0.0).double())


def test_rings_are_of_equal_width_and_the_last_holds_the_highest_frequency():
    assert spectrum.radial_bins((8,), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # i / 8 in steps of 7 / 32
    assert spectrum.radial_bins((22,), 21).tolist() == [*range(21), 20]  # each on the edge of two rings
    assert spectrum.radial_bins((3, 3), 2).tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_wieners_gain_is_signal_over_all_power_and_leaves_the_least_error():
    signal, noise = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    gain = spectrum.wiener_gain(signal, signal + noise)
    torch.testing.assert_close(gain, torch.tensor([0.8, 0.5, 0.0]))

    def error(h):
        return ((1 - h).square() * signal + h.square() * noise).sum()

    assert all(error(gain) <= error(gain + step) for step in (0.05, -0.05))
    assert spectrum.wiener_gain(torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 0.0])).tolist() == [0.0, 0.0]
    assert spectrum.wiener_gain(torch.tensor([float("nan")]), torch.tensor([1.0])).isnan().all()


shapes = st.one_of(st.tuples(st.integers(1, 9)), st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(shapes, st.integers(1, 4))
def test_many_fields_go_to_their_frequencies_at_once(shape, count):
    fields = field(count, *shape)
    bases = [spectrum.dct_matrix(length) for length in shape]
    expected = spectrum.dct(fields, range(-len(shape), 0)).reshape(count, -1).T
    torch.testing.assert_close(spectrum.fields_to_spectrum(fields, bases), expected)


@given(
    shapes.map(lambda shape: tuple(spectrum.LONG + length for length in shape)) | shapes,
    st.integers(1, 2),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=20, deadline=None)
def test_an_fft_along_long_axes_gives_what_the_matrix_gives_and_its_inverse_undoes_it(shape, count, dtype):
    fields = field(count, *shape).to(dtype)
    long = [spectrum.LongBasis(length, dtype, fields.device) for length in shape]
    matrices = [spectrum.dct_matrix(length).to(dtype) for length in shape]
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    found = spectrum.fields_to_spectrum(fields, long)
    torch.testing.assert_close(found, spectrum.fields_to_spectrum(fields, matrices), **tolerance)
    torch.testing.assert_close(spectrum.spectrum_to_fields(found, long), fields, **tolerance)


def test_only_long_axes_take_an_fft():
    cpu = torch.device("cpu")
    assert isinstance(spectrum.basis(spectrum.LONG, torch.float32, cpu), spectrum.LongBasis)
    torch.testing.assert_close(spectrum.basis(8, torch.float64, cpu), spectrum.dct_matrix(8))


@given(shapes, st.integers(1, 4), st.data())
def test_the_lowest_frequencies_alone_are_a_gain_of_ones_and_zeros(shape, count, data):
    fields = field(count, *shape)
    lengths = [data.draw(st.integers(1, length)) for length in shape]
    bases = [spectrum.dct_matrix(length)[:low] for length, low in zip(shape, lengths, strict=True)]
    gain = torch.zeros(shape)
    gain[tuple(slice(low) for low in lengths)] = 1
    low = spectrum.spectrum_to_fields(spectrum.fields_to_spectrum(fields, bases), bases)
    torch.testing.assert_close(low, spectrum.apply_gain(fields, gain))


@given(shapes, st.floats(0, 0.5))
def test_what_lies_above_the_lowest_frequencies_is_negligible(shape, neglected):
    energy = field(*shape).square()
    lengths = spectrum.lowest_frequencies(energy, neglected)
    kept = energy[tuple(slice(length) for length in lengths)].sum()
    assert kept >= (1 - len(shape) * neglected - 1e-9) * energy.sum()
    if neglected == 0:
        assert lengths == list(shape)
    assert spectrum.lowest_frequencies(torch.zeros(shape), neglected) == [1] * len(shape)


def test_the_energy_preserving_factor_keeps_the_power():
    gain, power = field(6, seed=1).abs(), field(6, seed=2).abs()
    factor = spectrum.energy_preserving(gain, power)
    torch.testing.assert_close(((factor * gain) ** 2 * power).sum(), power.sum())
    assert not spectrum.energy_preserving(torch.zeros(6), power) < float("inf")


@given(shapes, st.booleans())
def test_bands_hold_every_frequency_of_their_axes_and_keep_means(shape, radial):
    bands = spectrum.make_bands(shape, radial, torch.float64, torch.device("cpu"))
    axes = 1 if radial else len(shape)
    frequencies = torch.tensor(shape).prod().item()
    assert bands.weights.sum() == axes * frequencies
    assert bands.pooling.sum(0).tolist() == pytest.approx((bands.weights > 0).float().tolist())
    assert ((bands.frequency >= 0) & (bands.frequency < 2**0.5)).all()
    assert sum(bands.sizes) == len(bands.weights)
    if radial:
        torch.testing.assert_close(bands.rings, spectrum.radial_bins(shape, max(shape)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: spectrum.dct(torch.zeros(3, 4), [2]), "(3, 4)"),
        (lambda: spectrum.dct(torch.zeros(3, 4), [0, -2]), "differ"),
        (lambda: spectrum.dct(torch.zeros(3, 4), []), "axes"),
        (lambda: spectrum.dct_matrix(0), "0"),
        (lambda: spectrum.apply_gain(torch.zeros(3, 4), torch.ones(3)), "(3, 4)"),
        (lambda: spectrum.kernel_gain(torch.ones(5), (4,)), "(4,)"),
        (lambda: spectrum.kernel_gain(torch.tensor([0.7, 0.2, 0.1]), (5,)), "symmetric"),
        (lambda: spectrum.cross_spectrum(torch.zeros(3), torch.zeros(4), [0]), "(4,)"),
        (lambda: spectrum.radial_bins((4,), 0), "0"),
        (lambda: spectrum.radial_mean(torch.zeros(3), torch.zeros(4).long(), 2), "(4,)"),
        (lambda: spectrum.wiener_gain(torch.zeros(3), torch.zeros(4)), "(4,)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert said in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_spectra_of_half_precision_are_those_of_single_precision(dtype):
    ones, bins = torch.ones(256, 256, dtype=dtype), spectrum.radial_bins((256, 256), 8)
    assert spectrum.radial_mean(ones, bins, 8).tolist() == [1.0] * 8
    small = (field(10, 12, 12) * 1e-4).to(dtype)
    assert torch.equal(spectrum.power_spectrum(small, (1, 2)), spectrum.power_spectrum(small.float(), (1, 2)))
    assert spectrum.energy_preserving(ones, ones) == 1
