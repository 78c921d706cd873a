"""Optimizers that smooth gradients, each a torch.optim.Optimizer, and what is attached to an optimizer."""

from convopt.optim.annealing import SNRAnnealing
from convopt.optim.averaging import WeightAveraging
from convopt.optim.conv_sgd import ConvolutionalSGD
from convopt.optim.conv_sgd_v2 import ConvolutionalSGDv2
from convopt.optim.fields import FieldAdam
from convopt.optim.grids import spatial_param_groups
from convopt.optim.laplacian import LaplacianSmoothingSGD
from convopt.optim.local_loss import LocalLossConvSGD
from convopt.optim.recorder import KernelRecorder
from convopt.optim.wiener import WienerAdamW, WienerSGD
from convopt.optim.wiener_filter import WienerFilter

__all__ = [
    "ConvolutionalSGD",
    "ConvolutionalSGDv2",
    "FieldAdam",
    "KernelRecorder",
    "LaplacianSmoothingSGD",
    "LocalLossConvSGD",
    "SNRAnnealing",
    "WeightAveraging",
    "WienerAdamW",
    "WienerFilter",
    "WienerSGD",
    "spatial_param_groups",
]
