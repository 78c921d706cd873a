"""Whatever surrounds a step, it is the step: default dtype and device, autocast, inference mode, threads."""

import contextlib
import threading

import pytest
import torch
from subjects import LEARN_NOTHING, Subject, assert_same, for_each_subject, gradients, groups_of, new_params, train
from surroundings import SURROUNDINGS, forget_constants
from torch._subclasses.fake_tensor import FakeTensorMode

EACH = {**SURROUNDINGS, "gradients enabled": torch.enable_grad}


@for_each_subject
@pytest.mark.parametrize("surrounding", EACH.values(), ids=EACH.keys())
def test_steps_are_the_same_in_any_surrounding(make, surrounding):
    if surrounding is torch.inference_mode and make(groups_of(new_params())).attached is not None:
        pytest.skip("torch's own optimizers cannot go on with state that was made in inference mode")
    if not torchs_own_can(make, surrounding):
        pytest.skip("the optimizer around which it is cannot do it")
    outcomes = []
    for around in (contextlib.nullcontext, surrounding):
        params = new_params()
        with contextlib.nullcontext() if around is torch.inference_mode else around():
            subject = make(groups_of(params))
        grads = gradients(16)
        with around():
            train(subject, params, grads[:12])
        # What was made inside has to serve outside, too.
        train(subject, params, grads[12:])
        outcomes.append((params, subject.learnt()))
    (plain, learnt), (surrounded, learnt_there) = outcomes
    assert learnt or isinstance(subject.optimizer, LEARN_NOTHING)
    assert_same(plain, surrounded)
    assert_same(learnt, learnt_there)


def torchs_own_can(make, surrounding) -> bool:
    """Whether the optimizer that something is attached to makes a step there without it; True for ours."""
    subject = make(groups_of(new_params()))
    params = new_params()
    if subject.attached is None:
        return True
    optimizer = type(subject.optimizer)(params, lr=0.01)
    try:
        with surrounding():
            train(Subject(optimizer, True), params, gradients(2))
    except RuntimeError:
        return False
    return True


@for_each_subject
def test_optimizers_in_several_threads_do_not_meet(make):
    alone = new_params()
    train(make(groups_of(alone)), alone, gradients(20))
    outcomes = [new_params() for _ in range(4)]

    def work(params):
        train(make(groups_of(params)), params, gradients(20))

    threads = [threading.Thread(target=work, args=(params,)) for params in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for params in outcomes:
        assert_same(alone, params)


@for_each_subject
def test_a_closure_sees_the_surroundings_of_its_caller(make):
    params = new_params()
    subject, grads, seen = make(groups_of(params)), gradients(1)[0], []

    def closure():
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        return 1.0

    with torch.autocast("cpu", torch.bfloat16):
        subject.optimizer.step(closure)
    assert seen == [(True, True)]


@for_each_subject
def test_a_rehearsal_with_fake_tensors_leaves_real_steps_alone(make):
    """As tools do that estimate memory."""

    def trained(make):
        params = new_params()
        subject = make(groups_of(params))
        train(subject, params, gradients(6))
        return [*params, *subject.learnt()]

    undisturbed = trained(make)
    forget_constants()
    with contextlib.suppress(Exception), FakeTensorMode():
        # Some read values, which fake tensors do not have.
        params = new_params()
        train(make(groups_of(params)), params, gradients(1))
    assert_same(trained(make), undisturbed)
