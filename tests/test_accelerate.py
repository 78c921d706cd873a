"""Hugging Face accelerate trains, accumulates, saves and resumes the optimizers as a plain loop would."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from digits import (
    BATCH,
    OPTIMIZERS,
    Network,
    X,
    Y,
    accuracy,
    annealing_of,
    assert_close,
    assert_same,
    for_each_optimizer,
    plain_loop,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Training:
    def __init__(self, name: str, folder, accumulate: int = 1, seed: int = 0):
        self.accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=accumulate,
            project_config=ProjectConfiguration(str(folder), automatic_checkpoint_naming=True),
        )
        network = Network(seed)
        optimizer = OPTIMIZERS[name](network)
        annealing = annealing_of(name, optimizer)
        loader = DataLoader(TensorDataset(X, Y), BATCH)
        self.network, self.optimizer, self.loader = self.accelerator.prepare(network, optimizer, loader)
        if annealing:
            self.accelerator.register_for_checkpointing(annealing)

    def run(self, epochs: int) -> None:
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.network):
                    self.accelerator.backward(nn.functional.cross_entropy(self.network(x), y))
                    self.optimizer.step()
                    self.optimizer.zero_grad()


@for_each_optimizer
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_a_plain_loop_does(name, accumulate, tmp_path):
    training = Training(name, tmp_path, accumulate)
    training.run(3 * accumulate)
    assert accuracy(training.network) > 0.8
    assert_close(training.network, plain_loop(name, 3 * accumulate, accumulate))


@for_each_optimizer
def test_training_resumed_from_its_checkpoint_is_training_that_never_stopped(name, tmp_path):
    training = Training(name, tmp_path)
    training.run(1)
    training.accelerator.save_state()
    training.run(1)
    resumed = Training(name, tmp_path, seed=1)
    resumed.accelerator.load_state(str(tmp_path / "checkpoints" / "checkpoint_0"))
    resumed.run(1)
    assert_same(training.network, resumed.network)


@for_each_optimizer
def test_preparing_an_optimizer_before_its_first_step_changes_nothing(name):
    optimizer = OPTIMIZERS[name](Network())
    before = written_out(optimizer)
    Accelerator(cpu=True).prepare(optimizer)  # loads the optimizer's own state
    assert written_out(optimizer) == before


def written_out(optimizer: torch.optim.Optimizer) -> list[dict[str, str]]:
    saved = optimizer.state_dict()
    return [{str(key): str(value) for key, value in part.items()} for part in (saved["state"], *saved["param_groups"])]
