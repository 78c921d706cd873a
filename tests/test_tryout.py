"""`convopt try`: what it plans, what it recommends and what it refuses."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from convopt.lab import data, figures
from convopt.lab.figures import looks
from convopt.lab.records import Record
from convopt.lab.tryout import answer, look, plan
from convopt.lab.tryout.question import Question


@pytest.fixture
def noisy_digits(tmp_path) -> str:
    """scikit-learn's digits with 15 % of the training labels flipped."""
    digits, rng = load_digits(), np.random.default_rng(0)
    y = digits.target.copy()
    flipped = rng.permutation(1200)[:180]
    y[flipped] = (y[flipped] + rng.integers(1, 10, 180)) % 10
    x = digits.images[:, None]
    path = tmp_path / "digits.npz"
    np.savez(path, x_train=x[:1200], y_train=y[:1200], x_test=x[1200:], y_test=digits.target[1200:])
    return str(path)


@pytest.fixture
def planned(noisy_digits) -> plan.Plan:
    return plan.make_plan(noisy_digits, "SimpleNet", budget=300, workers=2)


def test_what_it_sees_of_labels_is_near_the_truth(noisy_digits):
    assert look.suspected_noise(data.load(noisy_digits)) == pytest.approx(0.15, abs=0.05)
    assert look.suspected_noise(data.load("digits")) < 0.05
    assert any("training labels look wrong" in line for line in look.described(data.load(noisy_digits)))


@pytest.mark.parametrize(
    ("name", "network"), [("digits", "SimpleNet"), ("diabetes", "TabularNet"), ("breast-cancer", "TabularNet")]
)
def test_it_picks_a_network_that_takes_such_data(name, network):
    assert look.fitting_network(data.load(name)) == network


def test_every_method_has_as_many_trials_as_any_other_and_the_same_horizons(planned):
    trials = planned.search()
    counts = {label: [run for run, of_run in trials.items() if of_run == label] for label in planned.methods}
    assert len({len(runs) for runs in counts.values()}) == 1
    assert len({frozenset(run.epochs for run in runs) for runs in counts.values()}) == 1
    first = list(trials.values())[: len(planned.methods)]
    assert sorted(first) == sorted(planned.methods)  # in turns, so that an early end leaves each as many


def test_filters_are_tried_only_where_there_is_a_grid(planned):
    assert "WienerSGD" in planned.methods
    tabular = plan.make_plan("diabetes", "TabularNet", budget=300, workers=2)
    assert not any("Wiener" in label for label in tabular.methods)


def test_a_smaller_budget_makes_a_shorter_plan(planned):
    short = plan.make_plan(planned.dataset, "SimpleNet", budget=20, workers=1)
    assert short.longest * short.n_train < planned.longest * planned.n_train
    assert short.seconds <= 20


def outcome(planned: plan.Plan, finals: dict[str, list[float]]) -> answer.Outcome:
    """With these test accuracies by method and seed."""

    def record(label: str, seed: int, accuracy: float) -> Record:
        recipe, share = next(iter(planned.methods[label].trials()))
        curves = {"test_accuracy": [accuracy], "validation_accuracy": [accuracy], "gradient_norm": [1.0]}
        return Record(planned.run(recipe, share, seed), "finished", curves, [], None, {})

    chosen = {label: record(label, plan.TUNING_SEED, values[0]) for label, values in finals.items()}
    compared = {label: [record(label, i, value) for i, value in enumerate(values)] for label, values in finals.items()}
    return answer.Outcome(planned, chosen, compared)


def of_a_regression(found: answer.Outcome) -> answer.Outcome:
    """The same numbers as errors."""
    for record in (*found.chosen.values(), *(each for of_it in found.compared.values() for each in of_it)):
        for split in ("test", "validation"):
            record.curves[f"{split}_rmse"] = record.curves.pop(f"{split}_accuracy")
    return found


NOISE = np.linspace(-0.01, 0.01, 10)


@pytest.mark.parametrize(
    ("ours", "seeds", "recommended"),
    [(0.95, 10, "WienerSGD"), (0.85, 10, None), (0.9001, 10, None), (0.95, 4, None)],
    ids=["much better", "worse", "no different", "too few seeds"],
)
def test_it_recommends_only_what_is_better_than_the_best_baseline_beyond_doubt(planned, ours, seeds, recommended):
    finals = {
        "SGD": list(0.7 + NOISE[:seeds]),
        "AdamW, cosine": list(0.9 + NOISE[:seeds]),
        "WienerSGD": list(ours + NOISE[::-1][:seeds]),
    }
    found = outcome(planned, finals)
    assert found.baseline == "AdamW, cosine"
    assert found.recommended() == recommended
    told = answer.paragraph(found)
    assert f"{seeds} paired seeds" in told
    assert ("helps here" in told) == (recommended is not None)
    pasted = answer.snippet(found)
    compile(pasted, "pasted", "exec")
    assert ("convopt.WienerSGD" in pasted) == (recommended is not None)
    assert answer.paragraph(replace(found, interrupted=True)).startswith("You stopped it")


