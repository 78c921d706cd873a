"""What every optimizer of this package does alike: closures, groups, dtypes, refusals."""

import numpy as np
import pytest
import torch
from digits import Network, X, Y, accuracy
from optimizers import OPTIMIZERS, batches, convolutional_model, for_each_optimizer, train
from torch import nn
from torch.nn import Parameter

from convopt import ConvolutionalSGD, ConvolutionalSGDv2, LocalLossConvSGD


def weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


WAYS = ["loss tensor", "loss float", "loss only closure", "full closure", "float closure"]


@for_each_optimizer
def test_it_learns_the_digits(optimizer_class):
    model = Network()
    optimizer = optimizer_class(model.parameters(), lr=0.01, momentum=0.9, kernel_size=3)
    train(model, optimizer, [(X[i], Y[i]) for _ in range(6) for i in torch.randperm(len(X)).split(8)])
    assert accuracy(model) > 0.8


@for_each_optimizer
@pytest.mark.parametrize("way_given", WAYS)
def test_the_loss_can_be_given_in_every_way_with_one_result(optimizer_class, way_given):
    x, y = batches(1)[0]
    outcomes = []
    for way in ("loss tensor", way_given):
        model = convolutional_model()
        optimizer = optimizer_class(model.parameters())
        loss_of = lambda model=model: nn.functional.cross_entropy(model(x), y)  # noqa: E731
        for _ in range(6):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            calls = []

            def full(optimizer=optimizer, loss_of=loss_of, calls=calls):
                assert torch.is_grad_enabled()
                calls.append(1)
                optimizer.zero_grad()
                loss = loss_of()
                loss.backward()
                return loss

            returned = {
                "loss tensor": lambda optimizer=optimizer, loss=loss: optimizer.step(loss=loss),
                "loss float": lambda optimizer=optimizer, loss=loss: optimizer.step(loss=loss.item()),
                "loss only closure": lambda optimizer=optimizer, loss_of=loss_of: optimizer.step(loss_of),
                "full closure": lambda optimizer=optimizer, full=full: optimizer.step(full),
                "float closure": lambda optimizer=optimizer, loss_of=loss_of: optimizer.step(lambda: loss_of().item()),
            }[way]()
            assert float(torch.as_tensor(returned).detach()) == pytest.approx(loss.item())
            assert len(calls) == (way == "full closure")
        outcomes.append(weights(optimizer))
    reference, outcome = outcomes
    for a, b in zip(reference, outcome, strict=True):
        torch.testing.assert_close(a, b)


@for_each_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_follow_float32(optimizer_class, dtype):
    start, grads = torch.randn(9, 12), [torch.randn(9, 12) for _ in range(6)]
    outcomes = []
    for each in (torch.float32, dtype):
        p = Parameter(start.clone().to(each))
        optimizer = optimizer_class([p], lr=0.01, momentum=0.9)
        for grad in grads:
            p.grad = grad.to(each)
            optimizer.step(loss=1.0)
        assert p.dtype == each
        assert all(kernel.dtype == torch.float32 for kernel in optimizer.kernels().values())
        outcomes.append(p.detach().float())
    tolerance = 1e-5 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(*outcomes, rtol=tolerance, atol=tolerance)


@for_each_optimizer
def test_memory_layout_makes_no_difference(optimizer_class):
    start, grads = torch.randn(6, 8, 3, 3), [torch.randn(6, 8, 3, 3) for _ in range(6)]
    layouts = [
        lambda t: t.clone(),
        lambda t: t.clone(memory_format=torch.channels_last),
        lambda t: t.clone().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ]
    outcomes = []
    for layout in layouts:
        p = Parameter(layout(start))
        optimizer = optimizer_class([p], kernel_size=3)
        for grad in grads:
            p.grad = layout(grad)
            optimizer.step(loss=1.0)
        outcomes.append(p.detach().contiguous())
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0])


@for_each_optimizer
def test_options_are_honoured_per_group(optimizer_class):
    first, second = Parameter(torch.randn(9, 9)), Parameter(torch.randn(9, 9))
    second.data.copy_(first)
    first.grad = torch.randn(9, 9)
    second.grad = first.grad.clone()
    groups = [{"params": [first], "lr": 0.1}, {"params": [second], "kernel_size": 3, "kernel_init": "gaussian"}]
    optimizer = optimizer_class(groups, lr=0.2)
    start = first.detach().clone()
    optimizer.step(loss=1.0)
    alone = [Parameter(start.clone()), Parameter(start.clone())]
    for p, options in zip(alone, ({"lr": 0.1}, {"lr": 0.2, "kernel_size": 3, "kernel_init": "gaussian"}), strict=True):
        p.grad = first.grad.clone()
        optimizer_class([p], **options).step(loss=1.0)
    torch.testing.assert_close([first, second], alone)
    assert all(name.startswith(("0/", "1/")) for name in optimizer.kernels())


@for_each_optimizer
def test_a_step_reads_no_value_back_from_the_device(optimizer_class):
    """On torch's meta device, where reading a value is an error."""
    model = convolutional_model().to("meta")
    optimizer = optimizer_class(model.parameters())
    (x, y) = batches(1)[0]
    loss = nn.functional.cross_entropy(model(x.to("meta")), y.to("meta"))
    loss.backward()
    for _ in range(6):
        optimizer.step(loss=loss)
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@for_each_optimizer
def test_on_cuda_it_does_the_same(optimizer_class):
    outcomes = []
    for device in ("cpu", "cuda"):
        model = convolutional_model().to(device)
        train(model, optimizer_class(model.parameters()), [(x.to(device), y.to(device)) for x, y in batches(6)])
        outcomes.append([p.detach().cpu() for p in model.parameters()])
    torch.testing.assert_close(*outcomes, rtol=1e-3, atol=1e-4)


