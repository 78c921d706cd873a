"""What torch's own optimizers promise, kept by ours: every optimizer, and where it matters, every set of options."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from contract import (
    CONTRACT,
    NOT_TAKEN,
    each_option,
    make,
    missing_options,
    model_and_optimizer,
    refused_arguments,
    tensors_of,
    train,
)
from optimizers import batches, convolutional_model
from torch import nn
from torch.nn import Parameter

from convopt import LocalLossConvSGD, WienerAdamW, WienerSGD

for_each_optimizer = pytest.mark.parametrize("info", CONTRACT, ids=lambda info: info.optim_cls.__name__)
for_each_option = pytest.mark.parametrize(
    ("info", "options"),
    [pytest.param(info, options, id=name) for info, options, name in each_option()],
)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@for_each_optimizer
def test_it_takes_the_options_of_the_base_that_it_is_tested_like(info):
    missing = missing_options(info)
    assert not missing, (
        f"{info.optim_cls.__name__} does not take {', '.join(sorted(missing))}. An optimizer is tested like SGD unless "
        "PARTICULAR in tests/contract.py says otherwise: take these options, or list there what it is like"
    )


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def learnt_by(optimizer: torch.optim.Optimizer) -> object:
    """Its kernels, statistics or laws; None of one that has none of them."""
    for name in ("kernels", "snr", "learnt"):
        if hasattr(optimizer, name):
            return getattr(optimizer, name)()
    return None


def with_gradient(shape, dtype=torch.float32, seed: int = 0) -> Parameter:
    generator = torch.Generator().manual_seed(seed)
    p = Parameter(torch.randn(shape, generator=generator).to(dtype))
    p.grad = torch.randn(shape, generator=generator).to(dtype)
    return p


@for_each_option
class TestEverySetOfOptions:
    def test_the_loss_goes_where_it_should(self, info, options):
        model, optimizer = model_and_optimizer(info, **options)
        losses = train(model, optimizer, batches(1) * 40, ascend=bool(options.get("maximize")))
        assert losses[-1] < losses[0]

    def test_training_resumed_from_a_file_is_bit_identical(self, info, options):
        data = batches(14)
        model, optimizer = model_and_optimizer(info, **options)
        train(model, optimizer, data[:7])
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        fresh = convolutional_model(seed=99)
        fresh.load_state_dict(saved["model"])
        # Options of all param groups alike are the optimizer's own; the others come with the checkpoint.
        shared = {name: options[name] for name in ("every", "warmup", "snr_annealing") if name in options}
        resumed = make(info, fresh, **shared)
        resumed.load_state_dict(saved["optimizer"])
        train(model, optimizer, data[7:])
        train(fresh, resumed, data[7:])
        assert all(map(torch.equal, weights(model), weights(fresh)))

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
    def test_a_copy_goes_on_alike_and_by_itself(self, info, options, copied):
        data = batches(14)
        model, optimizer = model_and_optimizer(info, **options)
        train(model, optimizer, data[:7])
        twin, twin_optimizer = copied((model, optimizer))
        before = weights(twin)
        train(model, optimizer, data[7:])
        assert all(map(torch.equal, before, weights(twin)))
        train(twin, twin_optimizer, data[7:])
        assert all(map(torch.equal, weights(model), weights(twin)))

    def test_gradients_are_left_as_they_are(self, info, options):
        model, optimizer = model_and_optimizer(info, **options)
        for x, y in batches(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            before = [p.grad.clone() for p in model.parameters()]
            optimizer.step()
            assert all(torch.equal(grad, p.grad) for grad, p in zip(before, model.parameters(), strict=True))

    def test_memory_layout_makes_no_difference(self, info, options):
        outcomes = []
        for layout in (lambda t: t, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)):
            p = Parameter(layout(torch.randn(8, 9, generator=torch.Generator().manual_seed(0))))
            optimizer = info.optim_cls([p], **options)
            for seed in range(6):
                p.grad = layout(with_gradient((8, 9), seed=seed).grad)
                optimizer.step()
            outcomes.append(p.detach().contiguous())
        torch.testing.assert_close(*outcomes)


@for_each_optimizer
class TestParameters:
    def test_ones_without_a_gradient_stay(self, info):
        used, unused, frozen = with_gradient((9, 9)), Parameter(torch.randn(9, 9)), Parameter(torch.randn(9, 9))
        frozen.requires_grad_(False)
        before = [p.detach().clone() for p in (used, unused, frozen)]
        optimizer = info.optim_cls([unused, used, frozen])
        for _ in range(3):
            optimizer.step()
        assert not torch.equal(used, before[0])
        assert torch.equal(unused, before[1])
        assert torch.equal(frozen, before[2])

    def test_a_gradient_may_come_and_go(self, info):
        p, q = with_gradient((9, 9)), with_gradient((9, 9), seed=1)
        optimizer = info.optim_cls([p, q])
        for step in range(12):
            q.grad = None if step % 3 else torch.randn(9, 9)
            optimizer.step()
        assert torch.isfinite(p).all()
        assert torch.isfinite(q).all()

    def test_no_gradients_at_all_are_no_step(self, info):
        p = Parameter(torch.ones(9, 9))
        optimizer = info.optim_cls([p])
        optimizer.step()
        assert torch.equal(p, torch.ones(9, 9))
        assert not optimizer.state_dict()["state"]

    def test_a_zero_gradient_moves_nothing(self, info):
        p = with_gradient((9, 9))
        p.grad.zero_()
        before = p.detach().clone()
        optimizer = info.optim_cls([p], weight_decay=0.0)
        for _ in range(5):
            optimizer.step()
        assert torch.equal(p, before)

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (1, 1, 1, 1), (2, 3, 4, 5, 6)], ids=str)
    def test_any_shape_will_do(self, info, shape):
        p, q = with_gradient(shape), with_gradient((9, 9))
        before = p.detach().clone()
        optimizer = info.optim_cls([p, q])
        for _ in range(3):
            optimizer.step()
        assert p.shape == before.shape
        assert torch.isfinite(p).all()
        assert p.numel() == 0 or not torch.equal(p, before)

    def test_precisions_may_be_mixed_in_one_group(self, info):
        together = [with_gradient((9, 9), dtype, seed=3) for dtype in FLOATS]
        apart = [with_gradient((9, 9), dtype, seed=3) for dtype in FLOATS]
        # Annealing would see all gradients as one.
        options = {"snr_annealing": False} if info.optim_cls in (WienerSGD, WienerAdamW) else {}
        if info.optim_cls.__name__ == "ConvolutionalSGDv2":
            options["kernel_lr"] = 0.0  # the kernel is shared, and learns from each in turn
        mixed = info.optim_cls(together, **options)
        single = [info.optim_cls([p], **options) for p in apart]
        for _ in range(5):
            mixed.step()
            for optimizer in single:
                optimizer.step()
        for p, q, dtype in zip(together, apart, FLOATS, strict=True):
            assert p.dtype == dtype
            torch.testing.assert_close(p, q)

    @pytest.mark.parametrize("kind", ["sparse", "complex"])
    def test_sparse_and_complex_gradients_are_refused_before_anything_changes(self, info, kind):
        dense = with_gradient((9, 9))
        other = Parameter(torch.randn(9, 9, dtype=torch.complex64 if kind == "complex" else None))
        other.grad = torch.randn_like(other) if kind == "complex" else torch.randn(9, 9).to_sparse()
        optimizer = info.optim_cls([{"params": [dense]}, {"params": [other]}])
        before = dense.detach().clone()
        with pytest.raises(RuntimeError, match=kind):
            optimizer.step()
        assert torch.equal(dense, before)
        assert not tensors_of(optimizer.state_dict()["state"])


@for_each_optimizer
class TestGroups:
    def test_a_group_may_have_its_own_rate_and_decay(self, info):
        p, q = with_gradient((9, 9)), with_gradient((9, 9))
        optimizer = info.optim_cls([{"params": [p], "lr": 0.0}, {"params": [q]}], lr=0.1)
        before = p.detach().clone()
        optimizer.step()
        assert torch.equal(p, before)
        assert not torch.equal(q, before)
        assert optimizer.defaults["lr"] == 0.1
        apart, own = [with_gradient((9, 9)) for _ in range(2)], {"lr": 0.02, "weight_decay": 0.3}
        together = info.optim_cls([{"params": apart[:1]}, {"params": apart[1:], **own}], lr=0.1, weight_decay=0.0)
        together.step()
        for one, options in zip(apart, ({"lr": 0.1, "weight_decay": 0.0}, own), strict=True):
            alone = with_gradient((9, 9))
            info.optim_cls([alone], **options).step()
            torch.testing.assert_close(one, alone)
        undecayed = with_gradient((9, 9))
        info.optim_cls([undecayed], lr=0.02, weight_decay=0.0).step()
        assert not torch.allclose(apart[1], undecayed)

    def test_parameters_may_be_added_while_training(self, info):
        first, second = with_gradient((9, 9)), with_gradient((9, 9))
        optimizer = info.optim_cls([first])
        for _ in range(5):
            optimizer.step()
        optimizer.add_param_group({"params": [second], "lr": 0.05})
        before = second.detach().clone()
        optimizer.step()
        assert not torch.equal(second, before)
        saved = optimizer.state_dict()
        twin = info.optim_cls([{"params": [with_gradient((9, 9))]}, {"params": [with_gradient((9, 9))]}])
        twin.load_state_dict(saved)
        assert twin.param_groups[1]["lr"] == 0.05

    def test_names_of_parameters_are_kept(self, info):
        optimizer = info.optim_cls([("weight", with_gradient((9, 9)))])
        optimizer.step()
        assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight"]

    def test_it_can_be_printed(self, info):
        assert info.optim_cls.__name__ in repr(info.optim_cls([with_gradient((9, 9))]))


@for_each_optimizer
class TestSteps:
    @pytest.mark.parametrize("value", [torch.tensor(1.5), 1.5, None], ids=str)
    def test_a_closure_is_called_once_first_and_with_gradients(self, info, value):
        p = Parameter(torch.ones(9, 9))
        optimizer = info.optim_cls([p])
        seen = []

        def closure():
            seen.append((torch.is_grad_enabled(), p.detach().clone()))
            p.grad = torch.ones(9, 9)
            return value

        assert optimizer.step(closure) is value
        assert len(seen) == 1
        assert seen[0][0]
        assert torch.equal(seen[0][1], torch.ones(9, 9))
        assert not torch.equal(p, torch.ones(9, 9))

    def test_hooks_are_called(self, info):
        optimizer = info.optim_cls([with_gradient((9, 9))])
        calls = []
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
        optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert calls == ["before", "after", "saved", "loading"]

    def test_schedulers_set_the_rate(self, info):
        p = with_gradient((9, 9))
        optimizer = info.optim_cls([p], lr=0.1, weight_decay=0.0)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
        moved = []
        for _ in range(6):
            before = p.detach().clone()
            optimizer.step()
            cosine.step()
            moved.append((p.detach() - before).norm())
        assert moved[5] == 0
        assert moved[4] > 0

    def test_one_cycle_turns_the_momentum_too(self, info):
        optimizer = info.optim_cls([with_gradient((9, 9))])
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
        momenta = []
        for _ in range(9):
            group = optimizer.param_groups[0]
            momenta.append(group["momentum"] if "momentum" in group else group["betas"][0])
            optimizer.step()
            cycle.step()
        assert len(set(momenta)) > 3

    def test_a_tensor_rate_is_the_same_as_a_float(self, info):
        outcomes = []
        for lr in (0.05, torch.tensor(0.05)):
            model, optimizer = model_and_optimizer(info, lr=lr)
            train(model, optimizer, batches(6))
            outcomes.append(weights(model))
        torch.testing.assert_close(*outcomes)

    def test_a_rate_of_zero_moves_nothing_and_learns_nothing(self, info):
        model, optimizer = model_and_optimizer(info, lr=0.1)
        train(model, optimizer, batches(20))
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        before = weights(model)
        for p in model.parameters():
            # Kernels with a rate of their own learn from any gradient but zero.
            p.grad = torch.zeros_like(p) if info.optim_cls is LocalLossConvSGD else torch.randn_like(p)
        learnt = tensors_of(copy.deepcopy(learnt_by(optimizer)))
        assert learnt or learnt_by(optimizer) is None
        for _ in range(12):
            optimizer.step()
        assert all(map(torch.equal, before, weights(model)))
        torch.testing.assert_close(tensors_of(learnt_by(optimizer)), learnt)


@for_each_optimizer
class TestState:
    def test_a_checkpoint_without_the_newest_options_gets_their_defaults(self, info):
        optimizer = info.optim_cls([with_gradient((9, 9))])
        optimizer.step()
        old = optimizer.state_dict()
        for group in old["param_groups"]:
            for name in optimizer.defaults.keys() - {"lr", "momentum", "betas", "kernel_size", "kernel_init"}:
                group.pop(name, None)
        again = info.optim_cls([with_gradient((9, 9))])
        again.load_state_dict(old)
        again.step()
        # torch adds "differentiable" to the defaults whenever something is loaded; none of ours has it.
        assert again.param_groups[0].keys() >= again.defaults.keys() - {"differentiable"}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_a_checkpoint_may_be_loaded_in_another_precision(self, info, dtype):
        p = with_gradient((9, 12))
        optimizer = info.optim_cls([p])
        for _ in range(6):
            optimizer.step()
        q = Parameter(p.detach().to(dtype))
        other = info.optim_cls([q])
        other.load_state_dict(optimizer.state_dict())
        p.grad = torch.ones(9, 12)
        q.grad = torch.ones(9, 12, dtype=dtype)
        optimizer.step()
        other.step()
        torch.testing.assert_close(p.detach(), q.detach().float(), rtol=0.02, atol=0.02)

    def test_training_on_leaves_the_groups_of_the_checkpoint_as_they_were(self, info):
        """Of state alone the optimizer goes on with the checkpoint's own tensors, as torch's do."""
        options = {"snr_annealing": True} if info.optim_cls in (WienerSGD, WienerAdamW) else {}
        model, optimizer = model_and_optimizer(info, **options)
        train(model, optimizer, batches(6))
        saved = copy.deepcopy(optimizer.state_dict())
        kept = copy.deepcopy(saved["param_groups"])
        optimizer.load_state_dict(saved)
        optimizer.param_groups[0]["lr"] = 0.5
        train(model, optimizer, batches(12, seed=2))
        assert str(saved["param_groups"]) == str(kept)
        torch.testing.assert_close(tensors_of(saved["param_groups"]), tensors_of(kept), rtol=0, atol=0, equal_nan=True)

    def test_a_checkpoint_of_other_groups_is_refused(self, info):
        optimizer = info.optim_cls([with_gradient((9, 9))])
        two = info.optim_cls([{"params": [with_gradient((9, 9))]}, {"params": [with_gradient((9, 9))]}])
        with pytest.raises(ValueError, match="parameter groups"):
            optimizer.load_state_dict(two.state_dict())

    def test_it_is_freed_with_its_last_reference(self, info):
        model, optimizer = model_and_optimizer(info)
        train(model, optimizer, batches(6))
        gone = weakref.ref(optimizer)
        gc.collect()
        gc.disable()
        try:
            del optimizer
            assert gone() is None
        finally:
            gc.enable()

    @pytest.mark.slow
    def test_state_stays_as_large_as_it_was_over_ten_thousand_steps(self, info):
        p = with_gradient((9, 9))
        optimizer = info.optim_cls([p])
        generator = torch.Generator().manual_seed(0)
        sizes = []
        for step in range(10_000):
            p.grad = torch.randn(9, 9, generator=generator)
            optimizer.step()
            if step in (99, 9_999):
                sizes.append(len(pickle.dumps(optimizer)))
        assert sizes[1] <= sizes[0] + 64  # numbers that count steps grow a digit
        assert torch.isfinite(p).all()


@pytest.mark.parametrize(
    ("info", "given", "error"),
    [pytest.param(info, given, error, id=name) for info, given, error, name in refused_arguments()],
)
def test_what_torch_refuses_ours_refuse(info, given, error):
    params = given.params if given.params is not None else [Parameter(torch.randn(9, 9))]
    if issubclass(error, Warning):
        with pytest.warns(error):
            info.optim_cls(params, **given.kwargs)
    else:
        with pytest.raises(error):
            info.optim_cls(params, **given.kwargs)


@for_each_optimizer
@pytest.mark.parametrize("option", sorted(NOT_TAKEN))
def test_an_option_it_has_not_is_an_error(info, option):
    with pytest.raises(TypeError, match=option):
        info.optim_cls([Parameter(torch.randn(9, 9))], **{option: True})


@pytest.mark.parametrize("cls", [WienerSGD, WienerAdamW])
def test_loop_foreach_and_fused_agree(cls):
    info = next(info for info in CONTRACT if info.optim_cls is cls)
    outcomes = []
    for options in (
        {"foreach": False},
        {"foreach": True},
        {"fused": True},
        {"foreach": True, "lr": torch.tensor(1e-3)},
    ):
        model = convolutional_model(dtype=torch.float64)
        optimizer = make(info, model, **{"snr_annealing": False, "lr": 1e-3, **options})
        train(model, optimizer, batches(12, dtype=torch.float64))
        outcomes.append(weights(model))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_half_precisions_on_a_cpu_follow_single(dtype, momentum):
    outcomes = []
    for each in (torch.float32, dtype):
        p = Parameter(torch.ones(200, dtype=each))
        optimizer = WienerSGD([p], momentum=momentum)
        for seed in range(6):
            p.grad = with_gradient(200, each, seed).grad
            optimizer.step()
        outcomes.append(p.detach().float())
    torch.testing.assert_close(*outcomes, rtol=0.01, atol=0.01)
