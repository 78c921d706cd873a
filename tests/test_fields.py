"""FieldAdam: the gain it fits, the steps it makes, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn

from convopt import FieldAdam
from convopt.theory import spectrum
from convopt.theory.fields import (
    PowerLaw,
    fit_power_law,
    laplacian_eigenvalues,
    prior_law,
    reconstruction_gain,
)
from convopt.theory.smoothing import smoothing_matrix
from convopt.theory.spectrum import dct, dct_matrix, idct


def field(seed: int, exponent: float, shape=(32, 32)) -> torch.Tensor:
    """A random field whose power falls as the Laplacian's eigenvalue to minus ``exponent``."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return idct(noise * laplacian_eigenvalues(shape) ** (-exponent / 2), range(len(shape)))


def reconstruct(optimizer, x: nn.Parameter, truth: torch.Tensor, noise: float, steps: int) -> list[float]:
    """The error after each step, of a field that is seen through noisy samples at random places, drawn anew."""
    generator, errors = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        places = torch.randint(truth.numel(), (64,), generator=generator)
        values = truth.flatten()[places] + noise * torch.randn(64, generator=generator)
        optimizer.zero_grad()
        (x.flatten()[places] - values).square().mean().backward()
        optimizer.step()
        errors.append((x.detach() - truth).square().mean().item())
    return errors


