"""Draws the figure of README.md from the published records: ``python -m convopt.lab.finding FOLDER``."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from convopt.lab import experiments, workspace
from convopt.lab.correctness import accuracies
from convopt.lab.figures import looks
from convopt.lab.figures.style import to_png, to_svg
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

METHODS = {
    "constant rate, stopped in time": "SGD",
    "SNRAnnealing": "SGD + SNRAnnealing",
    "cosine": "SGD, cosine",
    "fixed kernel + cosine": "fixed kernel",
    "Wiener filter + cosine": "Wiener filter",
    "blurred inputs + cosine": "blurred inputs",
    "shifted inputs + cosine": "shifted inputs",
}
"""Whose colour and marker each of them has."""

OURS = ("SNRAnnealing", "fixed kernel + cosine", "Wiener filter + cosine")


def found() -> dict[str, Interval]:
    """The accuracy of each row on the confirmation images, in percent, over seeds and images."""
    experiment, published = experiments.find("15-factorial"), workspace.published()
    records = [record for run in experiment.runs() if (record := published.load(run)) is not None]
    arms = accuracies(Results(experiment, records).arms)
    return {name: arms[label] for name, label in ROWS.items()}


def draw(rows: dict[str, Interval], theme: str) -> Figure:
    """A marker with its interval for each row, ours filled, on one of ``looks.GROUNDS``."""
    ground, text = looks.GROUNDS[theme], looks.TEXT[theme]
    look_of = looks.looks(METHODS.values())
    figure, axes = plt.subplots(figsize=(7.2, 3.0), facecolor=ground, layout="constrained")
    axes.set_facecolor(ground)
    for place, (name, (mean, low, high)) in enumerate(rows.items()):
        look = look_of[METHODS[name]]
        drawn = {"fmt": look.marker, "color": look.on(theme)}
        drawn["markerfacecolor"] = look.on(theme) if name in OURS else ground
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], capsize=3, linewidth=2, **drawn)
        axes.annotate(f"{mean:.1f}", (high, place), xytext=(6, 0), textcoords="offset points", va="center", color=text)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.tick_params(colors=text)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(looks.QUIET)
    axes.set_xlabel("accuracy on 9000 confirmation images (%)", color=text)
    axes.set_title("MNIST, 15 % label noise, SGD: rate and epochs of each row tuned", color=text, fontsize=10)
    return figure


def main(folder: Path) -> None:
    """Write ``finding-light.svg`` and ``finding-dark.svg``, each with its numbers in its description.

    And ``finding.png``, which links to the book are shown with.
    """
    rows = found()
    for theme in looks.GROUNDS:
        told = json.dumps({name: [round(value, 2) for value in row] for name, row in rows.items()})
        to_svg(draw(rows, theme), folder / f"finding-{theme}.svg", told)
    (folder / "finding.png").write_bytes(to_png(draw(rows, "light")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
