"""What hangs on another optimizer sees gradients as they are, acts in the same step, and puts everything back."""

import copy
import io
import pickle

import numpy as np
import pytest
import pytorch_optimizer
import torch
from accelerate import Accelerator
from subjects import (
    SUBJECTS,
    TORCHS,
    Subject,
    assert_same,
    for_each_attachment,
    gradients,
    groups_of,
    new_params,
    train,
)
from torch import nn
from torch.utils._pytree import tree_leaves

from convopt import (
    ConvolutionalSGD,
    KernelRecorder,
    LaplacianSmoothingSGD,
    SNRAnnealing,
    WeightAveraging,
    WienerAdamW,
    WienerFilter,
    WienerSGD,
    spatial_param_groups,
)


def anneal(optimizer: torch.optim.Optimizer, every: int = 1) -> SNRAnnealing:
    return SNRAnnealing(optimizer, warmup=5, ema=0.9, every=every)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    seen = optimizer.param_groups + optimizer.state_dict()["param_groups"]
    return [float(group["lr"]) for group in seen]


RATES = {
    "float": lambda: 0.1,
    "tensor": lambda: torch.tensor(0.1),
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
class TestTheLearningRateThatAnybodySees:
    def annealed(self, rate):
        """Over two groups, which share a tensor."""
        params = new_params()
        optimizer = torch.optim.SGD(groups_of(params), lr=rate())
        annealing = anneal(optimizer)
        train(Subject(optimizer, annealing), params, gradients(30, scale=0.1))
        for p, grad in zip(params, gradients(20, seed=5)[-1], strict=True):
            p.grad = grad
        return params, optimizer, annealing

    def test_is_the_users_after_every_step_while_steps_are_shorter(self, rate):
        p = nn.Parameter(torch.zeros(100))
        optimizer = torch.optim.SGD([{"params": [p]}, {"params": [nn.Parameter(torch.zeros(1))]}], lr=rate())
        annealing, generator = anneal(optimizer), torch.Generator().manual_seed(0)
        given = [group["lr"] for group in optimizer.param_groups]
        for step in range(60):
            p.grad, before = torch.randn(100, generator=generator) + (step < 15), p.detach().clone()
            optimizer.step()
            assert rates(optimizer) == pytest.approx([0.1] * 4)
            assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, given, strict=True))
            torch.testing.assert_close(before - p.detach(), 0.1 * annealing.factor() * p.grad)
        assert annealing.factor() < 0.5

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_is_the_users_after_a_closure_that_raises(self, rate, error):
        _, optimizer, _ = self.annealed(rate)

        def closure():
            raise error("out of memory")

        with pytest.raises(error):
            optimizer.step(closure)
        assert rates(optimizer) == pytest.approx([0.1] * 4)

    def test_is_the_users_after_an_update_that_raises(self, rate):
        params, optimizer, _ = self.annealed(rate)
        optimizer.param_groups[1]["weight_decay"] = "much"
        gradient = params[0].grad
        WienerFilter(optimizer)
        with pytest.raises(TypeError):
            optimizer.step()
        assert rates(optimizer) == pytest.approx([0.1] * 4)
        assert params[0].grad is gradient

    def test_is_the_users_in_hooks_whenever_they_were_registered(self, rate):
        optimizer = torch.optim.SGD(new_params(), lr=rate())
        seen = []

        def look(*_):
            seen.append(float(optimizer.param_groups[0]["lr"]))

        hooks = optimizer.register_step_pre_hook, optimizer.register_step_post_hook
        for register in hooks:
            register(look)
        annealing = anneal(optimizer)
        for register in hooks:
            register(look)
        params = optimizer.param_groups[0]["params"]
        noise = [[torch.randn(g.shape) for g in of_step] for of_step in gradients(40)]
        train(Subject(optimizer, annealing), params, noise)
        assert annealing.factor() < 0.9
        assert seen == pytest.approx([0.1] * 160)

    def test_is_the_schedulers_in_a_hook_of_its_own(self, rate):
        params = new_params()
        optimizer = torch.optim.SGD(params, lr=rate())
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        annealing = anneal(optimizer)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        train(Subject(optimizer, annealing), params, gradients(20))
        assert rates(optimizer)[0] == pytest.approx(0.1 * 0.9**20)

    def test_is_the_users_once_detached_in_any_order(self, rate):
        for order in ((0, 1), (1, 0)):
            _, optimizer, annealing = self.annealed(rate)
            step = type(optimizer).step
            attached = annealing, WienerFilter(optimizer)
            schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
            for i in order:
                attached[i].detach()
            optimizer.step()
            schedule.step()
            assert rates(optimizer) == pytest.approx([0.1] * 4)
            anneal(optimizer).detach()
            assert type(optimizer).step is step


