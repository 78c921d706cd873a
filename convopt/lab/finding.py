"""Draws the figure of README.md from the published records: ``python -m convopt.lab.finding FOLDER``."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from convopt.lab import experiments, workspace
from convopt.lab.correctness import accuracies
from convopt.lab.stats import Interval
from convopt.lab.study import Results

ROWS = {
    "constant rate, stopped in time": "SGD, raw gradient, constant",
    "SNRAnnealing": "SGD, raw gradient, SNRAnnealing",
    "cosine": "SGD, raw gradient, cosine",
    "fixed kernel + cosine": "SGD, fixed kernel, cosine",
    "Wiener filter + cosine": "SGD, Wiener filter, cosine",
    "blurred inputs + cosine": "SGD, blurred inputs, cosine",
    "shifted inputs + cosine": "SGD, shifted inputs, cosine",
}
"""Arms of the factorial, by what the figure calls them."""

OURS = ("SNRAnnealing", "fixed kernel + cosine", "Wiener filter + cosine")

THEMES = {
    "light": {"background": "#ffffff", "text": "#1f2328", "ours": "#0072B2", "others": "#6e7781"},
    "dark": {"background": "#0d1117", "text": "#e6edf3", "ours": "#56B4E9", "others": "#9198a1"},
}
"""Colours by theme, those of GitHub's pages."""


def found() -> dict[str, Interval]:
    """The accuracy of each row on the confirmation images, in percent, over seeds and images."""
    experiment, published = experiments.find("15-factorial"), workspace.published()
    records = [record for run in experiment.runs() if (record := published.load(run)) is not None]
    arms = accuracies(Results(experiment, records).arms)
    return {name: arms[label] for name, label in ROWS.items()}


def draw(rows: dict[str, Interval], theme: str) -> Figure:
    """A dot with its interval for each row, ours in colour, in the colours of one of ``THEMES``."""
    look = THEMES[theme]
    figure, axes = plt.subplots(figsize=(7.2, 3.0), facecolor=look["background"], layout="constrained")
    axes.set_facecolor(look["background"])
    for place, (name, (mean, low, high)) in enumerate(rows.items()):
        colour = look["ours" if name in OURS else "others"]
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3)
        axes.annotate(
            f"{mean:.1f}", (high, place), xytext=(6, 0), textcoords="offset points", va="center", color=look["text"]
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.tick_params(colors=look["text"])
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(look["others"])
    axes.set_xlabel("accuracy on 9000 confirmation images (%)", color=look["text"])
    axes.set_title("MNIST, 15 % label noise, SGD: rate and epochs of each row tuned", color=look["text"], fontsize=10)
    return figure


def main(folder: Path) -> None:
    """Write ``finding-light.svg`` and ``finding-dark.svg``, each with its numbers in its description."""
    rows = found()
    for theme in THEMES:
        with plt.rc_context({"svg.hashsalt": "finding", "svg.fonttype": "none"}):
            figure = draw(rows, theme)
            description = json.dumps({name: [round(value, 2) for value in row] for name, row in rows.items()})
            figure.savefig(folder / f"finding-{theme}.svg", metadata={"Date": None, "Description": description})
            plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
