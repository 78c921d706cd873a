"""Published runs come out again; where they do not, it is said."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from convopt.cli import main
from convopt.lab import experiments, reproduction, sweep, training, workspace
from convopt.lab.records import Record, Store, write_table
from convopt.lab.tasks import ACCURACY
from convopt.lab.workspace import PUBLISHED

EXPERIMENT = experiments.find("06-stress-test")
RUNS = [run for run in EXPERIMENT.runs("digits", range(3), epochs=1) if run.optimizer.name in ("SGD", "Adam")]


@pytest.fixture(scope="module")
def published():
    return [training.train(run) for run in RUNS]


@pytest.fixture
def project(tmp_path, monkeypatch, published):
    """A project folder with a few published records of the digits."""
    for folder in ("notebooks", "book/records"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write_table(published, tmp_path / PUBLISHED)
    return tmp_path


def shifted(record, points: float):
    """The record with its measure changed in every epoch, by so many points of accuracy or percent of another."""
    name = f"test_{record.measure.name}"
    unit = 1.0 if record.measure == ACCURACY else record.final
    return replace(record, curves={**record.curves, name: [v + points / 100 * unit for v in record.curves[name]]})


def native(record):
    """The record as if it had been computed in a processor's own arithmetic."""
    return replace(record, provenance={**record.provenance, "arithmetic": "native"})


class TestDraw:
    def test_the_same_seed_draws_the_same_different_records(self, published):
        drawn = reproduction.draw(published, 4, seed=1)
        assert drawn == reproduction.draw(published, 4, seed=1)
        assert len({record.run for record in drawn}) == 4
        assert drawn != reproduction.draw(published, 4, seed=2)

    def test_what_took_too_long_is_left_out(self, published):
        slow = replace(published[0], curves={**published[0].curves, "seconds_training": [1000.0]})
        assert slow not in reproduction.draw([slow, *published[1:]], 5, seed=0, max_seconds=999)
        with pytest.raises(ValueError, match="at most the 5 published runs to draw from, got 6"):
            reproduction.draw([slow, *published[1:]], 6, seed=0, max_seconds=999)


class TestCompare:
    def verdict(self, old, new, published) -> str:
        (verdict,) = reproduction.compare([old], [new], published)["verdict"]
        return verdict

    def test_the_time_taken_makes_no_difference(self, published):
        old = published[0]
        new = replace(old, curves={**old.curves, "seconds_training": [1.0]})
        assert self.verdict(old, new, published) == "identical"

    def test_portable_arithmetic_leaves_no_room(self, published):
        old = published[0]
        assert old.provenance["arithmetic"] == "portable"
        assert self.verdict(old, shifted(old, 1e-9), published) == "outside"

    def test_elsewhere_what_seeds_differ_by_is_tolerated_and_no_more(self, published):
        published = [native(record) for record in published]
        old = published[0]
        allowed = reproduction.tolerance(old, [r for r in published if r.run.optimizer == old.run.optimizer], "final")
        assert 0.5 <= allowed <= 3
        assert self.verdict(old, shifted(old, 0.9 * allowed), published) == "within tolerance"
        assert self.verdict(old, shifted(old, -1.1 * allowed), published) == "outside"

    def test_a_loss_may_differ_by_three_percent_at_most(self):
        run = experiments.STRESS_CLEAN.run(experiments.SGD, "diabetes", 1, 0)
        several = [
            Record(replace(run, seed=seed), "finished", {"test_rmse": [50.0 + 20 * seed]}, [], None, {})
            for seed in range(3)
        ]
        assert reproduction.tolerance(several[0], several, "final") == pytest.approx(1.5)

    @pytest.mark.parametrize(("before", "after"), [(50.0, np.nan), (50.0, np.inf), (np.inf, 50.0)])
    def test_what_is_no_number_is_within_no_tolerance(self, before, after):
        run = experiments.STRESS_CLEAN.run(experiments.SGD, "diabetes", 1, 0)
        old, new = (Record(run, "finished", {"test_rmse": [value]}, [], None, {}) for value in (before, after))
        assert self.verdict(old, new, [old, replace(old, run=replace(run, seed=1))]) == "outside"
        assert reproduction.is_identical(new, replace(new))

    def test_a_difference_of_the_tolerance_in_single_precision_is_within(self):
        assert reproduction._is_within(*(100 * float(np.float32(value)) for value in (0.836, 0.806)), 3.0)
        assert not reproduction._is_within(83.6, 80.5, 3.0)

    def test_other_predictions_or_kernels_are_not_identical(self, published):
        old = published[0]
        others = replace(published[1], run=old.run).predictions
        assert not reproduction.is_identical(old, replace(old, predictions=others))
        assert not reproduction.is_identical(old, replace(old, kernels=[{"kernel": [1.0]}]))
        assert reproduction.is_identical(old, replace(old, predictions={}))

    def test_a_run_that_diverged_must_diverge_again(self, published):
        old = published[0]
        diverged = replace(old, status="diverged", curves={})
        assert self.verdict(diverged, diverged, [diverged, *published[1:]]) == "identical"
        assert self.verdict(old, diverged, published) == "outside"
        assert self.verdict(diverged, old, [diverged, *published[1:]]) == "outside"


