"""Figures that follow the reader's hand: widgets for JupyterLab, and sliders for pages that have no kernel behind them.

A widget's figure is an image in an HTML widget. Executing a notebook with papermill now and then waits for ever for a
cell whose Output widget was written to (nbclient issue 312), and an Image widget has no alternative text: its tooltip
keeps JupyterLab from showing it at all.
"""

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

from convopt.lab.figures import to_base64, to_html


def explore(draw: Callable[..., Figure], description: str, **controls: ipywidgets.Widget) -> ipywidgets.Widget:
    """Controls above the figure that ``draw`` makes of their values, redrawn whenever one changes.

    Args:
        draw: takes the controls' values by name.
        description: what the figure shows, for readers who cannot see it.
        controls: widgets with a ``value``; their names become their labels. Lists and fields for numbers, rather than
            ipywidgets' sliders, whose handles have no name for a screen reader.
    """
    image = ipywidgets.HTML()

    def update(_: Any = None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        image.value = to_html(figure, description).data
        plt.close(figure)

    for name, control in controls.items():
        control.description = name
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), image])


SHOW_FRAME = (
    "for (const [i, frame] of this.closest('figure').querySelectorAll('img').entries()) {"
    " frame.hidden = i != this.value;"
    " if (!frame.hidden) {"
    " this.nextElementSibling.value = frame.dataset.value;"
    " this.setAttribute('aria-valuetext', frame.dataset.value) } }"
)


def slider(draw: Callable[[Any], Figure], description: str, label: str, values: Sequence[Any], start: int = 0) -> HTML:
    """The figures that ``draw`` makes of each value, drawn beforehand, and a slider to choose among them.

    It needs no kernel, no widget library and no network, so it works in a page from any disk. Where scripts do not run,
    the figure of the first value shown stays.

    Args:
        draw: takes one value.
        description: what the figures show, for readers who cannot see them; the value is added.
        label: what the value is, beside the slider.
        values: at least one; an image each goes into the page.
        start: index of the value that is shown first.
    """
    frames = []
    for i, value in enumerate(values):
        figure = draw(value)
        alt = html.escape(f"{description}; {label} {value}")
        hidden = "" if i == start else " hidden"
        frames.append(
            f'<img src="data:image/png;base64,{to_base64(figure)}" alt="{alt}" data-value="{html.escape(str(value))}"'
            f' style="max-width: 100%"{hidden}>'
        )
        plt.close(figure)
    control = (
        f'<label>{html.escape(label)} <input type="range" min="0" max="{len(values) - 1}" value="{start}" '
        f'aria-valuetext="{html.escape(str(values[start]))}" autocomplete="off" oninput="{SHOW_FRAME}"> '
        f"<output>{html.escape(str(values[start]))}</output></label>"
    )
    style = "background: white; color: black"  # as the figures have, in the dark as well
    caption = f'<figcaption style="color: inherit">{control}</figcaption>'
    return HTML(f'<figure style="{style}">{"".join(frames)}{caption}</figure>')