class TestWhatItObserves:
    def rho_of(self, grads) -> float:
        lines = [torch.cat([grad.flatten() for grad in of_step]).double() for of_step in grads]
        products = [a @ b for a, b in zip(lines[1:], lines, strict=False)]
        beta, product, power = 0.0, 0.0, 0.0
        for count, (a, both) in enumerate(zip(lines[1:], products, strict=True), 1):
            beta = min(0.9, 1 - 1 / count)
            product, power = beta * product + (1 - beta) * both, beta * power + (1 - beta) * (a @ a)
        return (product / power).item()

    @pytest.mark.parametrize(
        "make",
        [
            lambda params: pytorch_optimizer.GrokFastAdamW(params, lr=1e-4),
            lambda params: pytorch_optimizer.AdaBelief(params, lr=1e-4, weight_decay=0.5, weight_decouple=False),
            lambda params: torch.optim.SGD(params, lr=1e-4, weight_decay=0.5, foreach=True, maximize=True),
        ],
        ids=["Grokfast", "AdaBelief", "SGD"],
    )
    def test_is_the_gradient_before_the_optimizer_changes_it(self, make):
        params, grads = new_params(), gradients(40)
        optimizer = make(params)
        annealing = anneal(optimizer)
        train(Subject(optimizer, annealing), params, grads)
        assert annealing.rho() == pytest.approx(self.rho_of(grads), rel=1e-4)

    @pytest.mark.parametrize("filter_first", [True, False])
    def test_is_the_unfiltered_gradient_in_any_order_of_attaching(self, filter_first):
        params, grads = new_params(), gradients(40)
        optimizer = torch.optim.SGD(groups_of(params), lr=1e-3)
        filters = [WienerFilter(optimizer)] if filter_first else []
        annealing = anneal(optimizer)
        filters += [] if filter_first else [WienerFilter(optimizer)]
        train(Subject(optimizer, annealing), params, grads)
        assert annealing.rho() == pytest.approx(self.rho_of(grads), rel=1e-4)
        assert filters[0].coherence()["0"].coherence.any()

    def test_is_what_a_hook_of_the_user_made_of_it(self):
        """As clipping in a hook, registered before or after."""
        params, grads = new_params(), gradients(40)
        optimizer = torch.optim.SGD(params, lr=1e-3)
        annealing = anneal(optimizer)

        def clip(*_):
            torch.nn.utils.clip_grad_value_(params, 0.5)

        optimizer.register_step_pre_hook(clip)
        train(Subject(optimizer, annealing), params, grads)
        clipped = [[grad.clamp(-0.5, 0.5) for grad in of_step] for of_step in grads]
        assert annealing.rho() == pytest.approx(self.rho_of(clipped), rel=1e-4)

    def test_is_what_the_closure_computes(self):
        params, grads = new_params(), gradients(40)
        optimizer = torch.optim.SGD(params, lr=1e-3)
        annealing = anneal(optimizer)
        for of_step in grads:

            def closure(of_step=of_step):
                for p, grad in zip(params, of_step, strict=True):
                    p.grad = grad.clone()
                return 2.0

            assert optimizer.step(closure=closure) == 2.0
        assert annealing.rho() == pytest.approx(self.rho_of(grads), rel=1e-4)


BASES = {
    "WienerSGD": (WienerSGD, lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.01)),
    "WienerAdamW": (WienerAdamW, lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.01)),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("every", [1, 4])
def test_the_wiener_optimizers_are_filter_and_annealing_around_torchs(name, every):
    cls, make_base = BASES[name]
    ours, theirs, grads = new_params(), new_params(), gradients(60)
    optimizer = cls(
        groups_of(ours), lr=0.01, weight_decay=0.01, every=every, snr_annealing=True, warmup=5, annealing_ema=0.9
    )
    base = make_base(groups_of(theirs))
    annealing = anneal(base, every)
    attached = WienerFilter(base, every=every)
    fading = [[grad if step < 30 else torch.randn_like(grad) for grad in of_step] for step, of_step in enumerate(grads)]
    train(Subject(optimizer), ours, fading)
    train(Subject(base, attached), theirs, fading)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert 0 < annealing.factor() < 1
    for name, learnt in optimizer.snr().parameters.items():
        torch.testing.assert_close(attached.coherence()[name].gain, learnt.gain)


