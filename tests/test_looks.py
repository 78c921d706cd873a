"""A reader who has seen a method in one figure knows it in the next: each has one colour and one marker in all."""

import ast
import itertools
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from matplotlib.colors import to_hex

from convopt.lab import bench, experiments, figures, finding, probes, valley
from convopt.lab.experiments.factorial import GRADIENTS, INPUTS
from convopt.lab.figures import looks, style
from convopt.lab.records import Record
from convopt.lab.report import Table
from convopt.lab.stats import Interval
from convopt.lab.study import Results

OPTIONS_OF_ONE_METHOD = ("04-wiener-options", "04-wiener-constants")
"""Experiments whose arms are settings of WienerSGD: they are in no figure."""


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


def compared() -> set[str]:
    """All that the book's figures call a method."""
    arms = {
        arm.label
        for experiment in experiments.EXPERIMENTS.values()
        if not experiment.is_search
        and experiments.page_of(experiment.name) not in ("15-factorial", "16-beyond-mnist")
        and experiment.name not in OPTIONS_OF_ONE_METHOD
        for arm in experiment.arms
    }
    parts = {*GRADIENTS, *INPUTS, "SNRAnnealing"}
    return {*arms, *parts, *bench.OPTIMIZERS, *finding.METHODS.values(), *valley.OPTIMIZERS}


def test_no_two_methods_share_colour_and_marker():
    assert len(set(looks.METHODS.values())) == len(looks.METHODS)
    assert {look.hue for look in looks.METHODS.values()} <= looks.HUES.keys()
    assert {look.marker for look in looks.METHODS.values()} <= set(looks.MARKERS)


def test_every_method_of_the_book_has_one():
    assert {looks.SAME.get(name, name) for name in compared()} <= looks.METHODS.keys()
    assert set(looks.SAME.values()) <= looks.METHODS.keys()
    assert not looks.SAME.keys() & looks.METHODS.keys()


def test_a_method_that_the_book_does_not_know_gets_one_that_it_does_not_have():
    found = looks.looks(["mine", "SGD", "yours"])
    assert found["SGD"] == looks.METHODS["SGD"]
    assert len({*looks.METHODS.values(), *found.values()}) == len(looks.METHODS) + 2


def drawn_as_lines() -> dict[str, tuple[str, ...]]:
    """Methods that one figure tells apart by their colours, by where it is."""
    found = {
        name: tuple(dict.fromkeys(arm.label for arm in experiments.find(name).arms))
        for name in ("05-standard", "06-stress-test", "07-batch-size", "09-controls-label-noise", "10-adversarial")
    }
    for page in ("18-wiener-ablations", "06-stress-test"):
        cells = nbformat.read(ROOT / "notebooks" / f"{page}.ipynb", as_version=4).cells
        for i, cell in enumerate(cells):
            for labels in re.findall(r"^labels = (\(.*\))$", cell.source, re.MULTILINE):
                found[f"{page}, cell {i}"] = ast.literal_eval(labels)
    found["15-factorial"] = (*GRADIENTS, *INPUTS)
    return found


@pytest.mark.parametrize(("where", "methods"), drawn_as_lines().items())
def test_lines_of_one_figure_have_colours_that_differ(where, methods):
    assert len({look.hue for look in looks.looks(methods).values()}) == len(methods) > 2, where


METHODS = ("SGD", "ConvolutionalSGD", "WienerSGD")
STRESS = experiments.find("06-stress-test")


def some_results() -> Results:
    """Two seeds of each method at two batch sizes."""
    recipes = dict(zip(METHODS, (experiments.SGD, experiments.V1, experiments.WIENER_SGD), strict=True))
    settings = [replace(experiments.STRESS, batch_size=size) for size in (8, 16)]
    arms = tuple(experiments.Arm(label, recipe, setting) for setting in settings for label, recipe in recipes.items())
    experiment = replace(STRESS, arms=arms, claims=())
    curves = {
        name: [0.5, 0.6, 0.7] for name in ("test_accuracy", "validation_accuracy", "train_loss", "seconds_training")
    }
    records = [
        Record(run, "finished", {**curves, "gradient_norm": [1.0, 2.0, 1.0 + run.seed]}, [], 0.5, {})
        for run in experiment.runs("mnist", range(2), 3)
    ]
    return Results(experiment, records)


def marked(figure) -> set[tuple[str, str]]:
    """Colours and markers of all that has a marker."""
    lines = [line for axes in figure.axes for line in axes.lines if line.get_marker() not in ("None", "", None)]
    return {(to_hex(line.get_color()), line.get_marker()) for line in lines}


def of(*methods: str) -> set[tuple[str, str]]:
    return {(look.colour.lower(), look.marker) for look in looks.looks(methods).values()}


def interval(mean: float) -> Interval:
    return Interval(mean, mean - 1, mean + 1)


def differences() -> Table:
    named = [f"{method} minus Adam" for method in METHODS]
    return Table(pd.DataFrame({"difference": named, "final acc. (%)": list(map(interval, range(3)))}), "differences")


