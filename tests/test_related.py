"""The methods of others nearest to the study's do what their papers say."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from convopt.lab import factorial as page
from convopt.lab import methods, training
from convopt.lab.experiments import factorial
from convopt.lab.experiments.cells import HORIZONS, TRIALS
from convopt.lab.methods import related
from convopt.lab.methods.method import Batch


@pytest.mark.slow
@pytest.mark.parametrize("name", factorial.RELATED)
def test_every_one_learns_the_digits_at_a_trial_of_its_search(name):
    cell = factorial.RELATED[name]
    _, _, settings, *_ = cell.first_trials()
    arm = cell.arm({**settings, "epochs": 3})
    setting = dataclasses.replace(arm.setting, label_noise=0.0)
    record = training.train(setting.run(arm.recipe, "digits", 3, 0))
    assert record.status == "finished"
    assert record.curves["train_loss"][-1] < record.curves["train_loss"][0]
    assert record.final > 0.6


@pytest.mark.parametrize("name", factorial.RELATED)
def test_every_one_is_compared_with_arms_that_were_tuned_alike(name):
    cells = {**factorial.CELLS, **factorial.RELATED}
    controls = [pair.control for pair in page.questions_of_related() if pair.treatment == name]
    assert controls
    for label in (name, *controls):
        trials = list(cells[label].first_trials())
        assert len(trials) == TRIALS
        assert len({trial["lr"] for trial in trials}) == TRIALS
        assert len({trial["epochs"] for trial in trials}) == len(HORIZONS)


def test_sam_at_equal_gradients_takes_half_the_epochs_of_the_others():
    of_sam, of_sgd = factorial.RELATED["SAM, as many gradients"], factorial.CELLS["SGD, raw gradient, cosine"]
    both = [sorted(trial["epochs"] for trial in cell.first_trials()) for cell in (of_sam, of_sgd)]
    assert both[0] == [max(1, round(epochs / 2)) for epochs in both[1]]


class TestSGDF:
    def estimates(self, gradients: torch.Tensor) -> torch.Tensor:
        """The direction of each step on the given gradients, a row each."""
        p = nn.Parameter(torch.zeros(gradients.shape[1]))
        optimizer = related.SGDF([p], lr=1.0)
        found = []
        for gradient in gradients:
            before = p.detach().clone()
            p.grad = gradient
            optimizer.step()
            found.append(before - p.detach())
        return torch.stack(found)

    def test_a_gradient_without_noise_is_taken_as_it_is(self):
        gradients = torch.linspace(-2, 2, 7).expand(50, -1)
        torch.testing.assert_close(self.estimates(gradients), gradients)

    def test_the_estimate_is_nearer_to_the_mean_than_a_noisy_gradient_is(self):
        generator = torch.Generator().manual_seed(0)
        gradients = 1 + torch.randn(400, 500, generator=generator)
        estimates = self.estimates(gradients)[100:]
        assert (estimates - 1).square().mean() < 0.7 * (gradients[100:] - 1).square().mean()


class TestGradientAgreementFiltering:
    def step(self, x: torch.Tensor, threshold: float) -> tuple[torch.Tensor, float]:
        """Where one step on a linear model leads whose gradient is the inputs' mean, and the loss before."""
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        method = methods.OPTIMIZERS["gradient agreement filtering"]
        optimizers = {"": method.make([{"params": list(model.parameters())}], None, lr=0.5, threshold=threshold)}
        batch = Batch(model, x, torch.zeros(len(x)), lambda outputs, _: outputs.mean())
        loss = method.prepare(optimizers, batch)
        if math.isfinite(loss):
            method.step(optimizers, batch, loss)
        return model.weight.detach().squeeze(0), loss

    def test_a_step_along_the_mean_is_taken_where_halves_agree(self):
        x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        weight, loss = self.step(x, threshold=0.97)
        torch.testing.assert_close(weight, -0.5 * x.mean(0))
        assert loss == 0

    def test_none_is_taken_where_their_distance_exceeds_the_threshold(self):
        x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        assert self.step(x, threshold=0.97)[0].equal(torch.zeros(2))
        assert self.step(x, threshold=1.0)[0].count_nonzero() == 2

    def test_a_loss_that_is_not_finite_is_told(self):
        _, loss = self.step(torch.tensor([[math.inf, 0.0], [1.0, 0.0]]), threshold=1.0)
        assert not math.isfinite(loss)


class TestCautious:
    def moves(self, velocity: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Where a step goes whose direction, but for the mask, is that of the velocity."""
        p = nn.Parameter(torch.zeros_like(velocity))
        optimizer = torch.optim.SGD([p], lr=1.0, momentum=1.0, dampening=1.0)
        related.Cautious(optimizer)
        p.grad = velocity.clone()
        optimizer.step()
        before = p.detach().clone()
        p.grad = gradient.clone()
        optimizer.step()
        return p.detach() - before

    def test_a_step_with_the_gradient_is_taken_as_it_is(self):
        velocity = torch.tensor([1.0, -2.0, 3.0, -4.0])
        torch.testing.assert_close(self.moves(velocity, velocity / 2), -velocity)

    def test_what_points_against_the_gradient_stays_and_the_rest_goes_further(self):
        velocity, gradient = torch.tensor([1.0, -2.0, 3.0, -4.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
        torch.testing.assert_close(self.moves(velocity, gradient), torch.tensor([-2.0, 0.0, 0.0, 8.0]))


def test_hypergradients_raise_the_rate_where_steps_go_on_downwards_and_lower_it_where_they_bounce():
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=1.0)
    hypergradient = related.Hypergradient(optimizer, beta=0.1)

    def after(*gradients: float) -> float:
        for gradient in gradients:
            p.grad = torch.full((3,), gradient)
            optimizer.step()
        return optimizer.param_groups[0]["lr"]

    assert after(1.0) == 1.0
    assert after(1.0, 2.0) == pytest.approx(1.1**2)
    assert after(-1.0, 1.0) == pytest.approx(1.1**2 * 0.9**2)
    assert hypergradient.factor() == pytest.approx(optimizer.param_groups[0]["lr"])
