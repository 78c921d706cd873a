"""Arms are compared over seeds and images, on images that chose nothing, and only where they were tuned alike."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from convopt.lab import correctness, data, experiments, stats, training
from convopt.lab.correctness import Pair
from convopt.lab.experiments import Arm, Experiment
from convopt.lab.predictions import from_bytes, pack, references, rounded, to_bytes
from convopt.lab.records import Record
from convopt.lab.study import Results

SETTING = replace(experiments.STRESS, n_train=400, epochs=1)
LABELS = data.load("digits").test.y.numpy()


def right(rng, seeds, inputs, share):
    return {seed: 100.0 * (rng.random(inputs) < share) for seed in range(seeds)}


class TestCrossedDifference:
    def test_the_interval_covers_a_true_difference_that_seeds_and_images_blur(self):
        rng, covered = np.random.default_rng(0), 0
        for _ in range(60):
            difficulty, by_seed = rng.normal(0, 1, 400), rng.normal(0, 0.1, (2, 12))
            arms = [
                {
                    seed: shift + by_seed[arm][seed] + difficulty * 0.3 * shift + rng.normal(0, 1, 400)
                    for seed in range(12)
                }
                for arm, shift in enumerate((0.5, 0.0))
            ]
            interval = stats.crossed_difference(*arms).interval
            covered += interval.low <= 0.5 <= interval.high
        assert covered >= 54

    def test_few_images_widen_it_as_few_seeds_do(self):
        rng = np.random.default_rng(1)

        def width(seeds, inputs):
            difficulty = rng.random(inputs)
            arms = [{seed: 100.0 * (rng.random(inputs) < difficulty * s) for seed in range(seeds)} for s in (0.9, 0.8)]
            interval = stats.crossed_difference(*arms).interval
            return interval.high - interval.low

        assert width(40, 200) > 1.5 * width(40, 5000)
        assert width(3, 2000) > 1.5 * width(40, 2000)

    def test_what_differs_is_found_and_what_is_equal_is_found_equal(self):
        rng = np.random.default_rng(2)
        found = stats.crossed_difference(right(rng, 10, 9000, 0.94), right(rng, 10, 9000, 0.92))
        assert found.p < 0.001 < 0.9 < found.p_equal
        same = right(rng, 10, 9000, 0.94)
        found = stats.crossed_difference(same, {seed: values[::-1] for seed, values in same.items()})
        assert found.p_equal < 0.05 < 0.9 < found.p

    def test_one_seed_has_no_interval_and_none_is_refused(self):
        one = {0: np.zeros(5)}
        assert stats.crossed_difference(one, one) == (stats.Interval(0.0, None, None), 1.0, 1.0)
        with pytest.raises(ValueError, match="must have a seed in common"):
            stats.crossed_difference(one, {1: np.zeros(5)})


def of_shares(results: Results, shares) -> Results:
    """Of arms SGD and Adam that get so many of the images right, each image independently, with ten seeds."""
    rng, records = np.random.default_rng(3), []
    for label, share in zip(("SGD", "Adam"), shares, strict=True):
        of_arm = results.arms[label][0]
        for seed in range(10):
            wrong = rng.random(len(LABELS)) >= share
            predictions = {"test": pack(np.where(wrong, (LABELS + 1) % 10, LABELS).astype(np.uint8))}
            records.append(replace(of_arm, run=replace(of_arm.run, seed=seed), predictions=predictions))
    return Results(results.experiment, records)


@pytest.fixture(scope="module")
def results():
    arms = tuple(
        Arm(name, recipe, SETTING, tuned)
        for name, recipe, tuned in (
            ("SGD", experiments.SGD, ("learning rate",)),
            ("Adam", experiments.ADAM, ("learning rate",)),
            ("AdamW", experiments.ADAMW, ("learning rate", "epochs")),
        )
    )
    experiment = Experiment("small", "small", arms)
    return Results(experiment, [training.train(run) for run in experiment.runs("digits", range(2))])


def test_what_is_correct_adds_up_to_the_accuracy(results):
    for records in results.arms.values():
        shares = correctness.correct(records)
        assert [shares[record.run.seed].mean() for record in records] == pytest.approx(
            [100 * record.final for record in records]
        )


def test_arms_that_were_not_tuned_alike_are_not_compared(results):
    assert correctness.compare(results, Pair("?", "SGD", "Adam")).interval.mean == pytest.approx(
        100 * np.mean([a.final - b.final for a, b in zip(results.arms["SGD"], results.arms["Adam"], strict=True)])
    )
    with pytest.raises(ValueError, match="AdamW and SGD must be tuned alike"):
        correctness.compare(results, Pair("?", "AdamW", "SGD"))


def test_a_table_says_better_worse_no_difference_or_undecided(results):
    def told(shares):
        table = correctness.comparisons(of_shares(results, shares), [Pair("?", "SGD", "Adam")], "x")
        return table.frame.verdict[0]

    assert told((0.95, 0.8)) == "better"
    assert told((0.8, 0.95)) == "worse"
    assert told((1.0, 1.0)) == "no difference"
    assert told((0.9, 0.9)) == "undecided"
    # a test of the mean finds what the interval, of percentiles, does not exclude
    assert correctness._verdict(stats.Interval(-10.7, -15.7, 0.3), 0.035, 0.98) == "undecided"


@pytest.mark.parametrize(("p", "shares"), [("p, Holm", (0.92, 0.9)), ("p, equal", (0.995, 0.995))])
def test_p_values_are_corrected_for_the_rows_of_the_table(results, p, shares):
    compared = of_shares(results, shares)
    one, three = (correctness.comparisons(compared, [Pair("?", "SGD", "Adam")] * n, "x").frame[p] for n in (1, 3))
    assert 0 < one[0] < 1 / 3
    assert three.tolist() == pytest.approx([3 * one[0]] * 3)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("SGD, raw, cosine", "SGD, filtered, cosine"), ["raw", "filtered"]),
        (("SGD, raw, warm-up, decay", "SGD, raw, cosine"), ["warm-up, decay", "cosine"]),
        (("SGD", "Adam"), ["SGD", "Adam"]),
        (("SGD, cosine", "cosine"), ["SGD, cosine", "cosine"]),
    ],
)
def test_a_difference_names_what_differs(labels, told):
    assert correctness._what_differs(*labels) == told


def test_published_predictions_are_judged_without_the_data(monkeypatch):
    packed = {"digits": {"test": pack((LABELS[::-1] % 10).astype(np.uint8))}}
    monkeypatch.setattr(correctness, "_published_labels", lambda: packed)
    assert correctness.labels_of("digits", "test").tolist() == LABELS[::-1].tolist()


def test_labels_are_packed_of_what_the_predictions_are_about(results):
    packed = correctness.packed_labels(results.records)
    assert list(packed) == ["digits"]
    assert list(packed["digits"]) == ["test"]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["test", "confirmation"]),
            st.one_of(
                st.lists(st.integers(0, 255), max_size=5).map(np.uint8), st.lists(st.floats(width=32)).map(np.float32)
            ),
        ),
        max_size=6,
    )
)
def test_predictions_of_many_runs_come_back_from_a_table_s_bytes(runs):
    packed = [{split: pack(rounded(values)) for split, values in run.items()} for run in runs]
    kept = to_bytes([("it", run) for run in packed])
    assert [from_bytes("it", run, references(("it", run) for run in kept)) for run in kept] == packed


@given(st.lists(st.floats(width=32, allow_subnormal=False)).map(np.float32))
@example(np.float32([np.finfo(np.float32).max, np.nan, np.inf]))
def test_rounding_keeps_numbers_to_two_thousandths_and_what_is_no_number(values):
    np.testing.assert_allclose(rounded(values), values, rtol=2e-3)
    np.testing.assert_array_equal(rounded(rounded(values)), rounded(values))


def test_bytes_of_networks_that_agree_take_little_and_damage_is_told():
    rng = np.random.default_rng(0)
    common = rng.integers(10, size=9000, dtype=np.uint8)
    several = [np.where(rng.random(9000) < 0.06, rng.integers(10, size=9000, dtype=np.uint8), common) for _ in range(3)]
    whole, *others = to_bytes([("it", {"test": pack(each)}) for each in several])
    for values, other in zip(several[1:], others, strict=True):
        assert len(zlib.compress(other["test"])) < 0.4 * len(zlib.compress(values.tobytes()))
    with pytest.raises(ValueError, match="9000 inputs of it must have a reference, got none of this number"):
        from_bytes("it", others[0], references([("another", whole)]))
    with pytest.raises(ValueError, match="ranks must be below 10, got 94"):
        from_bytes("it", {"test": b"^" * 9001}, references([("it", whole)]))


def test_a_point_of_a_regression_is_one_of_the_seeds_that_are_compared():
    run = experiments.STRESS_CLEAN.run(experiments.SGD, "diabetes", 1, 0)

    def arm(seeds, scale, status="finished"):
        errors = {seed: scale * np.arange(1.0, 45) for seed in seeds}
        return [
            Record(
                replace(run, seed=seed), status, {"test_rmse": [1.0]}, [], None, {}, {"test": pack(each.astype("f4"))}
            )
            for seed, each in errors.items()
        ]

    control = [*arm(range(5), 1.0), *arm(range(5, 10), 100.0)]
    treatment = [*arm(range(5), 0.9), *arm(range(5, 10), 0.9, "diverged")]
    assert correctness.difference(treatment, control).interval.mean == pytest.approx(10, abs=0.01)


def test_of_what_is_no_number_there_is_no_interval():
    found = stats.crossed_difference(*[{seed: np.array([np.nan, 1.0]) for seed in range(3)} for _ in range(2)])
    assert (found.interval.excludes_zero, found.p, found.p_equal) == (False, 1.0, 1.0)
