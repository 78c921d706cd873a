"""What the book's pages write from scratch agrees, to rounding, with the package."""

import nbformat
import numpy as np
import torch
import torch.nn.functional as F
from conftest import ROOT
from optimizers import convolutional_model
from scipy.fft import dctn, idctn
from test_twins import assert_trained_alike, train
from torch import nn

import convopt
from convopt.theory import kernels
from convopt.theory.spectrum import radial_bins


def on_page(page: str, cell: str, name: str):
    """What a cell of a notebook defines."""
    cells = nbformat.read(ROOT / "notebooks" / f"{page}.ipynb", as_version=4).cells
    (source,) = (each.source for each in cells if each.id == cell)
    names = {"torch": torch, "F": F, "np": np, "dctn": dctn, "idctn": idctn, "kernels": kernels}
    exec(source, names := {**names, "radial_bins": radial_bins})
    return names[name]


def test_the_kernel_that_page_01_writes_from_scratch():
    ours, theirs = (convolutional_model() for _ in range(2))
    optimizer = convopt.ConvolutionalSGD(ours.parameters(), lr=0.01)
    twin = on_page("01-idea", "01-scratch", "SmoothedSGD")(theirs.parameters(), lr=0.01)
    train(ours, lambda loss: optimizer.step(loss=loss))
    train(theirs, lambda loss: twin.step(lambda: torch.tensor(loss)))
    assert_trained_alike(ours, theirs)


def test_the_filter_that_page_04_writes_from_scratch():
    torch.manual_seed(0)
    weight, twin = (nn.Parameter(torch.zeros(32, 64)) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.0, "every": 1, "signal": "positive part", "noise_weight": 1.0}
    optimizer = convopt.WienerSGD([{"params": [weight], "grid": (8, 8)}], **options)
    scratch = on_page("04-wiener", "wiener-scratch", "FilterFromScratch")((8, 8))
    signal = 0.5 * (1 + torch.randn(32, 64))  # the optimizer leaves out frequencies with next to nothing in them
    for _ in range(100):
        weight.grad = signal + torch.randn(32, 64)
        twin.data -= 0.1 * scratch(weight.grad)
        optimizer.step()
    torch.testing.assert_close(weight, twin, rtol=0, atol=1e-4 * twin.abs().max().item())
    assert scratch.gain().max() > 2 * scratch.gain().min() > 0
