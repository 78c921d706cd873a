"""PyTorch Lightning trains, saves and resumes the optimizers as a plain loop would, by itself and by hand."""

import pytest
import torch
from digits import (
    BATCH,
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
from digits import OPTIMIZERS as SHARED
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convopt import ConvolutionalSGD

OPTIMIZERS = {**SHARED, "ConvolutionalSGD": lambda model: ConvolutionalSGD(model.parameters(), lr=0.1, kernel_lr=0.05)}


class Module(LightningModule):
    def __init__(self, name: str, automatic: bool = True, seed: int = 0):
        super().__init__()
        self.name, self.automatic_optimization, self.network = name, automatic, Network(seed)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.name](self.network)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step(lambda: loss)
        return loss


class Annealing(Callback):
    """Attaches the annealing while a fit lasts, with its state in Lightning's checkpoints."""

    saved = None

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        self.annealing = annealing_of(module.name, trainer.optimizers[0])
        if self.annealing and self.saved:
            self.annealing.load_state_dict(self.saved)

    def state_dict(self) -> dict:
        return self.annealing.state_dict() if self.annealing else {}

    def load_state_dict(self, state_dict: dict) -> None:
        self.saved = state_dict


def fit(module: Module, epochs: int, folder, checkpoint=None) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[Annealing()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(TensorDataset(X, Y), BATCH), ckpt_path=checkpoint)
    return trainer


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


@for_each_optimizer
@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
def test_it_trains_as_a_plain_loop_does(name, automatic, tmp_path):
    module = Module(name, automatic)
    fit(module, 3, tmp_path)
    assert accuracy(module.network) > 0.8
    assert_close(module.network, plain_loop(name, 3))


@for_each_optimizer
def test_training_resumed_from_its_checkpoint_is_training_that_never_stopped(name, tmp_path):
    whole = Module(name)
    fit(whole, 3, tmp_path)
    trainer = fit(Module(name), 1, tmp_path)
    trainer.save_checkpoint(tmp_path / "lightning.ckpt")
    resumed = Module(name, seed=1)
    fit(resumed, 3, tmp_path, tmp_path / "lightning.ckpt")
    assert_same(whole.network, resumed.network)


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
def test_the_closure_tells_convolutional_sgd_its_loss(automatic, tmp_path):
    module = Module("ConvolutionalSGD", automatic)
    trainer = fit(module, 1, tmp_path)
    network = Network()
    optimizer = OPTIMIZERS["ConvolutionalSGD"](network)
    for x, y in zip(X.split(BATCH), Y.split(BATCH), strict=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step(loss=loss)
    learnt, expected = (each.kernels()["kernel"] for each in (trainer.optimizers[0], optimizer))
    assert not torch.allclose(expected, torch.full((5,), 0.2), atol=1e-2)
    torch.testing.assert_close(learnt, expected)
    assert_close(module.network, network)
