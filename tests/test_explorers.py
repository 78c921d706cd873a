"""Figures follow the reader: a widget redraws in JupyterLab, a slider in the page shows what was drawn before."""

import re
import threading
from dataclasses import replace

import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch

from convopt.lab import experiments, explorers, figures, race, training


@pytest.fixture(autouse=True)
def no_figure_of_another_test():
    """Figures belong to the process: what a test before has left open is none of the explorers'."""
    plt.close("all")


def test_moving_a_control_redraws_the_figure_and_leaves_none_open():
    gradient = torch.randn(64, generator=torch.Generator().manual_seed(0))
    explorer = explorers.explore(
        lambda kernel, taps: figures.smoothing(gradient, kernel, taps),
        "a gradient before and after smoothing",
        kernel=ipywidgets.Dropdown(options=["uniform", "binomial"]),
        taps=ipywidgets.Dropdown(options=range(1, 16, 2), value=5),
    )
    controls, image = explorer.children
    kernel, taps = controls.children
    seen = [image.value]
    kernel.value = "binomial"
    seen.append(image.value)
    taps.value = 9
    seen.append(image.value)
    assert all(re.match('<img src="data:image/png;base64,.*" alt="a gradient before', value) for value in seen)
    assert len(set(seen)) == 3
    assert (kernel.description, taps.description) == ("kernel", "taps")
    assert not plt.get_fignums()


def test_the_slider_holds_an_image_per_value_and_shows_the_last():
    def draw(value):
        figure, axes = plt.subplots()
        axes.set_title(str(value))
        return figure

    page = explorers.slider(draw, 'a "bell"', "taps", [1, 3, 5]).data
    images = re.findall(r"<img [^>]*>", page)
    assert [re.search(r'data-value="(\d)"', image)[1] for image in images] == ["1", "3", "5"]
    assert len({re.search(r"base64,(\S+)", image)[1] for image in images}) == 3
    assert [image.endswith("hidden>") for image in images] == [True, True, False]
    assert "a &quot;bell&quot;; taps 3" in images[1]
    assert 'max="2" value="2"' in page
    assert "<output>5</output>" in page
    assert 'aria-valuetext="5"' in page
    assert "http" not in page
    assert not plt.get_fignums()


RECIPES = {"SGD": experiments.SGD, "Adam": experiments.ADAM}
SMALL = replace(experiments.STRESS, n_train=80, epochs=2)


@pytest.fixture
def racing():
    """A race on a few of the digits, over when the test is."""
    racing = race.Race(RECIPES, SMALL)
    yield racing
    racing.stop.click()
    racing.wait(60)


def buttons(racing) -> tuple[bool, bool]:
    """Whether start and stop can be clicked."""
    return not racing.start.disabled, not racing.stop.disabled


def follow(racing) -> list[str]:
    """The images that the race will show, as they come."""
    images = []
    racing.image.observe(lambda change: images.append(change.new), names="value")
    return images


def wait_for(racing, **state) -> None:
    """Until one widget of the race has this value."""
    ((name, value),) = state.items()
    reached = threading.Event()
    widget = getattr(racing, name)
    widget.observe(lambda change: change.new == value and reached.set(), names="value")
    assert widget.value == value or reached.wait(60)


def test_a_race_trains_nothing_until_it_is_started():
    threads = threading.active_count()
    racing = race.Race(RECIPES, SMALL)
    racing.wait(0)
    assert threading.active_count() == threads
    assert buttons(racing) == (True, False)
    assert racing.image.value.startswith("<img")


def test_a_race_trains_as_chosen_and_shows_what_comes_of_it(racing, monkeypatch):
    monkeypatch.setattr(race, "SECONDS_PER_FRAME", 0)
    racing.label_noise.value, racing.batch_size.value, racing.epochs.value = 0.3, 4, 3
    racing.optimizers["SGD"].value = False
    images = follow(racing)
    racing.start.click()
    racing.wait(60)
    assert racing.status.value == "Finished."
    assert buttons(racing) == (True, False)
    assert racing.progress.value == racing.progress.max == 3
    assert len(set(images)) == 3
    run = replace(SMALL, label_noise=0.3, batch_size=4).run(experiments.ADAM, "digits", 3, seed=0)
    alone = figures.race({"Adam": [training.train(run)]}, "digits, batch 4, 30 % label noise")
    assert figures.to_url(alone) in images[-1]


def test_the_optimizers_take_turns():
    runs = {label: SMALL.run(recipe, "digits", None, seed=0) for label, recipe in RECIPES.items()}
    lengths = [[len(record.kernels) - 1 for record in records.values()] for records in race.in_turns(runs)]
    assert lengths == [[1], [1, 1], [2, 1], [2, 2]]


def test_a_race_stops_after_the_epoch_at_hand_and_can_start_again(racing):
    racing.epochs.value = 100
    racing.start.click()
    assert buttons(racing) == (False, True)
    racing.start.click()  # no second one beside it
    wait_for(racing, progress=2)
    racing.stop.click()
    racing.wait(60)
    assert racing.status.value == "Stopped."
    assert buttons(racing) == (True, False)
    assert 2 <= racing.progress.value < racing.progress.max == 200
    racing.epochs.value, racing.optimizers["SGD"].value = 2, False
    racing.start.click()
    racing.wait(60)
    assert racing.status.value == "Finished."
    assert racing.progress.value == racing.progress.max == 2


def test_a_race_says_what_is_wrong(racing):
    racing.batch_size.value = 100
    racing.start.click()
    racing.wait(60)
    assert racing.status.value == "ValueError: batch_size 100 exceeds the 80 training inputs"
    assert buttons(racing) == (True, False)
    for box in racing.optimizers.values():
        box.value = False
    racing.start.click()
    assert racing.status.value == "Choose an optimizer."
    assert buttons(racing) == (True, False)


def test_an_optimizer_that_diverges_drops_out_of_the_race():
    wild = experiments.with_options(experiments.SGD, lr=1e6)
    racing = race.Race({"Adam": experiments.ADAM, "wild": wild}, SMALL)
    racing.start.click()
    racing.wait(60)
    assert racing.status.value == "Finished. wild diverged."


def test_frames_of_a_race_compare(racing):
    run = SMALL.run(experiments.SGD, "digits", 4, seed=0)
    arms = {"SGD": [training.train(run)]}
    frames = [figures.race(arms, "digits", epoch) for epoch in (1, 4)]
    limits = [[(axes.get_xlim(), axes.get_ylim()) for axes in frame.axes] for frame in frames]
    assert limits[0] == limits[1]
    assert [len(frame.axes[0].lines[0].get_xdata()) for frame in frames] == [1, 4]
    assert not plt.get_fignums()
