"""Options stand in the param groups alone; what a checkpoint brings is used, or refused before anything changes."""

import copy

import pytest
import torch
from subjects import (
    OURS,
    Subject,
    assert_same,
    for_each_of_ours,
    for_each_subject,
    gradients,
    groups_of,
    new_params,
    train,
)
from torch import nn

from convopt import ConvolutionalSGDv2, FieldAdam, WienerAdamW, WienerSGD

WIENER = [WienerSGD, WienerAdamW]
ADAMS = [WienerAdamW, FieldAdam]
KERNELS = [cls for cls in OURS if hasattr(cls, "kernels")]


def make(cls, params, **options):
    annealed = {"snr_annealing": True} if cls in WIENER else {}
    return Subject(cls(groups_of(params), **annealed, **options))


def written_out(optimizer) -> str:
    return str(optimizer.state_dict())


CHANGED = [
    *((cls, name, value) for cls in OURS for name, value in (("lr", 0.3), ("weight_decay", 0.1), ("maximize", True))),
    *((cls, "nesterov", True) for cls in OURS if cls not in ADAMS),
    *((cls, "momentum", 0.5) for cls in OURS if cls not in ADAMS),
    *((cls, *change) for cls in ADAMS for change in (("betas", (0.5, 0.6)), ("eps", 0.1))),
    *((FieldAdam, *change) for change in (("batches", 2), ("every", 1), ("grid", (2, 24)), ("grid", None))),
    *((cls, *change) for cls in WIENER for change in (("coherence_ema", 0.5), ("scale", "unit dc"), ("grid", (2, 24)))),
    *((cls, *change) for cls in WIENER for change in (("warmup", 100), ("onset", 0.3), ("power", 4.0), ("every", 1))),
    *((cls, *change) for cls in WIENER for change in (("gain", "separable"), ("snr_annealing", False), ("grid", None))),
    *((cls, "annealing_ema", 0.5) for cls in WIENER),
    *((cls, "kernel_lr", 0.5) for cls in KERNELS if cls.__name__ != "LocalLossConvSGD"),
    *((cls, *change) for cls in KERNELS if cls.__name__ == "LocalLossConvSGD" for change in (("local_lr", 0.5),)),
    (ConvolutionalSGDv2, "loss_weights", (0.0, 50.0, 3.0)),
    (ConvolutionalSGDv2, "noise_estimation_momentum", 0.1),
    (ConvolutionalSGDv2, "kernel_update_every", 1),
    *((cls, "sigma", 5.0) for cls in OURS if cls.__name__ == "LaplacianSmoothingSGD"),
]


@pytest.mark.parametrize(("cls", "name", "value"), CHANGED, ids=lambda each: getattr(each, "__name__", str(each)))
def test_an_option_changed_in_the_groups_takes_effect(cls, name, value):
    outcomes = []
    noise = [[torch.randn_like(grad) for grad in of_step] for of_step in gradients(20, seed=7)]
    quick = {"warmup": 10, "annealing_ema": 0.9} if cls in WIENER else {}
    for change in (False, True):
        params = new_params()
        subject = make(cls, params, **quick)
        train(subject, params, gradients(20))
        if change:
            for group in subject.optimizer.param_groups:
                if name != "grid" or group["grid"] is not None:
                    group[name] = value
        train(subject, params, gradients(8, seed=3) + noise)
        outcomes.append(params)
    assert all(p.isfinite().all() for p in outcomes[1])
    assert any(not torch.equal(p, q) for p, q in zip(*outcomes, strict=True))


INVALID = [
    *((cls, "lr", -0.1) for cls in OURS),
    *((cls, "weight_decay", "much") for cls in OURS),
    *((cls, name, value) for cls in KERNELS for name, value in (("kernel_size", 3), ("kernel_init", "binomial"))),
    *((cls, name, value) for cls in WIENER for name, value in (("grid", (5, 5)), ("gain", "round"), ("every", 0))),
    *((cls, "snr_annealing", "no") for cls in WIENER),
    *((FieldAdam, *change) for change in (("grid", (5, 5)), ("batches", 0), ("every", 0))),
]


@pytest.mark.parametrize(("cls", "name", "value"), INVALID, ids=lambda each: getattr(each, "__name__", str(each)))
@pytest.mark.parametrize("index", [0, 1])
def test_an_invalid_one_is_refused_in_any_group_before_anything_changes(cls, name, value, index):
    params = new_params()
    subject = make(cls, params)
    train(subject, params, gradients(5))
    valid = subject.optimizer.param_groups[index][name]
    before, state = [p.detach().clone() for p in params], written_out(subject.optimizer)
    subject.optimizer.param_groups[index][name] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=name):
            train(subject, params, gradients(1))
    subject.optimizer.param_groups[index][name] = valid
    assert_same(params, before)
    assert written_out(subject.optimizer) == state
    train(subject, params, gradients(1))


