"""Gradient smoothing for deep learning: optimizers that convolve the gradient before the update."""

from convopt import optim
from convopt.optim import *  # noqa: F403

__version__ = "0.1.0"
__all__ = ["__version__"]
__all__ += optim.__all__
