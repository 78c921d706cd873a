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

from convopt.lab.figures import to_html, to_url


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


PLAY = (
    "const slider = this.parentElement.querySelector('input');"
    " const show = () => slider.dispatchEvent(new Event('input'));"
    " const stop = () => { clearInterval(this.timer); this.timer = 0; this.textContent = 'Play' };"
    " if (this.timer) return stop();"
    " if (slider.value == slider.max) slider.value = slider.min;"
    " show(); this.textContent = 'Pause';"
    " this.timer = setInterval(() => { slider.stepUp(); show(); if (slider.value == slider.max) stop() }, 700);"
)


def slider(draw: Callable[[Any], Figure], description: str, label: str, values: Sequence[Any]) -> HTML:
    """The figures that ``draw`` makes of each value, drawn beforehand, with a slider to choose and a button to play.

    It needs no kernel, no widget library and no network, so it works in a page from any disk. It opens on the last
    figure, which stays where scripts do not run, and moves only when it is told to. Figures are as wide as the page.

    Args:
        draw: takes one value.
        description: what the figures show, for readers who cannot see them; the value is added.
        label: what the value is, beside the slider.
        values: at least one; an image each goes into the page.
    """
    frames, last = [], len(values) - 1
    for i, value in enumerate(values):
        figure = draw(value)
        alt = html.escape(f"{description}; {label} {value}")
        hidden = "" if i == last else " hidden"
        frames.append(
            f'<img src="{to_url(figure)}" alt="{alt}" data-value="{html.escape(str(value))}"'
            f' style="width: 100%"{hidden}>'
        )
        plt.close(figure)
    shown = html.escape(str(values[last]))
    control = (
        f'<button type="button" onclick="{PLAY}">Play</button> '
        f'<label>{html.escape(label)} <input type="range" min="0" max="{last}" value="{last}" '
        f'aria-valuetext="{shown}" autocomplete="off" oninput="{SHOW_FRAME}"> '
        f"<output>{shown}</output></label>"
    )
    style = "margin: 0; background: white; color: black"  # as the figures have, in the dark as well
    caption = f'<figcaption style="color: inherit">{control}</figcaption>'
    return HTML(f'<figure style="{style}">{caption}{"".join(frames)}</figure>')
