"""Tables and verdicts say what the records hold."""

import base64
import csv
import dataclasses
import io
import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convopt.lab import beyond, durations, experiments, figures, methods, report, stats
from convopt.lab.experiments import beyond_mnist
from convopt.lab.figures.looks import METHODS
from convopt.lab.records import Record
from convopt.lab.study import Results

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


def test_a_row_holds_means_in_percent_and_their_intervals():
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
        "gradient_noise": 0.0,
        "adversary": "none",
    }
    assert row["best"]["mean"] == pytest.approx(85)
    assert 80 <= row["best"]["low"] < 85 < row["best"]["high"] <= 90
    assert row["final"]["mean"] == pytest.approx(75)
    assert row["stability"] == pytest.approx({"mean": 1, "low": 1, "high": 1})
    assert row["confirmation"]["mean"] == pytest.approx(50)
    assert row["seconds_per_epoch"]["mean"] == pytest.approx(1)  # the fastest of 1 and 2


def test_one_seed_has_no_interval_and_diverged_runs_are_counted_apart():
    records = [
        record(experiments.ADAM, 0, (0.8, 0.7), dataset="digits"),
        record(experiments.ADAM, 1, (), (), "diverged", dataset="digits"),
    ]
    (row,) = report.rows(STRESS, records)
    assert (row["n"], row["diverged"]) == (1, 1)
    assert (row["best"]["low"], row["best"]["high"]) == (None, None)
    assert row["confirmation"] is None
    assert "+1 diverged" in report.table(STRESS, [row]).text()["runs"].iloc[0]


def test_rows_follow_the_experiment_and_keep_data_sets_and_epochs_apart():
    arms = [arm.recipe for arm in reversed(STRESS.arms)]
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
    assert [row["optimizer"] for row in two_epochs] == [arm.label for arm in STRESS.arms]
    assert len(rows) == len(STRESS.arms) + 2


def test_every_claim_is_about_arms_of_its_experiment():
    for experiment in experiments.EXPERIMENTS.values():
        labels = {arm.label for arm in experiment.arms}
        assert all({claim.treatment, claim.control} <= labels for claim in experiment.claims)
        for label, recipe, setting, *_ in experiment.arms:
            assert experiment.label(setting.run(recipe, "digits", 3, 7)) == label
            assert recipe.optimizer.name in methods.OPTIMIZERS


def test_a_claim_is_judged_by_the_paired_interval():
    records = [record(experiments.SGD, seed, (0.8 + seed / 100, 0.7)) for seed in range(7)]
    records += [record(experiments.V1, seed, (0.83 + seed / 100 + 0.001 * (seed % 2), 0.7)) for seed in range(7)]
    claim = dataclasses.replace(STRESS, claims=STRESS.claims[:1])
    assert report.claims(claim, records).frame.verdict.tolist() == ["confirmed"]
    # The fewer seeds, the fewer ways to exchange the two: with four, the p-value cannot fall below 2 / 2 ** 4.
    few = [r for r in records if r.run.seed < 4]
    assert report.claims(claim, few).frame.verdict.tolist() == ["undecided"]


@pytest.mark.parametrize("of", ["claims", "differences"])
def test_p_values_are_corrected_for_the_rows_of_the_table(of):
    records = [record(experiments.SGD, seed, (0.8 + seed / 100, 0.7)) for seed in range(7)]
    records += [record(experiments.V1, seed, (0.83 + seed / 100, 0.7 + seed / 1000)) for seed in range(7)]

    def p_values(rows: int) -> list[float]:
        if of == "claims":
            repeated = dataclasses.replace(STRESS, claims=STRESS.claims[:1] * rows)
            return report.claims(repeated, records).frame["p, Holm"].tolist()
        pairs = [("ConvolutionalSGD", "SGD")] * rows
        return report.differences(STRESS, records, pairs, ("final",)).frame["p, Holm (final)"].tolist()

    (alone,) = p_values(1)
    assert 0 < alone < 1 / 3
    assert p_values(3) == pytest.approx([3 * alone] * 3)