def flat_groups(params: list[nn.Parameter]) -> list[dict]:
    return [{"params": params[:1], "grid": (8, 6)}]


FILTERED = {
    "Muon": lambda groups: torch.optim.Muon(groups, lr=0.01),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.01),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=0.01),
    "fused AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "Lion": lambda groups: pytorch_optimizer.Lion(groups, lr=0.01),
    "ConvolutionalSGD": lambda groups: ConvolutionalSGD(groups, lr=0.01),
}


@pytest.mark.parametrize("name", FILTERED)
def test_the_filter_works_around_any_optimizer_and_gradients_are_as_they_were(name):
    params, grads = new_params()[:1], [of_step[:1] for of_step in gradients(30)]
    optimizer = FILTERED[name](flat_groups(params))
    attached = WienerFilter(optimizer, noise_weight=0.01)
    for (grad,) in grads:
        given = params[0].grad = grad.clone()
        optimizer.step()
        assert params[0].grad is given
        assert torch.equal(given, grad)
    learnt = attached.coherence()["0"]
    assert learnt.gain.max() > 1.2 > 0.8 > learnt.gain.min()
    plain = new_params()[:1]
    train(Subject(FILTERED[name](flat_groups(plain)), True), plain, grads)
    assert not torch.allclose(plain[0], params[0], rtol=1e-3)


@for_each_attachment
class TestItsState:
    def halfway(self, make):
        params, grads = new_params(), gradients(40)
        subject = make(groups_of(params))
        train(subject, params, grads[:21])
        return params, subject, grads[21:]

    def test_saved_to_a_file_and_loaded_it_goes_on_as_if_never_stopped(self, make):
        params, subject, rest = self.halfway(make)
        file = io.BytesIO()
        torch.save(subject.saved(), file)
        file.seek(0)
        resumed = [nn.Parameter(p.detach().clone()) for p in params]
        other = make(groups_of(resumed))
        other.load(torch.load(file, weights_only=True))
        train(subject, params, rest)
        train(other, resumed, rest)
        assert_same(params, resumed)
        assert_same(subject.learnt(), other.learnt())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
    def test_copied_with_its_optimizer_it_goes_on_alike_and_by_itself(self, make, copied):
        params, subject, rest = self.halfway(make)
        twins, optimizer, attached = copied((params, *subject))
        assert attached.optimizer is optimizer
        before = [p.detach().clone() for p in twins]
        train(subject, params, rest)
        assert_same(twins, before)
        twin = Subject(optimizer, attached)
        train(twin, twins, rest)
        assert_same(params, twins)
        assert_same(subject.learnt(), twin.learnt())

    def test_training_on_leaves_the_checkpoint_that_it_was_loaded_from_alone(self, make):
        params, subject, rest = self.halfway(make)
        saved = subject.saved()["attached"]
        kept = copy.deepcopy(tree_leaves(saved))
        subject.attached.load_state_dict(saved)
        train(subject, params, rest)
        torch.testing.assert_close(tree_leaves(saved), kept, rtol=0, atol=0)

    def test_of_other_parameters_it_is_refused_and_nothing_changes(self, make):
        _params, subject, _rest = self.halfway(make)
        before = subject.saved()["attached"]
        others = [nn.Parameter(torch.zeros(12, 80)), nn.Parameter(torch.zeros(4, 80)), nn.Parameter(torch.zeros(9))]
        other = make([{"params": others[:2], "grid": (8, 10)}, {"params": others[2:]}])
        train(other, others, [[torch.randn_like(p) for p in others]] * 3)
        with pytest.raises(ValueError, match=r"must have shape|of shape"):
            subject.attached.load_state_dict(other.attached.state_dict())
        assert str(subject.saved()["attached"]) == str(before)


