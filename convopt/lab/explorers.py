"""Widgets for JupyterLab.

A figure is shown through an Image widget, not through ipywidgets' Output: executing a notebook with papermill now and
then waits for ever for a cell whose Output widget was written to (nbclient issue 312).
"""

from collections.abc import Callable
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from convopt.lab.figures import to_png


def explore(draw: Callable[..., Figure], description: str, **controls: ipywidgets.Widget) -> ipywidgets.Widget:
    """Controls above the figure that ``draw`` makes of their values, redrawn whenever one changes.

    Args:
        draw: takes the controls' values by name.
        description: what the figure shows, for readers who cannot see it.
        controls: widgets with a ``value``; their names become their labels.
    """
    image = ipywidgets.Image(format="png", tooltip=description, layout={"max_width": "100%"})

    def update(_: Any = None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        image.value = to_png(figure)
        plt.close(figure)

    for name, control in controls.items():
        control.description = name
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), image])
