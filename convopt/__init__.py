"""Gradient smoothing for deep learning: optimizers that convolve the gradient before the update."""

from convopt.optim import ConvolutionalSGD, ConvolutionalSGDv2, KernelRecorder, LocalLossConvSGD, SNRAnnealing

__version__ = "0.1.0"
__all__ = [
    "ConvolutionalSGD",
    "ConvolutionalSGDv2",
    "KernelRecorder",
    "LocalLossConvSGD",
    "SNRAnnealing",
    "__version__",
]
