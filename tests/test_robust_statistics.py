"""A gradient out of the ordinary leaves no trace in what is learnt; where there is no signal, steps shrink."""

import copy
import math
from functools import cache

import pytest
import torch
from subjects import LEARN_NOTHING, SUBJECTS, assert_same, gradients, groups_of, new_params, train
from torch import nn

from convopt import ConvolutionalSGDv2, LocalLossConvSGD, SNRAnnealing, WienerSGD

ODD = {
    "nan": lambda grad: grad.clone().index_put_((torch.tensor(0),), torch.tensor(math.nan)),
    "inf": lambda grad: grad.clone().index_put_((torch.tensor(0),), torch.tensor(math.inf)),
    "a thousandfold": lambda grad: 1000 * grad,
}


# An average of weights follows the weights, whose optimizer remembers an odd gradient and has a scale of its own.
NOT_OF_GRADIENTS = ("WeightAveraging", *(cls.__name__ for cls in LEARN_NOTHING))
OF_GRADIENTS = [name for name in SUBJECTS if not name.startswith(NOT_OF_GRADIENTS)]
# FieldAdam counts the gradients that may teach, so that it fits its laws at other steps: see test_fields.py.
STEP_BY_STEP = [name for name in OF_GRADIENTS if name != "FieldAdam"]


def for_each(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [SUBJECTS[name] for name in names], ids=names)


def test_all_that_smooth_learn_something_but_laplacian_smoothing():
    """What follows would pass over one that does not tell it."""
    names = {cls.__name__ for cls in LEARN_NOTHING}
    assert names == {"LaplacianSmoothingSGD"}, "kernels(), snr() or learnt() tell it; name others here"