class TestArms:
    """Fresh seeds of an arm against its published ones."""

    RUN = RUNS[0]

    def arm(self, accuracies, first_seed=0):
        return [
            Record(replace(self.RUN, seed=seed), "finished", {"test_accuracy": [accuracy]}, [], None, {})
            for seed, accuracy in enumerate(accuracies, start=first_seed)
        ]

    def test_seeds_of_one_arm_agree_and_those_of_another_differ(self):
        published = self.arm(np.linspace(0.88, 0.92, 10))
        (agrees,) = reproduction.compare_arms(self.arm([0.89, 0.9, 0.91], 1000), published).verdict
        (differs,) = reproduction.compare_arms(self.arm([0.85, 0.86, 0.87], 1000), published).verdict
        assert (agrees, differs) == ("agrees", "differs")

    def test_the_power_that_is_stated_is_the_share_of_differences_that_are_found(self):
        rng = np.random.default_rng(0)
        spread, trials, found, stated = 0.012, 400, 0, []
        for _ in range(trials):
            published = self.arm(0.9 + spread * rng.standard_normal(10))
            fresh = self.arm(0.87 + spread * rng.standard_normal(3), 1000)
            (row,) = reproduction.compare_arms(fresh, published).itertuples()
            found += row.verdict == "differs"
            stated.append(row.power)
        assert found / trials == pytest.approx(np.mean(stated), abs=0.08)
        assert 0.3 < np.mean(stated) < 0.95

    def test_an_arm_that_trains_no_more_differs(self):
        published = self.arm(np.linspace(0.88, 0.92, 10))
        fresh = [replace(record, status="diverged", curves={}) for record in self.arm([0.9] * 3, 1000)]
        assert list(reproduction.compare_arms(fresh, published).verdict) == ["differs"]

    def test_an_arm_whose_fresh_seeds_are_no_numbers_differs(self):
        published = self.arm(np.linspace(0.88, 0.92, 10))
        assert list(reproduction.compare_arms(self.arm([0.9, np.nan], 1000), published).verdict) == ["differs"]

    def test_one_seed_does_not_say_how_far_seeds_differ(self):
        (record,) = self.arm([0.9])
        assert reproduction.fresh_runs([record], [record]) == []


@pytest.mark.slow
def test_a_shift_of_four_points_is_caught_in_every_published_arm():
    published = workspace.published_records()
    arms = {replace(record.run, seed=0): record for record in published if record.status == "finished"}
    one_of_each = list(arms.values())
    for points in (4, -4):
        compared = reproduction.compare([shifted(record, points) for record in one_of_each], one_of_each, published)
        assert set(compared.verdict) == {"outside"}


class TestDifferences:
    def test_they_are_paired_by_seed_arm_by_arm(self, published):
        new = [shifted(record, 1.0) if record.run.optimizer.name == "SGD" else record for record in published[:-1]]
        table = reproduction.differences(EXPERIMENT, new, published).text()
        assert list(table["optimizer"]) == ["SGD", "Adam"]
        assert list(table["best acc. (%)"]) == ["+1.0 [+1.0, +1.0]", "+0.0 [+0.0, +0.0]"]
        assert list(table["stability"]) == ["+0.00 [+0.00, +0.00]"] * 2
        assert list(table["runs"]) == ["3", "2"]
        assert list(table["identical"]) == ["0", "2"]

    def test_an_experiment_without_pairs_has_none(self, published):
        assert reproduction.differences(EXPERIMENT, [], published) is None

    def test_an_arm_that_diverged_keeps_its_row(self, published):
        diverged = [replace(record, status="diverged", curves={}) for record in published]
        table = reproduction.differences(EXPERIMENT, diverged, published).text()
        assert list(table["runs"]) == ["0 (+3 diverged)"] * 2


