"""LaplacianSmoothingSGD solves (I - sigma L) d = g on a ring, and is SGD along d."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from convopt import LaplacianSmoothingSGD
from convopt.optim.laplacian import smooth_on_ring


@given(length=st.integers(3, 40), sigma=st.floats(0.1, 50), seed=st.integers(0, 99))
def test_the_direction_solves_the_paper_s_system(length, sigma, seed):
    gradient = torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    direction = smooth_on_ring(gradient, sigma)
    laplacian = direction.roll(1) - 2 * direction + direction.roll(-1)
    torch.testing.assert_close(direction - sigma * laplacian, gradient)


@given(sigma=st.floats(0.1, 50), seed=st.integers(0, 99))
def test_it_descends_keeps_the_mean_and_never_lengthens(sigma, seed):
    gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    direction = smooth_on_ring(gradient, sigma)
    assert direction.shape == gradient.shape
    assert (gradient * direction).sum() > 0
    assert direction.norm() <= gradient.norm()
    torch.testing.assert_close(direction.mean(), gradient.mean())


def test_a_step_is_sgd_s_along_the_smoothed_gradient():
    torch.manual_seed(0)
    p, q = (Parameter(torch.ones(6, 4)) for _ in range(2))
    smoothed = LaplacianSmoothingSGD([p], lr=0.1, momentum=0.9, sigma=3.0)
    plain = torch.optim.SGD([q], lr=0.1, momentum=0.9)
    for _ in range(4):
        p.grad = torch.randn(6, 4)
        q.grad = smooth_on_ring(p.grad, 3.0)
        smoothed.step()
        plain.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), "wide"])
def test_sigma_must_be_a_number_that_is_not_negative(sigma):
    with pytest.raises(ValueError, match="sigma must be a number"):
        LaplacianSmoothingSGD([Parameter(torch.ones(3))], sigma=sigma)


def test_an_empty_parameter_and_a_half_precision_one_are_stepped():
    empty, half = Parameter(torch.ones(0)), Parameter(torch.ones(9, dtype=torch.bfloat16))
    for p in (empty, half):
        p.grad = torch.ones_like(p)
    LaplacianSmoothingSGD([empty, half], lr=0.5, momentum=0).step()
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.detach().float(), torch.full((9,), 0.5))
