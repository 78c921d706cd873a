"""The closed-form gradients of the kernel losses are those of autograd and of central differences."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from convopt.theory import kernel_loss
from convopt.theory._shifts import ImageShifts, LineShifts
from convopt.theory.smoothing import Boundary, shift_statistics

WEIGHTS = st.tuples(*[st.sampled_from([0.0, 0.2, 0.5, 1.0])] * 3)
SCALES = st.sampled_from([1e-3, 1.0, 1e3])


def setting(seed: int, ndim: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    shape = (13,) if ndim == 1 else (9, 7)
    grad, signal = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    taps = torch.rand(5**ndim, generator=generator, dtype=torch.float64) + 0.1
    shifts = LineShifts([grad], 5) if ndim == 1 else ImageShifts([grad], 5)
    return grad, signal, taps, shifts


def differences(loss, taps: torch.Tensor) -> torch.Tensor:
    step = 1e-6
    return torch.stack(
        [(loss(taps + step * unit) - loss(taps - step * unit)) / (2 * step) for unit in torch.eye(len(taps)).double()]
    )


def autograd(loss, taps: torch.Tensor) -> torch.Tensor:
    taps = taps.clone().requires_grad_()
    return torch.autograd.grad(loss(taps), taps)[0]


def agree(exact: torch.Tensor, loss, taps: torch.Tensor) -> None:
    by_autograd = autograd(loss, taps)
    scale = by_autograd.abs().max().item()
    torch.testing.assert_close(exact, by_autograd, rtol=1e-9, atol=1e-9 * scale + 1e-14)
    torch.testing.assert_close(exact, differences(loss, taps), rtol=1e-5, atol=1e-6 * scale + 1e-8)


def smoothed_by(shifts, taps: torch.Tensor) -> torch.Tensor:
    """``shifts.smooth`` written so that autograd sees the taps."""
    columns = [shifts.smooth(unit)[0] for unit in torch.eye(len(taps)).double()]
    return sum(tap * column for tap, column in zip(taps, columns, strict=True))


@given(st.integers(0, 1000), st.sampled_from([1, 2]), SCALES, WEIGHTS)
def test_three_part_loss_through_a_softmax(seed, ndim, scale, weights):
    grad, signal, taps, shifts = setting(seed, ndim, scale)
    logits = taps.log()

    def loss(z):
        return kernel_loss.three_part_loss(smoothed_by(shifts, torch.softmax(z, 0)), grad, signal, weights).value

    softmax = torch.softmax(logits, 0)
    derivative = kernel_loss.three_part_loss_derivative(shifts.smooth(softmax)[0], grad, signal, weights)
    agree(kernel_loss.through_softmax(shifts.correlate([derivative]), softmax), loss, logits)


@given(st.integers(0, 1000), SCALES, st.sampled_from([0.0, 0.1, 1.0]))
def test_local_losses_of_several_gradients_through_the_normalisation(seed, scale, weight):
    """Together, from stacked statistics."""
    generator = torch.Generator().manual_seed(seed)
    grads = [scale * torch.randn(length, generator=generator, dtype=torch.float64) for length in (13, 9)]
    taps = torch.rand(2, 5, generator=generator, dtype=torch.float64) + 0.1
    shifts = [LineShifts([grad], 5) for grad in grads]
    statistics = LineShifts(grads, 5).statistics()
    slopes = kernel_loss.local_loss_of_taps(taps / taps.sum(1, keepdim=True), statistics, weight).gradient
    for grad, its_shifts, kernel, slope in zip(
        grads, shifts, taps, kernel_loss.through_normalisation(slopes, taps), strict=True
    ):

        def loss(k, grad=grad, shifts=its_shifts):
            return kernel_loss.local_loss(smoothed_by(shifts, k / k.sum()), grad, weight).value

        agree(slope, loss, kernel)


def test_a_zero_gradient_has_cosine_zero_and_moves_no_kernel():
    zero = torch.zeros(9)
    weights = (0.5, 1.0, 0.2)
    assert kernel_loss.three_part_loss(zero, zero, zero, weights).cosine_similarity == 0
    assert not kernel_loss.three_part_loss_derivative(zero, zero, zero, weights).any()


SHAPES = st.one_of(
    st.tuples(st.integers(7, 30)),
    st.tuples(st.integers(7, 12), st.integers(7, 12)),
    st.tuples(st.integers(1, 3), st.integers(7, 9), st.integers(7, 9)),
)
BOUNDARIES = st.sampled_from(get_args(Boundary))


def correlated(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0)


def by_convolution(name: str, smoothed: torch.Tensor, grad: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The losses as they are written down, for autograd."""
    if name == "local":
        return -correlated(smoothed, grad) + 0.1 * smoothed.var(correction=0)
    if name == "cross":
        return -correlated(smoothed, target)
    roughness = smoothed.var(correction=0) / grad.var(correction=0)
    return 0.5 * (1 - correlated(smoothed, grad)) + 0.3 * F.mse_loss(smoothed, target) + 0.2 * roughness


OF_TAPS = {
    "local": lambda taps, statistics: kernel_loss.local_loss_of_taps(taps, statistics, 0.1),
    "three-part": lambda taps, statistics: kernel_loss.three_part_loss_of_taps(taps, statistics, (0.5, 0.3, 0.2)),
    "cross": kernel_loss.cross_loss_of_taps,
}


