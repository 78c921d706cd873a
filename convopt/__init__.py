"""Gradient smoothing for deep learning: optimizers that convolve the gradient before the update."""

from convopt.optim import (
    ConvolutionalSGD,
    ConvolutionalSGDv2,
    KernelRecorder,
    LaplacianSmoothingSGD,
    LocalLossConvSGD,
    SNRAnnealing,
    WienerAdamW,
    WienerSGD,
    spatial_param_groups,
)

__version__ = "0.1.0"
__all__ = [
    "ConvolutionalSGD",
    "ConvolutionalSGDv2",
    "KernelRecorder",
    "LaplacianSmoothingSGD",
    "LocalLossConvSGD",
    "SNRAnnealing",
    "WienerAdamW",
    "WienerSGD",
    "__version__",
    "spatial_param_groups",
]
