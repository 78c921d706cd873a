"""Probes see what is there: simulated truths, the training set's own signal, the structure over pixels."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from convopt.lab import data, experiments, networks, probes
from convopt.lab.runs import Choice
from convopt.lab.trainer import dataset_of
from convopt.theory import snr, spectrum


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def gradients(digits):
    """Each training image's gradients in a small network, by parameter."""
    torch.manual_seed(0)
    model = networks.SimpleNet(64, 16, 10)
    return snr.per_sample_gradients(model, F.cross_entropy, digits.train.x, digits.train.y)


def run(epochs=1, batch_size=8):
    setting = experiments.Setting(256, batch_size, 0.15, Choice.of("SimpleNet", hidden_size=16), epochs)
    return setting.run(experiments.SGD, "digits", None, 0)


class TestSimulations:
    def test_a_batchs_snr_is_the_one_asked_for(self):
        batches, truth = probes.simulate_batches(2000, 8, 20, batch_snr=0.5, seed=0)
        assert batches.shape == (2000, 8, 20)
        assert truth.signal.item() == pytest.approx(1)
        assert 8 * truth.signal / truth.noise == pytest.approx(0.5)
        assert batches.var((0, 1)).sum().item() == pytest.approx(truth.noise.item(), rel=0.03)

    def test_an_snr_that_is_not_positive_is_refused(self):
        with pytest.raises(ValueError, match=r"batch_snr.*0"):
            probes.simulate_batches(1, 4, 2, batch_snr=0, seed=0)

    def test_the_table_shows_the_ema_biased_by_its_formulas_and_the_others_unbiased(self):
        beta, batch_snr = 0.9, 0.2
        table = probes.estimator_table([batch_snr], batch=8, beta=beta).set_index("estimator")
        ema = table.loc["EMA, beta 0.9"]
        assert ema["signal: mean"] == pytest.approx(1 + snr.ema_floors(beta).signal / batch_snr, rel=0.05)
        assert ema["ratio"] == pytest.approx((1 + beta) / (2 * beta**2) * batch_snr + snr.ema_floors(beta).snr, rel=0.1)
        for _, row in table.drop("EMA, beta 0.9").iterrows():
            for quantity in ("signal", "noise"):
                error = row[f"{quantity}: mean"] - row[f"{quantity}: truth"]
                assert abs(error) < 4 * row[f"{quantity}: s.e."]

    def test_only_the_ratio_of_averages_is_near_the_truth(self):
        ways = probes.ways_to_average(0.1, 8)
        truth = ways.pop("truth")
        assert ways.pop("ratio of averages") == pytest.approx(truth, rel=0.15)
        assert min(ways.values()) > 2 * truth

    def test_floors_and_lag_are_those_of_the_formulas(self):
        for row in probes.ema_on_noise_and_drift([0.5, 0.9]).itertuples():
            assert (row.signal, row.snr, row.snr_from_previous) == pytest.approx(snr.ema_floors(row.beta), rel=0.05)
            assert row.lag == pytest.approx(snr.ema_lag(row.beta), rel=0.02)

    def test_of_a_vanishing_signal_the_ema_reports_its_floor_and_the_halves_less(self):
        end = probes.tracking(0.8, steps=600)[-50:].mean()
        assert end["EMA"] == pytest.approx(snr.ema_floors(0.8).snr, rel=0.1)
        assert abs(end["two halves"]) < end["EMA"] / 3