def test_with_too_few_seeds_for_any_difference_it_says_that_nothing_can_be_decided(planned):
    finals = {"SGD": [0.7] * 5, "AdamW, cosine": [0.9] * 5, "WienerSGD": list(0.95 + NOISE[:5])}
    few, many = outcome(planned, finals), outcome(planned, {label: 2 * values for label, values in finals.items()})
    assert answer.paragraph(few).startswith("Nothing can be decided")
    assert answer.paragraph(many).startswith("WienerSGD helps here")


def test_what_beats_the_chosen_baseline_but_not_the_reference_is_told_and_not_recommended(planned):
    found = outcome(planned, {"SGD": list(0.7 + NOISE), "AdamW, cosine": [0.9] * 10, "WienerSGD": list(0.8 + NOISE)})
    for record in found.compared["SGD"]:
        record.curves["validation_accuracy"] = [1.0]
    assert (found.baseline, found.better(), found.recommended()) == ("SGD", ["WienerSGD"], None)
    assert "WienerSGD is better than SGD" in answer.paragraph(found)
    assert "but worse than AdamW, cosine" in answer.paragraph(found)


@pytest.mark.parametrize("trained", [[], ["WienerSGD"], ["SGD"], ["SGD", "AdamW, cosine", "WienerSGD"]])
def test_where_nothing_was_compared_all_of_the_answer_says_so(planned, trained):
    found = replace(outcome(planned, {label: [0.9] for label in trained}), compared={})
    told = answer.paragraph(found)
    assert told.startswith("Nothing was compared")
    assert answer.snippet(found).startswith("# Nothing was compared")
    assert answer.table(found).text()["method"].tolist() == list(planned.methods)
    assert told in answer.page(found, ["digits"], figures.to_html(figures.tried(found), told).data)


def test_each_method_is_drawn_as_in_the_book_and_baselines_are_hollow(planned):
    assert planned.methods.keys() <= looks.METHODS.keys()
    finals = {"SGD": [0.7, 0.8], "AdamW, cosine": [0.9, 0.9], "WienerSGD": [0.95, 0.9]}
    (axes,) = figures.tried(outcome(planned, finals)).axes
    means = {line.get_color(): line for line in axes.lines if line.get_marker() in looks.MARKERS and line.get_label()}
    for method, hollow in (("SGD", True), ("AdamW, cosine", True), ("WienerSGD", False)):
        look = looks.METHODS[method]
        assert means[look.colour].get_marker() == look.marker
        assert (means[look.colour].get_markerfacecolor() != look.colour) == hollow


def test_differences_are_told_with_digits_that_show_them(planned):
    finals = {"SGD": list(0.007 + NOISE / 100), "AdamW, cosine": list(0.009 + NOISE / 100)}
    told = answer.table(of_a_regression(outcome(planned, finals))).text()
    assert told["test RMSE"].iloc[0].startswith("0.00700 [")


def test_of_a_regression_less_is_better(planned):
    found = of_a_regression(outcome(planned, {"SGD": list(0.7 + NOISE), "AdamW, cosine": list(0.9 + NOISE)}))
    assert found.baseline == "SGD"


@pytest.mark.parametrize(("ours", "recommended"), [(0.8, "WienerSGD"), (1.0, None)], ids=["smaller", "larger"])
def test_of_a_regression_what_has_the_smaller_error_is_recommended(planned, ours, recommended):
    finals = {"AdamW, cosine": list(0.9 + NOISE), "WienerSGD": list(ours + NOISE[::-1])}
    assert of_a_regression(outcome(planned, finals)).recommended() == recommended


@pytest.mark.parametrize(("measure", "best"), [("rmse", 1.0), ("accuracy", 2.0)])
def test_the_best_trial_is_that_with_the_smallest_error_or_the_largest_accuracy(planned, measure, best):
    trials = planned.search()
    values = dict(zip([run for run, label in trials.items() if label == "SGD"], (2.0, 1.0), strict=False))
    records = {
        run: Record(run, "finished", {f"{split}_{measure}": [value] for split in ("validation", "test")}, [], None, {})
        for run, value in values.items()
    }
    (chosen,) = (values[each.run] for each in answer.best_trials(records, trials).values())
    assert chosen == best


