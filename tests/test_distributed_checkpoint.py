"""torch.distributed.checkpoint makes a step of zero gradients to know the state: nothing moves, nothing is lost."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from digits import Network, batches
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict

from convopt import (
    ConvolutionalSGD,
    ConvolutionalSGDv2,
    LaplacianSmoothingSGD,
    LocalLossConvSGD,
    SNRAnnealing,
    WienerAdamW,
    WienerSGD,
)

ANNEALING = {"warmup": 5, "power": 1.0, "annealing_ema": 0.9, "snr_annealing": True}
OPTIMIZERS = {
    "ConvolutionalSGD": lambda model, lr: ConvolutionalSGD(model.parameters(), lr=lr),
    "LocalLossConvSGD": lambda model, lr: LocalLossConvSGD(model.parameters(), lr=lr, kernel_init="gaussian"),
    "ConvolutionalSGDv2": lambda model, lr: ConvolutionalSGDv2(model.parameters(), lr=lr, kernel_size=3),
    "LaplacianSmoothingSGD": lambda model, lr: LaplacianSmoothingSGD(model.parameters(), lr=lr),
    "WienerSGD": lambda model, lr: WienerSGD(model.groups(), lr=lr, **ANNEALING),
    "WienerSGD without annealing": lambda model, lr: WienerSGD(model.groups(), lr=lr),
    "WienerAdamW": lambda model, lr: WienerAdamW(model.groups(), lr=lr / 10, **ANNEALING),
    "SGD": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
}
for_each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
for_each_rate = pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float lr", "tensor lr"])


class Training:
    def __init__(self, name: str, lr: float | torch.Tensor, seed: int = 0):
        self.model = Network(seed)
        self.optimizer = OPTIMIZERS[name](self.model, copy.deepcopy(lr))
        self.annealing = SNRAnnealing(self.optimizer, warmup=5, ema=0.9) if name == "SGD" else None
        self.takes_loss = name == "ConvolutionalSGD"

    def run(self, steps: slice) -> None:
        for x, y in batches()[steps]:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step(**{"loss": loss} if self.takes_loss else {})
        self.optimizer.zero_grad()

    def save(self, folder: str) -> None:
        dcp.save(self.saved(), checkpoint_id=folder)

    def load(self, folder: str) -> None:
        saved = self.saved()
        dcp.load(saved, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])

    def saved(self) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        annealing = {} if self.annealing is None else {"annealing": self.annealing}
        return {"model": model, "optimizer": optimizer, **annealing}

    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


@for_each_optimizer
@for_each_rate
@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # that it saves without other ranks
@pytest.mark.parametrize("steps", [2, 16])
def test_training_resumed_from_it_is_training_that_never_stopped(name, lr, steps, tmp_path):
    training = Training(name, lr)
    training.run(slice(steps))
    training.save(tmp_path)
    training.run(slice(steps, None))
    resumed = Training(name, 2 * lr, seed=1)
    resumed.load(tmp_path)
    resumed.run(slice(steps, None))
    for p, q in zip(training.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@for_each_optimizer
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_training_can_be_rolled_back_again_and_again(name, tmp_path):
    training = Training(name, 0.1)
    training.run(slice(8))
    training.save(tmp_path)
    outcomes = []
    for _ in range(3):
        training.run(slice(8, 16))
        outcomes.append(training.parameters())
        training.load(tmp_path)
    for other in outcomes[1:]:
        assert all(torch.equal(p, q) for p, q in zip(outcomes[0], other, strict=True))


@for_each_optimizer
@for_each_rate
def test_the_step_for_show_moves_no_parameter_kernel_average_or_statistic(name, lr):
    plain, shown = Training(name, lr), Training(name, lr)
    get_optimizer_state_dict(shown.model, shown.optimizer)
    if name == "WienerAdamW":  # as torch's AdamW, it counts the step, for the correction of its averages' bias
        for state in shown.optimizer.state.values():
            state["step"].zero_()
    for steps in (slice(0, 0), slice(12)):
        for training in (plain, shown):
            training.run(steps)
        assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), shown.parameters(), strict=True))
        for group, other in zip(plain.optimizer.param_groups, shown.optimizer.param_groups, strict=True):
            assert str({**group, "params": 0}) == str({**other, "params": 0})
    if name == "SGD":
        assert plain.annealing.factor() == shown.annealing.factor()
