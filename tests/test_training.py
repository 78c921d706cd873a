"""A run is reproducible, paired by its seed, and recorded as it went."""

import dataclasses
import itertools
import math

import numpy
import pytest
import torch

from convopt.lab import data, experiments, stats, trainer, training
from convopt.lab.predictions import pack, unpack
from convopt.lab.records import CURVES
from convopt.lab.runs import Choice, Run

RUN = experiments.STRESS.run(experiments.SGD, "digits", epochs=2, seed=0)
TIMINGS = ("seconds_training", "seconds_evaluation")


def outcome(record) -> dict:
    return {name: values for name, values in record.curves.items() if name not in TIMINGS}


@pytest.mark.parametrize("arm", experiments.find("06-stress-test").arms, ids=lambda arm: arm[0])
def test_every_optimizer_trains_and_is_recorded(arm):
    recipe, setting = arm.recipe, arm.setting
    record = training.train(setting.run(recipe, "digits", epochs=2, seed=0))
    assert record.status == "finished"
    of_others = {"rho", "annealing_factor", "average_in_place", "fgsm_accuracy", "pgd_accuracy"}
    of_other_tasks = {name for name in CURVES if name.endswith(("_rmse", "_r2", "_nats"))}
    assert set(record.curves) == set(CURVES) - of_others - of_other_tasks
    assert all(len(values) == 2 and all(map(math.isfinite, values)) for values in record.curves.values())
    assert len(record.kernels) == 3
    assert bool(record.kernels[-1]) or "kernel_size" not in dict(recipe.optimizer.options)
    assert record.provenance["torch"].startswith("2.")
    assert record.provenance["data"] == data.load("digits").checksum


WIENER_ARMS = {arm.label: (arm.recipe, arm.setting) for arm in experiments.find("04-wiener").arms}


@pytest.mark.parametrize("label", ["WienerSGD", "WienerAdamW", "WienerSGD without annealing", "Adam + SNRAnnealing"])
def test_what_the_wiener_optimizers_and_annealing_learn_is_recorded(label):
    recipe, setting = WIENER_ARMS[label]
    record = training.train(setting.run(recipe, "digits", epochs=3, seed=0))
    assert ("rho" in record.curves) == ("annealing_factor" in record.curves) == ("without" not in label)
    assert all(0 <= share <= 1 for share in record.curves["wrong_labels_learnt"])
    gains = [snapshot.get("gain of hidden1.weight") for snapshot in record.kernels]
    if "Wiener" in label:
        assert gains[0] is None  # nothing was learnt before training
        assert len(gains[-1]) == 8
    else:
        assert not any(gains)


def test_half_batches_are_compared_where_the_optimizer_asks_for_it():
    recipe = experiments.with_options(experiments.WIENER_SGD, second_estimate="half batches")
    record = training.train(experiments.STRESS.run(recipe, "digits", epochs=1, seed=0))
    assert record.status == "finished"
    assert 0 < record.curves["rho"][0] < 1


def test_permuted_pixels_are_one_order_for_all_images_and_another_for_another_seed():
    natural = data.load("digits")
    runs = [experiments.PERMUTED.run(experiments.SGD, "digits", 1, seed) for seed in (0, 0, 1)]
    first, again, other = (trainer.dataset_of(run) for run in runs)
    assert torch.equal(first.train.x, again.train.x)
    assert not torch.equal(first.train.x, other.train.x)
    for split in ("train", "validation", "test"):
        x = getattr(natural, split).x
        permuted = getattr(first, split).x
        assert torch.equal(permuted.flatten(1).sort(dim=1).values, x.flatten(1).sort(dim=1).values)
    with pytest.raises(ValueError, match="shuffled"):
        trainer.dataset_of(dataclasses.replace(runs[0], pixels="shuffled"))


@pytest.mark.slow
def test_a_replayed_factor_is_that_of_the_other_seed():
    run = dataclasses.replace(RUN, epochs=10, annealing=Choice.of("replayed", shift=4))
    replayed = training.train(run)
    source = training.train(dataclasses.replace(run, seed=4, annealing=Choice.of("SNRAnnealing")))
    assert min(source.curves["annealing_factor"]) < 1
    steps = trainer.factors(dataclasses.replace(run, seed=4, annealing=Choice.of("SNRAnnealing")))[""]
    assert len(steps) == 10 * 150
    assert replayed.curves["annealing_factor"] == steps[149::150]
    with pytest.raises(ValueError, match="halved"):
        training.train(dataclasses.replace(run, annealing=Choice.of("halved")))


