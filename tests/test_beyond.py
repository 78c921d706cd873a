"""Page 16: what a piece adds to an optimizer, in points; what harms is counted, the worst named."""

from dataclasses import replace

import numpy as np
import pytest

from convopt.lab import beyond, correctness, data, searches
from convopt.lab.beyond import Cell
from convopt.lab.experiments import beyond_mnist, find, tuned_filters
from convopt.lab.predictions import pack
from convopt.lab.records import Record
from convopt.lab.stats import CrossedComparison, Interval
from convopt.lab.study import Results
from convopt.lab.tasks import TASKS

DIGITS, DIABETES = beyond_mnist.tasks("digits")
TUNED = beyond.TUNED


def recorded(run, share: float) -> Record:
    """Of a run that classifies such a share correctly, or has such a mean squared error."""
    test = data.load(run.dataset).test
    rng = np.random.default_rng(run.seed)
    if run.dataset == "digits":
        labels = test.y.numpy()
        right = np.arange(len(labels)) < round(share * len(labels))
        predicted = np.where(right, labels, (labels + 1) % 10).astype(np.uint8)
        measures = {"test_accuracy": [share], "validation_accuracy": [share]}
    else:
        noise = rng.random(len(test)) + 0.5
        predicted = (share * noise / noise.mean()).astype(np.float32)
        measures = {"test_rmse": [share**0.5], "validation_rmse": [share**0.5]}
    return Record(run, "finished", {**measures, "average_in_place": [1.0]}, [], None, {}, {"test": pack(predicted)})


def results_of(share_of) -> Results:
    """``share_of`` tells of a label what :func:`recorded` is given."""
    experiment = beyond_mnist.on([DIGITS, DIABETES])
    runs = experiment.runs(seeds=[20, 21, 22])
    return Results(experiment, [recorded(run, share_of(experiment.label(run))) for run in runs])


def test_a_point_is_one_of_accuracy_or_a_percent_of_the_squared_error():
    def share_of(label: str) -> float:
        better = "WeightAveraging" in label
        return (0.92 if better else 0.9) if label.startswith(DIGITS) else (98.0 if better else 100.0)

    added = beyond.added(results_of(share_of), "WeightAveraging")
    assert len(added) == 2 * 2 * 3
    for cell, comparison in added.items():
        assert comparison.interval.mean == pytest.approx(2.0, abs=0.2), cell
    assert beyond.median_of(added) == pytest.approx(2.0, abs=0.2)
    assert {cell.task for cell in beyond.on_noisy_images(added)} == {DIGITS}


def test_the_summary_counts_what_harms_and_names_the_worst():
    worst = Cell(DIABETES, "AdamW", "a third of the tuned rate")

    def share_of(label: str) -> float:
        if label == beyond_mnist.label(*worst, "SNRAnnealing"):
            return 120.0
        return 0.9 if label.startswith(DIGITS) else 100.0

    added = beyond.added(results_of(share_of), "SNRAnnealing")
    (row,) = beyond.summary({"it": added}, "x").frame.to_dict("records")
    assert row["below -0.5 points"] == "1"
    assert row["worst (points)"].mean == pytest.approx(-20, abs=1)
    assert row["where"] == ", ".join(worst)
    assert (beyond.harmed(added), beyond.certainly_harmed(added)) == (1, 1)


def test_a_loss_is_certain_where_its_interval_lies_below_zero():
    ends = {"AdamW": (-2.0, -0.1), "SGD": (-2.0, 0.1), "Muon": (0.1, 2.0)}
    cells = {
        Cell(DIGITS, base, TUNED): CrossedComparison(Interval((low + high) / 2, low, high), 1.0, 1.0)
        for base, (low, high) in ends.items()
    }
    assert (beyond.harmed(cells), beyond.certainly_harmed(cells)) == (2, 1)


def test_a_gain_is_certain_where_it_passes_a_test_corrected_for_all_comparisons():
    of_each = {"SGD": (1.0, 0.02), "AdamW": (1.0, 0.03), "Muon": (-1.0, 0.001)}  # of three, times 2, 1 and 3
    cells = {
        Cell(DIGITS, base, TUNED): CrossedComparison(Interval(mean, mean - 0.5, mean + 0.5), p, 1.0)
        for base, (mean, p) in of_each.items()
    }
    assert beyond.certainly_gained(cells) == [Cell(DIGITS, base, TUNED) for base in ("SGD", "AdamW")]
    more = {**cells, Cell(DIGITS, "Lion", TUNED): CrossedComparison(Interval(0.0, -1.0, 1.0), 0.9, 1.0)}
    assert beyond.certainly_gained(more) == []
    assert beyond.above_zero(more) == 2