@pytest.mark.parametrize("cls", WIENER)
@pytest.mark.parametrize("name", ["every", "warmup", "onset", "power", "annealing_ema", "snr_annealing"])
def test_what_holds_for_all_groups_is_refused_when_changed_in_one(cls, name):
    params = new_params()
    subject = make(cls, params)
    train(subject, params, gradients(5))
    other = {"every": 2, "warmup": 7, "onset": 0.5, "power": 1.0, "annealing_ema": 0.5, "snr_annealing": False}[name]
    subject.optimizer.param_groups[1][name] = other
    with pytest.raises(ValueError, match=f"{name} must be the same in all param groups"):
        train(subject, params, gradients(1))


class TestCheckpoints:
    @pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
    def test_bring_their_options_and_are_gone_on_with(self, cls):
        ours = {"lr": 0.2, "weight_decay": 0.1, "maximize": True}
        ours |= {"betas": (0.5, 0.6)} if cls in ADAMS else {"momentum": 0.5, "nesterov": True}
        if cls in WIENER:
            ours |= {"warmup": 5, "onset": 0.3, "power": 0.5, "annealing_ema": 0.9, "every": 1, "gain": "separable"}
        if cls in KERNELS:
            ours |= {"kernel_size": 3, "kernel_init": "binomial"}
        params, grads = new_params(), gradients(30)
        subject = make(cls, params, **ours)
        train(subject, params, grads[:15])
        resumed = [nn.Parameter(p.detach().clone()) for p in params]
        other = make(cls, resumed)
        other.load(subject.saved())
        train(subject, params, grads[15:])
        train(other, resumed, grads[15:])
        assert_same(params, resumed)

    @pytest.mark.parametrize(
        ("cls", "base", "said"),
        [
            (cls, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9), "dampening")
            for cls in OURS
            if cls not in ADAMS
        ]
        + [
            (WienerAdamW, lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad"),
            (WienerAdamW, lambda p: torch.optim.Adam(p, weight_decay=0.5), "decoupled_weight_decay"),
            (WienerAdamW, lambda p: torch.optim.RMSprop(p), "square_avg"),
            (WienerSGD, lambda p: torch.optim.AdamW(p), "step of parameter"),
            (WienerAdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum_buffer"),
        ],
    )
    def test_of_torchs_with_options_that_ours_have_not_are_refused_by_name(self, cls, base, said):
        params = new_params()
        optimizer = base(groups_of(params))
        if said == "decoupled_weight_decay" and said not in optimizer.defaults:
            pytest.skip("this torch's Adam does not tell how it decays")
        train(Subject(optimizer, True), params, gradients(3))
        ours = make(cls, params).optimizer
        before = written_out(ours)
        with pytest.raises(ValueError, match=said):
            ours.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert written_out(ours) == before

    @pytest.mark.parametrize(
        ("cls", "base"),
        [
            (WienerSGD, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
            (WienerSGD, lambda p: torch.optim.SGD(p, lr=0.1)),
            (FieldAdam, lambda p: torch.optim.AdamW(p)),
            (WienerAdamW, lambda p: torch.optim.AdamW(p)),
            (WienerAdamW, lambda p: torch.optim.Adam(p)),
            (WienerAdamW, lambda p: torch.optim.AdamW(p, fused=True, lr=torch.tensor(0.01))),
            *((cls, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)) for cls in KERNELS),
        ],
    )
    def test_of_torchs_are_taken_and_what_they_lack_stays_as_it_is(self, cls, base):
        params = new_params()
        optimizer = base(groups_of(params))
        train(Subject(optimizer, True), params, gradients(3))
        own = {"warmup": 7, "every": 3} if cls in WIENER else {"every": 3} if cls is FieldAdam else {"kernel_size": 3}
        subject = make(cls, params, **own)
        saved = copy.deepcopy(optimizer.state_dict())
        subject.optimizer.load_state_dict(saved)
        for group, theirs in zip(subject.optimizer.param_groups, saved["param_groups"], strict=True):
            assert group["lr"] == theirs["lr"]
            assert {name: group[name] for name in own} == own
        train(subject, params, gradients(10))
        assert all(p.isfinite().all() for p in params)

    @for_each_of_ours
    def test_of_another_network_are_refused_by_parameter(self, cls):
        params = new_params()
        subject = make(cls, params)
        train(subject, params, gradients(5))
        others = [nn.Parameter(torch.zeros(p.shape[0] + 1, *p.shape[1:])) for p in params]
        other = make(cls, others)
        before = written_out(other.optimizer)
        with pytest.raises(ValueError, match=r"parameter 0 must have shape .* of another network"):
            other.load(subject.saved())
        assert written_out(other.optimizer) == before

    @pytest.mark.parametrize("cls", [*WIENER, *KERNELS], ids=lambda cls: cls.__name__)
    def test_with_what_was_learnt_in_another_shape_are_refused(self, cls):
        params = new_params()
        subject = make(cls, params)
        train(subject, params, gradients(5))
        saved = subject.saved()
        if cls in WIENER:
            saved["optimizer"]["param_groups"][0]["gain"] = "separable"
        else:
            saved["optimizer"]["param_groups"][0]["kernel_size"] = 7
        with pytest.raises(ValueError, match="must have shape"):
            subject.load(saved)


@for_each_subject
class TestLayouts:
    def test_changed_in_mid_training_change_nothing(self, make):
        outcomes = []
        for change in (False, True):
            params, grads = new_params(), gradients(20)
            subject = make(groups_of(params))
            train(subject, params, grads[:10])
            if change:
                params[1].data = params[1].data.to(memory_format=torch.channels_last)
                params[0].data = params[0].data.T.contiguous().T
            train(subject, params, grads[10:])
            outcomes.append([p.detach().contiguous() for p in params])
        torch.testing.assert_close(*outcomes)

    def test_changed_at_resuming_change_nothing(self, make):
        outcomes = []
        for change in (False, True):
            params, grads = new_params(), gradients(20)
            subject = make(groups_of(params))
            train(subject, params, grads[:10])
            resumed = [nn.Parameter(p.detach().clone()) for p in params]
            if change:
                resumed[1].data = resumed[1].data.to(memory_format=torch.channels_last)
            other = make(groups_of(resumed))
            other.load(subject.saved())
            train(other, resumed, grads[10:])
            outcomes.append([p.detach().contiguous() for p in resumed])
        torch.testing.assert_close(*outcomes)

    def test_of_a_view_leave_what_lies_between_alone(self, make):
        outcomes = []
        for strided in (False, True):
            whole = torch.full((12, 96), 7.0)
            params = new_params()
            if strided:
                whole[:, ::2] = params[0].data
                params[0].data = whole[:, ::2]
            subject = make(groups_of(params))
            train(subject, params, [[grad.clone() for grad in of_step] for of_step in gradients(8)])
            outcomes.append([p.detach().contiguous() for p in params])
            assert not strided or (whole[:, 1::2] == 7).all()
        torch.testing.assert_close(*outcomes)


@for_each_subject
class TestParametersThatComeAndGo:
    def test_a_gradient_may_come_late(self, make):
        """Of an unfrozen layer, a rare expert."""
        params, grads = new_params(), gradients(30)
        subject = make(groups_of(params))
        late = [[g if step >= 12 or i == 1 else None for i, g in enumerate(gs)] for step, gs in enumerate(grads)]
        train(subject, params, late[:12])
        start = [params[i].detach().clone() for i in (0, 2)]
        assert_same(start, [new_params()[i] for i in (0, 2)])
        train(subject, params, late[12:])
        assert all(p.isfinite().all() for p in params)
        assert all(not torch.equal(p, q) for p, q in zip(start, [params[0], params[2]], strict=True))

    @pytest.mark.parametrize("removed", [0, 1])
    def test_a_group_may_be_removed(self, make, removed):
        params, grads = new_params(), gradients(30)
        subject = make(groups_of(params))
        train(subject, params, grads[:15])
        del subject.optimizer.param_groups[removed]
        before = [p.detach().clone() for p in params]
        learnt = subject.learnt()
        train(subject, params, grads[15:])
        gone = params[:2] if removed == 0 else params[2:]
        assert_same(gone, before[:2] if removed == 0 else before[2:])
        assert len(subject.learnt()) <= len(learnt)
        if learnt and len(learnt[0]) == 2:  # what the annealing learnt goes on
            assert subject.learnt()[0][0] > 0.1

    def test_a_group_may_be_added(self, make):
        params, grads = new_params(), gradients(30)
        subject = make(groups_of(params[:2])[:1])
        train(subject, params[:2], [of_step[:2] for of_step in grads[:15]])
        subject.optimizer.add_param_group({"params": params[2:]})
        train(subject, params, grads[15:])
        assert not torch.equal(params[2], new_params()[2])
        saved = subject.saved()
        make(groups_of(new_params())).load(saved)


@for_each_of_ours
@pytest.mark.parametrize("bad", ["sparse", "complex"])
def test_what_cannot_be_smoothed_is_refused_in_any_group_before_anything_changes(cls, bad):
    params = new_params()
    embedding = nn.Parameter(torch.randn(5, 3, dtype=torch.complex64 if bad == "complex" else None))
    optimizer = cls([{"params": params}, {"params": [embedding]}])
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    embedding.grad = torch.ones_like(embedding).to_sparse() if bad == "sparse" else torch.ones_like(embedding)
    before, state = [p.detach().clone() for p in params], written_out(optimizer)
    with pytest.raises(RuntimeError, match=bad):
        optimizer.step()
    assert_same(params, before)
    assert written_out(optimizer) == state