def test_differences_are_paired_within_each_condition():
    records = [record(experiments.SGD, seed, (0.8, 0.7 + seed / 100)) for seed in range(3)]
    records += [record(experiments.V1, seed, (0.8, 0.75 + seed / 100)) for seed in range(3)]
    records += [record(recipe, 0, (0.8, 0.6), epochs=9) for recipe in (experiments.SGD, experiments.V1)]
    pairs = [("ConvolutionalSGD", "SGD"), ("Adam", "SGD")]
    told = report.differences(STRESS, records, pairs, ("final", "stability")).text()
    assert told["difference"].tolist() == ["ConvolutionalSGD minus SGD"] * 2
    assert dict(zip(told["epochs"], told["final acc. (%)"], strict=True)) == {"2": "+5.0 [+5.0, +5.0]", "9": "+0.0"}
    assert "data set" not in told  # the same everywhere


def test_a_measure_that_a_data_set_lacks_is_left_empty():
    records = [record(recipe, 0, (0.8, 0.7), dataset="digits") for recipe in (experiments.SGD, experiments.V1)]
    told = report.differences(STRESS, records, [("ConvolutionalSGD", "SGD")], ("final", "confirmation")).text()
    assert told["confirmation acc. (%)"].tolist() == [""]


def test_a_difference_of_two_arms_in_words_is_that_of_the_table():
    records = [
        record(recipe, seed, (accuracy + gain, 0.7))
        for seed, accuracy in enumerate((0.8, 0.82, 0.81))
        for recipe, gain in ((experiments.SGD, 0.0), (experiments.V1, 0.01 + 0.001 * seed))
    ]
    results = Results(STRESS, records)
    table = results.differences([("ConvolutionalSGD", "SGD")], ("best",), tested="best")
    assert results.difference("ConvolutionalSGD", "SGD", "best") == table.text()["best acc. (%)"][0]
    assert results.difference("ConvolutionalSGD", "SGD", "stability") == "+0.00 [+0.00, +0.00]"
    assert results.difference("ConvolutionalSGD", "SGD", "pgd") == "not measured"


def test_results_of_some_arms_are_of_an_experiment_of_these_arms():
    records = [record(recipe, 0, (0.8,)) for recipe in (experiments.SGD, experiments.ADAM, experiments.V1)]
    some = Results(STRESS, records).only("Adam", "SGD")
    assert list(some.arms) == ["SGD", "Adam"]
    assert some.table("best").frame["optimizer"].tolist() == ["SGD", "Adam"]


def test_costs_tell_of_a_step_of_what_is_kept_and_of_the_way_to_an_accuracy():
    records = [record(experiments.SGD, seed, accuracies) for seed, accuracies in enumerate(((0.7, 0.9), (0.95, 0.9)))]
    records += [record(experiments.ADAM, 0, (0.7, 0.8))]
    state_bytes = {"SGD": 4, "Adam": 8}
    table = durations.costs(STRESS, records, 90, lambda run: state_bytes[run.optimizer.name])
    sgd, adam = table.frame[:2].to_dict("records")
    assert sgd["ms per training step"].mean == pytest.approx(1000 / 625)  # a second for 5000 images, eight at a time
    assert (sgd["state (bytes per parameter)"], adam["state (bytes per parameter)"]) == ("4", "8")
    assert sgd["seconds to 90 %"].mean == pytest.approx((2 + 1) / 2)
    assert adam["seconds to 90 %"] is None
    assert (sgd["runs that reach it"], adam["runs that reach it"]) == ("2 of 2", "0 of 1")


def test_early_stopping_takes_the_epoch_with_the_best_validation_accuracy():
    stopped = record(experiments.SGD, 0, (0.5, 0.6, 0.7))
    stopped.curves["validation_accuracy"] = [0.4, 0.8, 0.8]
    assert stopped.early_stopped == 0.6
    assert report.measured(stopped, "validation") == 80


def test_the_csv_of_a_table_has_the_numbers_that_reading_rounds():
    records = [record(experiments.SGD, seed, (best, best - 0.1)) for seed, best in enumerate((0.8, 0.9, 0.85))]
    table = report.table(STRESS, report.rows(STRESS, records), ("best",))
    (row,) = csv.DictReader(io.StringIO(table.csv()))
    assert float(row["best acc. (%)"]) == pytest.approx(85)
    assert 80 <= float(row["best acc. (%), low"]) < 85 < float(row["best acc. (%), high"]) <= 90
    html = table._repr_html_()
    (content,) = re.findall(r'download="06-stress-test.csv" href="data:text/csv;base64,([^"]+)"', html)
    assert base64.b64decode(content).decode() == table.csv()
    assert "85.0\u00a0[" in html


