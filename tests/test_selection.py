"""A report shows what the page shows, and says what else there is."""

import pytest

from convopt.cli import main
from convopt.lab import experiments, report, workspace
from convopt.lab.runs import Run
from convopt.lab.selection import select
from convopt.lab.study import Study
from convopt.lab.workspace import open_store, published_table

STRESS = experiments.find("06-stress-test")


def run(dataset="mnist", epochs=30, seed=0) -> Run:
    return experiments.STRESS.run(experiments.SGD, dataset, epochs, seed)


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
    published = workspace.published()
    rows = report.rows(search, [record for each in runs if (record := published.load(each))])
    assert len(rows) == len(runs)
    assert {row["n"] + row["diverged"] for row in rows} == {1}
    assert "digits, 15 % noise | SGD, constant, lr 0.001" in {row["optimizer"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["06-stress-test", "08-kernel-evolution", "11-baselines-tuning", "09-controls-digits"])
def test_without_a_choice_it_is_what_the_page_reads(name, monkeypatch, tmp_path):
    monkeypatch.chdir(published_table().parent)
    recorded = open_store().runs()
    monkeypatch.chdir(tmp_path)
    own = [run("digits", 2), run("mnist", 3), run("mnist", 30, seed=99)]
    page = Study("mnist", seeds=0, epochs=0, store="", jobs=1)(name)
    selected = select(experiments.find(name), [*own, *recorded])
    assert set(selected.shown) == {record.run for record in page.records}
    assert selected.exact
    assert selected.note() is None


def test_what_else_there_is_takes_one_line():
    others = [run("digits", 2, seed) for seed in range(3)] + [run("mnist", 1)]
    told = select(STRESS, [run(), *others]).told_of_others()
    assert told == (
        "There are also records of digits with 2 epochs (3 runs), mnist with 1 epoch (1 run); "
        "--dataset, --epochs and --seeds choose."
    )
    assert select(STRESS, [run()]).told_of_others() is None


def test_data_set_epochs_and_seeds_choose():
    runs = [run(), run("digits"), run("digits", 2), run("mnist", 30, seed=50)]
    assert select(STRESS, runs, dataset="digits").shown == [runs[1]]
    assert select(STRESS, runs, dataset="digits", epochs=2).shown == [runs[2]]
    assert select(STRESS, runs, epochs=2, dataset="mnist").shown == []
    assert select(STRESS, runs, seeds=range(51)).shown == [runs[0], runs[3]]


def test_what_was_left_open_gives_way_where_there_is_nothing_and_it_is_said():
    selected = select(STRESS, [run("digits", 5)])
    assert selected.shown == [run("digits", 5)]
    assert selected.note().endswith("shown are those of digits with 5 epochs (1 run)")
    selected = select(STRESS, [run("digits", 5), run("mnist", 4)])
    assert selected.shown == [run("mnist", 4)]
    assert select(STRESS, [run("digits", 5)], dataset="mnist").shown == []


def test_a_record_of_an_unknown_data_set_belongs_to_no_experiment():
    from dataclasses import replace

    strange = replace(run(), dataset="cifar")
    assert select(STRESS, [strange]).shown == []
    assert STRESS.label(strange) is None
    with pytest.raises(ValueError, match='got "minst"; did you mean mnist'):
        STRESS.runs("minst")


def test_seeds_that_only_tuned_are_neither_shown_nor_mentioned():
    published = workspace.published().runs()
    baselines = experiments.find("11-baselines")
    seeds = {each.seed for each in published if baselines.label(each)}
    assert experiments.search.TUNING_SEED in seeds
    selected = select(baselines, published)
    assert {each.seed for each in selected.shown} == set(range(10))
    assert selected.told_of_others() is None
