"""Advice is judged by the paired difference that it stands on, and by nothing else."""

import dataclasses
import re

import matplotlib.pyplot as plt
import pytest

from convopt.lab import advice, figures
from convopt.lab.advice import Advice
from convopt.lab.records import Record
from convopt.lab.study import Results

EVERY_PIECE = (*advice.OF_THE_FIRST_REPORT, *advice.OF_THIS_STUDY)
SMOOTH = Advice("wrong labels", True, "06-stress-test", "ConvolutionalSGD", "SGD")
"""Smoothing raises the final accuracy where labels are wrong."""


def study_in_which(treatment_gains: float, seeds: int = 10):
    """A study whose treatment arms end so many points above their controls, and take as many seconds more."""

    def results(experiment):
        records = []
        for seed in range(seeds):
            for label, recipe, setting, *_ in experiment.arms:
                gain = treatment_gains if label == SMOOTH.treatment else 0.0
                accuracy = 0.8 + 0.001 * seed + (0.01 + 0.0001 * seed) * gain
                curves = {"test_accuracy": [accuracy], "gradient_norm": [1.0], "seconds_training": [1 + gain]}
                records.append(Record(setting.run(recipe, "mnist", 1, seed), "finished", curves, [], None, {}))
        return Results(experiment, records)

    return lambda several: list(map(results, several))


def judged(*pieces, gain, seeds=10):
    return advice.judge(pieces, study_in_which(gain, seeds), "judged").frame


@pytest.mark.parametrize("piece", EVERY_PIECE, ids=lambda piece: f"{piece.situation}, {piece.treatment}")
def test_every_piece_stands_on_two_arms_in_one_setting(piece):
    arms = piece.comparison().arms
    assert sorted(arm.label for arm in arms) == sorted([piece.treatment, piece.control])
    assert len({dataclasses.replace(arm.setting, epochs=0) for arm in arms}) == 1
    assert len({arm.tuned for arm in arms}) == 1


@pytest.mark.parametrize(("gain", "to_use", "not_to_use"), [(2, "confirmed", "refuted"), (-2, "refuted", "confirmed")])
def test_advice_to_use_is_confirmed_by_a_gain_and_advice_not_to_by_a_loss(gain, to_use, not_to_use):
    frame = judged(SMOOTH, dataclasses.replace(SMOOTH, use=False), gain=gain)
    assert frame.verdict.tolist() == [to_use, not_to_use]
    assert frame.measured[0].mean == pytest.approx(gain, rel=0.1)


def test_no_difference_or_too_few_seeds_leave_it_undecided():
    assert judged(SMOOTH, gain=0).verdict.tolist() == ["undecided"]
    assert judged(SMOOTH, gain=2, seeds=4).verdict.tolist() == ["undecided"]


def test_taking_longer_speaks_against():
    slow = dataclasses.replace(SMOOTH, use=False, measure="seconds_per_epoch")
    assert judged(slow, gain=2).verdict.tolist() == ["confirmed"]


def test_more_pieces_on_one_experiment_need_more_evidence_and_those_on_another_do_not():
    (alone,) = judged(SMOOTH, gain=2)["p, Holm"]
    elsewhere = dataclasses.replace(SMOOTH, experiment="09-controls-layers")
    many = judged(*[SMOOTH] * 26, elsewhere, gain=2)
    assert many["p, Holm"].tolist() == pytest.approx([26 * alone] * 26 + [alone])
    assert many.verdict.tolist() == ["undecided"] * 26 + ["confirmed"]


def test_diverged_runs_leave_it_undecided():
    def diverged(experiment):
        runs = [setting.run(recipe, "mnist", 1, 0) for _, recipe, setting, *_ in experiment.arms]
        return Results(experiment, [Record(run, "diverged", {}, [], None, {}) for run in runs])

    assert advice.judge([SMOOTH], lambda several: list(map(diverged, several)), "judged").frame.verdict.tolist() == [
        "undecided"
    ]


def test_the_figure_has_a_row_for_each_piece_about_accuracy():
    slow = dataclasses.replace(SMOOTH, use=False, measure="seconds_per_epoch")
    figure = figures.verdicts(advice.judge([SMOOTH, slow], study_in_which(2), "judged"))
    plt.close(figure)
    (label,) = figure.axes[0].get_yticklabels()
    assert re.fullmatch("wrong labels: ConvolutionalSGD minus SGD", label.get_text())
