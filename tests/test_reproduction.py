"""Published runs come out again; where they do not, it is said."""

from dataclasses import replace

import pytest
from conftest import ROOT

from convopt.cli import main
from convopt.lab import experiments, reproduction, sweep, training
from convopt.lab.records import Store, write_table
from convopt.lab.workspace import PUBLISHED

EXPERIMENT = experiments.find("06-stress-test")
RUNS = [run for run in EXPERIMENT.runs("digits", range(3), epochs=1) if run.optimizer.name in ("SGD", "Adam")]


@pytest.fixture(scope="module")
def published():
    return [training.train(run) for run in RUNS]


@pytest.fixture
def project(tmp_path, monkeypatch, published):
    """A project folder with a few published records of the digits."""
    for folder in ("notebooks", "book"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    write_table(published, tmp_path / PUBLISHED)
    return tmp_path


def shifted(record, points: float):
    """The record with every test accuracy changed by so many points."""
    accuracies = [accuracy + points / 100 for accuracy in record.curves["test_accuracy"]]
    return replace(record, curves={**record.curves, "test_accuracy": accuracies})


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
        new = replace(old, curves={**old.curves, "seconds_training": [1.0]}, provenance={})
        assert self.verdict(old, new, published) == "identical"

    def test_what_seeds_differ_by_is_tolerated_and_no_more(self, published):
        old = published[0]
        allowed = reproduction.tolerance(old, published, "final")
        assert allowed >= 0.5
        assert self.verdict(old, shifted(old, 0.9 * allowed), published) == "within tolerance"
        assert self.verdict(old, shifted(old, -1.1 * allowed), published) == "outside"

    def test_a_run_that_diverged_must_diverge_again(self, published):
        old = published[0]
        diverged = replace(old, status="diverged", curves={})
        assert self.verdict(diverged, diverged, [diverged, *published[1:]]) == "identical"
        assert self.verdict(old, diverged, published) == "outside"
        assert self.verdict(diverged, old, [diverged, *published[1:]]) == "outside"


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


def test_verify_fails_where_a_run_comes_out_otherwise(project, published, capsys):
    write_table([shifted(record, 300.0) for record in published], project / PUBLISHED)
    assert main(["verify", "--sample", "1", "--jobs", "1"]) == 1
    shown = capsys.readouterr()
    assert "--seed" in shown.out
    assert "outside" in shown.out
    assert "1 of 1 runs came out otherwise than published" in shown.err


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
    assert len(Store(store).records()) == 6
    assert main(["reproduce", "--experiment", "06-stress-test"]) == 0
    assert len(trained) == 5


@pytest.mark.slow
def test_three_published_runs_of_mnist_come_out_again(mnist_folder, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    status = main(["verify", "--sample", "3", "--seed", "0", "--max-seconds", "3", "--jobs", "1"])
    assert status == 0, capsys.readouterr()
