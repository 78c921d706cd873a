"""ConvolutionalSGD: its update is SGD's on the smoothed gradient, its kernel follows the loss."""

import pytest
import torch
from torch.nn import Parameter

from convopt import ConvolutionalSGD
from convopt.theory.smoothing import smooth


def parameter(*shape: int, seed: int = 0) -> Parameter:
    p = Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
    p.grad = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))
    return p


def test_with_the_identity_it_is_sgd_with_momentum():
    ours, theirs = [parameter(6, 4), parameter(3)], [parameter(6, 4), parameter(3)]
    smoothing = ConvolutionalSGD(ours, lr=0.1, momentum=0.9, kernel_init="identity")
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    for _ in range(3):
        smoothing.step()
        sgd.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_it_steps_along_the_flattened_smoothed_gradient():
    p = parameter(6, 4)
    before, kernel = p.detach().clone(), torch.full((5,), 0.2)
    ConvolutionalSGD([p], lr=0.1, momentum=0.0, kernel_size=5).step()
    torch.testing.assert_close(p.detach(), before - 0.1 * smooth(p.grad.flatten(), kernel).view(6, 4))


def test_a_tensor_shorter_than_the_kernel_passes_through():
    p = parameter(4)
    before = p.detach().clone()
    ConvolutionalSGD([p], lr=0.1, momentum=0.0, kernel_size=5).step()
    torch.testing.assert_close(p.detach(), before - 0.1 * p.grad)


def test_the_centre_grows_when_the_loss_fell_and_relaxes_when_it_did_not():
    optimizer = ConvolutionalSGD([parameter(9)], kernel_size=3, kernel_lr=0.01, kernel_init=torch.tensor([1.0, 2, 1]))
    start = optimizer.kernels()["kernel"]
    optimizer.step(loss=1.0)
    torch.testing.assert_close(optimizer.kernels()["kernel"], start)  # nothing to compare with yet
    optimizer.step(loss=0.5)
    grown = torch.tensor([0.25, 0.51, 0.25]) / 1.01
    torch.testing.assert_close(optimizer.kernels()["kernel"], grown)
    optimizer.step(loss=0.5)
    torch.testing.assert_close(optimizer.kernels()["kernel"], 0.9 * grown + 0.1 / 3)


def test_without_a_loss_the_kernel_stays():
    optimizer = ConvolutionalSGD([parameter(9)], kernel_init="gaussian")
    start = optimizer.kernels()["kernel"]
    for _ in range(5):
        optimizer.step()
    torch.testing.assert_close(optimizer.kernels()["kernel"], start)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_a_kernel_that_is(loss):
    optimizer = ConvolutionalSGD([parameter(9)])
    for value in (1.0, loss, 0.5, 0.4):
        optimizer.step(loss=value)
    kernel = optimizer.kernels()["kernel"]
    assert kernel.isfinite().all()
    torch.testing.assert_close(kernel.sum(), torch.tensor(1.0))
