"""A recorder keeps a history for as long as it is attached, and training does not notice."""

import pytest
import torch
from optimizers import batches, convolutional_model, for_each_optimizer, train

from convopt import ConvolutionalSGD, ConvolutionalSGDv2, KernelRecorder, LocalLossConvSGD
from convopt.theory.snr import ema_powers


@pytest.mark.parametrize("optimizer_class", [LocalLossConvSGD, ConvolutionalSGDv2])
def test_it_records_kernels_snr_kernel_loss_and_cosine(optimizer_class):
    model = convolutional_model()
    optimizer = optimizer_class(model.parameters())
    with KernelRecorder(optimizer, every=3) as recorder:
        train(model, optimizer, batches(10))
    train(model, optimizer, batches(5))
    assert recorder.history["step"] == [3, 6, 9]
    for name in ("snr", "kernel_loss", "cosine_similarity", *optimizer.kernels()):
        assert len(recorder.history[name]) == 3
    assert all(0 < cosine <= 1 for cosine in recorder.history["cosine_similarity"])
    assert all(snr > 0 for snr in recorder.history["snr"])


def test_the_snr_of_an_optimizer_that_keeps_no_average_is_that_of_the_recorders_own():
    p = torch.nn.Parameter(torch.zeros(20))
    optimizer, grads = LocalLossConvSGD([p]), 1 + torch.randn(5, 20)
    average = grads[0]
    with KernelRecorder(optimizer, beta=0.9) as recorder:
        for grad in grads:
            p.grad = grad.clone()
            optimizer.step()
            average = 0.9 * average + 0.1 * grad
    signal, noise = ema_powers(average, grads[-1])
    assert recorder.history["snr"][-1] == pytest.approx((signal / noise).item(), rel=1e-4)


def test_of_v1_it_records_the_kernel():
    model = convolutional_model()
    optimizer = ConvolutionalSGD(model.parameters())
    with KernelRecorder(optimizer) as recorder:
        train(model, optimizer, batches(4))
    assert list(recorder.history) == ["step", "kernel"]
    torch.testing.assert_close(torch.tensor(recorder.history["kernel"][-1]), optimizer.kernels()["kernel"])


def test_a_step_that_calls_its_base_classs_is_recorded_once():
    class Inheriting(ConvolutionalSGD):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    model = convolutional_model()
    ConvolutionalSGD(model.parameters())  # torch hooks a class when the first of it is made
    optimizer = Inheriting(model.parameters())
    with KernelRecorder(optimizer) as recorder:
        train(model, optimizer, batches(4))
    assert recorder.history["step"] == [1, 2, 3, 4]


@for_each_optimizer
def test_training_does_not_notice(optimizer_class):
    watched, alone = convolutional_model(), convolutional_model()
    optimizer = optimizer_class(watched.parameters())
    with KernelRecorder(optimizer):
        train(watched, optimizer, batches(8))
    train(alone, optimizer_class(alone.parameters()), batches(8))
    for p, q in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p, q)


@for_each_optimizer
def test_the_optimizer_itself_keeps_no_history(optimizer_class):
    model = convolutional_model()
    optimizer = optimizer_class(model.parameters())

    def elements():
        state = sum(value.numel() for s in optimizer.state.values() for value in s.values())
        group = optimizer.param_groups[0]
        return state + sum(value.numel() for value in group.values() if isinstance(value, torch.Tensor))

    train(model, optimizer, batches(6))
    before = elements()
    train(model, optimizer, batches(30))
    assert elements() == before


def test_a_bad_interval_is_refused():
    with pytest.raises(ValueError, match="every"):
        KernelRecorder(ConvolutionalSGD([torch.nn.Parameter(torch.zeros(9))]), every=0)
    with pytest.raises(ValueError, match="beta"):
        KernelRecorder(ConvolutionalSGD([torch.nn.Parameter(torch.zeros(9))]), beta=2.0)


@pytest.mark.parametrize("optimizer_class", [ConvolutionalSGD, LocalLossConvSGD, ConvolutionalSGDv2])
def test_a_step_without_gradients_is_recorded_too(optimizer_class):
    p = torch.nn.Parameter(torch.randn(50))
    optimizer = optimizer_class([p])
    with KernelRecorder(optimizer) as recorder:
        p.grad = torch.randn(50)
        optimizer.step()
        p.grad = None
        optimizer.step()
    assert recorder.history["step"] == [1, 2]