def test_verify_trains_a_sample_again_and_prints_both(project, capsys):
    assert main(["verify", "--sample", "2", "--seed", "5", "--experiment", "06-stress-test", "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "2 of 6 published runs; --seed 5 draws them again." in said
    assert said.count("identical") == 2
    assert not (project / "runs").exists()


@pytest.mark.parametrize("as_published", [native, lambda record: record], ids=["native", "portable"])
def test_verify_fails_where_a_run_comes_out_otherwise(project, published, capsys, as_published):
    write_table([shifted(as_published(record), 30.0) for record in published], project / PUBLISHED)
    assert main(["verify", "--sample", "1", "--jobs", "1"]) == 1
    shown = capsys.readouterr()
    assert "--seed" in shown.out
    assert "outside" in shown.out
    assert "1 of 1 runs came out otherwise than published" in shown.err
    assert "1 of 1 arms came out otherwise than published" in shown.err


def test_reproduce_trains_all_anew_keeps_the_published_and_goes_on(project, published, capsys, monkeypatch):
    before = (project / PUBLISHED).read_bytes()
    store = project / "runs" / "reproduced"
    Store(store).save(published[0])
    trained = []
    monkeypatch.setattr(sweep, "train", lambda run: trained.append(run) or training.train(run))
    assert main(["reproduce", "--jobs", "1"]) == 0
    assert set(trained) == set(RUNS[1:])  # the first had been reproduced before
    said = capsys.readouterr().out
    assert EXPERIMENT.title in said
    assert "+0.0 [+0.0, +0.0]" in said
    assert (project / PUBLISHED).read_bytes() == before
    assert len(Store(store).runs()) == 6
    assert main(["reproduce", "--experiment", "06-stress-test"]) == 0
    assert len(trained) == 5


def test_an_experiments_records_are_of_its_own_seeds(published):
    """A search trains arms, too, with another seed; it is no part of the experiment that it chooses for."""
    of_search = replace(published[0], run=replace(RUNS[0], seed=EXPERIMENT.first_seeds(10)[-1] + 1))
    assert EXPERIMENT.label(of_search.run)
    assert reproduction.of_experiments([EXPERIMENT], [*published, of_search]) == published


def test_an_arm_differs_where_fresh_seeds_diverge_and_published_ones_did_not(published):
    old = [native(record) for record in published if record.run.optimizer.name == "SGD"]
    new = [replace(record, run=replace(record.run, seed=record.run.seed + 1000)) for record in old]
    diverged = replace(new[0], status="diverged", curves={})
    assert list(reproduction.compare_arms(new, old).verdict) == ["agrees"]
    assert list(reproduction.compare_arms([diverged, *new[1:]], old).verdict) == ["differs"]


def test_kernels_that_are_no_numbers_are_identical_to_themselves(published):
    one, other = (replace(published[0], kernels=[{"kernel": [float("nan")]}]) for _ in range(2))
    assert reproduction.is_identical(one, other)


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (lambda record: replace(record, status="training"), "must have ended, got 1 that have not"),
        (
            lambda record: replace(record, provenance={**record.provenance, "data": "0" * 64}),
            "must be of the same data",
        ),
    ],
    ids=["not ended", "other data"],
)
def test_publish_takes_ended_runs_on_the_same_data(project, published, capsys, monkeypatch, spoilt, said):
    monkeypatch.setattr(experiments, "published_runs", lambda: RUNS)
    monkeypatch.setattr(experiments, "tuning_runs", lambda: set())
    table, store = project / PUBLISHED, Store(project / "runs")
    before = table.read_bytes()
    store.save(spoilt(published[0]))
    assert main(["publish"]) == 1
    assert said in capsys.readouterr().err
    assert table.read_bytes() == before
    store.save(published[0])
    assert main(["publish"]) == 0
    assert "6 records, 1 of them from runs -> " in capsys.readouterr().out


def test_a_report_notes_that_records_are_of_different_data(project, published, capsys):
    other = replace(published[0], provenance={**published[0].provenance, "data": "0" * 64})
    Store(project / "runs").save(other)
    assert main(["report", "06-stress-test", "--dataset", "digits", "--epochs", "1"]) == 0
    assert "records of digits are of different data" in capsys.readouterr().err


@pytest.mark.slow
def test_three_published_runs_come_out_again_to_the_last_bit(mnist_folder, monkeypatch, capsys):
    """In portable arithmetic. Older runs end elsewhere on another processor, where one in a hundred may be outside."""
    monkeypatch.chdir(ROOT)
    limits = ["--experiment", "16-beyond-mnist", "--max-seconds", "3"]
    status = main(["verify", "--sample", "3", "--seed", "0", *limits, "--jobs", "1"])
    said = capsys.readouterr()
    assert status == 0, said
    assert said.out.count(" identical") == 3


def test_runs_whose_data_cannot_be_had_are_left_out_and_named(project, published, capsys, monkeypatch):
    monkeypatch.setenv("CONVOPT_DATA", str(project))
    series = replace(published[0], run=replace(published[0].run, dataset="crop"))
    write_table([*published, series], project / PUBLISHED)
    assert main(["verify", "--sample", "99", "--jobs", "1"]) == 2
    said = capsys.readouterr().err
    assert f"1 published runs are left out, whose data are not under {project} and cannot be downloaded: crop" in said
    assert f"at most the {len(published)} published runs" in said