@pytest.mark.parametrize(
    ("interval", "p", "claimed", "expected"),
    [
        ((2, 1, 3), 0.01, 5, "confirmed"),
        ((-2, -3, -1), 0.01, -5, "confirmed"),
        ((2, 1, 3), 0.01, -5, "refuted"),
        ((2, -1, 5), 0.01, 5, "undecided"),
        ((2, 1, 3), 0.06, 5, "undecided"),
        ((2, None, None), 0.01, 5, "undecided"),
    ],
)
def test_verdicts(interval, p, claimed, expected):
    assert stats.verdict(stats.Interval(*interval), p, claimed) == expected


def test_a_p_value_of_almost_nothing_is_not_told_as_nothing():
    table = report.Table(pd.DataFrame({"p, Holm": [0.0, 0.00049, 0.0005, 0.25]}), "judged")
    assert table.text()["p, Holm"].tolist() == ["<0.001", "<0.001", "0.001", "0.250"]
    assert "&lt;0.001" in table._repr_html_()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_s_p_values_are_no_less_and_reject_what_bonferroni_does(p_values):
    corrected = stats.holm(p_values)
    for p, after in zip(p_values, corrected, strict=True):
        assert p <= after <= min(1, p * len(p_values)) or after == pytest.approx(p)
    assert min(corrected) == pytest.approx(min(1, min(p_values) * len(p_values)))


def test_holm_s_example():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_permutation_test_counts_all_exchanges():
    control = dict.fromkeys(range(10), 0.0)
    assert stats.paired_difference({seed: 1.0 + seed / 100 for seed in control}, control).p == pytest.approx(2 / 2**10)
    assert stats.paired_difference({seed: (-1.0) ** seed for seed in control}, control).p == pytest.approx(1)
    assert stats.paired_difference({0: 1.0}, {0: 0.0}).p == 1
    assert stats.paired_difference(control, control).p == 1


@given(seed=st.integers(0, 999))
@settings(max_examples=20)
def test_an_interval_lies_within_the_values_and_moves_with_them(seed):
    values = np.random.default_rng(seed).normal(size=10)
    interval = stats.mean_interval(values)
    assert values.min() <= interval.low < interval.high <= values.max()
    assert stats.mean_interval(values) == interval
    shifted = stats.mean_interval(2 * values + 3)
    assert shifted.low == pytest.approx(2 * interval.low + 3, abs=0.02)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(-50, 50))
def test_a_paired_difference_ignores_what_a_seed_shifts_in_both(values, shift):
    control = dict(enumerate(values))
    treatment = {seed: value + shift for seed, value in control.items()}
    difference = stats.paired_difference(treatment, control).interval
    assert difference.mean == pytest.approx(shift, abs=1e-9)
    assert difference.high - difference.low == pytest.approx(0, abs=1e-6)


def test_a_gradient_norm_that_overflowed_makes_stability_infinite_and_the_table_is_told():
    records = [record(experiments.SGD, seed, (0.8,), norms) for seed, norms in enumerate([(1.0, 3.0), (np.inf, 1.0)])]
    (row,) = report.rows(STRESS, records)
    assert row["stability"] == {"mean": np.inf, "low": None, "high": None}
    assert report.table(STRESS, [row]).text()["stability"].tolist() == ["inf"]


def test_a_figure_of_curves_bears_numbers_that_overflowed():
    axes = plt.subplots()[1]
    figures.style.band(axes, [np.array([np.inf, 1.0]), np.array([2.0, 1.5])], METHODS["SGD"], "SGD")
    plt.close(axes.figure)


def test_equal_runs_have_one_identity():
    run = experiments.STRESS.run(experiments.SGD, "digits", 1, 0)
    clean, again = (dataclasses.replace(run, label_noise=none) for none in (0, 0.0))
    assert clean == again
    assert clean.id == again.id


@pytest.mark.parametrize("scale", [1e-13, 1.0, 1e13])
def test_an_interval_does_not_depend_on_the_unit(scale):
    found = stats.mean_interval(scale * np.array([1.0, 5, -3, 4, -2, 6]))
    assert found.low < 0 < found.high


NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?")