def test_p_values_are_corrected_for_all_methods_from_here(planned):
    finals = {"AdamW, cosine": list(0.9 + NOISE), "WienerSGD": list(0.95 + NOISE[::-1])}
    more = {**finals, "WienerAdamW": finals["WienerSGD"]}
    alone, of_two = (outcome(planned, each).improvements()["WienerSGD"][1] for each in (finals, more))
    assert alone > 0
    assert of_two == pytest.approx(2 * alone)


def test_the_seed_that_settings_are_chosen_on_is_none_of_those_that_are_compared(planned):
    assert {run.seed for run in planned.search()}.isdisjoint(range(plan.SEEDS))


def test_a_question_looks_and_plans_within_its_budget_before_it_is_answered(noisy_digits, tmp_path):
    question = Question(noisy_digits, budget_minutes=0.5, store=str(tmp_path / "runs"), jobs=1)
    assert question.network == "SimpleNet"
    assert 0 < question.plan.seconds <= 30
    spent, seen = question._spent, question.seen
    assert question._spent > spent
    assert question.seen is seen
    assert not (tmp_path / "runs").exists()


def test_without_a_store_records_last_as_long_as_the_question():
    question = Question("diabetes", budget_minutes=0.1)
    folder = question._store.folder
    question.answer()
    assert list(folder.glob("*.json"))
    del question
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": "breast-cancr"}, 'data must be one of .* got "breast-cancr"; did you mean breast-cancer?'),
        ({"data": ""}, 'data must be one of .* got ""'),
        ({"data": "x" * 5000}, "data must be one of"),
        ({"target": "price"}, "target must be left out for diabetes"),
        ({"target": 3}, "target must be the name of a table's column, or empty, got 3"),
        ({"model": "TabularNte"}, "did you mean TabularNet?"),
        ({"model": "ConvNet"}, "model must take features, .* got ConvNet"),
        ({"model": "test_tryout:too_narrow"}, r"must return outputs of shape \(2, 1\) .* got shape \(2, 3\)"),
        ({"model": "test_tryout:too_wide"}, r"fails on inputs of shape \(2, 10\): RuntimeError: mat1 and mat2"),
        ({"model": "test_tryout:nothing_to_train"}, "has no parameters to train"),
        ({"model": "test_tryout:no_function"}, "fails when called with the shape .* TypeError"),
        ({"budget_minutes": 0}, "budget_minutes must be a number of minutes from 0.1 to 10000, got 0"),
        ({"jobs": -1}, "jobs must be an integer of at least 1, or 0 for the default"),
        ({"store": __file__}, "store must be a folder"),
    ],
)
def test_what_a_question_refuses_it_refuses_by_name_when_it_is_made(changed, said):
    with pytest.raises(ValueError, match=said) as error:
        Question(**{"data": "diabetes", **changed})
    assert "\n" not in str(error.value)


def too_narrow(shape, outputs):
    return torch.nn.Linear(shape[0], 3)


def too_wide(shape, outputs):
    return torch.nn.Linear(shape[0] + 1, outputs)


def nothing_to_train(shape, outputs):
    return torch.nn.Linear(shape[0], outputs).requires_grad_(False)


def no_function():
    pass


def convopt(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "convopt.cli", "try", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.npz"], "data must be one of"),
        (["breast-cancer", "--target", "y"], "target must be left out"),
        (["digits", "--budget-minutes", "0"], "expected a number of minutes"),
        (["digits", "--model", "SimpelNet"], "did you mean SimpleNet?"),
        (["digits", "--report", "."], "report must be a file that does not exist yet"),
    ],
)
@pytest.mark.slow
def test_what_it_cannot_do_is_one_line_and_exit_2(arguments, said, tmp_path):
    ran = convopt(*arguments, "--store", str(tmp_path))
    assert ran.returncode == 2
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_answers_within_its_budget_and_writes_one_page(noisy_digits, tmp_path):
    page, begun = tmp_path / "out.html", time.monotonic()
    store = str(tmp_path / "runs")
    ran = convopt(noisy_digits, "--budget-minutes", "0.5", "--store", store, "--report", str(page), "--jobs", "1")
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - begun < 75
    assert "To paste" in page.read_text()
    assert '<img src="data:image/png;base64,' in page.read_text()
    assert "http" not in page.read_text()
    assert convopt(noisy_digits, "--report", str(page)).returncode == 2  # never overwritten


@pytest.mark.slow
def test_stopped_by_control_c_it_answers_with_what_it_has(noisy_digits, tmp_path):
    command = [
        sys.executable,
        "-m",
        "convopt.cli",
        "try",
        noisy_digits,
        "--store",
        str(tmp_path / "runs"),
        "--jobs",
        "1",
    ]
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells have background jobs ignore it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, preexec_fn=heeded)
    while len(list(Path(tmp_path / "runs").glob("*.json"))) < 9:
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Nothing was compared" in told
