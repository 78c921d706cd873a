"""Adversaries stay within their bounds and raise the loss."""

import pytest
import torch.nn.functional as F

from convopt.lab import experiments, training
from convopt.lab.adversaries import Adversary
from convopt.lab.runs import Choice
from convopt.lab.trainer import Trainer


@pytest.fixture(scope="module")
def trained():
    run = experiments.CLEAN.run(experiments.ADAM, "digits", 5, 0)
    trainer = Trainer(run)
    for batches in trainer.epochs():
        trainer.train_epoch(batches)
    return trainer.model, trainer.dataset


@pytest.mark.parametrize("name", ["FGSM", "PGD"])
def test_images_stay_within_epsilon_and_the_loss_grows(trained, name):
    model, dataset = trained
    x, y = dataset.test.x, dataset.test.y
    black, white = dataset.train.x.min(), dataset.train.x.max()
    attacked = Adversary(Choice.of(name, epsilon=0.1), dataset.train.x, seed=0).attack(model, x, y)
    assert (attacked - x).abs().max() <= 0.1 * (white - black) + 1e-5
    assert attacked.min() >= black
    assert attacked.max() <= white
    assert F.cross_entropy(model(attacked), y) > 2 * F.cross_entropy(model(x), y)


def test_ten_steps_are_stronger_than_one(trained):
    model, dataset = trained
    x, y = dataset.test.x, dataset.test.y
    losses = [
        F.cross_entropy(model(Adversary(Choice.of(name, epsilon=0.1), dataset.train.x, 0).attack(model, x, y)), y)
        for name in ("FGSM", "PGD")
    ]
    assert losses[0] < losses[1]


def test_parameters_and_their_gradients_stay_as_they_are(trained):
    model, dataset = trained
    model.zero_grad()
    Adversary(Choice.of("PGD", epsilon=0.1), dataset.train.x, 0).attack(model, dataset.test.x[:9], dataset.test.y[:9])
    assert all(p.grad is None for p in model.parameters())


def test_an_unknown_adversary_is_refused(trained):
    with pytest.raises(ValueError, match="adversary must be one of FGSM, PGD"):
        Adversary(Choice.of("CW", epsilon=0.1), trained[1].train.x, 0)


def test_training_against_an_adversary_makes_robust_and_is_recorded():
    robust = experiments.Setting(1200, 32, 0.0, experiments.SMALL_NET, 10, adversary=Choice.of("FGSM", epsilon=0.1))
    record = training.train(robust.run(experiments.ADAM, "digits", None, 0))
    for name in ("fgsm_accuracy", "pgd_accuracy"):
        assert len(record.curves[name]) == 10
        assert record.curves[name][0] < record.curves[name][-1] <= record.final
