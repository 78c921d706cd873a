"""Draws how optimizers fall into a noisy valley, for README.md: ``python -m convopt.lab.valley FOLDER``."""

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import SGD, Optimizer

from convopt import ConvolutionalSGD, SNRAnnealing
from convopt.lab.figures import looks
from convopt.lab.figures.style import to_svg
from convopt.theory.kernels import binomial

WEIGHTS, STEPS, LR, NOISE = 32, 300, 0.6, 0.2
"""Weights in a row, steps, learning rate, and the standard deviation of the noise in each element of a gradient."""

CURVATURE = 0.05
"""Along the smooth wave; 1 along all others."""

SETTLED = 100
"""The last steps, over which wandering is measured."""


def wave(half_periods: int) -> Tensor:
    """A cosine over the weights, of norm 1."""
    cosine = torch.cos(math.pi * half_periods * (torch.arange(WEIGHTS, dtype=torch.float64) + 0.5) / WEIGHTS)
    return cosine / cosine.norm()


SMOOTH, ROUGH = wave(1), wave(WEIGHTS // 2)


def _annealed(params: list[Tensor]) -> Optimizer:
    """With averages that suit so few steps."""
    optimizer = SGD(params, lr=LR)
    SNRAnnealing(optimizer, warmup=20, ema=0.98, every=1)
    return optimizer


OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "SGD": partial(SGD, lr=LR),
    "fixed kernel": partial(ConvolutionalSGD, lr=LR, momentum=0, kernel_size=5, kernel_lr=0, kernel_init=binomial(5)),
    "SNRAnnealing": _annealed,
}
"""By what the figures call the methods."""


def fall(make: Callable[[list[Tensor]], Optimizer]) -> np.ndarray:
    """Where the weights are before each step, along the smooth wave and the rough one: ``(STEPS, 2)``.

    All start from the same weights and get the same noise.
    """
    noise = torch.Generator().manual_seed(0)
    weights = (4 * SMOOTH + ROUGH).requires_grad_()
    optimizer = make([weights])
    path = []
    for _ in range(STEPS):
        at = weights.detach().clone()
        path.append([(at @ SMOOTH).item(), (at @ ROUGH).item()])
        slope = at + (CURVATURE - 1) * (at @ SMOOTH) * SMOOTH
        weights.grad = slope + NOISE * torch.randn(WEIGHTS, generator=noise, dtype=torch.float64)
        optimizer.step()
    return np.array(path)


def wandering(path: np.ndarray) -> list[float]:
    """Once it has settled, a path's standard deviation along the smooth wave and along the rough one."""
    return path[-SETTLED:].std(axis=0).round(3).tolist()


def draw(paths: dict[str, np.ndarray], theme: str) -> Figure:
    """A panel per method: its path over the valley's contours, on one of ``looks.GROUNDS``."""
    ground, text = looks.GROUNDS[theme], looks.TEXT[theme]
    figure, panels = plt.subplots(
        1, len(paths), figsize=(9, 2.6), sharex=True, sharey=True, facecolor=ground, layout="constrained"
    )
    smooth, rough = np.meshgrid(np.linspace(-2, 4.5, 90), np.linspace(-1, 1.4, 90))
    for (name, look), axes in zip(looks.looks(paths).items(), panels, strict=True):
        axes.set_facecolor(ground)
        loss = (CURVATURE * smooth**2 + rough**2) / 2
        axes.contour(smooth, rough, loss, levels=np.geomspace(0.01, 1, 6), colors=looks.QUIET, linewidths=0.5)
        axes.plot(*paths[name].T, color=look.on(theme), linewidth=0.9)
        axes.plot(*paths[name][-1], look.marker, color=look.on(theme), markeredgecolor=ground, markersize=9)
        axes.set_title(name, color=text, fontsize=10)
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_color(looks.QUIET)
    panels[0].set_ylabel("rough wave", color=text)
    figure.supxlabel("smooth wave", color=text, fontsize=10)
    return figure


def main(folder: Path) -> None:
    """Write ``valley-light.svg`` and ``valley-dark.svg``, each with how far each path wanders in its description."""
    paths = {name: fall(make) for name, make in OPTIMIZERS.items()}
    for theme in looks.GROUNDS:
        told = json.dumps({name: wandering(path) for name, path in paths.items()})
        to_svg(draw(paths, theme), folder / f"valley-{theme}.svg", told)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
