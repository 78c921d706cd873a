"""ConvolutionalSGDv2: which kernel smooths what, and how the kernels learn."""

import pytest
import torch
from torch.nn import Parameter

from convopt import ConvolutionalSGDv2
from convopt.theory import kernels
from convopt.theory.kernel_loss import three_part_loss
from convopt.theory.smoothing import smooth


def parameter(shape: tuple[int, ...], seed: int = 0) -> Parameter:
    p = Parameter(torch.zeros(shape))
    p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return p


def direction(p: Parameter, **options) -> torch.Tensor:
    """What the optimizer subtracts at lr 1 without momentum."""
    ConvolutionalSGDv2([p], lr=1.0, momentum=0.0, **options).step()
    return -p.detach()


LINE, IMAGE = kernels.uniform(3), kernels.uniform(3, 2)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 6), lambda g: smooth(g, IMAGE)),  # Linear: over (out, in)
        ((4, 5, 3, 3), lambda g: smooth(g, IMAGE)),  # Conv2d whose taps fit: over (kH, kW)
        ((4, 5, 1, 2), lambda g: smooth(g.permute(2, 3, 0, 1), IMAGE).permute(2, 3, 0, 1)),  # over (out, in)
        ((4, 2, 2, 2), lambda g: smooth(g.flatten(), LINE).view_as(g)),  # neither fits: flattened
        ((2, 6), lambda g: smooth(g.flatten(), LINE).view_as(g)),
        ((7,), lambda g: smooth(g, LINE)),
        ((2, 3, 4), lambda g: smooth(g.flatten(), LINE).view_as(g)),
        ((2,), lambda g: g),  # shorter than the kernel
        ((), lambda g: g),
    ],
)
def test_what_is_smoothed_over_which_axes(shape, expected):
    p = parameter(shape)
    torch.testing.assert_close(direction(p, kernel_size=3, kernel_init="uniform"), expected(p.grad))


@pytest.mark.parametrize("init", ["uniform", "gaussian", "binomial"])
def test_it_starts_from_the_named_kernel(init):
    start = ConvolutionalSGDv2([parameter((9, 9))], kernel_init=init).kernels()
    torch.testing.assert_close(start["kernel_1d"], kernels.NAMED_KERNELS[init](5))
    torch.testing.assert_close(start["kernel_2d"], kernels.NAMED_KERNELS[init](5, 2))


def test_a_tensor_start_gives_both_kernels():
    taps = torch.tensor([1.0, 2, 1])
    start = ConvolutionalSGDv2([parameter((9,))], kernel_size=3, kernel_init=taps).kernels()
    torch.testing.assert_close(start["kernel_1d"], taps / 4)
    torch.testing.assert_close(start["kernel_2d"], torch.outer(taps, taps) / 16)
    image = torch.tensor([[0.0, 1, 0], [1, 4, 1], [0, 1, 0]])
    start = ConvolutionalSGDv2([parameter((9,))], kernel_size=3, kernel_init=image).kernels()
    torch.testing.assert_close(start["kernel_2d"], image / 8)
    torch.testing.assert_close(start["kernel_1d"], taps * 0 + torch.tensor([1.0, 6, 1]) / 8)


@pytest.mark.parametrize("init", [torch.tensor([0.0, 1, 2, 1, 0]), kernels.identity(5) + torch.eye(5)[1]])
def test_a_tap_of_zero_stays_so_while_the_others_learn(init):
    line, image = parameter((50,)), parameter((10, 10))
    optimizer = ConvolutionalSGDv2([line, image], kernel_lr=0.5, kernel_init=init, kernel_update_every=1)
    start = optimizer.kernels()
    for seed in range(20):
        for p in (line, image):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) + 2
        optimizer.step()
    for name, kernel in optimizer.kernels().items():
        assert (kernel[start[name] == 0] == 0).all()
        assert (kernel - start[name]).abs().max() > 1e-3


