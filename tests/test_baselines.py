"""The methods of others train in the study's loop as their authors mean them to."""

import dataclasses

import pytest
import torch
from torch import nn

from convopt.lab import experiments, training
from convopt.lab.methods import Setup, baselines
from convopt.lab.trainer import Trainer


@pytest.mark.slow
@pytest.mark.parametrize("label", [label for label in experiments.SPACES if not label.endswith("+ SNRAnnealing")])
def test_every_method_learns_the_digits_and_can_be_annealed(label):
    recipe = max(experiments.trials(label), key=lambda trial: dict(trial.optimizer.options)["lr"] < 0.02)
    setting = dataclasses.replace(experiments.STRESS, label_noise=0.0)
    if label == "Muon":  # many CPUs are slow at products in bfloat16
        recipe = experiments.with_options(recipe, precision="float32")
    if recipe.annealing is None and not label.startswith("Wiener"):  # those anneal themselves
        recipe = experiments.annealed(recipe)
    record = training.train(setting.run(recipe, "digits", 3, 0))
    assert record.status == "finished"
    assert record.curves["train_loss"][-1] < record.curves["train_loss"][0]
    assert record.final > 0.3


@pytest.mark.parametrize("label", experiments.SPACES)
def test_trials_are_the_same_every_time_and_spread_over_the_rates(label):
    trials = experiments.trials(label)
    assert trials == experiments.trials(label)
    assert len(set(trials)) == experiments.TRIALS
    low, high = experiments.SPACES[label].rates
    rates = torch.tensor([dict(trial.optimizer.options)["lr"] for trial in trials]).sort().values
    assert rates[0] >= low * 0.99
    assert rates[-1] <= high * 1.01
    third = (high / low) ** (1 / 3)
    assert rates[0] < low * third
    assert rates[-1] > high / third


@pytest.mark.parametrize("label", experiments.read_choices()["11-baselines-tuning"])
def test_further_trials_differ_from_the_best_of_the_first_in_their_lower_rates_alone(label):
    place, _ = experiments.chosen("11-baselines-tuning", label)
    best = experiments.trials(label)[place]
    rate = dict(best.optimizer.options)["lr"]
    for factor, trial in zip(experiments.LOWER_RATES, experiments.lower_trials(label), strict=True):
        lower = dict(trial.optimizer.options)["lr"]
        assert lower == pytest.approx(factor * rate, rel=0.05)
        assert experiments.with_options(trial, lr=rate) == best


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    groups = [{"params": list(model.named_parameters())}]
    together = baselines.muon(groups, Setup(None, model, None), lr=0.01, auxiliary=0.2)
    matrices, rest = together.param_groups
    assert [tuple(p.shape) for p in matrices["params"]] == [(6, 8), (6, 6)]
    assert len(rest["params"]) == 4
    assert (matrices["lr"], rest["lr"]) == (0.01, pytest.approx(0.002))


def test_muon_takes_the_kernels_of_a_convolution_as_a_matrix_with_a_row_per_output_channel():
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(6, 3))
    kernels, gradient = model[0].weight, torch.randn(6, 2, 3, 3)
    matrix = nn.Parameter(kernels.detach().flatten(1).clone())
    matrix.grad = gradient.flatten(1)
    together = baselines.muon([{"params": list(model.named_parameters())}], Setup(None, model, None), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    kernels.grad = gradient.clone(memory_format=torch.channels_last)
    together.step()
    torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0).step()
    assert kernels.detach().flatten(1).equal(matrix.detach())
    assert kernels.grad.equal(gradient)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_muon_in_float32_steps_as_muon_in_bfloat16_does(shape):
    start, gradient = torch.randn(shape), torch.randn(shape)
    params = [nn.Parameter(start.clone()) for _ in range(2)]
    for cls, p in zip((torch.optim.Muon, baselines.MuonInFloat32), params, strict=True):
        p.grad = gradient.clone()
        cls([p], lr=0.1).step()
    both = [p.detach() - start for p in params]
    assert (both[0] - both[1]).norm() < 0.03 * both[0].norm()
    assert params[1].grad.equal(gradient)


@pytest.mark.parametrize("label", ["Schedule-free SGD", "Schedule-free AdamW"])
def test_schedule_free_methods_are_judged_by_their_averaged_weights(label):
    recipe = experiments.trials(label)[0]
    trainer = Trainer(experiments.STRESS.run(recipe, "digits", 1, 0))
    trainer.train_epoch(next(trainer.epochs())[:5])
    (optimizer,) = trainer.optimizers.values()
    judged, states = [p.detach().clone() for p in trainer.model.parameters()], []
    for mode in (optimizer.eval, optimizer.train):
        mode()
        states.append([torch.equal(p, q) for p, q in zip(trainer.model.parameters(), judged, strict=True)])
    assert all(states[0])
    assert not any(states[1])


def test_pflug_s_test_halves_the_rate_where_gradients_bounce_and_only_there():
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=1.0)
    test = baselines.PflugTest(optimizer, burn_in=4)
    for _ in range(20):
        p.grad = torch.ones(3)
        optimizer.step()
    assert test.factor() == 1
    for step in range(60):
        p.grad = torch.full((3,), (-1.0) ** step)
        optimizer.step()
    assert 0 < test.factor() < 1
    assert optimizer.param_groups[0]["lr"] == test.factor()
