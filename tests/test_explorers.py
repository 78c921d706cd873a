"""A widget in JupyterLab redraws its figure when a control moves."""

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
    assert plt.get_fignums() == []
