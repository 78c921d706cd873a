"""Every optimizer agrees, to rounding, with a twin that is written to be read."""

from functools import lru_cache

import pytest
import torch
import twins
from optimizers import OURS, batches, convolutional_model
from torch import nn

import convopt
from convopt import spatial_param_groups


@lru_cache(maxsize=1)
def gradients() -> list[tuple[float, list[torch.Tensor]]]:
    """Losses and gradients of 500 steps: for half of the time a signal, smooth over the pixels, and noise throughout.

    Not those of a training by the optimizers themselves, which would make rounding grow.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [p.shape for p in convolutional_model().parameters()]
    signals = [torch.randn(shape[:1], generator=generator).view(-1, *[1] * (len(shape) - 1)) for shape in shapes]
    return [
        (
            torch.rand(1, generator=generator).item(),
            [
                (step < 250) * signal + torch.randn(shape, generator=generator)
                for signal, shape in zip(signals, shapes, strict=True)
            ],
        )
        for step in range(500)
    ]


def train(model: nn.Module, step) -> None:
    for loss, grads in gradients():
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = grad.clone()
        step(loss)


def assert_trained_alike(ours: nn.Module, theirs: nn.Module) -> None:
    for a, b, p in zip(ours.parameters(), theirs.parameters(), convolutional_model().parameters(), strict=True):
        moved = (b - p).abs().max().item()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * moved)


TWINNED = [name for name in OURS if hasattr(twins, f"{name}Twin")]
WIENER = ["WienerSGD", "WienerAdamW"]


def test_all_have_a_twin_but_field_adam():
    """Its steps are tested against formulas in test_fields.py."""
    without = OURS.keys() - set(TWINNED)
    assert without == {"FieldAdam"}, "write a twin in tests/twins.py, or say here what it is tested against"


@pytest.mark.parametrize("name", [name for name in TWINNED if name not in WIENER])
def test_the_kernels(name):
    ours, theirs = (convolutional_model() for _ in range(2))
    optimizer = getattr(convopt, name)(ours.parameters(), lr=0.01)
    twin = getattr(twins, f"{name}Twin")(theirs.parameters(), lr=0.01)
    train(ours, lambda loss: optimizer.step(loss=loss))
    train(theirs, twin.step)
    assert_trained_alike(ours, theirs)


@pytest.mark.parametrize("name", WIENER)
def test_the_filter_and_the_annealing(name):
    ours, theirs = (convolutional_model() for _ in range(2))
    groups, _ = spatial_param_groups(ours, batches(1)[0][0])
    optimizer = getattr(convopt, name)(groups, snr_annealing=True)
    on_grid = {p for group in optimizer.param_groups if group["grid"] for p in group["params"]}
    grids = {b: (8, 8) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True) if a in on_grid}
    assert len(grids) == 1
    twin = getattr(twins, f"{name}Twin")(theirs.parameters(), grids)
    train(ours, lambda loss: optimizer.step())
    train(theirs, twin.step)
    assert optimizer.snr().factor == pytest.approx(twin.factor(), rel=1e-3)
    assert twin.factor() < 0.9
    assert_trained_alike(ours, theirs)
