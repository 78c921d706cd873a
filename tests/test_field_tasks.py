"""The tasks whose parameters are fields, and the regret of a method against the best fixed width."""

import json

import pytest
import torch

from convopt.lab.fields import regret
from convopt.lab.fields.methods import FIXED, METHODS, SmoothedAdam
from convopt.lab.fields.tasks import TASKS, emission_volume, interpolated, photograph, scattered_samples, tomography


@pytest.mark.parametrize("name", TASKS)
def test_measurements_without_noise_are_of_the_truth(name):
    make, levels = TASKS[name]
    task = make(levels[0] if name == "texture" else 0.0, 3)
    predicted = task.train.as_matrix(task.truth.numel())[:500] @ task.truth.flatten()
    if name != "texture":
        torch.testing.assert_close(predicted, task.train.values[:500], atol=1e-5, rtol=1e-4)
    assert task.truth.min() >= 0
    assert task.truth.max() <= 1
    assert len(task.held_out.values) >= 512


def test_a_linear_field_is_interpolated_exactly():
    field = torch.arange(5.0)[:, None] + 10 * torch.arange(4.0)
    positions = torch.tensor([[[0.5, 1.25]], [[3.0, 2.0]], [[9.0, 9.0]]])
    places, weights = interpolated(positions, field.shape)
    values = (field.flatten()[places] * weights).sum(1)
    torch.testing.assert_close(values, torch.tensor([13.0, 23.0, 0.0]))


def test_seeds_have_photographs_of_their_own():
    parts = [photograph(seed, 16) for seed in range(20)]
    assert all(not torch.equal(a, b) for i, a in enumerate(parts) for b in parts[:i])


@pytest.mark.parametrize("make", [scattered_samples, tomography, emission_volume])
def test_without_a_width_it_is_about_as_good_as_the_best_fixed_one_and_far_better_than_adam(make):
    """Small: two seeds, three widths, short runs. The published table has ten seeds and all widths."""
    widths = ("width 3, power 1", "width 30, power 1", "width 3, power 2")
    methods = {name: METHODS[name] for name in ("Adam, cosine", "FieldAdam", *widths)}
    side = 8 if make is emission_volume else 32
    tasks = [make(0.3, seed, side) for seed in (0, 1)]
    found = regret.regret(regret.reconstruct(tasks, methods, (0, 1), steps=200, rates=(3e-3, 1e-2, 3e-2)))
    assert found["regret"] < 0.8
    assert found["psnr"]["FieldAdam"] > found["psnr"]["Adam, cosine"] + 1
    assert found["best"] in widths


def test_a_run_that_diverges_is_not_chosen():
    tasks = [scattered_samples(0.1, 0, 16)]
    outcomes = regret.reconstruct(tasks, {"FieldAdam": METHODS["FieldAdam"]}, (0,), steps=25, rates=(1e20, 1e-2))
    assert outcomes["FieldAdam"][0].rate == 1e-2


def test_a_fixed_width_of_zero_is_adam_with_one_second_moment():
    x = torch.nn.Parameter(torch.zeros(1, 4, 4))
    x.grad = torch.full((1, 4, 4), 7.0)
    SmoothedAdam([x], 0.1, (4, 4), width=0, power=2).step()
    torch.testing.assert_close(x.detach(), torch.full((1, 4, 4), -0.1))


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    calls = []

    def measured(tasks, methods, seeds):
        calls.append(tasks)
        name = next(iter(FIXED))
        return {name: [regret.Outcome(1.0, 0.1, 25)], "FieldAdam": [regret.Outcome(2.0, 0.1, 25)]}

    monkeypatch.setattr(regret, "reconstruct", measured)
    monkeypatch.setattr(regret, "TASKS", {"task": (lambda noise, seed: (noise, seed), (1, 2))})
    for _ in range(2):
        regret.main(tmp_path / "fields.json")
    assert len(calls) == 2
    assert json.loads((tmp_path / "fields.json").read_text())["task, 1"]["regret"] == -1.0