class TestWhatCannotWork:
    def test_says_so_when_attached_twice(self):
        optimizer = torch.optim.SGD(groups_of(new_params()), lr=0.1)
        for attach in (SNRAnnealing, WienerFilter):
            first = attach(optimizer)
            with pytest.raises(RuntimeError, match=f"{attach.__name__} already"):
                attach(optimizer)
            first.detach()
            attach(optimizer)

    @pytest.mark.parametrize("cls", [WienerSGD, WienerAdamW])
    def test_says_so_around_what_does_it_itself(self, cls):
        with pytest.raises(RuntimeError, match="anneals itself"):
            SNRAnnealing(cls(groups_of(new_params()), snr_annealing=True))
        with pytest.raises(RuntimeError, match="filters its gradients itself"):
            WienerFilter(cls(groups_of(new_params())))
        optimizer = cls(groups_of(new_params()))
        SNRAnnealing(optimizer)
        for group in optimizer.param_groups:
            group["snr_annealing"] = True
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match="anneals itself"):
            optimizer.step()

    @pytest.mark.parametrize(
        "optimizer_class", [torch.optim.Rprop, torch.optim.LBFGS, torch.optim.ASGD, torch.optim.Adafactor]
    )
    def test_says_so_of_optimizers_that_do_not_step_by_their_rate(self, optimizer_class):
        with pytest.raises(TypeError, match=optimizer_class.__name__):
            SNRAnnealing(optimizer_class(new_params()))

    def test_says_so_of_them_within_a_wrapper(self):
        prepared = Accelerator(cpu=True).prepare(torch.optim.Rprop(new_params()))
        with pytest.raises(TypeError, match="Rprop"):
            SNRAnnealing(prepared)

    def test_says_so_of_an_optimizer_without_a_rate(self):
        from transformers import Adafactor

        with pytest.raises(TypeError, match="no learning rate"):
            SNRAnnealing(Adafactor(new_params()))

    @pytest.mark.parametrize("attach", [SNRAnnealing, WienerFilter])
    def test_says_so_of_steps_that_are_to_be_differentiated(self, attach):
        optimizer = torch.optim.SGD(groups_of(new_params()), lr=0.1, differentiable=True)
        with pytest.raises(RuntimeError, match=f"{attach.__name__} cannot be differentiated"):
            attach(optimizer)

    @pytest.mark.parametrize("attach", [SNRAnnealing, WeightAveraging, WienerFilter])
    def test_says_so_of_state_that_is_not_its_own(self, attach):
        attached = attach(torch.optim.SGD(groups_of(new_params()), lr=0.1))
        with pytest.raises(ValueError, match="the state_dict must hold"):
            attached.load_state_dict({"anything": 1})

    def test_reaches_through_a_wrapper_without_hooks(self):
        params = new_params()
        inner = torch.optim.SGD(groups_of(params), lr=0.1)
        prepared = Accelerator(cpu=True).prepare(inner)
        annealing, filtered = SNRAnnealing(prepared, warmup=0, ema=0.5), WienerFilter(prepared)
        assert annealing.optimizer is filtered.optimizer is inner
        train(Subject(prepared, annealing), params, [[torch.randn_like(p) for p in params]] * 1 + gradients(9))
        assert annealing.rho() > 0

    def test_names_the_remedy_for_a_wrapper_that_it_cannot_see_through(self):
        class Wrapper(torch.optim.Optimizer):
            def __init__(self, inner):
                self.inner = inner

            def step(self, closure=None):
                self.inner.step(closure)

        wrapper = Wrapper(torch.optim.SGD(new_params(), lr=0.1))
        for attach in (SNRAnnealing, WienerFilter):
            with pytest.raises(TypeError, match=f"no step hooks: attach {attach.__name__} to the"):
                attach(wrapper)

    def test_says_so_where_there_is_no_grid(self):
        optimizer = torch.optim.SGD(new_params(), lr=0.1)
        with pytest.raises(ValueError, match="spatial_param_groups"):
            WienerFilter(optimizer)
        optimizer.step()
        assert "step" not in vars(optimizer)
        with pytest.raises(ValueError, match="grid"):
            WienerFilter(torch.optim.SGD([{"params": new_params(), "grid": (5, 5)}], lr=0.1))

    @pytest.mark.parametrize(
        "make",
        [lambda p: torch.optim.SGD(p, lr=0.1), LaplacianSmoothingSGD, WienerSGD],
        ids=["SGD", "Laplacian", "Wiener"],
    )
    def test_says_so_of_a_recorder_where_there_are_no_kernels(self, make):
        with pytest.raises(TypeError, match="must have learned kernels"):
            KernelRecorder(make(new_params()))

    def test_says_so_of_swapped_arguments(self):
        model = nn.Linear(4, 3)
        with pytest.raises(TypeError, match="the model comes first"):
            spatial_param_groups(torch.zeros(1, 4), model)
        with pytest.raises(TypeError, match="positional"):
            spatial_param_groups(model, torch.zeros(1, 4), 7)


