"""Figures follow the reader: a widget redraws in JupyterLab, a slider in the page shows what was drawn before."""

import re

import ipywidgets
import matplotlib.pyplot as plt
import torch

from convopt.lab import explorers, figures


def test_moving_a_control_redraws_the_figure_and_leaves_none_open():
    gradient = torch.randn(64, generator=torch.Generator().manual_seed(0))
    explorer = explorers.explore(
        lambda kernel, taps: figures.smoothing(gradient, kernel, taps),
        "a gradient before and after smoothing",
        kernel=ipywidgets.Dropdown(options=["uniform", "binomial"]),
        taps=ipywidgets.IntSlider(5, 1, 15, 2),
    )
    controls, image = explorer.children
    kernel, taps = controls.children
    seen = [bytes(image.value)]
    kernel.value = "binomial"
    seen.append(bytes(image.value))
    taps.value = 9
    seen.append(bytes(image.value))
    assert all(picture.startswith(b"\x89PNG") for picture in seen)
    assert len(set(seen)) == 3
    assert (kernel.description, taps.description) == ("kernel", "taps")
    assert not plt.get_fignums()


def test_the_slider_holds_a_picture_per_value_and_shows_the_one_it_starts_with():
    def draw(value):
        figure, axes = plt.subplots()
        axes.set_title(str(value))
        return figure

    page = explorers.slider(draw, 'a "bell"', "taps", [1, 3, 5], start=1).data
    pictures = re.findall(r"<img [^>]*>", page)
    assert [re.search(r'data-value="(\d)"', picture)[1] for picture in pictures] == ["1", "3", "5"]
    assert len({re.search(r"base64,(\S+)", picture)[1] for picture in pictures}) == 3
    assert [picture.endswith("hidden>") for picture in pictures] == [True, False, True]
    assert "a &quot;bell&quot;; taps 3" in pictures[1]
    assert 'max="2" value="1"' in page
    assert "<output>3</output>" in page
    assert "http" not in page
    assert not plt.get_fignums()
