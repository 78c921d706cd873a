"""Smoothing descends exactly where its kernel is positive semidefinite."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convopt.theory import kernels
from convopt.theory.smoothing import smooth, smoothing_matrix

SYMMETRIC_AND_CIRCULAR = st.sampled_from(["symmetric", "circular"])


def random_kernel(seed: int, size: int, ndim: int, weight_of_identity: float) -> torch.Tensor:
    """Symmetric along each axis; the more of the identity is mixed in, the likelier it is positive semidefinite."""
    kernel = torch.rand([size] * ndim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for axis in range(ndim):
        kernel = kernel + kernel.flip(axis)
    kernel /= kernel.sum()
    kernel.view(-1)[kernel.numel() // 2] += weight_of_identity
    return kernel


KERNELS = st.builds(
    random_kernel,
    st.integers(0, 10_000),
    st.sampled_from([1, 3, 5, 7]),
    st.sampled_from([1, 2]),
    st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5]),
)


def ascent(gradient: torch.Tensor, kernel: torch.Tensor, boundary: str) -> float:
    """<g, W * g> / |g|^2."""
    return ((gradient * smooth(gradient, kernel, boundary)).sum() / gradient.square().sum()).item()


@settings(deadline=None)
@given(KERNELS, SYMMETRIC_AND_CIRCULAR, st.integers(7, 30), st.integers(7, 12), st.integers(0, 1000))
def test_what_is_accepted_descends_and_what_is_rejected_comes_with_a_gradient_that_ascends(
    kernel, boundary, height, width, seed
):
    shape = (height,) if kernel.ndim == 1 else (height, width)
    uphill = kernels.ascent_gradient(kernel)
    if kernels.is_positive_semidefinite(kernel):
        assert uphill is None
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert ascent(noise, kernel, boundary) >= -1e-6
        lowest = torch.linalg.eigvalsh(smoothing_matrix(kernel, shape, boundary))[0]
        assert lowest >= -1e-6  # every gradient of this shape, not only the drawn one
    else:
        assert ascent(uphill, kernel, boundary) < 0


@settings(deadline=None)
@given(KERNELS)
def test_the_minimum_response_is_below_a_fine_grid_and_is_taken(kernel):
    lowest, where = kernels.minimum_response(kernel)
    torch.testing.assert_close(kernels.frequency_response(kernel, *where), lowest)
    grid = torch.meshgrid(*[torch.linspace(0, torch.pi, 200, dtype=torch.float64)] * kernel.ndim, indexing="ij")
    assert lowest <= kernels.frequency_response(kernel, *grid).min() + 1e-9


@settings(deadline=None)
@given(KERNELS, st.integers(0, 1000))
def test_the_projection_is_positive_semidefinite_and_the_nearest_such_kernel(kernel, seed):
    """The nearest point of a cone: what is left is orthogonal to it and points away from all others in the cone."""
    assume(kernel.shape[0] > 1)
    projected = kernels.project_positive_semidefinite(kernel)
    assert kernels.is_positive_semidefinite(projected)
    torch.testing.assert_close(projected.sum(), kernel.sum())
    if kernels.minimum_response(kernel)[0] >= 0:
        assert torch.equal(projected, kernel)
        return
    nearest = projected * (kernel * projected).sum() / projected.square().sum()
    for i in range(10):
        other = random_kernel(seed + i, kernel.shape[0], kernel.ndim, 0.0)
        other.view(-1)[kernel.numel() // 2] -= kernels.minimum_response(other)[0].clamp_max(0)
        assert ((kernel - nearest) * other).sum() <= 2e-5
    profile = kernels.binomial(kernel.shape[0], kernel.ndim).double()
    assert ((kernel - nearest) * profile).sum() <= 2e-5


def test_a_kernel_near_no_other_than_zero_has_no_projection():
    with pytest.raises(ValueError, match="but zero"):
        kernels.project_positive_semidefinite(torch.tensor([1.0, -1.0, 1.0]))


def test_a_ridge_of_equal_frequencies_does_not_hide_a_deeper_valley():
    """The 1-D kernel's minimum lies between the grid's points; as a column of a 2-D kernel it becomes a ridge."""
    zeros = torch.tensor([20 * torch.pi / 72, 50.5 * torch.pi / 72], dtype=torch.float64)
    column = column_with_double_zeros(zeros, tilt=0.003)
    kernel = torch.zeros(9, 9, dtype=torch.float64)
    kernel[:, 4] = column
    lowest = kernels.minimum_response(column)[0]
    torch.testing.assert_close(kernels.minimum_response(kernel)[0], lowest, rtol=0, atol=1e-8)


def column_with_double_zeros(zeros: torch.Tensor, tilt: float) -> torch.Tensor:
    """Nine symmetric taps whose response is the product of ``(cos omega - cos zero)^2`` plus ``tilt cos omega``."""
    frequencies = torch.linspace(0, torch.pi, 9, dtype=torch.float64)
    wanted = torch.stack([(torch.cos(frequencies) - torch.cos(zero)).square() for zero in zeros]).prod(0)
    waves = torch.cos(frequencies.unsqueeze(1) * torch.arange(5))
    half = torch.linalg.lstsq(waves, wanted + tilt * torch.cos(frequencies)).solution
    return torch.cat([half[1:].flip(0) / 2, half[:1], half[1:] / 2])


@pytest.mark.parametrize(("taps", "dtype"), [(20_000, torch.float16), (1e38, torch.float32)])
def test_large_taps_do_not_overflow_the_tolerance(taps, dtype):
    assert not kernels.is_positive_semidefinite(torch.full((5,), taps, dtype=dtype))


def test_a_witness_of_a_shallow_dip_stays_small():
    kernel = kernels.project_positive_semidefinite(kernels.uniform(5, 2).double())
    kernel[2, 2] -= kernels.minimum_response(kernel)[0] + 3e-7
    witness = kernels.ascent_gradient(kernel)
    assert witness.numel() < 1e6
    assert ascent(witness, kernel, "symmetric") < 0
    assert ascent(witness, kernel, "circular") < 0


def test_the_projection_of_three_equal_taps_is_the_binomial():
    torch.testing.assert_close(kernels.project_positive_semidefinite(kernels.uniform(3)), kernels.binomial(3))


@pytest.mark.parametrize(
    ("kernel", "dip"),
    [
        (kernels.uniform(3), -1 / 3),
        (kernels.uniform(5), -0.25),
        (kernels.uniform(5, 2), -0.25),
        (kernels.gaussian(5), -0.0100),
        (kernels.binomial(5), 0.0),
        (kernels.identity(5), 1.0),
    ],
)
def test_known_dips(kernel, dip):
    assert kernels.minimum_response(kernel)[0].item() == pytest.approx(dip, abs=2e-4)


@pytest.mark.parametrize("name", ["binomial", "laplacian", "identity"])
@pytest.mark.parametrize("ndim", [1, 2])
def test_named_kernels_that_are_positive_semidefinite(name, ndim):
    assert kernels.is_positive_semidefinite(kernels.NAMED_KERNELS[name](5, ndim))


def test_padding_by_reflection_breaks_it():
    kernel = kernels.binomial(3)
    matrix = smoothing_matrix(kernel, (5,), "reflect")
    lowest = torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0].item()
    assert lowest == pytest.approx(-0.015, abs=1e-3)
    assert torch.linalg.eigvalsh(smoothing_matrix(kernel, (5,), "symmetric"))[0] > -1e-12


def test_laplacian_smoothing_inverts_the_laplacian():
    """The kernel, given enough taps, solves (I - sigma * Laplacian) W = identity and has the response it says."""
    kernel = kernels.laplacian(41, sigma=2.0).double()
    laplacian = torch.tensor([1.0, -2.0, 1.0]).double()
    solved = kernel - 2 * smooth(kernel, laplacian)
    torch.testing.assert_close(solved[1:-1], kernels.identity(41).double()[1:-1], atol=1e-6, rtol=0)
    frequencies = torch.linspace(0, torch.pi, 50, dtype=torch.float64)
    response = kernels.frequency_response(kernel, frequencies)
    torch.testing.assert_close(response, kernels.laplacian_response(frequencies, 2.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (torch.tensor([0.1, 0.6, 0.3]), "symmetric"),
        (torch.tensor([0.2, float("nan"), 0.2]), "finite"),
        (torch.ones(2), "odd"),
        (torch.ones(3, 5), "(3, 5)"),
    ],
)
def test_what_cannot_be_judged_is_refused(kernel, said):
    for judge in (kernels.minimum_response, kernels.is_positive_semidefinite, kernels.project_positive_semidefinite):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            judge(kernel)
        assert said in str(error.value)
    with pytest.raises(ValueError, match="positive sum"):
        kernels.project_positive_semidefinite(torch.tensor([1.0, -3.0, 1.0]))


@pytest.mark.parametrize("drawn", [8, 9, 11])  # in which the grid's own bottoms are not the lowest points
def test_the_lowest_point_of_a_narrow_valley_across_the_grid_is_found(drawn):
    rng = np.random.default_rng(0)
    for _ in range(drawn):
        taps = rng.normal(size=(5, 5)) + 0.3
    for axis in (0, 1):
        taps = taps + np.flip(taps, axis)
    kernel = kernels.project_positive_semidefinite(torch.from_numpy(taps.copy()))
    along = torch.linspace(0, torch.pi, 1601, dtype=torch.float64)
    lowest = kernels.frequency_response(kernel, along[:, None], along[None]).min()
    assert lowest >= -1e-6 * kernel.abs().sum()
