"""Smoothing is the convolution it says it is, and its adjoint is exact."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from convopt.theory import kernels
from convopt.theory.smoothing import LineShifts, PictureShifts, smooth

SIZES = st.sampled_from([1, 3, 5, 7])


def tensor(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv1d(line: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    padded = F.pad(line[None, None], (kernel.numel() // 2,) * 2, mode="reflect")
    return F.conv1d(padded, kernel[None, None])[0, 0]


def conv2d(picture: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    padded = F.pad(picture[None, None], (kernel.shape[0] // 2,) * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None])[0, 0]


@given(SIZES, st.lists(st.integers(7, 40), min_size=1, max_size=4), st.integers(0, 1000))
def test_lines_smoothed_together_equal_conv1d_of_each(size, lengths, seed):
    lines = [tensor(length, seed=seed + i) for i, length in enumerate(lengths)]
    kernel = tensor(size, seed=seed)
    for smoothed, line in zip(LineShifts(lines, size).smooth(kernel), lines, strict=True):
        torch.testing.assert_close(smoothed, conv1d(line, kernel))


@given(SIZES, st.lists(st.integers(7, 20), min_size=1, max_size=3), st.integers(7, 20), st.integers(0, 1000))
def test_pictures_smoothed_together_equal_conv2d_of_each(size, heights, width, seed):
    pictures = [tensor(height, width, seed=seed + i) for i, height in enumerate(heights)]
    kernel = tensor(size, size, seed=seed)
    for smoothed, picture in zip(PictureShifts(pictures, size).smooth(kernel), pictures, strict=True):
        torch.testing.assert_close(smoothed, conv2d(picture, kernel))


def test_leading_axes_are_smoothed_one_by_one():
    stack, kernel = tensor(2, 3, 9, 8, seed=0), tensor(5, 5, seed=1)
    expected = torch.stack([conv2d(picture, kernel) for picture in stack.reshape(-1, 9, 8)]).view_as(stack)
    torch.testing.assert_close(smooth(stack, kernel), expected)


@given(SIZES, st.integers(0, 1000))
def test_correlate_is_the_adjoint_of_smooth(size, seed):
    """<other, smooth(kernel)> = <correlate(other), kernel> for every kernel."""
    for shifts, shape in (
        (LineShifts([tensor(11, seed=seed), tensor(9, seed=seed + 1)], size), (11,)),
        (PictureShifts([tensor(2, 9, 8, seed=seed), tensor(7, 8, seed=seed + 1)], size), (2, 9, 8)),
    ):
        kernel = tensor(size if shape == (11,) else size**2, seed=seed + 2)
        smoothed = shifts.smooth(kernel)
        others = [tensor(*field.shape, seed=seed + 3) for field in smoothed]
        inner = sum((other * field).sum() for other, field in zip(others, smoothed, strict=True))
        torch.testing.assert_close(inner, (shifts.correlate(others) * kernel).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_arithmetic_is_at_least_float32(dtype):
    line = tensor(50, seed=0).to(dtype)
    smoothed = smooth(line, kernels.uniform(5))
    assert smoothed.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(smoothed.double(), conv1d(line.double(), kernels.uniform(5).double()))


@pytest.mark.parametrize("name", kernels.NAMED_KERNELS)
@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("ndim", [1, 2])
def test_named_kernels_sum_to_one_and_keep_a_constant(name, size, ndim):
    kernel = kernels.NAMED_KERNELS[name](size, ndim)
    assert kernel.shape == (size,) * ndim
    torch.testing.assert_close(kernel.sum(), torch.tensor(1.0))
    constant = torch.full((20,) * ndim, 3.0)
    torch.testing.assert_close(smooth(constant, kernel), constant)


def test_the_uniform_response_dips_below_zero_and_the_binomial_never_does():
    frequencies = torch.linspace(0, torch.pi, 2000, dtype=torch.float64)
    dip = lambda kernel: kernels.frequency_response(kernel, frequencies).min().item()  # noqa: E731
    assert dip(kernels.uniform(3)) == pytest.approx(-1 / 3, abs=1e-6)
    assert dip(kernels.uniform(5)) == pytest.approx(-0.25, abs=1e-3)
    assert dip(kernels.binomial(5)) > -1e-6


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: smooth(torch.zeros(3), torch.ones(5)), "5 taps"),
        (lambda: smooth(torch.zeros(4, 9), torch.ones(5, 5)), "(4, 9)"),
        (lambda: smooth(torch.zeros(9), torch.ones(4)), "(4,)"),
        (lambda: smooth(torch.zeros(9, 9), torch.ones(3)), "(9, 9)"),
        (lambda: PictureShifts([torch.zeros(9, 9), torch.zeros(9, 8)], 3), "(9, 8)"),
        (lambda: kernels.uniform(4), "4"),
        (lambda: kernels.gaussian(5, sigma=0), "sigma"),
        (lambda: kernels.frequency_response(torch.ones(3, 3), torch.zeros(1)), "(3, 3)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert said in str(error.value)