def shown(heading: str, *values: object, **options: object) -> list[str]:
    """How a table shows the values under this heading."""
    return report.Table(pd.DataFrame({heading: values}), "shown", **options).text()[heading].tolist()


def test_a_rounded_zero_has_no_minus():
    rounded = stats.Interval(-0.04, -0.04, 0.04)
    assert shown("points (%)", rounded, signed=True) == ["+0.0 [+0.0, +0.0]"]
    assert shown("points (%)", rounded) == ["0.0 [0.0, 0.0]"]
    assert shown("points (%)", -0.04, -0.06) == ["0.0", "-0.1"]
    assert shown("loss", -0.0) == ["0"]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-0.2, -0.4, -0.04), "-0.2 [-0.4, -0.04]"),
        ((0.25, 0.02, 0.49), "+0.2 [+0.02, +0.5]"),
        ((0.003, 0.001, 0.06), "+0.003 [+0.001, +0.1]"),
        ((-0.2, -0.4, 0.04), "-0.2 [-0.4, +0.0]"),  # zero lies in it, as it seems
        ((0.0, 0.0, 0.0), "+0.0 [+0.0, +0.0]"),
        ((1e-14, 1e-15, 1e-13), "+0.0 [+0.0, +0.0]"),
    ],
)
def test_a_difference_whose_interval_excludes_zero_does_not_seem_to_touch_it(interval, expected):
    assert report.format_interval(stats.Interval(*interval), 1, signed=True) == expected
    assert shown("points (%)", stats.Interval(*interval), signed=True) == [expected]


@given(
    mean=st.floats(-1e5, 1e5),
    width=st.floats(0, 1e3),
    decimals=st.integers(0, 6),
    signed=st.booleans(),
)
def test_a_table_shows_three_significant_digits_at_most_and_its_csv_all(mean, width, decimals, signed):
    value = stats.Interval(mean, mean - width, mean + width)
    told = [*shown("norm", value, decimals=decimals, signed=signed), *shown("norm", mean)]
    for number in NUMBER.findall(" ".join(told)):
        assert float(number) == pytest.approx(float(f"{float(number):.3g}")) or abs(float(number)) >= 1000
        assert not (number.startswith("-") and float(number) == 0)
    (row,) = csv.DictReader(io.StringIO(report.Table(pd.DataFrame({"norm": [value]}), "all").csv()))
    assert [float(row[name]) for name in ("norm", "norm, low", "norm, high")] == list(value)


def test_numbers_are_written_out_and_accuracies_keep_a_decimal():
    assert shown("factor", 0.123456, 12.3456, 1234.56, 0.5, 5.6e-05, True, 3) == [
        *("0.123", "12.3", "1230", "0.5", "5.6e-05", "yes", "3")
    ]
    assert shown("final acc. (%)", 98.7654, 100.0) == ["98.8", "100.0"]
    assert shown("final acc. (%)", stats.Interval(100.0, 99.96, 100.0)) == ["100.0 [100.0, 100.0]"]
    assert shown("stability", stats.Interval(12.345, 9.876, 14.321)) == ["12.3 [9.9, 14.3]"]


def test_headings_are_words():
    recipes = itertools.product((experiments.SGD, experiments.V1), (0, 1), (2, 9))
    records = [record(recipe, seed, (0.8, 0.7), epochs=epochs) for recipe, seed, epochs in recipes]
    more = [dataclasses.replace(each, run=dataclasses.replace(each.run, label_noise=0.3)) for each in records]
    noisy = [arm._replace(setting=dataclasses.replace(arm.setting, label_noise=0.3)) for arm in STRESS.arms]
    results = Results(dataclasses.replace(STRESS, arms=(*STRESS.arms, *noisy)), records + more)
    for table in (results.table("final"), results.differences([("ConvolutionalSGD", "SGD")], ["final"])):
        assert table.text().columns[:2].tolist() == ["label noise", "epochs"]
    assert report.CONDITIONS.keys() == report.condition(records[0].run).keys()
    assert not [heading for heading in (*report.CONDITIONS.values(), *report.HEADINGS.values()) if "_" in heading]