class Inheriting(torch.optim.SGD):
    """Its step does something more, then calls that of its base class: torch calls the hooks of both."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("attach", [anneal, WeightAveraging, WienerFilter])
def test_a_step_that_calls_its_base_classs_is_one_step(attach, with_closure):
    torch.optim.SGD(new_params(), lr=0.1)  # torch hooks a class when the first of it is made
    seen = []
    for cls in (torch.optim.SGD, Inheriting):
        params = new_params()
        optimizer = cls(groups_of(params), lr=0.1)
        attached = attach(optimizer)
        for batch in gradients(30, scale=0.1):

            def closure(params=params, batch=batch):
                for p, gradient in zip(params, batch, strict=True):
                    p.grad = gradient.clone()
                return torch.tensor(0.0)

            if not with_closure:
                closure()
            optimizer.step(closure if with_closure else None)
        seen.append([*params, *tree_leaves(attached.state_dict())])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_that_a_fused_optimizer_skips_by_itself_is_not_seen():
    params = new_params()
    optimizer = torch.optim.SGD(groups_of(params), lr=0.1, fused=True)
    attached = [SNRAnnealing(optimizer), WeightAveraging(optimizer), WienerFilter(optimizer)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for broken in (False, False, True):
        optimizer.zero_grad()
        before = [str(each.state_dict()) for each in attached]
        scaler.scale(sum(p.sum() for p in params) * (float("inf") if broken else 1.0)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert (before == [str(each.state_dict()) for each in attached]) == broken


@pytest.mark.parametrize("lr", [np.float32(0.1), torch.tensor(1)], ids=["numpy", "integer tensor"])
def test_whatever_torch_takes_for_a_learning_rate_is_scaled(lr):
    params = new_params()
    optimizer = torch.optim.SGD(params, lr=lr)
    annealing = SNRAnnealing(optimizer, warmup=0, ema=0.5, every=1)
    train(Subject(optimizer, annealing), params, gradients(20, scale=1.0))
    before = [p.detach().clone() for p in params]
    train(Subject(optimizer, annealing), params, [[torch.ones_like(p) for p in params]])
    assert 0 < annealing.factor() < 1
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(old - p, torch.full_like(p, annealing.factor() * float(lr)), rtol=1e-3, atol=1e-6)


def test_a_checkpoint_from_before_there_were_grids_leaves_the_filter_its_grids():
    params = new_params()
    optimizer = torch.optim.SGD(groups_of(params), lr=0.1)
    filtered = WienerFilter(optimizer)
    old = torch.optim.SGD([{"params": group["params"]} for group in optimizer.param_groups], lr=0.1)
    optimizer.load_state_dict(old.state_dict())
    train(Subject(optimizer, filtered), params, gradients(10))
    assert filtered.coherence()


def test_a_grid_that_changes_makes_the_filter_forget():
    p = nn.Parameter(torch.zeros(3, 64))
    optimizer = torch.optim.SGD([{"params": [p], "grid": (4, 16)}], lr=0.1)
    filtered = WienerFilter(optimizer, every=1)
    train(Subject(optimizer, filtered), [p], [[torch.randn(3, 64)] for _ in range(9)])
    assert filtered.state_dict()["parameters"][0]["coherence"].any()
    optimizer.param_groups[0]["grid"] = (16, 4)
    train(Subject(optimizer, filtered), [p], [[torch.randn(3, 64)]])
    assert not filtered.state_dict()["parameters"][0]["coherence"].any()


def test_the_filter_compares_a_parameter_with_no_gradient_of_before_it_was_frozen():
    frozen, other = (nn.Parameter(torch.zeros(4, 8)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [frozen, other], "grid": (8,)}], lr=0.1)
    filtered = WienerFilter(optimizer, every=1)
    grads = 1 + torch.randn(9, 4, 8)
    train(Subject(optimizer, filtered), [frozen, other], [[grad, grad] for grad in grads[:4]])
    learnt = filtered.coherence()["0"].coherence
    train(Subject(optimizer, filtered), [frozen, other], [[None, grad] for grad in grads[4:8]])
    train(Subject(optimizer, filtered), [frozen, other], [[grads[8]] * 2])
    assert torch.equal(filtered.coherence()["0"].coherence, learnt)
    assert not torch.equal(filtered.coherence()["1"].coherence, learnt)


@pytest.mark.parametrize("name", TORCHS)
def test_an_attached_optimizer_that_is_copied_alone_is_plain(name):
    """As torch has it with hooks; the docstrings say so."""
    params = new_params()
    subject = SUBJECTS[f"SNRAnnealing around {name}"](groups_of(params))
    twin = copy.deepcopy(subject.optimizer)
    assert "step" not in vars(twin)
    assert not twin._optimizer_step_pre_hooks
