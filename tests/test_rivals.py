"""The methods of others train in the study's loop as their authors mean them to."""

import dataclasses

import pytest
import torch
from torch import nn

from convopt.lab import data, experiments, rivals, training
from convopt.lab.runs import Choice


@pytest.mark.parametrize("label", [label for label in experiments.RIVALS if not label.endswith("+ SNRAnnealing")])
def test_every_rival_learns_the_digits_and_can_be_annealed(label):
    recipe = max(experiments.trials(label), key=lambda trial: dict(trial.optimizer.options)["lr"] < 0.02)
    setting = dataclasses.replace(experiments.STRESS, label_noise=0.0)
    if recipe.annealing is None and not label.startswith("Wiener"):  # those anneal themselves
        recipe = experiments.annealed(recipe)
    record = training.train(setting.run(recipe, "digits", 3, 0))
    assert record.status == "finished"
    assert record.curves["train_loss"][-1] < record.curves["train_loss"][0]
    assert record.final > 0.3


@pytest.mark.parametrize("label", experiments.RIVALS)
def test_trials_are_the_same_every_time_and_spread_over_the_rates(label):
    trials = experiments.trials(label)
    assert trials == experiments.trials(label)
    assert len(set(trials)) == experiments.TRIALS
    low, high = experiments.RIVALS[label].rates
    rates = torch.tensor([dict(trial.optimizer.options)["lr"] for trial in trials]).sort().values
    assert rates[0] >= low * 0.99
    assert rates[-1] <= high * 1.01
    third = (high / low) ** (1 / 3)
    assert rates[0] < low * third
    assert rates[-1] > high / third


@pytest.mark.parametrize("label", experiments.CHOSEN_TRIALS)
def test_further_trials_differ_from_the_best_of_the_first_in_their_lower_rates_alone(label):
    best = experiments.trials(label)[experiments.CHOSEN_TRIALS[label][0]]
    rate = dict(best.optimizer.options)["lr"]
    for factor, trial in zip(experiments.LOWER_RATES, experiments.lower_trials(label), strict=True):
        lower = dict(trial.optimizer.options)["lr"]
        assert lower == pytest.approx(factor * rate, rel=0.05)
        assert experiments.with_options(trial, lr=rate) == best


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    together = rivals.muon(model.named_parameters(), lr=0.01)
    held = {
        name: [p for group in each.param_groups for p in group["params"]] for name, each in together.optimizers.items()
    }
    assert [tuple(p.shape) for p in held["matrices"]] == [(6, 8), (6, 6)]
    assert len(held["rest"]) == 4


def test_pflug_s_test_halves_the_rate_where_gradients_bounce_and_only_there():
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=1.0)
    test = rivals.PflugTest(optimizer, burn_in=4)
    for _ in range(20):
        p.grad = torch.ones(3)
        optimizer.step()
    assert test.factor() == 1
    for step in range(60):
        p.grad = torch.full((3,), (-1.0) ** step)
        optimizer.step()
    assert 0 < test.factor() < 1
    assert optimizer.param_groups[0]["lr"] == test.factor()


def test_averaged_weights_are_what_is_evaluated():
    sgd = experiments.SGD
    averaged = dataclasses.replace(sgd, averaging=Choice.of("EMA", decay=0.999999))
    records = [training.train(experiments.STRESS.run(recipe, "digits", 2, 0)) for recipe in (sgd, averaged)]
    assert records[0].curves["train_loss"] == records[1].curves["train_loss"]
    # An average that hardly forgets its start has hardly learnt.
    assert records[1].final < records[0].final
    with pytest.raises(ValueError, match="averaging"):
        training.train(experiments.STRESS.run(dataclasses.replace(sgd, averaging=Choice.of("max")), "digits", 1, 0))


def test_schedules_follow_their_names():
    run = experiments.STRESS.run(dataclasses.replace(experiments.SGD, schedule="one cycle"), "digits", 1, 0)
    dataset = data.load("digits")
    model = training.make_model(run, dataset)
    optimizer = training.make_optimizer(run, model, dataset.grid)
    schedule = training.make_schedule(run, optimizer, steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < 20 else None
    assert max(rates) == pytest.approx(0.01, rel=0.1)
    assert rates[0] < max(rates) > rates[-1]


def test_on_a_plateau_of_the_validation_accuracy_the_rate_falls():
    frozen = experiments.with_lr(experiments.SGD, 0.0, "plateau")
    run = experiments.STRESS.run(frozen, "digits", 6, 0)
    record = training.train(run)
    assert len(set(record.curves["validation_accuracy"])) == 1
    trained = training.train(
        experiments.STRESS.run(experiments.with_lr(experiments.SGD, 0.01, "plateau"), "digits", 6, 0)
    )
    assert trained.final > record.final