def learnt_after(make, when: int, change=lambda grad: grad, which: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """What is learnt from 80 gradients, of which ``change`` changes one; the weights are rolled back after it."""
    params, grads = new_params(), gradients(80)
    subject = make(groups_of(params), lr=1e-3)
    train(subject, params, grads[:when])
    kept = [p.detach().clone() for p in params]
    train(subject, params, [[change(grad) if i in which else grad for i, grad in enumerate(grads[when])]])
    for p, before in zip(params, kept, strict=True):
        p.data.copy_(before)
    train(subject, params, grads[when + 1 :])
    return subject.learnt()


learnt_without = cache(learnt_after)


@for_each(STEP_BY_STEP)
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("which", [(0, 1, 2), (0,), (2,)], ids=["of all parameters", "of a weight", "of a bias"])
@pytest.mark.parametrize("when", [40, 41, 43])  # of every four steps the first compares, the last is remembered
def test_one_odd_gradient_leaves_no_trace(make, odd, which, when):
    plain = learnt_without(make, when)
    assert plain
    for usual, after in zip(plain, learnt_after(make, when, odd, which), strict=True):
        assert after.isfinite().all()
        torch.testing.assert_close(after, usual, rtol=0.05, atol=0.02)


@for_each(OF_GRADIENTS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_what_is_learnt_does_not_depend_on_the_gradients_scale(make, scale):
    outcomes = []
    for by in (1.0, scale):
        params = new_params(torch.float64)
        options = {}
        optimizer = make(groups_of(params), lr=1e-3 / by).optimizer
        if isinstance(optimizer, LocalLossConvSGD):
            options = {"lambd": 0.0}  # lambda has the unit of 1 / gradient squared
        if isinstance(optimizer, ConvolutionalSGDv2):
            options = {"loss_weights": (0.5, 0.0, 0.2)}  # so has the second weight
        subject = make(groups_of(params), lr=1e-3 / by)
        for group in subject.optimizer.param_groups:
            group.update(options)
        train(subject, params, gradients(60, scale=by, dtype=torch.float64))
        outcomes.append(subject.learnt())
    assert outcomes[0]
    for plain, scaled in zip(*outcomes, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", [LocalLossConvSGD, ConvolutionalSGDv2])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_stay_on_the_simplex_at_any_scale(cls, scale, dtype):
    params = new_params(dtype)
    optimizer = cls(params)
    train(SUBJECTS[cls.__name__](params)._replace(optimizer=optimizer), params, gradients(30, scale=scale, dtype=dtype))
    for kernel in optimizer.kernels().values():
        assert (kernel >= 0).all()
        torch.testing.assert_close(kernel.sum(), torch.tensor(1.0))


def test_gradients_that_stay_a_thousandfold_become_usual():
    """As where the loss is scaled anew in mid-training."""
    p = nn.Parameter(torch.zeros(64))
    optimizer = torch.optim.SGD([p], lr=1e-9)
    annealing = SNRAnnealing(optimizer, warmup=5, ema=0.9)
    generator = torch.Generator().manual_seed(0)
    rhos = []
    for step in range(200):
        p.grad = torch.randn(64, generator=generator) + (step < 100)
        p.grad *= 1000 if step >= 100 else 1
        optimizer.step()
        rhos.append(annealing.rho())
    assert rhos[99] > 0.3
    assert rhos[105] == rhos[99]
    assert rhos[199] < 0.2


def annealed_sgd(p, lr):
    optimizer = torch.optim.SGD([p], lr=lr)
    return optimizer, SNRAnnealing(optimizer, warmup=50).factor


def wiener_sgd(p, lr):
    optimizer = WienerSGD([p], lr=lr, momentum=0.0, snr_annealing=True, warmup=50)
    return optimizer, lambda: optimizer.snr().factor


@pytest.mark.parametrize("make", [annealed_sgd, wiener_sgd])
class TestWithoutASignal:
    @pytest.mark.parametrize("size", [10, 1000, 100_000])
    def test_steps_shrink_where_gradients_are_noise(self, make, size):
        p = nn.Parameter(torch.zeros(size))
        optimizer, factor = make(p, 0.1)
        generator = torch.Generator().manual_seed(0)
        factors = []
        for _ in range(400):
            p.grad = torch.randn(size, generator=generator)
            optimizer.step()
            factors.append(factor())
        assert factors[:50] == [1.0] * 50
        assert sum(factors[100:]) / 300 < 0.7
        assert factors[-1] < 1

    def test_steps_shrink_where_the_rate_is_much_too_high_until_gradients_agree(self, make):
        """On a quadratic, beyond the largest stable step."""
        p = nn.Parameter(torch.ones(20, dtype=torch.float64))
        optimizer, factor = make(p, 1.999)
        factors = []
        for _ in range(300):
            p.grad = p.detach().clone()
            optimizer.step()
            factors.append(factor())
        assert min(factors) < 0.1
        assert p.abs().max() < 1

    def test_a_strong_signal_leaves_steps_as_they_are(self, make):
        p = nn.Parameter(torch.zeros(1000))
        optimizer, factor = make(p, 1e-6)
        signal = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        for _ in range(400):
            p.grad = signal + torch.randn(1000, generator=generator)
            optimizer.step()
            assert factor() == 1.0


def test_a_loss_that_is_not_finite_says_nothing():
    from convopt import ConvolutionalSGD

    kernels = []
    for odd in (None, math.nan, math.inf):
        p = nn.Parameter(torch.zeros(9))
        optimizer = ConvolutionalSGD([p], kernel_lr=0.05)
        for loss in (3.0, 2.0, *([] if odd is None else [odd]), 1.0):
            p.grad = torch.ones(9)
            optimizer.step(loss=loss)
        kernels.append(optimizer.kernels()["kernel"])
    assert_same(kernels[:1] * 2, kernels[1:])


def test_copies_keep_what_is_usual():
    params = new_params()
    subject = SUBJECTS["ConvolutionalSGDv2"](groups_of(params))
    train(subject, params, gradients(10))
    twin = copy.deepcopy(subject.optimizer)
    usual = [state["usual_power"] for state in subject.optimizer.state.values()]
    assert_same(usual, [state["usual_power"] for state in twin.state.values()])
    assert all(power.dtype == torch.float64 for power in usual)