class TestPixels:
    def test_the_identity_changes_nothing_and_the_inverse_undoes_a_permutation(self, digits):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        same = data.permute_pixels(digits, torch.arange(64))
        back = data.permute_pixels(data.permute_pixels(digits, order), order.argsort())
        for other in (same, back):
            for split in ("train", "validation", "test"):
                assert torch.equal(getattr(other, split).x, getattr(digits, split).x)
        assert not torch.equal(data.permute_pixels(digits, order).train.x, digits.train.x)

    @pytest.mark.parametrize("order", [torch.arange(63), torch.zeros(64).long(), torch.arange(64) + 1])
    def test_an_order_without_each_pixel_once_is_refused(self, digits, order):
        with pytest.raises(ValueError, match="pixels 0 to 63"):
            data.permute_pixels(digits, order)

    def test_all_rings_together_hold_the_batches_mean_squared_norm(self, gradients):
        weight = gradients["hidden1.weight"]
        spectra = probes.pixel_spectra(weight, (8, 8), batch=8, rings=6)
        assert [power.shape for power in spectra] == [(6,), (6,)]
        members = torch.bincount(spectrum.radial_bins((8, 8), 6).flatten(), minlength=6)
        norms = weight.unflatten(0, (-1, 8)).mean(1).square().sum((1, 2))
        torch.testing.assert_close((members * spectra.total).sum(), norms.mean())
        halves = [half.mean(0) for half in weight.chunk(2)]
        torch.testing.assert_close((members * spectra.signal).sum(), (halves[0] * halves[1]).sum())

    @pytest.mark.parametrize(("n", "batch"), [(9, 3), (10, 4)])
    def test_samples_that_do_not_fill_halves_or_batches_are_refused(self, n, batch):
        with pytest.raises(ValueError, match=f"multiple of batch {batch}, got {n}"):
            probes.pixel_spectra(torch.zeros(n, 2, 64), (8, 8), batch, 4)

    def test_a_smooth_signal_in_white_noise_has_its_gain_in_the_low_rings(self):
        generator = torch.Generator().manual_seed(0)
        ramp = torch.linspace(-1, 1, 8).expand(8, 8).flatten()
        samples = ramp + 2 * torch.randn(512, 4, 64, generator=generator)
        natural = probes.pixel_spectra(samples, (8, 8), 8, 4)
        gain = spectrum.wiener_gain(*natural)
        assert gain[0] > 0.5
        assert gain[1:].max() < gain[0] / 5
        permuted = probes.pixel_spectra(samples[..., torch.randperm(64, generator=generator)], (8, 8), 8, 4)
        assert spectrum.wiener_gain(*permuted)[1:].min() > gain[1:].max()


class TestTraining:
    def test_a_draw_takes_images_of_the_split_independently(self, digits):
        drawn = probes.draw(digits.train.first(5), 100, seed=0)
        assert len(drawn) == 100
        assert len(drawn.x.unique(dim=0)) == 5

    def test_the_mean_over_probes_is_the_training_sets_own_signal_and_noise(self, gradients):
        truth_signal = sum(gradient.mean(0).square().sum() for gradient in gradients.values())
        truth_noise = sum(gradient.var(0, correction=0).sum() for gradient in gradients.values())
        generator = torch.Generator().manual_seed(0)
        probed = []
        for _ in range(200):
            index = torch.randint(1200, (64,), generator=generator)
            probed.append(probes.layer_powers({name: gradient[index] for name, gradient in gradients.items()})["all"])
        for name, truth in (("signal", truth_signal), ("noise", truth_noise)):
            values = torch.stack([getattr(powers, name) for powers in probed])
            assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(200)
            assert values.std() / math.sqrt(200) < 0.1 * truth

    def test_layers_add_up_to_all(self, gradients):
        layers = probes.layer_powers(gradients)
        assert list(layers) == ["hidden1", "all", "hidden2", "output"]
        total = layers.pop("all")
        for name in snr.Powers._fields:
            torch.testing.assert_close(sum(getattr(power, name) for power in layers.values()), getattr(total, name))

    def test_an_ema_probe_reads_the_mean_since_the_last_reading(self):
        weight = torch.nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        probe = probes.EMAProbe(optimizer, [0.5])
        readings = []
        for grads in ([[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0]]):
            for grad in grads:
                weight.grad = torch.tensor(grad)
                optimizer.step()
            readings.append(probe.read()[0.5])
        # averages along the first axis: 2, 1, 0.5; deviations 0, 1, 0.5
        assert [tuple(map(float, reading)) for reading in readings] == [(2.5, 0.5), (0.25, 0.25)]

    def test_a_course_has_each_estimate_at_each_epoch_and_comes_out_the_same_again(self, digits):
        first, again = (probes.course(run(epochs=2), digits, 64, betas=(0.9,), rings=5) for _ in range(2))
        assert first.powers.equals(again.powers)
        counts = first.powers.groupby("estimate").size()
        assert dict(counts) == {"EMA, beta 0.9": 2, "all": 3, "hidden1": 3, "hidden2": 3, "output": 3}
        assert len(first.spectra) == 3 * 5
        assert (first.powers.noise > 0).all()

    def test_probing_leaves_training_as_it_is(self, digits):
        few, many = (probes.course(run(epochs=2), digits, images, betas=(0.9,)).powers for images in (16, 64))
        assert few[few.estimate == "EMA, beta 0.9"].equals(many[many.estimate == "EMA, beta 0.9"])

    def test_courses_tell_arms_and_seeds_apart(self):
        arms = [(8, "natural"), (8, "permuted")]
        powers, spectra = probes.courses("digits", arms, range(2), 1, 0.15, 16)
        assert set(powers.groupby(["batch_size", "pixels", "seed"]).size()) == {8}
        assert powers.signal.nunique() == len(powers)
        gain = probes.with_gain(spectra, ["pixels", "ring"])
        assert len(gain) == 2 * 8
        assert gain.gain.between(0, 1.5).all()

    def test_an_unknown_order_of_the_pixels_is_refused(self):
        with pytest.raises(ValueError, match="shuffled"):
            probes.courses("digits", [(8, "shuffled")], [0], 1, 0.15, 16)

    def test_powers_are_averaged_before_they_are_divided(self):
        powers = pd.DataFrame({"epoch": [0, 0], "signal": [3.0, -1.0], "noise": [1.0, 3.0]})
        assert probes.with_snr(powers, ["epoch"]).snr.tolist() == [0.5]