@pytest.mark.parametrize("name", OF_TAPS)
@given(SHAPES, st.sampled_from([1, 3, 5, 7]), BOUNDARIES, SCALES, st.integers(0, 1000))
def test_losses_of_the_taps_agree_with_autograd_through_the_convolution(name, shape, size, boundary, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    grad, target = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    ndim = 1 if len(shape) == 1 else 2
    taps = torch.randn([size] * ndim, generator=generator, dtype=torch.float64)
    radius = size // 2
    mode = {"reflect": "reflect", "symmetric": "symmetric", "circular": "wrap"}[boundary]
    margins = [(0, 0)] * (grad.ndim - ndim) + [(radius, radius)] * ndim
    padded = torch.from_numpy(np.pad(grad.numpy(), margins, mode=mode))
    padded = padded.reshape(-1, 1, *padded.shape[-ndim:])
    convolve = F.conv1d if ndim == 1 else F.conv2d

    def loss(kernel):
        smoothed = convolve(padded, kernel[None, None]).view(shape)
        return by_convolution(name, smoothed, grad, target)

    exact = OF_TAPS[name](taps, shift_statistics(grad, size, target, boundary))
    variable = taps.clone().requires_grad_()
    value = loss(variable)
    (by_autograd,) = torch.autograd.grad(value, variable)
    largest = by_autograd.abs().max().item()
    torch.testing.assert_close(exact.value, value.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(exact.gradient, by_autograd, rtol=1e-6, atol=1e-6 * largest + 1e-12)
    step = 1e-5
    units = torch.eye(taps.numel(), dtype=torch.float64).view(-1, *taps.shape)
    central = torch.stack([(loss(taps + step * u) - loss(taps - step * u)) / (2 * step) for u in units]).view_as(taps)
    torch.testing.assert_close(exact.gradient, central, rtol=1e-6, atol=1e-6 * largest + 1e-8)


@given(st.integers(0, 1000), st.sampled_from([(40,), (9, 8)]))
def test_no_kernel_beats_the_wiener_taps_in_the_cross_gradient_loss(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    grad, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    statistics = shift_statistics(grad, 3, target)
    best = kernel_loss.wiener_taps(statistics)
    optimum = kernel_loss.cross_loss_of_taps(best, statistics)
    assert optimum.gradient.abs().max() < 1e-9 / best.abs().max()
    for _ in range(20):
        other = best + 0.1 * torch.randn(best.shape, generator=generator, dtype=torch.float64)
        assert kernel_loss.cross_loss_of_taps(other, statistics).value >= optimum.value - 1e-12


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.9]))
def test_the_readmes_loss_without_its_penalty_is_lowest_at_the_identity_whatever_the_noise(seed, noise):
    generator = torch.Generator().manual_seed(seed)
    signal = torch.linspace(-1, 1, 60, dtype=torch.float64)
    grad = signal + noise * torch.randn(60, generator=generator, dtype=torch.float64)
    statistics = shift_statistics(grad, 5)
    identity = torch.tensor([0, 0, 1.0, 0, 0])
    assert kernel_loss.local_loss_of_taps(identity, statistics, 0.0).value == pytest.approx(-1)
    other = torch.rand(5, generator=generator)
    assert kernel_loss.local_loss_of_taps(other, statistics, 0.0).value > -1


def test_degenerate_statistics():
    nothing = shift_statistics(torch.zeros(9), 3)
    taps = torch.tensor([0.2, 0.6, 0.2])
    for loss in OF_TAPS.values():
        assert loss(taps, nothing).gradient.tolist() == [0, 0, 0]
    assert kernel_loss.cross_loss_of_taps(taps, nothing).value == 0
    assert kernel_loss.wiener_taps(nothing).tolist() == [0, 0, 0]
    unknown = shift_statistics(torch.full((9,), float("nan")), 3)
    assert all(loss(taps, unknown).value.isnan() for loss in OF_TAPS.values())
    with pytest.raises(ValueError, match=r"3 elements.*\(5,\)"):
        kernel_loss.cross_loss_of_taps(torch.ones(5), nothing)


def test_gradients_of_different_shapes_are_refused():
    y, other = torch.ones(3), torch.ones(3, 1)
    for loss in (kernel_loss.three_part_loss, kernel_loss.three_part_loss_derivative):
        with pytest.raises(ValueError, match=r"smoothed \(3,\) and grad \(3,\) and signal \(3, 1\)"):
            loss(y, y, other, (0.5, 1.0, 0.0))
    with pytest.raises(ValueError, match=r"smoothed \(3,\) and grad \(3, 1\)"):
        kernel_loss.local_loss(y, other, 0.1)


def test_losses_of_half_precision_are_those_of_single_precision():
    y, g, signal = (torch.randn(100_000, generator=torch.Generator().manual_seed(i)).half() for i in range(3))
    single = y.float(), g.float(), signal.float()
    assert kernel_loss.local_loss(y, g, 0.1) == kernel_loss.local_loss(*single[:2], 0.1)
    weights = (0.5, 1.0, 0.2)
    assert kernel_loss.three_part_loss(y, g, signal, weights) == kernel_loss.three_part_loss(*single, weights)


def test_the_wiener_taps_of_several_statistics_are_those_of_each():
    pairs = torch.randn(3, 2, 13, dtype=torch.float64)
    several = [shift_statistics(gradient, 3, target) for gradient, target in pairs]
    together = type(several[0])(*map(torch.stack, zip(*several, strict=True)))
    expected = torch.stack([kernel_loss.wiener_taps(each) for each in several])
    torch.testing.assert_close(kernel_loss.wiener_taps(together), expected)