def test_the_best_rate_is_that_of_the_validation_data():
    def share_of(label: str) -> float:
        if not label.startswith(DIGITS):
            return 100.0
        if "cosine" in label:
            return 0.95
        return {"a th": 0.80, "the ": 0.85, "thre": 0.90}[label.split(", ")[2][:4]] - (0.01 if "alone" in label else 0)

    results = results_of(share_of)
    best = beyond.best_over_best(results, "WeightAveraging")
    assert best[Cell(DIGITS, "SGD", "the best of three rates")].interval.mean == pytest.approx(1.0, abs=0.2)
    over = beyond.over_cosine(results, "WeightAveraging")
    assert over[Cell(DIGITS, "SGD", TUNED)].interval.mean == pytest.approx(-10.0, abs=0.2)


def test_comparing_seldom_is_held_against_comparing_at_each_step():
    experiment = beyond_mnist.comparing_seldom([DIGITS])
    runs = experiment.runs(seeds=[20, 21, 22])
    records = [recorded(run, 0.9 if "every=4" in experiment.label(run) else 0.8) for run in runs]
    found = beyond.seldom_minus_always(Results(experiment, records))
    assert {cell.base for cell in found} == set(beyond_mnist.BASES)
    assert [each.interval.mean for each in found.values()] == pytest.approx([10] * len(found), abs=0.3)


def test_diverged_runs_are_counted_and_not_compared():
    results = results_of(lambda label: 0.9 if label.startswith(DIGITS) else 100.0)
    of_piece = results.arms[beyond_mnist.label(DIGITS, "SGD", TUNED, "SNRAnnealing")]
    failed = [replace(r, status="diverged", curves={}, predictions={}) if r in of_piece else r for r in results.records]
    results = Results(results.experiment, failed)
    assert beyond.diverged(results, "SNRAnnealing") == 3
    assert beyond.diverged(results, "alone") == 0
    assert Cell(DIGITS, "SGD", TUNED) not in beyond.added(results, "SNRAnnealing")


def test_a_search_of_a_regression_takes_the_smallest_error_and_never_a_run_that_diverged():
    search = find(beyond_mnist.SEARCH)

    def load(run):
        lr = dict(run.optimizer.options)["lr"]
        if run.optimizer.name == "SGD" and lr == 0.1:
            return Record(run, "diverged", {}, [], None, {})
        name = TASKS[data.describe(run.dataset).task].measure.name
        values = {f"validation_{name}": [1.0 + lr], f"test_{name}": [1.0]}
        return Record(run, "finished", values, [], None, {})

    chosen = searches.choose(search, load)
    assert chosen[beyond_mnist.label(DIABETES, "SGD", "constant")] == {"lr": 0.0003}
    assert chosen[beyond_mnist.label(DIGITS, "SGD", "constant")] == {"lr": 0.03}


def test_errors_and_accuracies_are_compared_by_seed():
    results = results_of(lambda label: 0.9 if label.startswith(DIGITS) else 100.0)
    arm = results.arms[beyond_mnist.label(DIABETES, "SGD", "cosine")]
    assert correctness.difference(arm[:2], arm[2:]) is None
    assert correctness.difference(arm, arm).interval.mean == 0


def test_filters_with_a_cosine_of_their_own_are_compared_with_a_raw_gradient_that_has_one():
    experiment = tuned_filters.on([DIGITS])
    shares = {"raw gradient": 0.90, "fixed kernel": 0.92, "WienerFilter's default": 0.91}

    def share_of(label: str) -> float:
        return next(share for gradient, share in shares.items() if gradient in label)

    runs = experiment.runs(seeds=[20, 21, 22])
    results = Results(experiment, [recorded(run, share_of(experiment.label(run))) for run in runs])
    gains = beyond.gains_of_tuned(results)
    assert {place: round(gain.mean) for place, gain in gains.items()} == {
        ("fixed kernel", f"{DIGITS} | SGD"): 2,
        ("WienerFilter's default", f"{DIGITS} | SGD"): 1,
    }
    assert {arm.tuned for arm in experiment.arms} == {("learning rate", "epochs")}


@pytest.mark.parametrize("base", ["SGD", "AdamW", "Muon"])
def test_on_mnist_the_tuned_arms_are_those_of_the_factorial(base):
    name = tuned_filters.arm_label(beyond_mnist.MNIST, base, "fixed kernel")
    (arm,) = (arm for arm in tuned_filters.on([beyond_mnist.MNIST]).arms if arm.label == name)
    (of_factorial,) = (arm for arm in find("15-factorial").arms if arm.label == f"{base}, fixed kernel, cosine")
    assert arm.setting.run(arm.recipe, "mnist", None, 20) == of_factorial.setting.run(
        of_factorial.recipe, "mnist", None, 20
    )
