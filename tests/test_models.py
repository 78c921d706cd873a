"""The networks have the shapes and initial scales that the study's settings name."""

import pytest
import torch

from convopt.lab import models


def linear_shapes(model: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters() if p.ndim == 2]


def test_simple_net():
    assert linear_shapes(models.SimpleNet()) == [(128, 784), (128, 128), (10, 128)]


def test_deep_net_has_six_hidden_layers():
    assert linear_shapes(models.DeepNet()) == [(64, 784), *[(64, 64)] * 5, (10, 64)]


def test_ill_conditioned_net_scales_its_initial_weights():
    assert linear_shapes(models.IllConditionedNet()) == [(256, 784), (128, 256), (10, 128)]
    torch.manual_seed(0)
    net = models.IllConditionedNet()
    for p, scale in zip((p for p in net.parameters() if p.ndim == 2), (10, 0.1, 5), strict=True):
        assert p.abs().max().item() == pytest.approx(scale / p.shape[1] ** 0.5, rel=0.02)  # torch's uniform bound
    assert linear_shapes(models.IllConditionedNet(64)) == [(64, 64), (32, 64), (10, 32)]


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("grid", [(28, 28), (8, 8)])
def test_every_model_maps_flattened_pictures_to_logits_and_learns(name, grid):
    torch.manual_seed(0)
    model = models.MODELS[name](grid, 10)
    x, y = torch.randn(16, grid[0] * grid[1]), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model(x).shape == (16, 10)
    assert losses[-1] < 0.5 * losses[0]


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="image_size"):
        models.ConvNet(30)
    with pytest.raises(ValueError, match="square"):
        models.MODELS["ConvNet"]((8, 12), 10)