def test_layers_are_annealed_each_by_its_own_gradients():
    run = experiments.STRESS.run(
        experiments.annealed(experiments.SGD, Choice.of("SNRAnnealing per layer", warmup=20, ema=0.9)), "digits", 3, 0
    )
    per_layer = trainer.Trainer(run)
    for batches in per_layer.epochs():
        per_layer.train_epoch(batches)
    assert set(per_layer.annealing) == {"hidden1", "hidden2", "output"}
    assert len({of_layer.rho() for of_layer in per_layer.annealing.values()}) == 3
    assert all(of_layer.factor() < 1 for of_layer in per_layer.annealing.values())


def test_the_same_run_gives_the_same_record_whatever_the_threads_and_global_seed():
    first = training.train(RUN)
    torch.manual_seed(123)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    assert outcome(training.train(RUN)) == outcome(first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_runs_of_a_seed_are_paired_across_optimizers():
    dataset = data.load("digits")
    other = dataclasses.replace(RUN, optimizer=experiments.V2_UNIFORM.optimizer)
    third = dataclasses.replace(RUN, seed=1)
    weights = [list(trainer.make_model(run, dataset).parameters()) for run in (RUN, other, third)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0][0], weights[2][0])
    splits = [trainer.training_split(run, dataset) for run in (RUN, other, third)]
    assert torch.equal(splits[0].y, splits[1].y)
    assert not torch.equal(splits[0].y, splits[2].y)
    first_batches = [
        next(trainer.epochs(run, split))[0][0] for run, split in zip((RUN, other, third), splits, strict=True)
    ]
    assert torch.equal(first_batches[0], first_batches[1])
    assert not torch.equal(first_batches[0], first_batches[2])


@pytest.fixture(scope="module")
def noisy_epoch():
    """The record of an epoch with wrong labels, the trainer of another such epoch, and the loss of each of its steps.

    One batch at a time makes no difference.
    """
    run = dataclasses.replace(RUN, epochs=1)
    again = trainer.Trainer(run)
    losses = [again.train_epoch([batch])[0] for batches in again.epochs() for batch in batches]
    return training.train(run), again, losses


@pytest.mark.parametrize("split", ["validation", "test"])
def test_accuracies_are_of_their_split(noisy_epoch, split):
    record, again, _ = noisy_epoch
    accuracy = training.evaluate(again.model, getattr(again.dataset, split), again.dataset)["accuracy"]
    assert record.curves[f"{split}_accuracy"] == [accuracy]


def test_the_noisy_accuracy_is_of_validation_images_with_as_many_wrong_labels_as_in_training(noisy_epoch):
    record, again, _ = noisy_epoch
    validation = again.dataset.validation
    noisy = trainer.noisy_targets(again.run, validation, again.dataset, "wrong validation labels")
    assert (noisy.y != validation.y).float().mean().item() == pytest.approx(again.run.label_noise, abs=0.05)
    accuracy = training.evaluate(again.model, noisy, again.dataset)["accuracy"]
    assert record.curves["noisy_validation_accuracy"] == [accuracy]
    assert record.curves["noisy_validation_accuracy"] != record.curves["validation_accuracy"]


def test_the_share_of_wrong_labels_that_is_learnt_is_of_those_alone(noisy_epoch):
    record, again, _ = noisy_epoch
    wrong = again.split[again.split.y != again.dataset.train.y]
    assert len(wrong) == pytest.approx(again.run.label_noise * len(again.split), rel=0.2)
    accuracy = training.evaluate(again.model, wrong, again.dataset)["accuracy"]
    assert record.curves["wrong_labels_learnt"] == [accuracy]


def test_the_training_loss_is_the_mean_over_batches(noisy_epoch):
    record, _, losses = noisy_epoch
    assert record.curves["train_loss"] == [pytest.approx(sum(losses) / len(losses))]


def test_a_plateau_of_a_regression_is_where_its_error_no_longer_falls():
    slow = experiments.with_options(experiments.SGD, lr=1e-4)
    curves = []
    for schedule in (Choice.of("plateau"), Choice.of("constant")):
        recipe = dataclasses.replace(slow, schedule=schedule)
        curves.append(outcome(training.train(experiments.STRESS_CLEAN.run(recipe, "diabetes", epochs=8, seed=0))))
    errors = curves[0]["validation_rmse"]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert curves[0] == curves[1]


def test_the_last_incomplete_batch_is_dropped_and_every_image_comes_at_most_once():
    run = dataclasses.replace(RUN, batch_size=64)
    split = data.Split(torch.arange(150).float().unsqueeze(1), torch.arange(150))
    for batches in trainer.epochs(run, split):
        assert [len(y) for _, y in batches] == [64, 64]
        assert len(set(torch.cat([y for _, y in batches]).tolist())) == 128


