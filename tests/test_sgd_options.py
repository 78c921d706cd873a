"""With a kernel that changes nothing, the smoothing optimizers are torch.optim.SGD, whatever its options."""

import itertools

import pytest
import torch
from optimizers import batches, convolutional_model, train
from torch.nn import Parameter

from convopt import ConvolutionalSGD, ConvolutionalSGDv2, LaplacianSmoothingSGD, LocalLossConvSGD
from convopt.optim import laplacian
from convopt.theory import _shifts

IDENTITIES = {
    "ConvolutionalSGD": lambda params, **options: ConvolutionalSGD(params, kernel_init="identity", **options),
    "LocalLossConvSGD": lambda params, **options: LocalLossConvSGD(params, kernel_init="identity", **options),
    "ConvolutionalSGDv2": lambda params, **options: ConvolutionalSGDv2(params, kernel_init="identity", **options),
    "LaplacianSmoothingSGD": lambda params, **options: LaplacianSmoothingSGD(params, sigma=1e-9, **options),
}
OPTIONS = [
    {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov, "maximize": maximize}
    for momentum, weight_decay, nesterov, maximize in itertools.product(
        (0, 0.9), (0, 0.1), (False, True), (False, True)
    )
    if momentum or not nesterov
]


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_steps_as_torch_s_sgd(name, options):
    models = [convolutional_model() for _ in range(2)]
    ours = IDENTITIES[name](models[0].parameters(), lr=0.01, **options)
    torch_s = torch.optim.SGD(models[1].parameters(), lr=0.01, **options)
    for x, y in batches(6):
        for model, optimizer in zip(models, (ours, torch_s), strict=True):
            train(model, optimizer, [(x, y)], with_loss=False)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [ConvolutionalSGD, LocalLossConvSGD, ConvolutionalSGDv2, LaplacianSmoothingSGD])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_large_parameters_step_piece_by_piece_as_they_would_at_once(make, options, monkeypatch):
    def trained() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(30, 20), (300,), (9, 8, 3, 3), (4, 6, 6, 7), (8, 9, 5)]
        params = [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        optimizer = make(params, lr=0.01, **options)
        for step in range(7):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step(loss=1.0 - 0.1 * step)
        return params

    whole = trained()
    monkeypatch.setattr(_shifts, "PIECE", 50)
    monkeypatch.setattr(laplacian, "PIECE", 50)
    torch.testing.assert_close(trained(), whole)


@pytest.mark.parametrize("make", [ConvolutionalSGD, LocalLossConvSGD, ConvolutionalSGDv2, LaplacianSmoothingSGD])
def test_weight_decay_is_not_smoothed(make):
    p = Parameter(torch.randn(9, 12))
    p.grad = torch.zeros(9, 12)
    before = p.detach().clone()
    make([p], lr=0.5, momentum=0, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), before * 0.95)


@pytest.mark.parametrize("make", [ConvolutionalSGD, LocalLossConvSGD, ConvolutionalSGDv2, LaplacianSmoothingSGD])
def test_maximising_is_minimising_the_negative(make):
    outcomes = []
    for sign in (1.0, -1.0):
        torch.manual_seed(0)
        p = Parameter(torch.randn(9, 12))
        optimizer = make([p], lr=0.01, maximize=sign > 0)
        for step in range(12):
            p.grad = sign * torch.randn(9, 12, generator=torch.Generator().manual_seed(step))
            optimizer.step(loss=sign * (step % 5))
        outcomes.append((p.detach(), optimizer.kernels() if hasattr(optimizer, "kernels") else {}))
    (up, kernels_up), (down, kernels_down) = outcomes
    torch.testing.assert_close(up, down)
    for name, kernel in kernels_up.items():
        torch.testing.assert_close(kernel, kernels_down[name])


@pytest.mark.parametrize("make", [ConvolutionalSGD, LocalLossConvSGD, ConvolutionalSGDv2, LaplacianSmoothingSGD])
def test_a_checkpoint_from_before_an_option_gets_its_default(make):
    p = Parameter(torch.randn(9, 12))
    optimizer = make([p])
    old = optimizer.state_dict()
    for name in ("weight_decay", "nesterov", "maximize"):
        del old["param_groups"][0][name]
    optimizer.load_state_dict(old)
    p.grad = torch.randn(9, 12)
    optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_bad_options_are_refused():
    p = Parameter(torch.zeros(9))
    with pytest.raises(ValueError, match="weight_decay"):
        ConvolutionalSGD([p], weight_decay=-1)
    with pytest.raises(ValueError, match="nesterov"):
        ConvolutionalSGD([p], momentum=0, nesterov=True)
