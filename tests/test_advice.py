"""Advice is judged by the paired difference that it stands on, and by nothing else."""

import dataclasses

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text

from convopt.lab import advice, figures
from convopt.lab.advice import Advice
from convopt.lab.records import Record
from convopt.lab.report import Table
from convopt.lab.stats import Interval
from convopt.lab.study import Results

EVERY_PIECE = (*advice.OF_THE_PROPOSAL, *advice.OF_THIS_STUDY)
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


def test_the_figure_has_a_row_for_each_piece_about_accuracy_under_its_situation():
    slow = dataclasses.replace(SMOOTH, use=False, measure="seconds_per_epoch")
    figure = figures.verdicts(advice.judge([SMOOTH, slow], study_in_which(2), "judged"))
    plt.close(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["ConvolutionalSGD minus SGD", "wrong labels"]
    (dot,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
    assert dot.get_xdata()[0] == pytest.approx(2, rel=0.1)


def confirmed(pieces):
    """A table as ``judge`` makes it, without studies."""
    return Table(
        pd.DataFrame(
            {
                "situation": piece.situation,
                "difference": f"{piece.treatment} minus {piece.control}",
                "measure": "final acc. (%)",
                "measured": Interval(1.0, 0.5, 1.5),
                "verdict": "confirmed",
            }
            for piece in pieces
        ),
        "judged",
    )


def test_a_row_of_the_figure_names_once_what_both_arms_have():
    pieces = [piece for piece in advice.OF_THIS_STUDY if piece.experiment == "15-factorial"]
    figure = figures.verdicts(confirmed(pieces))
    plt.close(figure)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == len(pieces) + 1
    assert texts.count(advice.TUNED) == 1
    assert "SGD, cosine: Wiener filter minus raw gradient" in texts
    assert "AdamW, raw gradient: SNRAnnealing minus constant" in texts


@pytest.mark.parametrize("pieces", [advice.OF_THE_PROPOSAL, advice.OF_THIS_STUDY])
def test_the_figure_is_legible_on_a_telephone(pieces):
    """No text is below 9 pixels where the figure is 358 wide, and none sticks out."""
    figure = figures.verdicts(confirmed(pieces))
    width = figure.get_tightbbox().width + 2 * plt.rcParams["savefig.pad_inches"]
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) / 72 / width * 358 >= 9
    assert width < figure.get_size_inches()[0] + 0.3
    plt.close(figure)