def test_a_diverging_run_ends_with_a_record_that_says_so():
    run = dataclasses.replace(RUN, optimizer=Choice.of("SGD", lr=1e6), epochs=5)
    record = training.train(run)
    assert record.status == "diverged"
    assert len(record.curves.get("train_loss", [])) < 5


def test_a_run_can_be_followed_epoch_by_epoch():
    run = dataclasses.replace(RUN, epochs=3)
    seen = list(training.train_by_epoch(run))
    assert [record.status for record in seen] == ["training", "training", "finished"]
    whole = outcome(training.train(run))
    for epoch, record in enumerate(seen, start=1):
        assert outcome(record) == {name: values[:epoch] for name, values in whole.items()}
        assert len(record.kernels) == epoch + 1
    (diverged,) = training.train_by_epoch(dataclasses.replace(RUN, optimizer=Choice.of("SGD", lr=1e6), epochs=5))
    assert diverged.status == "diverged"


@pytest.mark.parametrize(
    ("label", "numbers"),
    [
        ("Adam", 2),
        ("SGD, cosine", 1),
        ("SGD + SNRAnnealing", 2),
        ("SGD, averaged weights", 2),
        ("Muon + SNRAnnealing", 2),
    ],
)
def test_the_state_that_is_kept_is_counted_per_parameter(label, numbers):
    recipe = experiments.trials(label)[0]
    kept = trainer.state_bytes(experiments.STRESS.run(recipe, "digits", 1, 0))
    assert kept == pytest.approx(4 * numbers, rel=0.07)  # Muon leaves the biases to AdamW, which has one more


def test_the_gradient_norm_is_the_mean_over_batches_of_the_global_norm():
    run = dataclasses.replace(RUN, optimizer=Choice.of("SGD", lr=0.0), epochs=1)
    dataset = data.load("digits")
    model = trainer.make_model(run, dataset)
    norms = []
    for x, y in next(trainer.epochs(run, trainer.training_split(run, dataset))):
        grads = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
    assert training.train(run).curves["gradient_norm"][0] == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_confirmation_images_are_scored_once_at_the_end(mnist_folder):
    run = experiments.STRESS.run(experiments.SGD, "mnist", epochs=1, seed=0)
    record = training.train(dataclasses.replace(run, n_train=400))
    assert 0.2 < record.confirmation_accuracy < 1


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size 2000"):
        training.train(dataclasses.replace(RUN, batch_size=2000))


def test_identity_is_the_configuration_and_survives_json():
    runs = [run for experiment in experiments.EXPERIMENTS.values() for run in experiment.runs()]
    assert len({run.id for run in runs}) == len(set(runs))
    for run in runs:
        assert Run.from_json(run.to_json()) == run
        assert Run.from_json(run.to_json()).id == run.id


def test_identity_does_not_change_between_versions():
    """Published records are found by it."""
    assert RUN.id == "d9cfebb4df5bc6de"
    assert dataclasses.replace(RUN, schedule=experiments.COSINE).id == "88da71cd2846982e"


@pytest.mark.slow
def test_with_wrong_labels_wiener_sgd_ends_above_sgd_on_the_digits():
    finals = {
        recipe: {
            seed: training.train(experiments.STRESS.run(recipe, "digits", epochs=20, seed=seed)).final
            for seed in range(5)
        }
        for recipe in (experiments.WIENER_SGD, experiments.SGD)
    }
    difference = stats.paired_difference(finals[experiments.WIENER_SGD], finals[experiments.SGD]).interval
    assert difference.low > 0
    assert difference.mean > 0.02


def test_what_the_network_says_of_each_input_is_kept(mnist_folder):
    run = experiments.STRESS.run(experiments.SGD, "mnist", epochs=1, seed=0)
    record = training.train(dataclasses.replace(run, n_train=400))
    mnist = data.load("mnist")
    for split, accuracy in (("test", record.final), ("confirmation", record.confirmation_accuracy)):
        classes = unpack(record.predictions[split])
        targets = mnist.test.y[:1000] if split == "test" else mnist.confirmation.y
        assert classes.dtype.name == "uint8"
        assert (torch.from_numpy(classes.copy()) == targets).float().mean().item() == pytest.approx(accuracy)
    assert sum(map(len, record.predictions.values())) < 10_000  # bytes, of 10,000 images


def test_of_a_regression_the_squared_errors_are_kept():
    run = experiments.STRESS_CLEAN.run(experiments.SGD, "diabetes", epochs=1, seed=0)
    record = training.train(run)
    assert unpack(record.predictions["test"]).mean() ** 0.5 == pytest.approx(record.final, rel=1e-3)


def test_damaged_predictions_are_refused():
    assert unpack(pack(numpy.arange(5, dtype=numpy.uint8))).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="predictions must be"):
        unpack("uint8:AAAA")