def test_the_identity_stays_and_makes_it_sgd():
    ours, theirs = parameter((9, 7)), parameter((9, 7))
    smoothing = ConvolutionalSGDv2([ours], lr=0.1, momentum=0.9, kernel_init="identity")
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for _ in range(12):
        smoothing.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(smoothing.kernels()["kernel_2d"], kernels.identity(5, 2))


@pytest.mark.parametrize("weights", [(0.5, 1.0, 0.0), (0.5, 0.3, 0.2)])
def test_every_fifth_step_the_logits_follow_autograd_parameter_after_parameter(weights):
    params = [parameter((9, 8), seed=3), parameter((6, 7), seed=4)]
    optimizer = ConvolutionalSGDv2(params, kernel_size=3, kernel_lr=0.5, kernel_init="binomial", loss_weights=weights)
    start = optimizer.kernels()["kernel_2d"]
    for _ in range(4):
        optimizer.step()
    torch.testing.assert_close(optimizer.kernels()["kernel_2d"], start)
    optimizer.step()

    logits = kernels.binomial(3, 2).log()
    for p in params:
        logits = logits.detach().requires_grad_()
        taps = torch.softmax(logits.flatten(), 0)
        padded = torch.nn.functional.pad(p.grad[None, None], (1,) * 4, mode="reflect")
        smoothed = torch.nn.functional.conv2d(padded, taps.view(1, 1, 3, 3))[0, 0]
        three_part_loss(smoothed, p.grad, p.grad, weights).value.backward()  # the average of equal gradients
        logits = logits - 0.5 * logits.grad
    expected = torch.softmax(logits.flatten(), 0).view(3, 3)
    torch.testing.assert_close(optimizer.kernels()["kernel_2d"], expected.detach())


def test_at_a_learning_rate_of_zero_kernels_and_statistics_rest():
    p = parameter((9, 9))
    optimizer = ConvolutionalSGDv2([p], lr=0.0, kernel_update_every=1, kernel_lr=1.0)
    start = optimizer.kernels()["kernel_2d"]
    for _ in range(3):
        optimizer.step()
    torch.testing.assert_close(optimizer.kernels()["kernel_2d"], start)
    assert not p.any()
    optimizer.param_groups[0]["lr"] = 0.1
    p.grad = torch.randn(9, 9, generator=torch.Generator().manual_seed(9))
    optimizer.step()
    assert torch.equal(optimizer.state[p]["signal"], p.grad)  # the average starts here


def test_statistics_compare_the_gradient_with_its_average():
    p = parameter((9, 9))
    optimizer = ConvolutionalSGDv2([p], kernel_init="identity", noise_estimation_momentum=0.5)
    assert optimizer.statistics() == {}
    optimizer.step()
    first = p.grad.clone()
    p.grad = torch.randn(9, 9, generator=torch.Generator().manual_seed(9))
    optimizer.step()
    statistics = optimizer.statistics()
    signal = (first + p.grad) / 2
    torch.testing.assert_close(statistics["snr"], signal.square().sum() / (p.grad - signal).square().sum())
    torch.testing.assert_close(statistics["cosine_similarity"], torch.tensor(1.0))
    torch.testing.assert_close(statistics["kernel_loss"], (p.grad - signal).square().mean())


@pytest.mark.parametrize("scale", [1e-22, 1e-21, 1e-20, 1e19, 1e20])
def test_a_gradient_whose_squares_leave_the_range_does_not_spoil_what_is_smoothed_after_it(scale):
    odd, usual, alone = parameter((8, 8)), parameter((8, 8), seed=1), parameter((8, 8), seed=1)
    odd.grad.mul_(scale)
    ConvolutionalSGDv2([odd, usual], kernel_update_every=1).step()
    ConvolutionalSGDv2([alone], kernel_update_every=1).step()
    torch.testing.assert_close(usual, alone)
