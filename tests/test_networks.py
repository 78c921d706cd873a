"""The networks have the shapes and initial scales that the study's settings name."""

import math
import re
import sys

import pytest
import torch

from convopt.lab import networks
from convopt.lab.tasks import TASKS


def linear_shapes(model: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters() if p.ndim == 2]


def test_simple_net():
    assert linear_shapes(networks.SimpleNet()) == [(128, 784), (128, 128), (10, 128)]


def test_deep_net_has_six_hidden_layers():
    assert linear_shapes(networks.DeepNet()) == [(64, 784), *[(64, 64)] * 5, (10, 64)]


def test_ill_conditioned_net_scales_its_initial_weights():
    assert linear_shapes(networks.IllConditionedNet()) == [(256, 784), (128, 256), (10, 128)]
    torch.manual_seed(0)
    net = networks.IllConditionedNet()
    for p, scale in zip((p for p in net.parameters() if p.ndim == 2), (10, 0.1, 5), strict=True):
        assert p.abs().max().item() == pytest.approx(scale / p.shape[1] ** 0.5, rel=0.02)  # torch's uniform bound
    assert linear_shapes(networks.IllConditionedNet(64)) == [(64, 64), (32, 64), (10, 32)]


SHAPES = {"image": [(1, 28, 28), (1, 8, 8), (3, 16, 24)], "series": [(1, 46), (3, 20)], "features": [(13,)]}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name, network in networks.NETWORKS.items()
        for kind in SHAPES
        for shape in SHAPES[kind]
        if kind in network.kinds
    ],
)
def test_every_network_maps_inputs_to_outputs_and_learns(name, shape):
    torch.manual_seed(0)
    network = networks.make(name, shape, 10)
    x, y = torch.randn(16, *shape), torch.arange(16) % 10
    steps = 3 if name == "ResNet-18" else 30
    losses = descend(network, lambda: torch.nn.functional.cross_entropy(network(x), y), steps)
    assert network(x).shape == (16, 10)
    assert losses[-1] < (0.5 if steps == 30 else 1) * losses[0]


def test_the_language_model_learns_which_token_comes_next():
    torch.manual_seed(0)
    network = networks.make("GRULanguageModel", (12,), 5)
    tokens = torch.arange(4 * 13).view(4, 13) % 5
    x, y = tokens[:, :-1], tokens[:, 1:]
    losses = descend(network, lambda: TASKS["next token"].loss(network(x), y), 30)
    assert network(x).shape == (4, 12, 5)
    assert losses[-1] < 0.2 * losses[0]


def descend(network: torch.nn.Module, loss_of, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "shape"), [("ConvNet", (1, 30, 30)), ("ConvNet", (1, 8, 14)), ("ConvNet1d", (1, 3))])
def test_inputs_that_do_not_fit_are_refused(name, shape):
    with pytest.raises(ValueError, match=f"{name} needs"):
        networks.make(name, shape, 10)


@pytest.mark.parametrize("kind", networks.IN_PLACE)
def test_where_a_network_does_not_take_a_kind_of_input_one_that_does_takes_its_place(kind):
    for name in networks.NETWORKS:
        fitting = networks.fitting(name, kind)
        assert kind in networks.NETWORKS[fitting].kinds
        assert fitting == name or kind not in networks.NETWORKS[name].kinds


def mine(shape, outputs, width=4):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), outputs))


def no_module(shape, outputs):
    return None


def test_the_readers_own_function_makes_a_network():
    network = networks.make("test_networks:mine", (2, 3), 7, width=8)
    assert network(torch.zeros(5, 2, 3)).shape == (5, 7)
    assert networks.fitting("test_networks:mine", "tokens") == "test_networks:mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SimpelNet", "did you mean SimpleNet?"),
        ("nowhere_at_all:mine", "cannot be imported"),
        ("test_networks:missing", "cannot be imported"),
        ("test_networks:no_module", "must return a torch.nn.Module, got NoneType"),
    ],
)
def test_a_name_that_makes_no_network_is_refused(name, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        networks.make(name, (4,), 2)


def test_a_module_in_the_current_folder_is_found_and_told_of_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "of_this_folder.py").write_text(
        "import torch\nmake = lambda shape, outputs: torch.nn.Linear(4, outputs)"
    )
    (tmp_path / "that_is_broken.py").write_text("def make(:")
    assert networks.make("of_this_folder:make", (4,), 2).out_features == 2
    assert sys.path[-1] == str(tmp_path)  # no module that is installed is hidden
    with pytest.raises(ValueError, match=r"that_is_broken:make. cannot be imported: SyntaxError: .*") as error:
        networks.require_network("that_is_broken:make")
    assert "\n" not in str(error.value)
