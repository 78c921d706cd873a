"""LocalLossConvSGD: one kernel per parameter, on the simplex, following the exact gradient of its local loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from convopt import LocalLossConvSGD
from convopt.theory.kernel_loss import local_loss
from convopt.theory.smoothing import smooth


def gradient(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000), st.sampled_from([3, 5]), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_kernel_steps_along_central_differences_of_the_normalised_loss(seed, size, lambd):
    p = Parameter(torch.zeros(20, dtype=torch.float64))
    p.grad = gradient(20, seed)
    optimizer = LocalLossConvSGD([p], kernel_size=size, local_lr=0.01, lambd=lambd, kernel_init="gaussian")
    optimizer.step()
    moved = optimizer.kernels()["0"].double()

    from convopt.theory.kernels import gaussian

    start = gaussian(size).double()

    def loss(kernel):
        return local_loss(smooth(p.grad, kernel / kernel.sum()), p.grad, lambd).value

    step = 1e-6
    units = torch.eye(size, dtype=torch.float64)
    slope = torch.stack([(loss(start + step * u) - loss(start - step * u)) / (2 * step) for u in units])
    expected = (start - 0.01 * slope).clamp_min(0)
    torch.testing.assert_close(moved, expected / expected.sum(), rtol=1e-5, atol=1e-6)


def test_kernels_stay_on_the_simplex_under_a_large_rate():
    params = [Parameter(torch.zeros(n)) for n in (30, 12)]
    optimizer = LocalLossConvSGD(params, kernel_size=5, local_lr=5.0)
    for seed in range(20):
        for p in params:
            p.grad = gradient(p.numel(), seed).float()
        optimizer.step()
        for kernel in optimizer.kernels().values():
            assert (kernel >= 0).all()
            torch.testing.assert_close(kernel.sum(), torch.tensor(1.0))


def test_each_parameter_has_its_own_kernel_under_its_own_name():
    layer = torch.nn.Linear(8, 6)
    optimizer = LocalLossConvSGD(layer.named_parameters(), local_lr=0.5)
    assert optimizer.kernels() == {}
    for p, seed in zip(layer.parameters(), (0, 1), strict=True):
        p.grad = gradient(p.numel(), seed).float().view_as(p)
    optimizer.step()
    kernels = optimizer.kernels()
    assert list(kernels) == ["weight", "bias"]
    assert not torch.equal(kernels["weight"], kernels["bias"])


@pytest.mark.parametrize("scale", [1e-22, 1e-21, 3e-21, 1e-20, 1e-19])
def test_a_gradient_whose_squares_leave_the_range_leaves_a_kernel(scale):
    p = Parameter(torch.zeros(40))
    p.grad = gradient(40, 0).float() * scale
    optimizer = LocalLossConvSGD([p])
    optimizer.step()
    kernel = optimizer.kernels()["0"]
    assert (kernel >= 0).all()
    assert kernel.sum().item() == pytest.approx(1, abs=1e-5)


@given(st.floats(-10, 10).filter(lambda b: abs(b) > 1e-3), st.sampled_from([4, 7, 10, 31]))
def test_a_gradient_that_the_kernel_takes_away_leaves_a_kernel(b, n):
    p = Parameter(torch.zeros(n))
    p.grad = torch.tensor([-2 * b, b, b] * n)[:n]  # sums of three are zero, but for rounding
    optimizer = LocalLossConvSGD([p], kernel_size=3, kernel_init="uniform")
    optimizer.step()
    assert optimizer.kernels()["0"].isfinite().all()
