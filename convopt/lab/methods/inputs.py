"""What is done to the inputs of a grid before the network sees them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from convopt.lab.methods.controls import blurred
from convopt.lab.methods.method import INPUTS, Grid


def _as_it_is(x: Tensor, *_: torch.Generator) -> Tensor:
    return x


class Inputs(NamedTuple):
    """Two transforms of inputs whose last axes are the grid.

    Attributes:
        everywhere: of all inputs, in training and where the network is judged.
        in_training: of each batch, with a generator of random numbers.
    """

    everywhere: Callable[[Tensor], Tensor] = _as_it_is
    in_training: Callable[[Tensor, torch.Generator], Tensor] = _as_it_is


def blur(grid: Grid, size: int) -> Inputs:
    """All inputs smoothed by the binomial kernel of ``size`` taps along each axis."""
    return Inputs(everywhere=lambda x: blurred(x, grid, size))


def shift(grid: Grid, pixels: int, flip: bool = False) -> Inputs:
    """In training, each input moved along each axis by up to ``pixels``; its border fills what is left empty.

    With ``flip`` each second one, by chance, is mirrored along its last axis before.
    """

    def moved(x: Tensor, generator: torch.Generator) -> Tensor:
        if flip:
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
        for axis, length in enumerate(grid, start=x.ndim - len(grid)):
            by = torch.randint(-pixels, pixels + 1, (len(x), 1), generator=generator)
            source = (torch.arange(length) + by).clamp(0, length - 1)
            index = source.view(len(x), *(length if other == axis else 1 for other in range(1, x.ndim)))
            x = x.gather(axis, index.expand_as(x))
        return x

    return Inputs(in_training=moved)


INPUTS |= {"blur": blur, "shift": shift}
