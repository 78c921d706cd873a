"""On a CUDA device: the same results as on the CPU, and no step that makes the host wait."""

import pytest
import torch
from subjects import SUBJECTS, for_each_subject, gradients, groups_of, new_params, train
from torch import nn

from convopt.optim import coherence

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on(device: str) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().to(device)) for p in new_params()]


@pytest.fixture
def all_frequencies(monkeypatch):
    """The CPU leaves out frequencies that hold a thousandth of the power; elsewhere it would have to wait to know."""
    monkeypatch.setattr(coherence, "NEGLECTED", 0.0)


@for_each_subject
@pytest.mark.usefixtures("all_frequencies")
def test_it_does_as_on_the_cpu(make):
    outcomes = []
    for device in ("cpu", "cuda"):
        params = on(device)
        subject = make(groups_of(params))
        train(subject, params, gradients(20))
        outcomes.append([*[p.detach().cpu() for p in params], *[each.cpu() for each in subject.learnt()]])
    torch.testing.assert_close(*outcomes, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in SUBJECTS if not name.startswith("SNRAnnealing")])
def test_a_step_does_not_wait_for_the_device(name):
    params = on("cuda")
    check_no_waiting(SUBJECTS[name](groups_of(params)), params)


@for_each_subject
def test_a_step_with_a_tensor_for_learning_rate_does_not_wait_for_the_device(make):
    params = on("cuda")
    subject = make(groups_of(params), torch.tensor(0.01, device="cuda"))
    for group in subject.optimizer.param_groups:  # torch's own optimizers wait without
        if "capturable" in group:
            group["capturable"] = True
        elif "fused" in group and subject.attached is not None:
            group["fused"] = True
    check_no_waiting(subject, params)


def check_no_waiting(subject, params):
    grads = [[grad.cuda() for grad in of_step] for of_step in gradients(20)]
    train(subject, params, grads[:10])
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(subject, params, grads[10:])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@for_each_subject
@pytest.mark.usefixtures("all_frequencies")
def test_a_checkpoint_of_the_cpu_goes_on(make):
    params, on_device = on("cpu"), on("cuda")
    first, second = make(groups_of(params)), make(groups_of(on_device))
    train(first, params, gradients(8))
    second.load(first.saved())
    with torch.no_grad():
        for p, q in zip(on_device, params, strict=True):
            p.copy_(q)
    train(first, params, gradients(8, seed=2))
    train(second, on_device, gradients(8, seed=2))
    torch.testing.assert_close(
        [p.detach().cpu() for p in on_device], [p.detach() for p in params], rtol=1e-3, atol=1e-4
    )
