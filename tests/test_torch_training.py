"""What torch has around an optimizer: gradient scaling, averaged weights, compilation."""

import copy

import pytest
import torch
from digits import (
    OPTIMIZERS,
    Network,
    accuracy,
    annealing_of,
    assert_close,
    assert_same,
    batches,
    for_each_optimizer,
    plain_loop,
)
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel

from convopt import ConvolutionalSGD, LaplacianSmoothingSGD


class Training:
    """A loop by hand, of whose parts tests replace one."""

    def __init__(self, name: str, seed: int = 0):
        self.network = Network(seed)
        self.optimizer = OPTIMIZERS[name](self.network)
        self.annealing = annealing_of(name, self.optimizer)

    def state_dict(self) -> dict:
        return copy.deepcopy({name: part.state_dict() for name, part in vars(self).items() if part is not None})

    def load_state_dict(self, saved: dict) -> None:
        for name, state in saved.items():
            getattr(self, name).load_state_dict(state)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        return nn.functional.cross_entropy(self.network(x), y)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.loss(x, y).backward()
        self.optimizer.step()

    def epoch(self) -> None:
        for x, y in batches():
            self.step(x, y)


class Scaled(Training):
    def __init__(self, name: str, seed: int = 0):
        super().__init__(name, seed)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=20)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.scaler.scale(self.loss(x, y)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Averaged(Training):
    """Stochastic weight averaging from the second epoch on."""

    def __init__(self, name: str, seed: int = 0):
        super().__init__(name, seed)
        self.average = AveragedModel(self.network)
        self.schedule = SWALR(self.optimizer, swa_lr=self.optimizer.param_groups[0]["lr"] / 2, anneal_epochs=2)

    def epoch(self) -> None:
        super().epoch()
        self.average.update_parameters(self.network)
        self.schedule.step()


@for_each_optimizer
class TestGradScaler:
    def test_scaling_by_powers_of_two_changes_nothing(self, name):
        training = Scaled(name)
        for _ in range(3):
            training.epoch()
        assert training.scaler.get_scale() == 2.0**15
        assert accuracy(training.network) > 0.8
        assert_close(training.network, plain_loop(name, 3))

    def test_a_step_with_gradients_that_are_not_finite_is_skipped_and_nothing_moves(self, name):
        training = Scaled(name)
        training.epoch()
        before = training.state_dict()
        x, y = batches()[0]
        training.step(torch.full_like(x, torch.inf), y)
        after = training.state_dict()
        assert after.pop("scaler")["scale"] == before.pop("scaler")["scale"] / 2
        torch.testing.assert_close(tensors(after), tensors(before), rtol=0, atol=0)

    def test_training_resumed_from_state_dicts_is_training_that_never_stopped(self, name):
        training, resumed = Scaled(name), Scaled(name, seed=1)
        training.epoch()
        resumed.load_state_dict(training.state_dict())
        for each in (training, resumed):
            each.epoch()
        assert_same(training.network, resumed.network)


def tensors(saved: object) -> list[torch.Tensor]:
    """All numbers in nested dicts and lists, in their order."""
    if isinstance(saved, dict):
        return [tensor for key in saved for tensor in tensors(saved[key])]
    if isinstance(saved, list | tuple):
        return [tensor for value in saved for tensor in tensors(value)]
    return [torch.as_tensor(saved)] if isinstance(saved, torch.Tensor | int | float) else []


def test_grad_scaler_hands_a_loss_on_by_keyword_and_a_closure_by_position():
    """torch refuses a closure by keyword. By position it must not do backward: nobody would unscale."""
    kernels = []
    for way in ("keyword", "closure"):
        network = Network()
        optimizer = ConvolutionalSGD(network.parameters(), lr=0.03, kernel_lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for x, y in batches()[:10]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            scaler.scale(loss).backward()
            if way == "keyword":
                scaler.step(optimizer, loss=loss)
            else:
                scaler.step(optimizer, lambda loss=loss: loss)
            scaler.update()
        kernels.append(optimizer.kernels()["kernel"])
    assert not torch.allclose(kernels[0], torch.full((5,), 0.2), atol=1e-2)
    assert torch.equal(*kernels)
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: loss)


@for_each_optimizer
class TestAveragedModel:
    def test_it_averages_the_weights_while_its_schedule_sets_the_rate(self, name):
        training = Averaged(name)
        rates = [group["lr"] for group in training.optimizer.param_groups]
        snapshots = []
        for _ in range(4):
            training.epoch()
            snapshots.append([p.detach().clone() for p in training.network.parameters()])
        assert [group["lr"] for group in training.optimizer.param_groups] == pytest.approx([r / 2 for r in rates])
        for p, *seen in zip(training.average.module.parameters(), *snapshots, strict=True):
            torch.testing.assert_close(p.detach(), torch.stack(seen).mean(0))
        assert accuracy(training.average) > 0.8

    def test_training_resumed_from_state_dicts_is_training_that_never_stopped(self, name):
        training, resumed = Averaged(name), Averaged(name, seed=1)
        training.epoch()
        resumed.load_state_dict(training.state_dict())
        for each in (training, resumed):
            each.epoch()
        assert_same(training.average.module, resumed.average.module)


@for_each_optimizer
def test_with_forward_and_backward_compiled_it_trains_as_without(name):
    torch._dynamo.reset()
    training = Training(name)
    training.network.compile(backend="aot_eager")
    for _ in range(3):
        training.epoch()
    assert accuracy(training.network) > 0.8
    assert_close(training.network, plain_loop(name, 3))


def graphs() -> int:
    """How many torch has compiled since its counters were cleared."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LocalLossConvSGD", "ConvolutionalSGDv2"])
def test_with_its_step_compiled_it_trains_as_without(name):
    """Without a graph break: a graph that makes the state, one for usual steps, one for steps that adapt kernels.

    For WienerSGD and WienerAdamW see test_wiener.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, plain = Training(name), Training(name)
    step = torch.compile(compiled.optimizer.step, backend="aot_eager", fullgraph=True)
    for i, (x, y) in enumerate(batches()[:24]):
        compiled.loss(x, y).backward()
        step()
        plain.step(x, y)
        if i == 12:
            made = graphs()
    assert graphs() == made <= 3
    assert_close(compiled.network, plain.network)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer_class", [ConvolutionalSGD, LaplacianSmoothingSGD])
def test_with_its_step_compiled_an_optimizer_that_may_be_told_the_loss_trains_as_without(optimizer_class):
    """In one graph that makes the state and one for all other steps; the loss is a tensor."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    networks = Network(), Network()
    compiled, plain = (optimizer_class(network.parameters(), lr=0.03, momentum=0.9) for network in networks)
    steps = torch.compile(compiled.step, backend="aot_eager", fullgraph=True), plain.step
    for i, (x, y) in enumerate(batches()[:24]):
        for network, step in zip(networks, steps, strict=True):
            network.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            loss.backward()
            step(loss=loss.detach())
        if i == 12:
            made = graphs()
    assert graphs() == made <= 2
    assert_close(*networks)


@pytest.mark.slow
def test_with_its_step_compiled_an_annealed_optimizer_trains_as_without():
    """The hooks that anneal it fall into graphs of their own."""
    torch._dynamo.reset()
    name = "AdamW with SNRAnnealing"
    compiled, plain = Training(name), Training(name)
    step = torch.compile(compiled.optimizer.step, backend="aot_eager")
    for x, y in batches()[:12]:
        compiled.loss(x, y).backward()
        step()
        plain.step(x, y)
    assert_close(compiled.network, plain.network)
