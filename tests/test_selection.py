"""A report shows what the page shows, and says what else there is."""

import pytest

from convopt.cli import main
from convopt.lab import experiments, report, workspace
from convopt.lab.records import Record
from convopt.lab.selection import select
from convopt.lab.study import Study
from convopt.lab.workspace import open_store, published_table

STRESS = experiments.find("06-stress-test")


def record(dataset="mnist", epochs=30, seed=0) -> Record:
    return Record(experiments.STRESS.run(experiments.SGD, dataset, epochs, seed), "finished", {}, [], None, {})


def test_a_data_set_that_is_asked_for_leaves_out_the_arms_that_keep_to_others(capsys):
    assert main(["report", "16-beyond-mnist-every", "--only", "--dataset", "digits"]) == 0
    said = capsys.readouterr().out
    assert "digits" in said
    assert "Crop" not in said
    assert main(["report", "16-beyond-mnist-every", "--only", "--dataset", "breast-cancer"]) == 2
    assert 'keeps to, california-housing, crop, digits, mnist, got "breast-cancer"' in capsys.readouterr().err
    many = experiments.find("16-beyond-mnist")
    assert {run.dataset for run in many.taking("crop").runs("crop")} == {"crop"}
    assert STRESS.taking("digits") == STRESS


def test_a_search_is_told_trial_by_trial():
    """Seeds are what is averaged; trials are what is chosen from."""
    search = experiments.find("16-beyond-mnist-search").taking("digits")
    runs = search.runs("digits")
    rows = report.rows(search, [record for record in workspace.published_records() if record.run in runs])
    assert len(rows) == len(runs)
    assert {row["n"] + row["diverged"] for row in rows} == {1}
    assert "digits, 15 % noise | SGD, constant, lr 0.001" in {row["optimizer"] for row in rows}


@pytest.mark.parametrize("name", ["06-stress-test", "08-kernel-evolution", "11-baselines-tuning", "09-controls-digits"])
def test_without_a_choice_it_is_what_the_page_reads(name, monkeypatch, tmp_path):
    monkeypatch.chdir(published_table().parent)
    records = open_store().records()
    monkeypatch.chdir(tmp_path)
    own = [record("digits", 2), record("mnist", 3), record("mnist", 30, seed=99)]
    page = Study("mnist", seeds=0, epochs=0, store="", jobs=1)(name)
    selected = select(experiments.find(name), [*own, *records])
    assert {r.run for r in selected.shown} == {r.run for r in page.records}
    assert selected.exact
    assert selected.note() is None


def test_what_else_there_is_takes_one_line():
    others = [record("digits", 2, seed) for seed in range(3)] + [record("mnist", 1)]
    told = select(STRESS, [record(), *others]).told_of_others()
    assert told == (
        "There are also records of digits with 2 epochs (3 runs), mnist with 1 epoch (1 run); "
        "--dataset, --epochs and --seeds choose."
    )
    assert select(STRESS, [record()]).told_of_others() is None


def test_data_set_epochs_and_seeds_choose():
    records = [record(), record("digits"), record("digits", 2), record("mnist", 30, seed=50)]
    assert select(STRESS, records, dataset="digits").shown == [records[1]]
    assert select(STRESS, records, dataset="digits", epochs=2).shown == [records[2]]
    assert select(STRESS, records, epochs=2, dataset="mnist").shown == []
    assert select(STRESS, records, seeds=range(51)).shown == [records[0], records[3]]


def test_what_was_left_open_gives_way_where_there_is_nothing_and_it_is_said():
    selected = select(STRESS, [record("digits", 5)])
    assert selected.shown == [record("digits", 5)]
    assert selected.note().endswith("shown are those of digits with 5 epochs (1 run)")
    selected = select(STRESS, [record("digits", 5), record("mnist", 4)])
    assert selected.shown == [record("mnist", 4)]
    assert select(STRESS, [record("digits", 5)], dataset="mnist").shown == []


def test_a_record_of_an_unknown_data_set_belongs_to_no_experiment():
    from dataclasses import replace

    strange = replace(record(), run=replace(record().run, dataset="cifar"))
    assert select(STRESS, [strange]).shown == []
    assert STRESS.label(strange.run) is None
    with pytest.raises(ValueError, match='got "minst"; did you mean mnist'):
        STRESS.runs("minst")


def test_seeds_that_only_tuned_are_neither_shown_nor_mentioned():
    published = workspace.published_records()
    baselines = experiments.find("11-baselines")
    seeds = {record.run.seed for record in published if baselines.label(record.run)}
    assert experiments.search.TUNING_SEED in seeds
    selected = select(baselines, published)
    assert {record.run.seed for record in selected.shown} == set(range(10))
    assert selected.told_of_others() is None
