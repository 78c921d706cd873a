"""The closed-form gradients of the kernel losses are those of autograd and of central differences."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from convopt.theory import kernel_loss
from convopt.theory.smoothing import LineShifts, PictureShifts

WEIGHTS = st.tuples(*[st.sampled_from([0.0, 0.2, 0.5, 1.0])] * 3)
SCALES = st.sampled_from([1e-3, 1.0, 1e3])


def setting(seed: int, ndim: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    shape = (13,) if ndim == 1 else (9, 7)
    grad, signal = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    taps = torch.rand(5**ndim, generator=generator, dtype=torch.float64) + 0.1
    shifts = LineShifts([grad], 5) if ndim == 1 else PictureShifts([grad], 5)
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
def test_local_loss_through_the_normalisation(seed, scale, weight):
    grad, _, taps, shifts = setting(seed, 1, scale)
    kernel = taps / taps.sum()

    def loss(k):
        return kernel_loss.local_loss(smoothed_by(shifts, k / k.sum()), grad, weight).value

    derivative = kernel_loss.local_loss_derivative(shifts.smooth(kernel)[0], grad, weight)
    agree(kernel_loss.through_normalisation(shifts.correlate([derivative]), kernel), loss, kernel)


def test_a_zero_gradient_has_cosine_zero_and_moves_no_kernel():
    zero = torch.zeros(9)
    weights = (0.5, 1.0, 0.2)
    assert kernel_loss.three_part_loss(zero, zero, zero, weights).cosine_similarity == 0
    assert not kernel_loss.three_part_loss_derivative(zero, zero, zero, weights).any()
    assert not kernel_loss.local_loss_derivative(zero, zero, 0.1).any()