class TestTheory:
    @pytest.mark.parametrize("shape", [(7,), (5, 4), (3, 4, 5)])
    def test_eigenvalues_are_the_laplacians(self, shape):
        taps = torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64)
        along = [smoothing_matrix(taps, (length,), "symmetric") for length in shape]
        expected = sum(
            (dct_matrix(len(matrix)) @ matrix @ dct_matrix(len(matrix)).T)
            .diagonal()
            .view(*[-1 if i == axis else 1 for i in range(len(shape))])
            for axis, matrix in enumerate(along)
        )
        expected = expected.clamp_min(expected.flatten()[1:].min())
        torch.testing.assert_close(laplacian_eigenvalues(shape), expected)

    def test_with_the_gain_one_time_stops_all_frequencies_at_wieners_share(self):
        eigenvalues = laplacian_eigenvalues((16, 16)).flatten()
        law = PowerLaw(torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64))
        ratio, gain = law.at(eigenvalues), reconstruction_gain(law, eigenvalues)
        time = torch.log1p(ratio).mean()
        torch.testing.assert_close(1 - torch.exp(-gain * time), ratio / (1 + ratio))

    def test_with_an_exponent_of_one_the_gain_is_all_widths_at_once(self):
        eigenvalues = laplacian_eigenvalues((8, 8)).flatten()
        law = PowerLaw(torch.tensor([0.7], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        widths = torch.arange(-0.7, 25, 0.002, dtype=torch.float64).exp()
        bank = (0.002 / (1 + widths[:, None] * eigenvalues)).sum(0, keepdim=True)
        gain = reconstruction_gain(law, eigenvalues)
        torch.testing.assert_close(gain, bank / bank.mean(), rtol=1e-3, atol=0)

    @pytest.mark.parametrize(("log_scale", "exponent"), [(-3.0, 1.25), (0.0, 1.5), (3.0, 1.75)])
    def test_a_law_is_found_in_noise(self, log_scale, exponent):
        eigenvalues = torch.logspace(-2.5, 0.9, 40)
        law = PowerLaw(torch.tensor([log_scale] * 20), torch.tensor([exponent] * 20))
        deviation = torch.full((20, 40), 0.3)
        ratio = law.at(eigenvalues) + deviation * torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
        fitted = fit_power_law(ratio, deviation, eigenvalues, axes=2)
        assert (fitted.log_scale - log_scale).abs().max() < 1
        assert (fitted.exponent - exponent).abs().max() < 0.35

    @pytest.mark.parametrize("shape", [(4096,), (2048, 2048), (256, 256, 256)])
    @pytest.mark.parametrize("signal", [1e-2, 1.0, 1e6])
    def test_a_law_is_finite_on_long_grids_in_single_precision(self, shape, signal):
        lowest = len(shape) * (math.pi / max(shape)) ** 2
        eigenvalues = torch.logspace(math.log10(lowest), math.log10(4 * len(shape)), max(shape))
        ratio = signal * (1 / eigenvalues)[None]
        fitted = fit_power_law(ratio, 0.1 * ratio, eigenvalues, len(shape))
        assert fitted.exponent.item() == pytest.approx(1, abs=0.1)
        assert -7 <= fitted.log_scale.item() <= 14

    def test_where_no_ring_says_anything_the_law_is_the_prior(self):
        unknown = torch.full((2, 10), torch.inf)
        fitted = fit_power_law(torch.zeros(2, 10), unknown, torch.linspace(0.1, 4, 10), axes=2)
        prior = prior_law(2, axes=2)
        assert (fitted.log_scale - prior.log_scale).abs().max() < 0.3
        torch.testing.assert_close(fitted.exponent, prior.exponent.float(), atol=0.01, rtol=0)


class TestReconstruction:
    def test_noisy_samples_of_a_smooth_field_are_reconstructed_far_better_than_by_adam(self):
        truth = field(0, 1.5).float()
        truth /= truth.std()
        best = {}
        makes = {"FieldAdam": lambda p, lr: FieldAdam(p, lr, grid=(32, 32)), "Adam": torch.optim.Adam}
        for name, make in makes.items():
            errors = []
            for lr in (0.01, 0.03, 0.1):
                x = nn.Parameter(torch.zeros(32, 32))
                errors += reconstruct(make([x], lr=lr), x, truth, noise=1.0, steps=150)
            best[name] = min(errors)
        assert best["FieldAdam"] < 0.5 * best["Adam"]

    def test_the_gain_is_flatter_where_the_data_say_more(self):
        shares = []
        for noise in (0.01, 3.0):
            truth = field(0, 1.5).float()
            x = nn.Parameter(torch.zeros(32, 32))
            optimizer = FieldAdam([x], lr=0.02, grid=(32, 32))
            reconstruct(optimizer, x, truth / truth.std(), noise, steps=200)
            gain = optimizer.learnt()["0"].gain[0]
            shares.append((gain[-1] / gain[0]).item())
        assert shares[0] > 2 * shares[1]

    def test_each_field_has_statistics_of_its_own(self):
        """Two fields in one parameter are as two parameters, whatever their scales."""
        truths = field(0, 1.5).float(), 100 * field(1, 0.5).float()
        together = nn.Parameter(torch.zeros(2, 32, 32))
        apart = [nn.Parameter(torch.zeros(32, 32)) for _ in truths]
        one, two = FieldAdam([together], grid=(32, 32)), FieldAdam(apart, grid=(32, 32))
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            noise = [truth.std() * torch.randn(32, 32, generator=generator) for truth in truths]
            for x, truth, n in zip(apart, truths, noise, strict=True):
                x.grad = x.detach() - truth + n
            together.grad = torch.stack([x.grad for x in apart])
            one.step()
            two.step()
        torch.testing.assert_close(together.detach(), torch.stack([x.detach() for x in apart]))

    @pytest.mark.parametrize("fault", [math.nan, 1e6])
    def test_a_field_whose_gradients_are_at_fault_keeps_no_other_from_learning(self, fault):
        both, alone = nn.Parameter(torch.zeros(2, 16, 16)), nn.Parameter(torch.zeros(16, 16))
        one, two = FieldAdam([both], grid=(16, 16)), FieldAdam([alone], grid=(16, 16))
        generator = torch.Generator().manual_seed(0)
        for step in range(40):
            alone.grad = alone.detach() - 1 + torch.randn(16, 16, generator=generator)
            both.grad = torch.stack([torch.full((16, 16), fault) if step % 2 else torch.ones(16, 16), alone.grad])
            one.step()
            two.step()
        torch.testing.assert_close(both[1].detach(), alone.detach())
        torch.testing.assert_close(one.learnt()["0"].gain[1], two.learnt()["0"].gain[0])

    @pytest.mark.parametrize("grid", [(24,), (6, 8), (4, 3, 5)])
    def test_grids_of_one_two_and_three_axes(self, grid):
        x = nn.Parameter(torch.zeros(2, *grid))
        optimizer = FieldAdam([x], lr=0.05, grid=grid)
        for _ in range(60):
            x.grad = x.detach() - 1
            optimizer.step()
        assert (x - 1).abs().max() < 0.2

    def test_an_fft_along_a_long_axis_takes_the_steps_of_the_matrix(self, monkeypatch):
        ends = []
        for long in (256, 257):
            monkeypatch.setattr(spectrum, "LONG", long)
            x = nn.Parameter(torch.zeros(2, 256, 5))
            optimizer, generator = FieldAdam([x], grid=(256, 5)), torch.Generator().manual_seed(0)
            for _ in range(30):
                x.grad = x.detach() - 1 + torch.randn(2, 256, 5, generator=generator)
                optimizer.step()
            ends.append(x.detach().clone())
        torch.testing.assert_close(*ends)

    def test_the_first_step_is_that_of_adam_uniform_with_the_gain_of_the_prior(self):
        x = nn.Parameter(torch.zeros(8, 8))
        optimizer = FieldAdam([x], lr=0.1, grid=(8, 8))
        x.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        gain = reconstruction_gain(prior_law(1, axes=2), laplacian_eigenvalues((8, 8)).flatten()).view(8, 8)
        direction = idct(gain * dct(x.grad.double(), (0, 1)), (0, 1))
        expected = -0.1 * direction / (x.grad * direction).mean().sqrt()
        torch.testing.assert_close(x.detach().double(), expected, rtol=1e-4, atol=1e-6)

    def test_steps_do_not_depend_on_the_scale_of_the_loss(self):
        ends = []
        for scale in (1.0, 1e4):
            x = nn.Parameter(torch.zeros(16, 16))
            optimizer, generator = FieldAdam([x], grid=(16, 16), eps=0), torch.Generator().manual_seed(0)
            for _ in range(30):
                x.grad = scale * (x.detach() - 1 + torch.randn(16, 16, generator=generator))
                optimizer.step()
            ends.append(x.detach().clone())
        torch.testing.assert_close(*ends)


class TestOptions:
    def test_without_a_grid_it_is_adamw(self):
        start = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        pairs = [(ours, FieldAdam([ours], lr=0.1, weight_decay=0.1))]
        pairs.append((theirs, torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)))
        for seed in range(5):
            for p, optimizer in pairs:
                p.grad = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
                optimizer.step()
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"grid": (5, 5)}, "channels come before the grid"),
            ({"grid": (4, 0)}, "each length of grid must be an integer of at least 1"),
            ({"grid": (1, 1, 4, 8)}, r"grid must be \(T,\), \(H, W\) or \(D, H, W\)"),
            ({"grid": 32}, r"grid must be \(T,\)"),
            ({"batches": 0}, "batches must be an integer of at least 1"),
            ({"every": 0}, "every must be an integer of at least 1"),
        ],
    )
    def test_options_that_cannot_be_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            FieldAdam([nn.Parameter(torch.zeros(3, 4, 8))], **options)

    def test_weight_decay_is_decoupled(self):
        outcomes = []
        for decay in (0.1, 0.0):
            x = nn.Parameter(torch.ones(8, 8))
            optimizer = FieldAdam([x], lr=0.5, weight_decay=decay, grid=(8, 8))
            x.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
            optimizer.step()
            outcomes.append(x.detach())
        torch.testing.assert_close(outcomes[0], outcomes[1] - 0.5 * 0.1)

    def test_a_zero_gradient_moves_no_field(self):
        x = nn.Parameter(torch.ones(8, 8))
        optimizer = FieldAdam([x], grid=(8, 8))
        x.grad = torch.zeros(8, 8)
        optimizer.step()
        assert torch.equal(x, torch.ones(8, 8))

    def test_a_grid_that_changes_takes_effect_at_once(self):
        gradient, moved = torch.randn(4, 48, generator=torch.Generator().manual_seed(0)), []
        for grids in ([(8, 6), (2, 24)], [(2, 24)]):
            x = nn.Parameter(torch.zeros(4, 48))
            optimizer = FieldAdam([x], grid=grids[0])
            for grid in grids:
                optimizer.param_groups[0]["grid"] = grid
                before, x.grad = x.detach().clone(), gradient.clone()
                optimizer.step()
            moved.append(x.detach() - before)
        torch.testing.assert_close(*moved)

    def test_a_step_at_rest_teaches_nothing(self):
        x = nn.Parameter(torch.zeros(8, 8))
        optimizer = FieldAdam([x], grid=(8, 8))
        for seed in range(12):
            x.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
        before = copy.deepcopy(optimizer.state[x])
        optimizer.param_groups[0]["lr"], x.grad = 0.0, torch.zeros(8, 8)
        optimizer.step()
        for name in ("rings", "law", "power", "previous"):
            assert torch.equal(before[name], optimizer.state[x][name])

    @pytest.mark.parametrize("outlier", [1e6, math.inf, math.nan])
    def test_a_gradient_that_is_not_finite_or_far_larger_than_usual_teaches_nothing(self, outlier):
        def learnt(with_outlier: bool) -> tuple[torch.Tensor, torch.Tensor]:
            generator = torch.Generator().manual_seed(0)
            x = nn.Parameter(torch.zeros(16, 16))
            optimizer = FieldAdam([x], lr=0.0001, grid=(16, 16))
            for step in range(40):
                gradient = 0.3 + torch.randn(16, 16, generator=generator)
                if step == 20 and with_outlier:
                    x.grad = torch.full((16, 16), outlier)
                    optimizer.step()
                x.grad = gradient
                optimizer.step()
            return tuple(optimizer.learnt()["0"].law)

        for one, other in zip(learnt(True), learnt(False), strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("fields", [1, 2])
    @pytest.mark.parametrize("tiny", [0.0, 1e-4, 1e-8])
    def test_gradients_that_are_zero_or_tiny_at_first_establish_no_law(self, fields, tiny):
        """The other field's gradients are as usual."""
        generator, signal = torch.Generator().manual_seed(0), field(0, 0.5, (16, 16)).float()
        late, usual = (nn.Parameter(torch.zeros(fields, 16, 16)) for _ in range(2))
        optimizers = [FieldAdam([p], lr=1e-6, grid=(16, 16)) for p in (late, usual)]
        for step in range(140):
            gradient = 3 * signal / signal.std() + torch.randn(fields, 16, 16, generator=generator)
            late.grad, usual.grad = gradient.clone(), gradient
            late.grad[0] *= 1.0 if step >= 9 else tiny
            for optimizer in optimizers:
                optimizer.step()
        one, other = (optimizer.learnt()["0"].law.log_scale[0] for optimizer in optimizers)
        assert (one - other).abs() < 1.5

    @pytest.mark.parametrize(("saved", "loaded"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
    def test_a_checkpoint_in_another_precision_goes_on(self, saved, loaded):
        states, ends = None, []
        for dtype in (saved, loaded):
            x = nn.Parameter(torch.zeros(8, 8, dtype=dtype))
            optimizer, generator = FieldAdam([x], grid=(8, 8)), torch.Generator().manual_seed(0)
            if states is not None:
                optimizer.load_state_dict(states)
            for _ in range(25):
                x.grad = (1 + torch.randn(8, 8, generator=generator)).to(dtype)
                optimizer.step()
            states = optimizer.state_dict()
            ends.append(x)
        assert all(x.isfinite().all() for x in ends)
        assert ends[1].abs().max() > 0

    def test_a_parameter_without_elements_is_left_alone(self):
        empty, x = nn.Parameter(torch.zeros(0, 8, 8)), nn.Parameter(torch.zeros(1, 8, 8))
        optimizer = FieldAdam([empty, x], grid=(8, 8))
        empty.grad, x.grad = torch.zeros(0, 8, 8), torch.ones(1, 8, 8)
        optimizer.step()
        assert (x != 0).all()

    def test_steps_keep_their_size_after_a_first_gradient_that_was_far_smaller(self):
        """The next ones are judged to be outliers for some steps; their power counts all the same."""
        moved = []
        for first in (1.0, 1e-4):
            x = nn.Parameter(torch.zeros(16, 16))
            optimizer = FieldAdam([x], lr=0.01, grid=(16, 16))
            for scale in (first, *[1.0] * 6):
                before, x.grad = x.detach().clone(), scale * torch.ones(16, 16)
                optimizer.step()
            moved.append((x.detach() - before).norm().item())
        assert moved[1] == pytest.approx(moved[0], rel=0.15)

    def test_a_transform_of_the_truth_is_no_matter_of_layout(self):
        """A transposed gradient is the same gradient."""
        x, y = (nn.Parameter(torch.zeros(6, 8)) for _ in range(2))
        one, two = FieldAdam([x], grid=(6, 8)), FieldAdam([y], grid=(6, 8))
        for seed in range(12):
            gradient = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
            x.grad, y.grad = gradient, gradient.T.contiguous().T
            one.step()
            two.step()
        torch.testing.assert_close(x, y)
        assert dct(x.detach(), (0, 1)).isfinite().all()
