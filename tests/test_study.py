"""What a notebook asks of experiments: trained where it is missing, and once."""

import dataclasses

from convopt.lab import experiments
from convopt.lab.study import Study


def test_what_was_prepared_is_read_and_not_trained_again(tmp_path):
    study = Study("digits", seeds=1, epochs=1, store=str(tmp_path), jobs=1)
    study.prepare("09-controls-layers", "09-controls-layers")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(written) == 4
    assert study.records == []
    results = study("09-controls-layers")
    assert [arm[0].run.epochs for arm in results.arms.values()] == [1] * 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == written
    assert study.records == results.records


def test_experiments_together_share_their_runs_and_each_has_its_own_results(tmp_path):
    study = Study("digits", seeds=1, epochs=1, store=str(tmp_path), jobs=1)
    layers, step = study.together([experiments.find(f"09-controls-{name}") for name in ("layers", "step")])
    assert len(list(tmp_path.rglob("*.json"))) == 8  # SGD and v1 are in both
    assert layers.arms["ConvolutionalSGD"] == step.arms["ConvolutionalSGD"]


def test_a_search_is_shown_as_it_was_published_whatever_the_parameters(tmp_path):
    study = Study("digits", seeds=1, epochs=1, store=str(tmp_path), jobs=1)
    results = study.search("07-batch-size-tuning")
    assert {record.run.dataset for record in results.records} == {"mnist"}
    assert {record.run.seed for record in results.records} == {10, 11}
    assert all(results.arms.values())
    assert study.records == results.records
    assert not list(tmp_path.iterdir())


def test_seeds_are_the_first_of_those_that_an_experiment_has(tmp_path):
    experiment = dataclasses.replace(experiments.find("09-controls-layers"), first_seed=20)
    (results,) = Study("digits", seeds=2, epochs=1, store=str(tmp_path), jobs=1).together([experiment])
    assert {record.run.seed for record in results.records} == {20, 21}


def test_an_arm_may_have_more_seeds_than_its_experiment():
    experiment = dataclasses.replace(experiments.find("09-controls-layers"), seeds=1)
    first, *others = experiment.arms
    more = dataclasses.replace(experiment, arms=(first._replace(seeds=3), *others))
    assert more.runs() == [
        *experiment.runs(),
        *(first.setting.run(first.recipe, "mnist", None, seed) for seed in (1, 2)),
    ]
    assert more.runs("mnist", range(1)) == experiment.runs()