def test_columns_of_several_tasks_say_in_each_row_what_is_measured():
    experiment = beyond_mnist.on([beyond_mnist.DIGITS, "diabetes"])
    common = {"gradient_norm": [1.0, 1.0], "seconds_training": [1.0]}
    values = {"digits": ("accuracy", [0.9, 0.8]), "diabetes": ("rmse", [0.5, 0.0123])}
    curves = {
        dataset: {f"{split}_{measure}": of_one for split in ("validation", "test")}
        for dataset, (measure, of_one) in values.items()
    }
    records = [
        Record(run, "finished", {**common, **curves[run.dataset]}, [], None, {})
        for run in experiment.runs()
        if run.seed == experiment.first_seed
    ]
    both = report.table(experiment, report.rows(experiment, records)).text()
    told = set(zip(*(both[name] for name in ("data set", "measure", "final", "stability")), strict=True))
    assert told == {("digits", "acc. (%)", "80.0", "0.00"), ("diabetes", "RMSE", "0.0123", "0.00")}
    errors = [each for each in records if each.run.dataset == "diabetes"]
    assert set(report.table(experiment, report.rows(experiment, errors)).text()["final RMSE"]) == {"0.0123"}
    pair = [beyond_mnist.label("diabetes", "SGD", beyond.TUNED, piece) for piece in ("WeightAveraging", "alone")]
    assert report.differences(experiment, errors, [tuple(pair)], ("final",)).text()["final RMSE"].tolist() == ["+0.00"]


def test_a_claim_about_runs_that_diverged_is_undecided_and_their_costs_are_left_empty():
    records = [record(experiments.SGD, seed, (0.8, 0.7)) for seed in range(7)]
    records += [record(experiments.V1, seed, (), (), "diverged") for seed in range(7)]
    told = report.claims(dataclasses.replace(STRESS, claims=STRESS.claims[:1]), records).text()
    assert (told["measured"][0], told["verdict"][0]) == ("", "undecided")
    costs = durations.costs(STRESS, records, 90, lambda run: 4).text().set_index("optimizer")
    assert costs.loc["ConvolutionalSGD", ["ms per training step", "runs that reach it"]].tolist() == ["", "0 of 0"]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_differences_that_are_not_finite_are_not_tested(value):
    control = dict.fromkeys(range(10), 0.0)
    found = stats.paired_difference({seed: 1.0 + seed for seed in control} | {0: value}, control)
    assert found.p == 1
    assert found.interval.low is None


@pytest.mark.parametrize("size", [2.0**-1020, 2.0**-450, 1.0, 2.0**700, 2.0**1023])
def test_an_interval_is_found_of_values_of_any_size(size):
    values = np.array([0.2, 1.0, 0.4, 0.7])
    of_one, of_size = stats.mean_interval(values), stats.mean_interval(size * values)
    assert of_size == pytest.approx([size * end for end in of_one], rel=1e-9)
    assert stats.mean_interval([size] * 3) == pytest.approx([size] * 3)


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="values"):
        stats.paired_difference({0: 1.0}, {1: 1.0})


def test_the_ledger_counts_each_run_of_an_experiment_once_and_no_others():
    records = [record(experiments.SGD, seed, (0.8,), epochs=30) for seed in (0, 1, 77)]
    for each in records:
        each.curves["seconds_evaluation"] = [1797.0]
    of_both = [experiments.find(name) for name in ("06-stress-test", "09-controls-layers")]
    table = durations.ledger(of_both, records).frame
    assert table.to_dict("records") == [
        {"experiment": "06-stress-test", "runs": "2", "seconds per run (median)": 1800.0, "hours of one core": 1.0}
    ]


def test_a_run_that_ends_in_no_number_has_diverged():
    records = [record(experiments.SGD, seed, (0.8, 0.9)) for seed in range(3)]
    lost = dataclasses.replace(records[0], curves={**records[0].curves, "test_accuracy": [0.8, float("nan")]})
    (row,) = report.rows(STRESS, [lost, *records[1:]])
    assert (row["n"], row["diverged"]) == (2, 1)
    assert row["final"]["mean"] == pytest.approx(90)


def test_runs_that_all_diverged_are_told_by_the_measure_of_their_task():
    run = experiments.STRESS.run(experiments.SGD, "diabetes", 1, 0)
    (row,) = rows = report.rows(STRESS, [Record(run, "diverged", {}, [], None, {})])
    assert row["n"] == 0
    assert "final RMSE" in report.table(STRESS, rows).frame
