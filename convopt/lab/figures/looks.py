"""One colour and one marker for every method of the study, wherever it is drawn. No other module names a colour."""

from collections.abc import Iterable
from typing import NamedTuple

GROUNDS = {"light": "#ffffff", "dark": "#0d1117"}
"""What figures are drawn on, by theme: all of the book's are light, the README has both, GitHub's."""

TEXT = {"light": "#1f2328", "dark": "#e6edf3"}
"""What is written on them."""

HUES = {
    "ink": TEXT["light"],
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "pink": "#CC79A7",
    "blue": "#0072B2",
    "brown": "#8C564B",
}
"""Those of Okabe and Ito (2008), which colour-blind readers tell apart, with brown in the place of yellow, which is
invisible on white."""

MARKERS = "os^vDPX<>phd8*"

QUIET = "grey"
"""Of what is no method and no series: lines to compare with, axes, keys to markers."""


class Look(NamedTuple):
    """How something is drawn: the name of one of ``HUES`` and a marker of matplotlib."""

    hue: str
    marker: str

    @property
    def colour(self) -> str:
        """On the light ground, which all figures of the book have."""
        return self.on("light")

    def on(self, theme: str) -> str:
        """The colour on one of ``GROUNDS``: but for ink the same on all."""
        return TEXT[theme] if self.hue == "ink" else HUES[self.hue]


METHODS = {
    "SGD": Look("ink", "o"),
    "SGD, one cycle": Look("ink", "s"),
    "SGD, reduced on plateaus": Look("ink", "^"),
    "SGD, Pflug's test": Look("ink", "v"),
    "SGD, averaged weights": Look("ink", "D"),
    "SGD + WeightAveraging": Look("ink", "*"),
    "SGD, label smoothing": Look("ink", "P"),
    "SGD, generalised cross-entropy": Look("ink", "X"),
    "SGD at v1's step": Look("ink", "<"),
    "SGD at v2's step": Look("ink", ">"),
    "SGD, another seed's factor": Look("ink", "h"),
    "SGD, clean labels, cosine, tuned": Look("ink", "p"),
    "Adam": Look("orange", "s"),
    "AdamW": Look("orange", "o"),
    "NAdam": Look("orange", "^"),
    "Adam, cosine": Look("orange", "D"),
    "AdamW, cosine": Look("orange", "v"),
    "AdamW + WeightAveraging": Look("orange", "*"),
    "blurred inputs": Look("orange", "X"),
    "LocalLossConvSGD": Look("sky", "v"),
    "WienerSGD without annealing": Look("sky", "s"),
    "WienerSGD without annealing, 3x3 kernels too": Look("sky", "D"),
    "ConvolutionalSGD": Look("green", "^"),
    "ConvolutionalSGD, first layer only": Look("green", "<"),
    "ConvolutionalSGD, other layers only": Look("green", ">"),
    "ConvolutionalSGD at SGD's step": Look("green", "v"),
    "SGD + SNRAnnealing": Look("green", "D"),
    "SGD + SNRAnnealing per layer": Look("green", "d"),
    "LaplacianSmoothingSGD + SNRAnnealing": Look("green", "p"),
    "SAM + SNRAnnealing": Look("green", "h"),
    "ConvolutionalSGD + SNRAnnealing": Look("green", "P"),
    "ConvolutionalSGDv2 (uniform)": Look("vermillion", "D"),
    "fixed kernel": Look("vermillion", "^"),
    "binomial 3x3": Look("vermillion", "<"),
    "binomial 7x7": Look("vermillion", "v"),
    "binomial 15x15": Look("vermillion", ">"),
    "uniform 5x5 (not PSD)": Look("vermillion", "X"),
    "Adam + SNRAnnealing": Look("vermillion", "s"),
    "Adam + SNRAnnealing per layer": Look("vermillion", "d"),
    "AdamW + SNRAnnealing": Look("vermillion", "o"),
    "Muon + SNRAnnealing": Look("vermillion", "P"),
    "Grokfast + SNRAnnealing": Look("vermillion", "p"),
    "Lion + SNRAnnealing": Look("vermillion", "h"),
    "AdEMAMix + SNRAnnealing": Look("vermillion", "8"),
    "Schedule-free AdamW + SNRAnnealing": Look("vermillion", "*"),
    "ConvolutionalSGDv2 (uniform, three-part loss)": Look("pink", "X"),
    "WienerAdamW": Look("pink", "<"),
    "shifted inputs": Look("pink", "D"),
    "WienerSGD": Look("blue", ">"),
    "WienerSGD, another seed's factor": Look("blue", "v"),
    "WienerSGD, 3x3 kernels too": Look("blue", "D"),
    "AdamW + WienerFilter, cosine": Look("blue", "s"),
    "WienerFilter's default": Look("blue", "P"),
    "ConvolutionalSGDv2 (gaussian)": Look("brown", "P"),
    "SGD, cosine": Look("brown", "o"),
    "Adam, cosine, tuned": Look("brown", "s"),
    "LaplacianSmoothingSGD": Look("brown", "^"),
    "Muon": Look("brown", "v"),
    "Grokfast": Look("brown", "X"),
    "Lion": Look("brown", "<"),
    "SAM": Look("brown", ">"),
    "AdEMAMix": Look("brown", "h"),
    "FieldAdam": Look("blue", "o"),
    "width chosen by held-out data": Look("orange", "P"),
    "one fixed width everywhere": Look("green", "8"),
    "total variation, weight chosen by held-out data": Look("brown", "d"),
    "Schedule-free SGD": Look("brown", "p"),
    "Schedule-free AdamW": Look("brown", "*"),
}
"""The methods of the book's figures. What is drawn as lines in one figure has colours that differ."""

SAME = {
    "ConvolutionalSGDv2": "ConvolutionalSGDv2 (gaussian)",
    "raw gradient": "SGD",
    "Wiener filter": "WienerSGD without annealing",
    "SNRAnnealing": "SGD + SNRAnnealing",
}
"""Further names of some: where only a part of the method is named, or a default is left out."""


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """The look of each method; one that the book does not know gets one that no method of the book has."""
    taken = set(METHODS.values())
    free = (look for marker in MARKERS for hue in HUES if (look := Look(hue, marker)) not in taken)
    known = {name: METHODS.get(SAME.get(name, name)) for name in methods}
    return {name: look or next(free) for name, look in known.items()}


def series(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label, in order: of what is no method, such as estimates, kernels or networks."""
    hues = list(HUES)
    return {label: Look(hues[i % len(hues)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