FIGURES = {
    "curves": lambda: figures.curves(some_results().where(batch_size=8).arms, ["test_accuracy"], ""),
    "dots": lambda: figures.dots(some_results().where(batch_size=8).arms, ["final"], ""),
    "race": lambda: figures.race(some_results().where(batch_size=8).arms, ""),
    "trends": lambda: figures.trends(some_results(), "batch_size", ["final"], ""),
    "searches": lambda: figures.searches(some_results(), ""),
    "table": lambda: figures.intervals(some_results().where(batch_size=8).table("final", "stability")),
    "table of two settings": lambda: figures.intervals(some_results().table("final")),
    "differences": lambda: figures.intervals(differences()),
    "growths": lambda: figures.growths({method: {1: 1.0, 2: 2.0} for method in METHODS}, "", ""),
    "histories": lambda: figures.histories(
        {method: {"step": [1, 2], "snr": [1, 2]} for method in METHODS}, {"snr": ""}
    ),
    "factorial": lambda: figures.factorial({("SGD", method, "cosine"): interval(1) for method in METHODS}, ""),
    "differences by case": lambda: figures.differences(
        {(method, "no label noise"): interval(1) for method in METHODS}, ""
    ),
}


def test_panels_that_are_left_over_are_hidden():
    three = {(base, "raw gradient", "cosine"): interval(1) for base in ("SGD", "AdamW", "Muon")}
    rows = {"a": {"truth": torch.ones(2, 2), "m": torch.zeros(2, 2)}, "b": {"truth": torch.ones(2, 2)}}
    drawn = figures.factorial(three, ""), figures.added(three, "", 2), figures.reconstructions(rows)
    assert [[axes.get_visible() for axes in figure.axes] for figure in drawn] == [[True, True, True, False]] * 3


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_draws_each_method_as_all_others_do(name):
    assert marked(FIGURES[name]()) == of(*METHODS)


@pytest.mark.parametrize("theme", looks.GROUNDS)
def test_the_readme_s_figure_draws_them_so_too(theme):
    figure = finding.draw({name: interval(90.0) for name in finding.METHODS}, theme)
    drawn = {(colour, marker) for colour, marker in marked(figure) if marker != "|"}  # the ends of the intervals
    expected = {(look.on(theme).lower(), look.marker) for look in looks.looks(finding.METHODS.values()).values()}
    assert drawn == expected


@pytest.mark.parametrize("theme", looks.GROUNDS)
def test_so_does_its_valley(theme):
    figure = valley.draw({name: np.zeros((3, 2)) for name in valley.OPTIMIZERS}, theme)
    expected = {(look.on(theme).lower(), look.marker) for look in looks.looks(valley.OPTIMIZERS).values()}
    assert marked(figure) == expected


def a_course() -> dict[str, list[dict[int, torch.Tensor]]]:
    return {"natural": [{4: torch.ones(8), 8: torch.full((8,), 0.5)}]}


EXPLORERS = {
    "01 kernel": lambda: figures.smoothing(torch.randn(64), "binomial", 5),
    "02 losses": lambda: figures.taps({"original": torch.ones(5) / 5, "cross": torch.eye(5)[2]}, ""),
    "03 batch size": lambda: figures.snr_of_batches(
        {noise: probes.fresh_gradients("digits", noise, 64) for noise in (0, 0.15, 0.3, 0.45)}, 0.15, 8, "digits"
    ),
    "03 falling SNR": lambda: figures.snr_tracking(probes.tracking(0.9), 0.9),
    "04 gain": lambda: figures.growing_gain(a_course(), 8),
    "06 race": lambda: figures.race({arm.label: [] for arm in STRESS.arms}, ""),
}


@pytest.mark.parametrize("name", EXPLORERS)
def test_no_two_roles_share_a_colour_in_an_explorer(name):
    roles: dict[str, set[str]] = {}
    for axes in EXPLORERS[name]().axes:
        for line in axes.lines:
            if not line.get_label().startswith("_"):
                roles.setdefault(line.get_label(), set()).add(to_hex(line.get_color()))
    assert len(roles) > 1
    assert all(len(colours) == 1 for colours in roles.values())
    assert len({colour for colours in roles.values() for colour in colours}) == len(roles)


SEEN = {
    "as most see it": np.eye(3),
    "without red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "without green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
"""Linear RGB as it is seen: Machado, Oliveira and Fernandes (2009), severity 1."""


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Where distances are about as large as differences look: 1 from black to white (Ottosson, 2020)."""
    to_lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return to_lab @ np.cbrt(to_lms @ rgb)


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("theme", looks.GROUNDS)
def test_colours_differ_for_colour_blind_readers_too(theme, eyes):
    shown = [looks.Look(hue, "o").on(theme) for hue in looks.HUES] + [looks.GROUNDS[theme]]
    seen = [oklab(np.clip(SEEN[eyes] @ linear(colour), 0, 1)) for colour in shown]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.07


def test_figures_take_their_colours_from_one_place():
    chosen = re.compile(r"#[0-9a-fA-F]{6}\b|[\"']C\d[\"']|tab:|prop_cycle")
    lab = ROOT / "convopt" / "lab"
    drawing = [*(lab / "figures").glob("*.py"), lab / "explorers.py", lab / "finding.py", lab / "valley.py"]
    drawing += (ROOT / "notebooks").glob("*.ipynb")
    assert [path.name for path in drawing if chosen.search(path.read_text())] == ["looks.py"]


def test_text_in_figures_is_legible():
    """Nine pixels and more where a figure is three quarters as large as it was drawn, as none is smaller on a page."""
    assert style.SMALLEST / 72 * style.DPI * 0.75 >= 9
    for module in (ROOT / "convopt" / "lab" / "figures").glob("*.py"):
        sizes = re.findall(r"fontsize=([\d.]+)", module.read_text())
        assert all(float(size) >= style.SMALLEST for size in sizes), module
        widths = re.findall(r"figsize=\(([\d.]+),", module.read_text())
        assert all(float(width) <= style.WIDEST for width in widths), module
