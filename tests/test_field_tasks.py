"""The tasks whose parameters are fields, and the regret of a method against the best others."""

import math
from collections.abc import Sequence

import pytest
import torch
from conftest import ROOT

from convopt.lab import workspace
from convopt.lab.fields import regret, transfer, waveform
from convopt.lab.fields.methods import METHODS, SmoothedAdam, total_variation_gradient
from convopt.lab.fields.reconstruction import Outcome, Outcomes, reconstruct, reconstruct_again
from convopt.lab.fields.tasks import TASKS, emission_volume, interpolated, photograph, scattered_samples, tomography
from convopt.lab.figures.fields import psnr


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


@pytest.mark.slow
@pytest.mark.parametrize("make", [scattered_samples, tomography, emission_volume])
def test_without_a_width_it_is_about_as_good_as_the_best_fixed_one_and_far_better_than_adam(make):
    """Small: two seeds, three widths, short runs. The published table has ten seeds and all widths."""
    widths = ("width 3, power 1", "width 30, power 1", "width 3, power 2")
    side = 8 if make is emission_volume else 32
    tasks = [make(0.3, seed, side) for seed in (0, 1)]
    names = ("Adam, cosine", "FieldAdam", *widths)
    found = reconstruct(tasks, names, (0, 1), steps=200, rates=(3e-3, 1e-2, 3e-2))
    psnr = {name: regret.mean_score(outcomes) for name, outcomes in found.items()}
    assert psnr["FieldAdam"] > psnr[regret.best_of(found, widths)] - 0.8
    assert psnr["FieldAdam"] > psnr["Adam, cosine"] + 1


def test_a_run_that_diverges_is_not_chosen():
    found = reconstruct([scattered_samples(0.1, 0, 16)], ["FieldAdam"], (0,), steps=25, rates=(1e20, 1e-2))
    assert found["FieldAdam"][0].rate == 1e-2


def test_what_was_chosen_is_reconstructed_again():
    task = scattered_samples(0.3, 0, 16)
    names = ["FieldAdam", "total variation 1e-05"]
    chosen = {name: of_seeds[0] for name, of_seeds in reconstruct([task], names, (0,), rates=(1e-2,)).items()}
    again = reconstruct_again(task, chosen, 0)
    for name, outcome in chosen.items():
        assert psnr(again[name].field, task.truth) == pytest.approx(outcome.score, abs=0.01)
    assert again["FieldAdam"].learnt.gain.shape == (1, len(again["FieldAdam"].learnt.eigenvalue))


def test_a_fixed_width_of_zero_is_adam_with_one_second_moment():
    x = torch.nn.Parameter(torch.zeros(1, 4, 4))
    x.grad = torch.full((1, 4, 4), 7.0)
    SmoothedAdam([x], 0.1, (4, 4), width=0, power=2).step()
    torch.testing.assert_close(x.detach(), torch.full((1, 4, 4), -0.1))


@pytest.mark.parametrize("shape", [(2, 9), (2, 5, 4), (1, 3, 4, 5)])
def test_the_gradient_of_the_total_variation_is_its_derivative(shape):
    fields = torch.randn(shape, dtype=torch.float64)
    direction, step = torch.randn(shape, dtype=torch.float64), 1e-6

    def total_variation(x: torch.Tensor) -> torch.Tensor:
        differences = [x.diff(dim=axis, append=x.narrow(axis, -1, 1)) for axis in range(1, x.ndim)]
        return (sum(each**2 for each in differences) + 1e-6).sqrt().sum()

    ahead, behind = (total_variation(fields + sign * step * direction) for sign in (1, -1))
    slope = (total_variation_gradient(fields) * direction).sum()
    assert slope.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-5)


@pytest.fixture(scope="module")
def published() -> dict[str, Outcomes]:
    return regret.load(ROOT / workspace.FIELDS)[1]


def test_the_published_outcomes_are_of_all_tasks_methods_and_seeds(published):
    assert list(published) == [f"{name}, {noise}" for name, (_, levels) in TASKS.items() for noise in levels]
    for outcomes in published.values():
        assert list(outcomes) == list(METHODS)
        assert {len(of_seeds) for of_seeds in outcomes.values()} == {len(regret.SEEDS)}


