"""What experiments call tuned is what a search chose on the validation data, by its records."""

import json

import pytest

from convopt.cli import main
from convopt.lab import experiments, searches, workspace
from convopt.lab.records import Record


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.SEARCHES)
def test_what_was_chosen_follows_from_the_published_records(name):
    load = workspace.open_store().load
    assert searches.choose(experiments.find(name), load) == experiments.read_choices()[name]


@pytest.mark.parametrize("name", experiments.SEARCHES)
def test_the_trials_of_a_search_are_its_runs(name):
    search = experiments.find(name)
    assert [trial.arm for trial in experiments.SEARCHES[name]] == list(search.arms)


def test_choices_are_written_as_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments.search, "CHOSEN_FILE", tmp_path / "chosen.json")
    choices = {"a": {"x": 0.001, "y": [2, 0.5]}, "b": {"z": 1}}
    searches.write_choices(choices)
    assert experiments.read_choices() == choices


def trained(run, validation: float | None) -> Record:
    curves = {} if validation is None else {"validation_accuracy": [validation], "test_accuracy": [1 - validation]}
    return Record(run, "diverged" if validation is None else "finished", curves, [], None, {})


def test_a_search_chooses_by_validation_and_counts_a_diverged_run_as_guessing():
    search = experiments.find("04-wiener-tuning")

    def load(run):
        lr = dict(run.optimizer.options)["lr"]
        if run.optimizer.name == "WienerSGD" and lr == 0.3:
            return trained(run, None)
        return trained(run, 0.99 if lr == 0.3 else 0.9 if lr in (0.001, 0.03) else 0.8)

    chosen = searches.choose(search, load)
    assert chosen["clean labels: WienerSGD"] == 0.03
    assert chosen["clean labels: SGD"] == 0.3
    table = searches.tuning(search, [load(run) for run in search.runs(seeds=[0])])["chosen"].to_dict()
    clean = "SimpleNet, batch 64, noise 0%"
    assert (table[clean, "WienerSGD"], table[clean, "SGD"]) == (0.03, 0.3)


def test_what_lacks_a_record_is_not_chosen():
    search = experiments.find("07-batch-size-tuning")
    chosen = searches.choose(search, lambda run: trained(run, 0.9) if run.batch_size != 64 else None)
    assert "batch 32: SGD" in chosen
    assert "batch 64: SGD" not in chosen


def test_the_command_writes_what_records_say_and_leaves_other_choices(capsys, tmp_path, monkeypatch):
    path = tmp_path / "chosen.json"
    monkeypatch.setattr(experiments.search, "CHOSEN_FILE", path)
    before = {"07-batch-size-tuning": {"batch 8: SGD": 7.0}, "04-wiener-tuning": {"clean labels: SGD": 7.0}}
    searches.write_choices(before)
    assert main(["choose", "07-batch-size-tuning"]) == 0
    assert "batch 8: SGD: 0.0003" in capsys.readouterr().out
    after = json.loads(path.read_text())
    assert after["04-wiener-tuning"] == before["04-wiener-tuning"]
    assert after["07-batch-size-tuning"]["batch 8: SGD"] == 0.0003


def test_what_is_no_search_is_refused(capsys):
    assert main(["choose", "06-stress-test"]) == 2
    assert capsys.readouterr().err.startswith("convopt: error: search must be one of 04-wiener-tuning")


@pytest.mark.parametrize("spoilt", [None, float("nan")], ids=["diverged", "nan"])
def test_a_trial_that_came_to_nothing_is_never_chosen(spoilt):
    """Not even where others are worse than guessing among ten, or come later."""

    def load(run):
        return trained(run, 0.05 if dict(run.optimizer.options)["lr"] == 0.03 else spoilt)

    chosen = searches.choose(experiments.find("04-wiener-tuning"), load)
    assert chosen["clean labels: SGD"] == 0.03


def test_a_damaged_file_of_choices_is_named_with_how_to_get_it_back(tmp_path, monkeypatch):
    path = tmp_path / "chosen.json"
    path.write_text('{"11-baselines-tuning": ')
    monkeypatch.setattr(experiments.search, "CHOSEN_FILE", path)
    with pytest.raises(ValueError, match=f"{path} is damaged .*git checkout -- {path}"):
        experiments.read_choices()
