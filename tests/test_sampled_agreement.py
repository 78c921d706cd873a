"""Of a large network SNRAnnealing compares a fixed random sample of the gradients, which tells the same for less."""

import copy
import gc
import pickle

import pytest
import torch
from digits import X, Y
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convopt import SNRAnnealing
from convopt.optim._agreement import products_of
from convopt.optim._compared import Sampled

SHAPES = [(40, 30), (30,), (7, 3, 5, 5), (), (50, 13)]
OPTIONS = {"warmup": 5, "ema": 0.9, "sample": 200}


def new_params(shapes=SHAPES, dtype=torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def gradients(steps: int, seed: int = 1) -> list[list[torch.Tensor]]:
    """A signal in noise, of another size in each parameter."""
    generator = torch.Generator().manual_seed(seed)
    signal = [size * torch.randn(shape, generator=generator) for size, shape in enumerate(SHAPES, 1)]
    return [[s + s.norm() * torch.randn(s.shape, generator=generator) for s in signal] for _ in range(steps)]


def train(optimizer, params, grads) -> None:
    for of_step in grads:
        for p, grad in zip(params, of_step, strict=True):
            p.grad = None if grad is None else torch.empty_like(p).copy_(grad)
        optimizer.step()


def new_training(**options):
    params = new_params()
    optimizer = torch.optim.SGD(params, lr=0.01)
    return params, optimizer, SNRAnnealing(optimizer, **{**OPTIONS, **options})


def estimate(params, first, second, size, seed) -> torch.Tensor:
    sampled = Sampled(params, size, seed)
    sampled.keep(sampled.look(dict(zip(params, first, strict=True))), True)
    return sampled.products(sampled.look(dict(zip(params, second, strict=True))))


@settings(max_examples=8)
@given(
    st.lists(st.sampled_from([(9, 16), (40, 5), (3, 67), (130,), (6, 2, 7, 7), (2,), ()]), min_size=2, max_size=5),
    st.integers(8, 100),
)
def test_both_averages_are_estimated_without_bias(shapes, size):
    params = new_params([(30, 16), *shapes], torch.float64)
    generator = torch.Generator().manual_seed(2)
    first, second = (
        [(i + 1.0) * torch.randn(p.shape, generator=generator, dtype=torch.float64) + 1 for i, p in enumerate(params)]
        for _ in range(2)
    )
    estimates = torch.stack([estimate(params, first, second, size, seed) for seed in range(100)])
    error = (estimates.mean(0) - products_of(second, first)).abs()
    assert (error <= 4.5 * estimates.std(0) / len(estimates) ** 0.5 + 1e-9).all()


def test_a_small_network_is_compared_as_a_whole():
    grads, outcomes = gradients(60), []
    for options in ({}, {"sample": None}, {"sample": 700}, {"sample": 200}):
        params, optimizer, annealing = new_training(**options)
        train(optimizer, params, grads)
        outcomes.append((annealing.factor(), "sample" in annealing.state_dict()))
    assert outcomes[0][1]
    assert outcomes[1] == outcomes[2]
    assert not outcomes[1][1]
    assert outcomes[0] == outcomes[3] != outcomes[1]


@pytest.mark.parametrize("every", [1, 3, 4])
@pytest.mark.parametrize("duplicate", ["checkpoint", "pickle", "deepcopy"])
def test_training_goes_on_bit_for_bit(every, duplicate):
    grads = gradients(80)
    params, optimizer, annealing = new_training(every=every)
    train(optimizer, params, grads[:42])
    if duplicate == "checkpoint":
        others, other, resumed = new_training(every=every)
        for p, q in zip(others, params, strict=True):
            p.data.copy_(q.detach())
        resumed.load_state_dict(copy.deepcopy(annealing.state_dict()))
    else:
        copied = pickle.loads(pickle.dumps(annealing)) if duplicate == "pickle" else copy.deepcopy(annealing)
        other, resumed = copied.optimizer, copied
        others = other.param_groups[0]["params"]
    for each, of_each in ((optimizer, params), (other, others)):
        train(each, of_each, grads[42:])
    assert resumed.rho() == annealing.rho()
    assert resumed.factor() == annealing.factor() < 1
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_a_checkpoint_of_all_gradients_goes_on_as_a_sample():
    params, optimizer, whole = new_training(sample=None)
    train(optimizer, params, gradients(20))
    saved = whole.state_dict()
    del saved["count"]  # as in checkpoints from before there were samples
    _, _, sampled = new_training(every=1)
    sampled.load_state_dict(saved)
    assert sampled.rho() == whole.rho()
    # The gradient of the last step is what the next one is compared with.
    previous = dict(zip(params, saved["previous"], strict=True))
    torch.testing.assert_close(sampled.state_dict()["sample"], Sampled(params, 200).look(previous).sample)


def test_a_sample_of_another_size_is_refused():
    *_, sampled = new_training()
    *_, smaller = new_training(sample=100)
    *_, whole = new_training(sample=None)
    before = whole.state_dict()["statistics"]
    with pytest.raises(ValueError, match="sample"):
        smaller.load_state_dict(sampled.state_dict())
    with pytest.raises(ValueError, match="sample"):
        whole.load_state_dict(sampled.state_dict())
    assert torch.equal(before, whole.state_dict()["statistics"])
    for options in ({"sample": 0}, {"every": 0}, {"sample": 0.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            new_training(**options)


@pytest.mark.parametrize("every", [1, 4])
def test_a_parameter_without_a_gradient_for_a_while_is_left_out(every):
    """As if it had never been there, where gradients are all signal."""
    params, optimizer, annealing = new_training(every=every)
    signal = gradients(1)[0]
    for missing in (range(0, 12), range(12, 24), range(0)):
        for step in range(24):
            train(optimizer, params, [[None if step in missing and i == 0 else g for i, g in enumerate(signal)]])
            assert annealing.rho() == pytest.approx(1, rel=1e-5) or (step < every and not missing.start)


def test_gradients_that_are_not_finite_or_far_too_large_teach_nothing():
    params, optimizer, annealing = new_training()
    grads = gradients(41)
    train(optimizer, params, grads[:40])  # the next step compares
    rho = annealing.rho()
    for value in (float("nan"), 1e30):
        train(optimizer, params, [[torch.full_like(g, value) for g in grads[40]]] * 4)
        assert annealing.rho() == rho
        for p, q in zip(params, new_params(), strict=True):
            p.data.copy_(q.detach())


def test_a_new_sample_is_drawn_when_parameters_are_added():
    params, optimizer, annealing = new_training()
    train(optimizer, params, gradients(20))
    rho, size = annealing.rho(), len(annealing.state_dict()["sample"])
    added = nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [added]})
    assert annealing.rho() == rho
    for _ in range(8):
        train(optimizer, [*params, added], [[*gradients(1)[0], torch.ones(3)]])
    assert annealing.rho() > rho
    assert size != len(annealing.state_dict()["sample"]) <= 200


def test_any_layout_and_precision_of_gradients_gives_the_same():
    rhos = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(torch.zeros(16, 8, 5, 5).to(memory_format=layout))
        half = nn.Parameter(torch.zeros(64, 16, dtype=torch.bfloat16))
        optimizer = torch.optim.SGD([p, half], lr=1e-3)
        annealing = SNRAnnealing(optimizer, sample=400)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            p.grad = torch.randn(p.shape, generator=generator) + 1
            half.grad = torch.ones_like(half)
            optimizer.step()
        rhos.append(annealing.rho())
    assert all(0.5 < rho < 0.75 for rho in rhos)


def test_it_takes_less_than_four_mib_whatever_the_network():
    params = [nn.Parameter(torch.zeros(1400, 1400)) for _ in range(2)]
    optimizer = torch.optim.SGD(params, lr=1e-3)
    for p in params:
        p.grad = torch.ones_like(p)
    before = bytes_of_tensors()
    SNRAnnealing(optimizer)
    for _ in range(5):
        optimizer.step()
    assert 2**20 < bytes_of_tensors() - before < 4 * 2**20


def bytes_of_tensors() -> int:
    gc.collect()
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in gc.get_objects() if is_tensor(each)}
    return sum(storage.nbytes() for storage in storages.values())


