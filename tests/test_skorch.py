"""skorch trains, saves and resumes the optimizers as a plain loop would."""

import pytest
import skorch
import torch
from digits import ANNEALED, ANNEALING, BATCH, DIGITS, Network, X, Y, accuracy, assert_close, assert_same, plain_loop
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from torch import nn

from convopt import ConvolutionalSGDv2, LocalLossConvSGD, SNRAnnealing, WienerAdamW, WienerSGD

GRIDS = [("0.weight", {"grid": (8, 8)})]
WIENER = {"param_groups": GRIDS, **ANNEALED}
OPTIMIZERS = {
    "ConvolutionalSGDv2": (ConvolutionalSGDv2, {"lr": 0.03, "kernel_size": 3, "kernel_lr": 0.1}),
    "LocalLossConvSGD": (LocalLossConvSGD, {"lr": 0.03, "local_lr": 0.05, "kernel_init": "gaussian"}),
    "WienerSGD": (WienerSGD, {"lr": 0.1, **WIENER}),
    "WienerAdamW": (WienerAdamW, {"lr": 0.01, **WIENER}),
    "AdamW with SNRAnnealing": (torch.optim.AdamW, {"lr": 0.01}),
}
for_each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


class Annealing(Callback):
    """Attaches SNRAnnealing to the net's optimizer, and keeps its state in a file beside skorch's own."""

    def __init__(self, path):
        self.path = path

    def on_train_begin(self, net, **_):
        self.annealing_ = SNRAnnealing(net.optimizer_, ema=0.9, **ANNEALING)
        if self.path.exists():
            self.annealing_.load_state_dict(torch.load(self.path))

    def on_epoch_end(self, net, **_):
        torch.save(self.annealing_.state_dict(), self.path)


def new_net(name: str, epochs: int, folder, seed: int = 0) -> skorch.NeuralNetClassifier:
    optimizer, options = OPTIMIZERS[name]
    checkpoint = Checkpoint(monitor=None, dirname=folder)
    callbacks = [checkpoint, LoadInitState(checkpoint)]
    if name == "AdamW with SNRAnnealing":
        callbacks.append(Annealing(folder / "annealing.pt"))
    return skorch.NeuralNetClassifier(
        Network,
        module__seed=seed,
        criterion=nn.CrossEntropyLoss,
        optimizer=optimizer,
        **{f"optimizer__{option}": value for option, value in options.items()},
        batch_size=BATCH,
        max_epochs=epochs,
        train_split=None,
        verbose=0,
        callbacks=callbacks,
    )


@for_each_optimizer
def test_it_trains_as_a_plain_loop_does(name, tmp_path):
    net = new_net(name, 3, tmp_path).fit(X, Y)
    assert accuracy(net.module_) > 0.8
    assert net.score(DIGITS.test.x.flatten(1), DIGITS.test.y) == pytest.approx(accuracy(net.module_))
    assert_close(net.module_, plain_loop(name, 3))


@for_each_optimizer
def test_training_resumed_from_its_checkpoint_is_training_that_never_stopped(name, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = new_net(name, 2, tmp_path / "whole").fit(X, Y)
    new_net(name, 1, tmp_path).fit(X, Y)
    resumed = new_net(name, 1, tmp_path, seed=1).fit(X, Y)
    assert_same(whole.module_, resumed.module_)
