"""Tables and verdicts say what the records hold."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convopt.lab import experiments, report, stats, training, workspace
from convopt.lab.records import Record

STRESS = experiments.find("06-stress-test")


def record(recipe, seed, accuracies, norms=(1.0, 3.0), status="finished", dataset="mnist", epochs=2) -> Record:
    curves = {
        "test_accuracy": list(accuracies),
        "validation_accuracy": list(accuracies),
        "gradient_norm": list(norms),
        "seconds_training": [1.0, 2.0],
    }
    run = experiments.STRESS.run(recipe, dataset, epochs, seed)
    return Record(run, status, curves, [], 0.5 if dataset == "mnist" else None, {})


def test_a_row_holds_means_in_percent_and_student_intervals():
    records = [record(experiments.SGD, seed, (best, best - 0.1)) for seed, best in enumerate((0.8, 0.9, 0.85))]
    (row,) = report.rows(STRESS, records)
    assert row["optimizer"] == "SGD"
    assert row["n"] == 3
    assert row["condition"] == {
        "dataset": "mnist",
        "model": "SimpleNet",
        "batch_size": 8,
        "label_noise": 0.15,
        "n_train": 5000,
        "epochs": 2,
        "pixels": "natural",
    }
    half = 4.302653 * 5 / math.sqrt(3)  # t quantile for two degrees of freedom, standard deviation 5
    assert row["best"] == pytest.approx({"mean": 85, "low": 85 - half, "high": 85 + half}, rel=1e-6)
    assert row["final"]["mean"] == pytest.approx(75)
    assert row["stability"] == pytest.approx({"mean": 1, "low": 1, "high": 1})
    assert row["confirmation"]["mean"] == pytest.approx(50)
    assert row["seconds_per_epoch"]["mean"] == pytest.approx(1.5)


def test_one_seed_has_no_interval_and_diverged_runs_are_counted_apart():
    records = [
        record(experiments.ADAM, 0, (0.8, 0.7), dataset="digits"),
        record(experiments.ADAM, 1, (), (), "diverged", dataset="digits"),
    ]
    (row,) = report.rows(STRESS, records)
    assert (row["n"], row["diverged"]) == (1, 1)
    assert (row["best"]["low"], row["best"]["high"]) == (None, None)
    assert row["confirmation"] is None
    assert "+1 diverged" in report.table([row])["runs"].iloc[0]


def test_rows_follow_the_experiment_and_keep_data_sets_and_epochs_apart():
    arms = [recipe for _, recipe, _ in reversed(STRESS.arms)]
    records = [record(recipe, 0, (0.8, 0.7)) for recipe in arms]
    records += [
        record(experiments.SGD, 0, (0.8, 0.7), dataset="digits"),
        record(experiments.SGD, 0, (0.8, 0.7), epochs=9),
    ]
    stranger = dataclasses.replace(records[0].run, batch_size=16)
    records.append(dataclasses.replace(records[0], run=stranger))
    rows = report.rows(STRESS, records)
    assert [row["optimizer"] for row in rows if row["condition"]["dataset"] == "digits"] == ["SGD"]
    two_epochs = [row for row in rows if row["condition"]["dataset"] == "mnist" and row["condition"]["epochs"] == 2]
    assert [row["optimizer"] for row in two_epochs] == [label for label, _, _ in STRESS.arms]
    assert len(rows) == len(STRESS.arms) + 2


def test_every_claim_is_about_arms_of_its_experiment():
    for experiment in experiments.EXPERIMENTS.values():
        labels = {label for label, _, _ in experiment.arms}
        assert all({claim.treatment, claim.control} <= labels for claim in experiment.claims)
        for label, recipe, setting in experiment.arms:
            assert experiment.label(setting.run(recipe, "digits", 3, 7)) == label
            assert recipe.optimizer.name in training.OPTIMIZERS


def test_a_claim_is_judged_by_the_paired_interval():
    records = [record(experiments.SGD, seed, (0.8 + seed / 100, 0.7)) for seed in range(4)]
    records += [record(experiments.V1, seed, (0.83 + seed / 100 + 0.001 * (seed % 2), 0.7)) for seed in range(4)]
    claim = dataclasses.replace(STRESS, claims=STRESS.claims[:1])
    assert report.claims(claim, records).verdict.tolist() == ["confirmed"]


def test_differences_are_paired_within_each_condition():
    records = [record(experiments.SGD, seed, (0.8, 0.7 + seed / 100)) for seed in range(3)]
    records += [record(experiments.V1, seed, (0.8, 0.75 + seed / 100)) for seed in range(3)]
    records += [record(recipe, 0, (0.8, 0.6), epochs=9) for recipe in (experiments.SGD, experiments.V1)]
    pairs = [("ConvolutionalSGD", "SGD"), ("Adam", "SGD")]
    told = report.differences(STRESS, records, pairs, ("final", "stability"))
    assert told["difference"].tolist() == ["ConvolutionalSGD minus SGD"] * 2
    assert dict(zip(told["epochs"], told["final acc. (%)"], strict=True)) == {2: "+5.0 [+5.0, +5.0]", 9: "+0.0"}
    assert "dataset" not in told  # the same everywhere


def test_a_measure_that_a_data_set_lacks_is_left_empty():
    records = [record(recipe, 0, (0.8, 0.7), dataset="digits") for recipe in (experiments.SGD, experiments.V1)]
    told = report.differences(STRESS, records, [("ConvolutionalSGD", "SGD")], ("final", "confirmation"))
    assert told["confirmation acc. (%)"].tolist() == [""]


def test_early_stopping_takes_the_epoch_with_the_best_validation_accuracy():
    stopped = record(experiments.SGD, 0, (0.5, 0.6, 0.7))
    stopped.curves["validation_accuracy"] = [0.4, 0.8, 0.8]
    assert stopped.early_stopped == 0.6
    assert report.measured(stopped, "validation") == 80


def test_the_rates_that_are_called_tuned_are_those_that_tuning_chose():
    tuning = experiments.find("04-wiener-tuning")
    store = workspace.open_store()
    chosen = report.tuning(tuning, [store.load(run) for run in tuning.runs()])["chosen"].to_dict()
    for name in ("04-wiener", "04-wiener-clean", "04-wiener-convnet"):
        for label, recipe, setting in experiments.find(name).arms:
            if "tuned" in label or name == "04-wiener-clean":
                optimizer = recipe.optimizer.name + (", cosine" if recipe.schedule == "cosine" else "")
                condition = f"{setting.model.name}, batch {setting.batch_size}, noise {setting.label_noise:.0%}"
                assert dict(recipe.optimizer.options)["lr"] == chosen[condition, optimizer], label


def test_tuning_chooses_by_validation_and_counts_a_diverged_run_as_guessing():
    experiment = experiments.find("04-wiener-tuning")
    records = []
    for label, recipe, setting in experiment.arms:
        lr = dict(recipe.optimizer.options)["lr"]
        run = setting.run(recipe, "mnist", None, 0)
        diverged = label == "WienerSGD, lr 0.3"
        accuracy = 0.99 if lr == 0.3 else 0.9 if lr in (0.001, 0.03) else 0.8
        curves = {} if diverged else {"validation_accuracy": [accuracy], "test_accuracy": [1 - accuracy]}
        records.append(Record(run, "diverged" if diverged else "finished", curves, [], None, {}))
    chosen = report.tuning(experiment, records)["chosen"].to_dict()
    clean = "SimpleNet, batch 64, noise 0%"
    assert chosen[clean, "WienerSGD"] == 0.03
    assert chosen[clean, "SGD"] == 0.3
    assert chosen[clean, "Adam"] == 0.001
    assert len(chosen) == 7


@pytest.mark.parametrize(
    ("interval", "claimed", "expected"),
    [
        ((2, 1, 3), 5, "confirmed"),
        ((-2, -3, -1), -5, "confirmed"),
        ((2, 1, 3), -5, "refuted"),
        ((2, -1, 5), 5, "undecided"),
        ((2, None, None), 5, "undecided"),
    ],
)
def test_verdicts(interval, claimed, expected):
    assert stats.verdict(stats.Interval(*interval), claimed) == expected


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(-50, 50))
def test_a_paired_difference_ignores_what_a_seed_shifts_in_both(values, shift):
    control = dict(enumerate(values))
    treatment = {seed: value + shift for seed, value in control.items()}
    difference = stats.paired_difference(treatment, control)
    assert difference.mean == pytest.approx(shift, abs=1e-9)
    assert difference.high - difference.low == pytest.approx(0, abs=1e-6)


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="values"):
        stats.paired_difference({0: 1.0}, {1: 1.0})