@pytest.mark.parametrize(
    ("file", "study"), [(workspace.WAVEFORM, waveform.STUDY), (workspace.TRANSFER, transfer.STUDY)]
)
def test_the_published_outcomes_of_a_study_are_of_all_its_methods_and_seeds(file, study):
    _, found = regret.load(ROOT / file)
    assert list(found) == [f"{name}, {noise}" for name, (_, levels) in study.tasks.items() for noise in levels]
    for outcomes in found.values():
        assert outcomes.keys() == study.methods.keys()
        assert {len(of_seeds) for of_seeds in outcomes.values()} == {len(study.seeds)}


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["scattered samples, 0.3", "emission volume, 0.1"])
def test_a_published_outcome_comes_out_again(published, condition):
    task, noise = condition.split(", ")
    problem = TASKS[task][0](float(noise), 3)
    chosen = {name: published[condition][name][3] for name in ("FieldAdam", "Adam, cosine", "width 30, power 1")}
    for name, again in reconstruct_again(problem, chosen, 3).items():
        assert psnr(again.field, problem.truth) == pytest.approx(chosen[name].score, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_waveforms_without_noise_are_explained_by_the_true_velocity_alone(seed):
    pytest.importorskip("deepwave")
    task = waveform.inversion(0.0, seed)
    fields = torch.stack([task.truth, torch.zeros(waveform.SHAPE)]).flatten(1)
    errors = task.errors(fields)
    assert errors[0] < 1e-6
    assert errors[1] == pytest.approx(1, abs=0.5)
    assert task.scores(fields)[1] == pytest.approx(0, abs=1e-5)


def test_the_gradient_of_a_waveform_inversion_is_its_derivative():
    pytest.importorskip("deepwave")
    task = waveform.inversion(0.1, 0)
    which, field = torch.tensor([0, 7]), torch.zeros(1, task.truth.numel())
    direction = task.truth.flatten()[None]
    ahead, behind = (task.loss(field + sign * 1e-2 * direction, which).item() for sign in (1, -1))
    slope = (task.gradients(field, which) * direction).sum().item()
    assert slope == pytest.approx((ahead - behind) / 2e-2, rel=0.02)


class Brightness(torch.nn.Module):
    """Two classes, dark and bright; it keeps the images that it has seen."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight, self.seen = weight, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach())
        logit = self.weight * (x * torch.linspace(0.5, 1.5, 16)).mean((1, 2, 3))
        return torch.stack([-logit, logit], 1)


def attack(weights: Sequence[float] = (1.0, 2.0, 3.0, 4.0)) -> transfer.Attack:
    """On a dark image and a bright one; of the networks two are attacked, one chooses, one is another."""
    images = torch.tensor([-0.2, 0.2]).view(2, 1, 1, 1) + 0.3 * torch.randn(2, 1, 16, 16).tanh()
    networks = [Brightness(weight) for weight in weights]
    return transfer.Attack(
        images, torch.tensor([0, 1]), networks[:2], networks[2:3], networks[3:], epsilon=0.4, ends=(-0.7, 0.7)
    )


def test_an_attack_changes_each_pixel_by_epsilon_at_most_and_keeps_to_black_and_white():
    task = attack()
    fields = 100 * torch.randn(3, 2 * 256)
    task.scores(fields)
    (seen,) = task.others[0].seen
    changed = seen.view(3, *task.images.shape)
    assert (changed - task.images).abs().max() <= 0.4 + 1e-6
    assert changed.abs().max() <= 0.7
    assert changed.abs().max() == pytest.approx(0.7)


def test_the_gradient_of_an_attack_is_its_derivative():
    task, which = attack(), torch.tensor([1])
    fields, direction = 0.1 * torch.randn(2, 512), torch.randn(2, 512)
    ahead, behind = (task.loss(fields + sign * 1e-2 * direction, which) for sign in (1, -1))
    slopes = (task.gradients(fields, which) * direction).sum(1)
    torch.testing.assert_close(slopes, (ahead - behind) / 2e-2, rtol=0.02, atol=1e-6)
    assert [bool(network.seen) for network in task.attacked] == [False, True]


def test_an_attack_on_some_networks_misleads_others():
    tasks = [attack(), attack()]
    nothing = torch.zeros(1, 512)
    names = ("Adam", "FieldAdam")
    found = reconstruct(tasks, names, (0, 1), steps=25, rates=(0.3,))
    for seed, task in enumerate(tasks):
        assert task.scores(nothing) == 0
        for name in names:
            assert found[name][seed].score == 100
            assert found[name][seed].error < task.errors(nothing)


def test_a_seed_that_was_not_run_is_refused(published):
    with pytest.raises(ValueError, match="seed must be an integer from 0 to 9, got 10"):
        regret.of_seed(published, 10)


def outcomes(*score_and_error: tuple[float, float]) -> list[Outcome]:
    return [Outcome(score, 0.1, 25, error) for score, error in score_and_error]


def test_the_truth_chooses_one_width_for_all_seeds_and_held_out_measurements_one_for_each():
    found = {"a": outcomes((10, 1), (20, 3)), "b": outcomes((11, 2), (21, 2)), "ours": outcomes((10.5, 9), (22, 9))}
    assert regret.best_of(found, ["a", "b"]) == "b"
    chosen = regret.chosen_by_held_out(found, ["a", "b"])
    assert [each.score for each in chosen] == [10, 21]
    assert regret.gain(found["ours"], chosen).mean == 0.75


def test_what_diverged_is_never_the_best():
    found = {"diverged": outcomes((math.nan, math.nan)), "finished": outcomes((20, 3))}
    assert regret.best_of(found, ["diverged", "finished"]) == "finished"
    assert regret.chosen_by_held_out(found, ["diverged", "finished"]) == found["finished"]


def test_where_outcomes_come_from_names_methods_and_conditions_that_are_not_all():
    day = {"date": "2026-01-01", "processor": "P", "torch": "2", "commit": "c"}
    first = {"low": ["a", "b", "c", "d"], "high": ["a", "b", "c", "d"]}
    told = [regret.told([{**day, "measured": each} for each in (first, more)]) for more in ({"low": ["e"]}, first)]
    where = "2026-01-01, P, 2, c"
    assert told[0] == f"all methods but e: {where}\ne (low): {where}"
    assert told[1] == f"all methods: {where}\nall methods: {where}"


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    calls = []

    def measured(tasks, names, seeds, *_):
        calls.append(tasks)
        return {name: [Outcome(2.0, 0.1, 25, 0.5)] for name in names}

    monkeypatch.setattr(regret, "reconstruct", measured)
    study = regret.Study({"task": (lambda noise, seed: (noise, seed), (1, 2))}, METHODS, [0], 25, [0.1])
    for _ in range(2):
        regret.measure(tmp_path / "fields.json", study)
    assert len(calls) == 2
    made, found = regret.load(tmp_path / "fields.json")
    assert found["task, 1"]["FieldAdam"][0].error == 0.5
    assert [each["torch"] for each in made] == [torch.__version__]
    assert list(made[0]["measured"]) == ["task, 1", "task, 2"]


def test_a_method_that_has_changed_is_measured_again_alone(tmp_path, monkeypatch):
    found = []

    def measured(tasks, names, *_):
        found.append(names)
        return {name: [Outcome(float(len(found)), 0.1, 25, 0.5)] for name in names}

    monkeypatch.setattr(regret, "reconstruct", measured)
    methods = {name: METHODS[name] for name in ("Adam", "FieldAdam")}
    study = regret.Study({"task": (lambda noise, seed: (noise, seed), (1,))}, methods, [0], 25, [0.1])
    regret.measure(tmp_path / "fields.json", study)
    regret.measure(tmp_path / "fields.json", study, ["FieldAdam"])
    assert found == [["Adam", "FieldAdam"], ["FieldAdam"]]
    made, outcomes = regret.load(tmp_path / "fields.json")
    assert {name: of_seeds[0].score for name, of_seeds in outcomes["task, 1"].items()} == {"Adam": 1, "FieldAdam": 2}
    assert [each["measured"] for each in made] == [{"task, 1": ["Adam", "FieldAdam"]}, {"task, 1": ["FieldAdam"]}]
    assert regret.told(made).startswith("Adam, FieldAdam: ")
    with pytest.raises(ValueError, match="a method must be one of Adam, FieldAdam, got 'Adma'"):
        regret.measure(tmp_path / "fields.json", study, ["Adma"])
