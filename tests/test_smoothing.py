"""Smoothing is the convolution it says it is, and its adjoint is exact."""

from contextlib import contextmanager
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from convopt.theory import _shifts, kernels, smoothing
from convopt.theory._shifts import ImageShifts, LineShifts, ShiftsInPieces
from convopt.theory.smoothing import shift_statistics, smooth, smoothing_matrix

SIZES = st.sampled_from([1, 3, 5, 7])
BOUNDARIES = st.sampled_from(get_args(smoothing.Boundary))
# Views of the gradient, whole and in blocks; both views and copies; copies.
WAYS = st.sampled_from([{"CACHE": 0, "SHORT": 0}, {"CACHE": 0, "SHORT": 0, "BLOCK": 3}, {"SHORT": 15}, {}])


@contextmanager
def computed(thresholds: dict[str, int]):
    with pytest.MonkeyPatch.context() as patch:
        for name, elements in thresholds.items():
            patch.setattr(_shifts, name, elements)
        yield


def tensor(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def extended(field: torch.Tensor, radius: int, boundary: str) -> torch.Tensor:
    """The field with ``radius`` more elements at each end of each axis, by numpy."""
    mode = {"reflect": "reflect", "symmetric": "symmetric", "circular": "wrap"}[boundary]
    return torch.from_numpy(np.pad(field.numpy(), radius, mode=mode))


def convolution(field: torch.Tensor, kernel: torch.Tensor, boundary: str = "reflect") -> torch.Tensor:
    convolve = F.conv1d if kernel.ndim == 1 else F.conv2d
    return convolve(extended(field, kernel.shape[0] // 2, boundary)[None, None], kernel[None, None])[0, 0]


@given(SIZES, st.lists(st.integers(7, 40), min_size=1, max_size=4), BOUNDARIES, WAYS, st.integers(0, 1000))
def test_lines_smoothed_together_equal_conv1d_of_each(size, lengths, boundary, way, seed):
    lines = [tensor(length, seed=seed + i) for i, length in enumerate(lengths)]
    kernel = tensor(size, seed=seed)
    with computed(way):
        smoothed = LineShifts(lines, size, boundary).smooth(kernel)
    for result, line in zip(smoothed, lines, strict=True):
        torch.testing.assert_close(result, convolution(line, kernel, boundary))


@given(SIZES, st.lists(st.integers(7, 40), min_size=1, max_size=4), BOUNDARIES, WAYS, st.integers(0, 1000))
def test_lines_with_a_kernel_each_are_smoothed_as_if_alone(size, lengths, boundary, way, seed):
    lines = [tensor(length, seed=seed + i) for i, length in enumerate(lengths)]
    kernels = tensor(len(lines), size, seed=seed)
    with computed(way):
        smoothed = LineShifts(lines, size, boundary).smooth(kernels)
    for result, line, kernel in zip(smoothed, lines, kernels, strict=True):
        torch.testing.assert_close(result, convolution(line, kernel, boundary))


@given(SIZES, WAYS)
def test_a_line_may_have_gaps_in_memory(size, way):
    line, kernel = tensor(60, seed=0)[::2], tensor(1, size, seed=1)
    with computed(way):
        for kernels in (kernel, kernel[0]):
            (smoothed,) = LineShifts([line], size).smooth(kernels)
            torch.testing.assert_close(smoothed, convolution(line, kernel[0]))
        statistics = LineShifts([line], size).statistics()
    torch.testing.assert_close(statistics.products[0], shift_statistics(line, size).products)


@given(
    SIZES,
    st.lists(st.integers(7, 20), min_size=1, max_size=3),
    st.integers(7, 20),
    BOUNDARIES,
    WAYS,
    st.integers(0, 99),
)
def test_images_smoothed_together_equal_conv2d_of_each(size, heights, width, boundary, way, seed):
    images = [tensor(height, width, seed=seed + i) for i, height in enumerate(heights)]
    kernel = tensor(size, size, seed=seed)
    with computed(way):
        smoothed = ImageShifts(images, size, boundary).smooth(kernel)
    for result, image in zip(smoothed, images, strict=True):
        torch.testing.assert_close(result, convolution(image, kernel, boundary))


@given(SIZES, st.integers(1, 4), BOUNDARIES, WAYS, st.integers(0, 99))
def test_interleaved_images_are_smoothed_one_by_one(size, step, boundary, way, seed):
    images, kernel = tensor(step, 9, 8, seed=seed), tensor(size, size, seed=seed)
    interleaved = images.permute(1, 2, 0).reshape(9, 8 * step)
    with computed(way):
        (smoothed,) = ImageShifts([interleaved], size, boundary, step).smooth(kernel)
    expected = torch.stack([convolution(image, kernel, boundary) for image in images])
    torch.testing.assert_close(smoothed.view(9, 8, step).permute(2, 0, 1), expected)


def test_leading_axes_are_smoothed_one_by_one():
    stack, kernel = tensor(2, 3, 9, 8, seed=0), tensor(5, 5, seed=1)
    expected = torch.stack([convolution(image, kernel) for image in stack.reshape(-1, 9, 8)]).view_as(stack)
    torch.testing.assert_close(smooth(stack, kernel), expected)


@given(SIZES, WAYS, st.integers(0, 1000))
def test_correlate_is_the_adjoint_of_smooth(size, way, seed):
    """<other, smooth(kernel)> = <correlate(other), kernel> for every kernel."""
    with computed(way):
        lines = LineShifts([tensor(11, seed=seed), tensor(9, seed=seed + 1)], size)
        images = ImageShifts([tensor(2, 9, 8, seed=seed), tensor(7, 8, seed=seed + 1)], size)
    for shifts, shape in ((lines, (11,)), (images, (2, 9, 8))):
        kernel = tensor(size if shape == (11,) else size**2, seed=seed + 2)
        smoothed = shifts.smooth(kernel)
        others = [tensor(*field.shape, seed=seed + 3) for field in smoothed]
        inner = sum((other * field).sum() for other, field in zip(others, smoothed, strict=True))
        torch.testing.assert_close(inner, (shifts.correlate(others) * kernel).sum())


@given(SIZES, st.sampled_from([(40,), (23, 7), (7, 30)]), st.integers(1, 3), st.integers(1, 60), st.integers(0, 1000))
def test_a_large_gradient_in_pieces_is_smoothed_and_correlated_as_a_whole(size, shape, step, piece, seed):
    gradient, other = (tensor(*shape[:-1], shape[-1] * step, seed=seed + i) for i in range(2))
    kernel = tensor(size ** len(shape), seed=seed)
    whole = LineShifts([gradient], size) if len(shape) == 1 else ImageShifts([gradient], size, step=step)
    with computed({"PIECE": piece}):
        pieces = ShiftsInPieces(gradient, size, step)
        torch.testing.assert_close(pieces.smooth(kernel), whole.smooth(kernel))
        torch.testing.assert_close(pieces.correlate([other]), whole.correlate([other]))
        places = [place for place, _ in pieces.smooth_pieces(kernel)]
    assert [place.start for place in places] == [0, *(place.stop for place in places[:-1])]
    assert len(places) > 1 or piece >= gradient.numel() // 2 or len(gradient) < 2 * size


@given(SIZES, st.sampled_from([(13,), (9, 7), (2, 3, 8, 9)]), BOUNDARIES, st.integers(0, 1000))
def test_the_statistics_are_the_inner_products_of_the_shifted_copies(size, shape, boundary, seed):
    gradient, target = tensor(*shape, seed=seed), tensor(*shape, seed=seed + 1)
    ndim = 1 if len(shape) == 1 else 2
    units = torch.eye(size**ndim, dtype=torch.float64).view(-1, *[size] * ndim)
    shifts = torch.stack([smooth(gradient, unit, boundary).flatten() for unit in units])
    statistics = shift_statistics(gradient, size, target, boundary)
    torch.testing.assert_close(statistics.products, shifts @ shifts.T / gradient.numel())
    torch.testing.assert_close(statistics.means, shifts.mean(1))
    torch.testing.assert_close(statistics.target_products, shifts @ target.flatten() / gradient.numel())
    torch.testing.assert_close(statistics.target_power, target.square().mean())


@given(SIZES, st.lists(st.integers(7, 40), min_size=1, max_size=4), BOUNDARIES, WAYS, st.integers(0, 1000))
def test_the_statistics_of_lines_together_are_those_of_each(size, lengths, boundary, way, seed):
    lines = [tensor(length, seed=seed + i) for i, length in enumerate(lengths)]
    with computed(way):
        statistics = LineShifts(lines, size, boundary).statistics()
    for fields, line in zip(zip(*statistics, strict=True), lines, strict=True):
        torch.testing.assert_close(fields, tuple(shift_statistics(line, size, boundary=boundary)))


@given(SIZES, st.sampled_from([(9,), (7, 8)]), BOUNDARIES)
def test_the_smoothing_matrix_smooths(size, shape, boundary):
    gradient, kernel = tensor(*shape, seed=0), tensor(*[size] * len(shape), seed=1)
    matrix = smoothing_matrix(kernel, shape, boundary)
    torch.testing.assert_close(matrix @ gradient.flatten(), smooth(gradient, kernel, boundary).flatten())


def test_values_that_are_not_finite_spread_and_nothing_else_does():
    line = torch.ones(9)
    line[4] = float("nan")
    assert smooth(line, kernels.uniform(3)).isnan().tolist() == [3 <= i <= 5 for i in range(9)]
    assert shift_statistics(line, 3).products.isnan().all()


def test_one_element_under_one_tap():
    assert smooth(torch.tensor([3.0]), torch.tensor([2.0])).tolist() == [6.0]
    assert shift_statistics(torch.tensor([3.0]), 1).products.tolist() == [[9.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_arithmetic_is_at_least_float32(dtype):
    line = tensor(50, seed=0).to(dtype)
    smoothed = smooth(line, kernels.uniform(5))
    assert smoothed.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(smoothed.double(), convolution(line.double(), kernels.uniform(5).double()))


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
        (lambda: smooth(torch.tensor(1.0), torch.ones(3, 3)), "()"),
        (lambda: smooth(torch.zeros(0, 9, 9), torch.ones(3, 3)), "(0, 9, 9)"),
        (lambda: smooth(torch.zeros(9, 9), torch.ones(3)), "(9, 9)"),
        (lambda: ImageShifts([torch.zeros(9, 9), torch.zeros(9, 8)], 3), "(9, 8)"),
        (lambda: kernels.uniform(4), "4"),
        (lambda: kernels.gaussian(5, sigma=0), "sigma"),
        (lambda: kernels.laplacian(5, sigma=-1), "sigma"),
        (lambda: kernels.frequency_response(torch.ones(3, 3), torch.zeros(1)), "(3, 3)"),
        (lambda: smooth(torch.zeros(9), torch.ones(3), "zero"), "'zero'"),
        (lambda: shift_statistics(torch.zeros(9), 3, torch.zeros(8)), "(8,)"),
        (lambda: shift_statistics(torch.zeros(3), 5), "(3,)"),
        (lambda: shift_statistics(torch.zeros(4, 9), 5), "(4, 9)"),
        (lambda: shift_statistics(torch.tensor(1.0), 1), "()"),
        (lambda: shift_statistics(torch.zeros(9), 4), "4"),
        (lambda: shift_statistics(torch.zeros(9), 3, boundary="zero"), "'zero'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert said in str(error.value)