def is_tensor(each) -> bool:
    return type(each) in (torch.Tensor, nn.Parameter)


@pytest.mark.slow
def test_over_a_thousand_steps_of_training_it_is_within_two_percent_of_the_agreement_of_everything():
    model = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    exact = SNRAnnealing(adamw, sample=None, power=0.0, every=1)
    beside = torch.optim.SGD(model.parameters(), lr=1e-30)  # changes no parameter
    sampled = SNRAnnealing(beside, every=1)
    assert "sample" in sampled.state_dict()
    errors = []
    for _ in range(1000):
        batch = torch.randint(len(X), (16,))
        adamw.zero_grad()
        nn.functional.cross_entropy(model(X[batch]), Y[batch]).backward()
        beside.step()
        adamw.step()
        errors.append(sampled.rho() / exact.rho() - 1)
    assert torch.tensor(errors[100:]).square().mean().sqrt() < 0.02
    assert exact.rho() < 0.5


def test_parameters_that_take_the_place_of_others_are_compared():
    params, optimizer, annealing = new_training(every=1)
    train(optimizer, params, gradients(20))
    others = new_params()
    del optimizer.param_groups[:]
    optimizer.add_param_group({"params": others, "lr": 0.01})
    before = annealing.state_dict()["statistics"]
    train(optimizer, others, gradients(20, seed=2))
    assert not torch.equal(annealing.state_dict()["statistics"], before)
    assert annealing.state_dict()["sample"].any()


@pytest.mark.parametrize("sample", [None, 200])
def test_a_gradient_of_zeros_is_compared_after_a_checkpoint_as_without(sample):
    grads = gradients(12)
    grads[5] = [torch.zeros_like(grad) if i == 2 else grad for i, grad in enumerate(grads[5])]
    rhos = []
    for stops in (False, True):
        params, optimizer, annealing = new_training(sample=sample, every=1)
        train(optimizer, params, grads[:6])
        if stops:
            saved = annealing.state_dict()
            annealing.detach()
            annealing = SNRAnnealing(optimizer, **{**OPTIONS, "sample": sample, "every": 1})
            annealing.load_state_dict(saved)
        train(optimizer, params, grads[6:])
        rhos.append(annealing.rho())
    assert rhos[0] == rhos[1]
