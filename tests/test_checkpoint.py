"""Training resumed from a checkpoint is bit for bit the training that never stopped."""

import copy
import pickle

import pytest
import torch
from optimizers import batches, convolutional_model, for_each_optimizer, train
from subjects import assert_same, for_each_subject, gradients, groups_of, new_params
from subjects import train as train_on


def through_state_dict(model, optimizer, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    saved = torch.load(path, weights_only=True)
    fresh = convolutional_model(seed=99, dtype=next(model.parameters()).dtype)
    fresh.load_state_dict(saved["model"])
    resumed = type(optimizer)(fresh.parameters(), lr=0.5, kernel_init="gaussian")
    resumed.load_state_dict(saved["optimizer"])
    return fresh, resumed


def through_pickle(model, optimizer, tmp_path):
    return pickle.loads(pickle.dumps((model, optimizer)))


def through_deepcopy(model, optimizer, tmp_path):
    return copy.deepcopy((model, optimizer))


@for_each_optimizer
@pytest.mark.parametrize("way", [through_state_dict, through_pickle, through_deepcopy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_training_is_bit_identical(optimizer_class, way, dtype, tmp_path):
    data = batches(16, dtype=dtype)
    model = convolutional_model(dtype=dtype)
    options = {"lr": 0.02, "kernel_init": "uniform"}
    optimizer = optimizer_class(model.parameters(), **options)
    train(model, optimizer, data[:8])
    resumed_model, resumed = way(model, optimizer, tmp_path)
    train(model, optimizer, data[8:])
    train(resumed_model, resumed, data[8:])
    for p, q in zip(model.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(p, q)
    for (name, kernel), (other, resumed_kernel) in zip(
        optimizer.kernels().items(), resumed.kernels().items(), strict=True
    ):
        assert name == other
        assert kernel.dtype == resumed_kernel.dtype == torch.float32
        assert torch.equal(kernel, resumed_kernel)


@for_each_optimizer
def test_copies_do_not_share_kernels(optimizer_class):
    model = convolutional_model()
    optimizer = optimizer_class(model.parameters())
    train(model, optimizer, batches(5))
    _, twin = copy.deepcopy((model, optimizer))
    before = twin.kernels()
    train(model, optimizer, batches(20, seed=2))
    torch.testing.assert_close(twin.kernels(), before)
    groups = optimizer_class([{"params": [p]} for p in convolutional_model().parameters()]).param_groups
    shared = [value for value in groups[0].values() if isinstance(value, torch.Tensor)]
    assert not any(value is other for value in shared for other in groups[1].values())


@for_each_optimizer
def test_a_state_dict_can_be_loaded_before_the_first_step(optimizer_class):
    optimizer = optimizer_class(convolutional_model().parameters())
    before = optimizer.kernels()
    optimizer.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(optimizer.kernels(), before)


@for_each_subject
def test_rolled_back_it_takes_the_same_steps_again(make):
    params, grads = new_params(), gradients(40)
    subject = make(groups_of(params))
    train_on(subject, params, grads[:11])
    saved, start, ends = subject.saved(), [p.detach().clone() for p in params], []
    for _ in range(2):
        train_on(subject, params, grads[11:])
        ends.append([*(p.detach().clone() for p in params), *subject.learnt()])
        subject.load(saved)
        with torch.no_grad():
            for p, before in zip(params, start, strict=True):
                p.copy_(before)
    assert_same(*ends)