def test_wrong_labels_shrink_the_signal_of_a_fresh_network_and_leave_the_noise():
    clean, noisy = (probes.fresh_gradients("digits", noise, 256) for noise in (0.0, 0.45))
    assert noisy.powers.signal < 0.5 * clean.powers.signal
    assert noisy.powers.noise == pytest.approx(clean.powers.noise.item(), rel=0.2)
    assert clean.samples.shape == (256, 8, 8)
    similarity = torch.nn.functional.cosine_similarity(clean.samples.mean(0).flatten(), clean.signal.flatten(), dim=0)
    assert similarity > 0.8


def test_a_gain_begins_at_one_and_learns_to_pass_low_frequencies():
    run = replace(experiments.STRESS, batch_size=64).run(experiments.WIENER_ALONE, "digits", 4, seed=0)
    course = probes.gain_course(run, (1, 64))
    assert list(course) == [1, 64]
    assert torch.equal(course[1], torch.ones(8))
    assert course[64][-1] < 0.6 < course[64][:4].mean()


def test_a_training_set_of_few_batches_hides_its_signal_until_that_is_corrected():
    table = probes.sampling_table([5, 20], pairs=8000).set_index("batches")
    assert (table["without replacement"] < 0).all()
    assert table["with replacement"].tolist() == pytest.approx([1, 1], abs=0.15)
    assert table["corrected"].tolist() == pytest.approx([1, 1], abs=0.15)


def test_products_of_gradients_measure_the_curvature_of_a_quadratic():
    table = probes.curvature_table([1.0, 10.0], lr=0.1)
    assert table["estimate"].tolist() == pytest.approx([1, 10], rel=0.15)
    assert table["best rate / rate used"].tolist() == pytest.approx([0.6, 0.5], abs=0.15)  # at rest it is one half


def test_products_of_gradients_measure_the_curvature_of_a_network():
    setting = replace(experiments.STRESS, batch_size=64)
    run = setting.run(experiments.with_options(experiments.SGD, lr=0.1, momentum=0.0), "digits", 8, 0)
    late = probes.curvatures(run, dataset_of(run)).loc[4:].mean()
    assert late["from products"] == pytest.approx(late["from second derivatives"], rel=0.3)
