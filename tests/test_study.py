"""What a notebook asks of experiments: trained where it is missing, and once."""

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


def test_what_is_tuned_keeps_to_its_own_seeds(tmp_path, monkeypatch):
    tuning = experiments.find("07-batch-size-tuning")
    few = type(tuning)(tuning.name, tuning.title, tuning.arms[-1:], seeds=tuning.seeds, first_seed=tuning.first_seed)
    monkeypatch.setitem(experiments.EXPERIMENTS, tuning.name, few)
    results = Study("digits", seeds=1, epochs=1, store=str(tmp_path), jobs=1)(tuning.name)
    assert [record.run.seed for record in results.records] == [10, 11]