BAD_OPTIONS = [
    ("lr", -0.1),
    ("lr", float("nan")),
    ("lr", "fast"),
    ("momentum", 1.0),
    ("momentum", -0.1),
    ("kernel_size", 4),
    ("kernel_size", 0),
    ("kernel_size", -3),
    ("kernel_size", 3.0),
    ("kernel_init", "triangle"),
    ("kernel_init", torch.zeros(5)),
    ("kernel_init", torch.tensor([1.0, -3, 1, 0, 0])),
    ("kernel_init", torch.ones(4)),
    ("kernel_init", torch.full((5,), float("inf"))),
    ("kernel_init", torch.ones(5, dtype=torch.complex64)),
    ("nesterov", "no"),
    ("maximize", 2),
]
OWN_BAD_OPTIONS = [
    (ConvolutionalSGD, "kernel_lr", -1.0),
    (LocalLossConvSGD, "local_lr", -1.0),
    (LocalLossConvSGD, "lambd", -1.0),
    (ConvolutionalSGDv2, "kernel_lr", -1.0),
    (ConvolutionalSGDv2, "noise_estimation_momentum", 1.0),
    (ConvolutionalSGDv2, "kernel_update_every", 0),
    (ConvolutionalSGDv2, "loss_weights", (1.0, 2.0)),
    (ConvolutionalSGDv2, "loss_weights", (1.0, 2.0, -1.0)),
    (ConvolutionalSGDv2, "loss_weights", ("a", 1, 1)),
    (ConvolutionalSGDv2, "loss_weights", (float("inf"), 1, 1)),
]


@pytest.mark.parametrize(
    ("optimizer_class", "name", "value"),
    [(optimizer_class, *bad) for optimizer_class in OPTIMIZERS for bad in BAD_OPTIONS] + OWN_BAD_OPTIONS,
)
def test_a_bad_option_is_refused_by_name_and_value(optimizer_class, name, value):
    p = Parameter(torch.randn(9))
    with pytest.raises(ValueError, match=name) as error:
        optimizer_class([p], **{name: value})
    assert str(value) in str(error.value) or repr(value) in str(error.value)
    optimizer = optimizer_class([p])
    with pytest.raises(ValueError, match=name):
        optimizer.add_param_group({"params": [Parameter(torch.randn(9))], name: value})
    assert len(optimizer.param_groups) == 1


@for_each_optimizer
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"closure": lambda: 1.0, "loss": 1.0}, ValueError),
        ({"loss": "low"}, TypeError),
        ({"loss": torch.ones(2)}, TypeError),
        ({"closure": lambda: [1.0]}, TypeError),
    ],
)
def test_an_unclear_loss_is_refused_before_anything_changes(optimizer_class, arguments, error):
    p = Parameter(torch.randn(9, 9))
    p.grad = torch.randn(9, 9)
    optimizer = optimizer_class([p])
    before = weights(optimizer)
    with pytest.raises(error, match="loss"):
        optimizer.step(**arguments)
    assert same(before, weights(optimizer))


@for_each_optimizer
@pytest.mark.parametrize("when", ["new", "loaded"])
def test_an_option_that_cannot_change_is_refused_before_the_first_step_too(optimizer_class, when):
    optimizer = optimizer_class([Parameter(torch.randn(50))])
    if when == "loaded":
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["kernel_size"] = 3
    optimizer.param_groups[0]["params"][0].grad = torch.randn(50)
    with pytest.raises(ValueError, match="kernel_size cannot change"):
        optimizer.step()


@for_each_optimizer
def test_it_takes_a_checkpoint_of_a_torch_that_kept_none_for_no_momentum(optimizer_class):
    large = Parameter(torch.zeros(2**19 + 8))
    optimizer = optimizer_class([large])
    saved = optimizer.state_dict()
    optimizer.load_state_dict({**saved, "state": {0: {"momentum_buffer": None}}})
    large.grad = torch.ones_like(large)
    optimizer.step()
    assert (large < 0).all()


@for_each_optimizer
def test_a_loss_may_be_a_number_of_numpys(optimizer_class):
    p = Parameter(torch.randn(9))
    p.grad = torch.ones(9)
    optimizer_class([p]).step(loss=np.float32(0.5))


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (ConvolutionalSGD, {"momentum": torch.tensor([0.9])}),
        (LocalLossConvSGD, {"lambd": torch.tensor([0.1])}),
        (LocalLossConvSGD, {"local_lr": torch.tensor([0.1])}),
        (ConvolutionalSGDv2, {"loss_weights": (torch.tensor([0.5]), 1.0, 0.0)}),
        (ConvolutionalSGDv2, {"loss_weights": (torch.tensor([1.0, 2.0]), 1.0, 0.0)}),
    ],
    ids=["momentum", "lambd", "local_lr", "loss_weights", "loss_weights of two"],
)
def test_a_tensor_that_a_step_could_not_use_is_refused_at_once(optimizer_class, options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        optimizer_class([Parameter(torch.zeros(9))], **options)


def test_taps_that_are_none_in_single_precision_are_refused():
    for taps in (1e-60, 1e300):
        with pytest.raises(ValueError, match="kernel_init"):
            ConvolutionalSGD([Parameter(torch.zeros(9))], kernel_init=torch.full((5,), taps, dtype=torch.float64))
