"""Each control changes one thing about an optimizer and leaves the rest as it was."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convopt import ConvolutionalSGD
from convopt.lab import data, experiments
from convopt.lab.methods import baselines, controls, ours
from convopt.lab.trainer import dataset_of


def displacement(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> torch.Tensor:
    before = p.detach().clone()
    optimizer.step()
    return before - p.detach()


@pytest.fixture
def weight():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, 64))
    p.grad = torch.randn(6, 64)
    return p


def test_direction_and_length_are_taken_apart(weight):
    steps = {}
    for name, make in {
        "smoothed": ConvolutionalSGD,
        "raw direction": controls.RawDirectionSGD,
        "raw length": controls.RawLengthSGD,
    }.items():
        p = nn.Parameter(weight.detach().clone())
        p.grad = weight.grad
        steps[name] = displacement(make([p], lr=1.0, momentum=0.0), p)
    torch.testing.assert_close(steps["raw direction"].norm(), steps["smoothed"].norm())
    torch.testing.assert_close(F.normalize(steps["raw direction"]), F.normalize(weight.grad), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(steps["raw length"].norm(), weight.grad.norm())
    scale = steps["raw length"].norm() / steps["smoothed"].norm()
    torch.testing.assert_close(steps["raw length"], steps["smoothed"] * scale)


def test_a_zero_gradient_stays_zero_at_another_length(weight):
    weight.grad.zero_()
    assert not displacement(controls.RawLengthSGD([weight], lr=1.0), weight).any()


@pytest.mark.parametrize("kernel", [("binomial", 3), ("binomial", 7), ("uniform", 5)])
def test_a_kernel_over_the_pixels_keeps_the_step_and_lowers_the_high_frequencies(weight, kernel):
    before = weight.grad.clone()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    controls.smooth_over_pixels(optimizer, weight, (8, 8), *kernel)
    step = displacement(optimizer, weight)
    torch.testing.assert_close(step.norm(), before.norm())
    roughness = [field.view(-1, 8, 8).diff(dim=2).norm() for field in (step, before)]
    assert roughness[0] < roughness[1]


def test_noise_in_gradients_has_the_power_it_should_have():
    p = nn.Parameter(torch.zeros(20000))
    p.grad = torch.full((20000,), 3.0)
    optimizer = torch.optim.SGD([p], lr=1.0)
    controls.add_gradient_noise([optimizer], power=4.0, seed=0)
    noise = displacement(optimizer, p) - 3.0
    assert noise.square().mean() == pytest.approx(4 * 9, rel=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.2)


def test_only_the_chosen_layers_are_smoothed(weight):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    groups = [{"params": list(model.named_parameters())}]
    for which, smoothed in (("first layer", 0), ("other layers", 1)):
        optimizer = ConvolutionalSGD(ours.smoothed_groups(groups, which), lr=1.0, momentum=0.0)
        before = [layer.weight.detach().clone() for layer in model]
        optimizer.step()
        changed = [
            not torch.allclose(old - layer.weight, layer.weight.grad, atol=1e-6)
            for old, layer in zip(before, model, strict=True)
        ]
        assert changed == [smoothed == 0, smoothed == 1]
    with pytest.raises(ValueError, match="smoothed"):
        ours.smoothed_groups(groups, "middle")


def test_blurred_images_have_lost_their_high_frequencies_and_kept_their_mean():
    run = experiments.BLURRED.run(experiments.SGD, "digits", 1, 0)
    blurred, sharp = dataset_of(run).test.x, data.load("digits").test.x
    torch.testing.assert_close(blurred.mean((2, 3)), sharp.mean((2, 3)))
    assert blurred.diff(dim=3).norm() < sharp.diff(dim=3).norm()


@given(seed=st.integers(0, 99))
def test_generalised_cross_entropy_lies_between_cross_entropy_and_absolute_error(seed):
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.arange(7) % 4
    error = (1 - logits.softmax(1)[torch.arange(7), y]).mean()
    torch.testing.assert_close(baselines.generalised_cross_entropy(1.0)(logits, y), error)
    torch.testing.assert_close(
        baselines.generalised_cross_entropy(1e-6)(logits, y), F.cross_entropy(logits, y), rtol=1e-4, atol=0
    )
    assert error <= baselines.generalised_cross_entropy(0.5)(logits, y) <= F.cross_entropy(logits, y)


def test_label_smoothing_is_least_at_smoothed_labels():
    loss_of = baselines.label_smoothing(0.2)
    smoothed = torch.tensor([[0.9, 0.1]]).log()
    y = torch.tensor([0])
    assert loss_of(smoothed, y) < loss_of(smoothed + torch.tensor([[0.5, 0.0]]), y)
    assert loss_of(smoothed, y) < loss_of(smoothed - torch.tensor([[0.5, 0.0]]), y)


@pytest.mark.parametrize(
    ("grid", "shape"), [(None, (6, 64)), ((46,), (6, 46)), ((4, 4), (16, 1, 3, 3)), ((5, 5), (6, 64))]
)
def test_a_kernel_over_pixels_needs_a_weight_that_sees_them(grid, shape):
    weight = nn.Parameter(torch.randn(shape))
    with pytest.raises(ValueError, match="needs a grid of two axes and a weight"):
        controls.smooth_over_pixels(torch.optim.SGD([weight]), weight, grid, "binomial", 3)
