"""WienerSGD and WienerAdamW: the base optimizer on gradients that pass the filter their own coherence prescribes."""

import copy
import io
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from convopt import SNRAnnealing, WienerAdamW, WienerFilter, WienerSGD
from convopt.theory import spectrum

OPTIMIZERS = {"WienerSGD": WienerSGD, "WienerAdamW": WienerAdamW}
BASES = {
    "WienerSGD": lambda params, **options: torch.optim.SGD(params, lr=0.1, momentum=0.9, **options),
    "WienerAdamW": lambda params, **options: torch.optim.AdamW(params, lr=0.1, weight_decay=0.0, **options),
}
for_each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def make(name: str, params, **options):
    return OPTIMIZERS[name](
        params,
        **{
            "lr": 0.1,
            "weight_decay": 0.0,
            "snr_annealing": True,
            "warmup": 5,
            "every": 1,
            "coherence_ema": 0.99,
            **options,
        },
    )


def new_params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A weight over images of 6 x 5, and one over nothing in particular."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in ((4, 30), (7,))]


def groups(params: list[nn.Parameter]) -> list[dict]:
    return [{"params": params[:1], "grid": (6, 5)}, {"params": params[1:]}]


def gradients(steps: int, noise: float = 1.0, seed: int = 1) -> list[list[torch.Tensor]]:
    """Smooth images as the signal, which fades after half of the steps, in white noise."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    image = torch.cos(torch.pi / 6 * (rows + 0.5)) + torch.cos(torch.pi / 5 * (columns + 0.5))
    signal = [image.flatten() * torch.randn(4, 1, generator=generator), torch.randn(7, generator=generator)]
    return [
        [(s if step < steps / 2 else 0 * s) + noise * torch.randn(s.shape, generator=generator) for s in signal]
        for step in range(steps)
    ]


def train(optimizer, params, grads) -> None:
    for step_grads in grads:
        for p, grad in zip(params, step_grads, strict=True):
            p.grad = None if grad is None else grad.to(p.dtype).clone()
        optimizer.step()


def train_by_halves(optimizer, params, grads) -> None:
    """A step for each two gradients, which are those of the halves of its batch."""
    for first, second in zip(grads[::2], grads[1::2], strict=True):
        for p, grad in zip(params, first, strict=True):
            p.grad = grad / 2
        optimizer.mark_half()
        for p, grad in zip(params, second, strict=True):
            p.grad += grad / 2
        optimizer.step()


def reference_directions(
    grads: list[torch.Tensor], signal_of: Callable = torch.abs, noise_weight: float = 0.003, ema: float = 0.99
) -> list[torch.Tensor]:
    """What becomes of the gradients of a weight over 6 x 5 pixels, step by step: by the formulas, in float64."""
    rings = spectrum.radial_bins((6, 5), 6)
    signal = total = torch.zeros(6, dtype=torch.float64)
    previous, directions = None, []
    for grad in grads:
        fields = grad.double().view(-1, 6, 5)
        if previous is not None:
            cross, power = (spectrum.cross_spectrum(fields, other, (1, 2)) for other in (previous, fields))
            signal = ema * signal + (1 - ema) * spectrum.radial_mean(cross, rings, 6)
            total = ema * total + (1 - ema) * spectrum.radial_mean(power, rings, 6)
        power = total[rings]
        noise = total - signal_of(signal)
        gain = (signal_of(signal) / (signal_of(signal) + noise_weight * noise)).nan_to_num()[rings]
        scale = ((power.sum() / (gain**2 * power).sum()) ** 0.5).item()
        directions.append(spectrum.apply_gain(fields, gain * scale if scale < math.inf else torch.ones(6, 5)))
        previous = fields
    return [direction.reshape(4, 30) for direction in directions]


@for_each_optimizer
class TestTheBaseOptimizer:
    @pytest.mark.parametrize(
        "options", [{}, {"weight_decay": 0.1}, {"maximize": True}, {"foreach": True}, {"fused": True}]
    )
    def test_without_a_grid_and_annealing_it_is_torchs_to_the_bit(self, name, options):
        ours, theirs = new_params(), new_params()
        optimizer = make(name, ours, snr_annealing=False, **options)
        base = BASES[name](theirs, **options) if "weight_decay" not in options or name == "WienerSGD" else None
        if base is None:
            base = torch.optim.AdamW(theirs, lr=0.1, **options)
        for one, p in ((optimizer, ours), (base, theirs)):
            train(one, p, gradients(20))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    @pytest.mark.parametrize(
        ("options", "formula"),
        [({}, ()), ({"signal": "positive part", "noise_weight": 1.0}, (lambda signal: signal.clamp_min(0), 1.0))],
        ids=["default", "Wiener's own"],
    )
    def test_with_a_grid_it_is_torchs_on_the_filtered_gradients(self, name, options, formula):
        grads = gradients(40)
        ours, theirs = new_params(), new_params()
        train(make(name, groups(ours), snr_annealing=False, **options), ours, grads)
        smoothed = reference_directions([grad for grad, _ in grads], *formula)
        train(BASES[name](theirs), theirs, [[a, b] for a, (_, b) in zip(smoothed, grads, strict=True)])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        plain = new_params()
        train(BASES[name](plain), plain, grads)
        assert not torch.allclose(ours[0], plain[0], rtol=1e-2)

    def test_its_annealing_is_that_of_snr_annealing(self, name):
        grads = gradients(60)
        ours, theirs = new_params(), new_params()
        optimizer = make(name, ours, annealing_ema=0.9)
        base = BASES[name](theirs)
        annealing = SNRAnnealing(base, warmup=5, ema=0.9, every=optimizer.param_groups[0]["every"])
        for step_grads in grads:
            train(optimizer, ours, [step_grads])
            train(base, theirs, [step_grads])
            assert optimizer.snr().factor == pytest.approx(annealing.factor(), rel=1e-4)
        assert optimizer.snr().rho == pytest.approx(annealing.rho(), rel=1e-4)
        assert annealing.factor() < 0.5

    def test_unless_it_is_asked_for_steps_are_not_annealed(self, name):
        params = new_params()
        optimizer = OPTIMIZERS[name](groups(params), warmup=5, annealing_ema=0.9)
        train(optimizer, params, gradients(60))
        assert optimizer.snr().factor == 1

    def test_it_goes_on_from_a_checkpoint_of_the_base(self, name):
        grads = gradients(30)
        ours, theirs = new_params(), new_params()
        base = BASES[name](theirs)
        train(base, theirs, grads[:10])
        for p, q in zip(ours, theirs, strict=True):
            p.data.copy_(q.data)
        optimizer = make(name, groups(ours), snr_annealing=False)
        state = copy.deepcopy(base.state_dict())
        state["param_groups"] = [{**state["param_groups"][0], "params": [i]} for i in range(2)]
        optimizer.load_state_dict(state)
        assert [group["grid"] for group in optimizer.param_groups] == [(6, 5), None]
        optimizer.param_groups[0]["grid"] = None
        for one, p in ((optimizer, ours), (base, theirs)):
            train(one, p, grads[10:])
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@for_each_optimizer
class TestTheFilter:
    @pytest.mark.parametrize("gain", ["radial", "separable"])
    def test_it_learns_which_frequencies_are_signal(self, name, gain):
        params = new_params()
        optimizer = make(name, groups(params), gain=gain, noise_weight=0.01)
        train(optimizer, params, gradients(400)[:200])
        learnt = optimizer.snr().parameters["0"]
        low = (learnt.frequency > 0) & (learnt.frequency < 0.3)
        assert learnt.coherence[low].max() > 0.3
        assert learnt.coherence[learnt.frequency > 0.6].max() < 0.2
        assert (learnt.gain >= 0).all()
        assert learnt.gain[low].max() > 1.5 * learnt.gain[learnt.frequency > 0.6].max()

    def test_of_two_halves_of_a_batch_it_learns_the_same(self, name):
        params = new_params()
        optimizer = make(name, groups(params), second_estimate="half batches", lr=1e-6)
        train_by_halves(optimizer, params, gradients(400)[:200])
        learnt = optimizer.snr().parameters["0"]
        assert learnt.coherence[(learnt.frequency > 0) & (learnt.frequency < 0.3)].max() > 0.6
        assert learnt.coherence[learnt.frequency > 0.6].max() < 0.3
        assert 0.2 < optimizer.snr().rho < 1

    def test_a_forgotten_half_is_an_error_and_changes_nothing(self, name):
        params = new_params()
        optimizer = make(name, groups(params), second_estimate="half batches")
        before = [p.detach().clone() for p in params]
        with pytest.raises(RuntimeError, match="mark_half"):
            train(optimizer, params, gradients(1))
        assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
        with pytest.raises(RuntimeError, match="half batches"):
            make(name, new_params()).mark_half()

    def test_where_no_half_is_needed_none_is_missed(self, name):
        params = [nn.Parameter(torch.randn(5))]
        optimizer = make(name, [{"params": params}], second_estimate="half batches", snr_annealing=False)
        params[0].grad = torch.ones(5)
        before = params[0].detach().clone()
        optimizer.step()
        assert not torch.equal(params[0], before)

    def test_parameters_without_names_are_told_apart_over_groups(self, name):
        params = [nn.Parameter(torch.randn(8, 16)) for _ in range(2)]
        optimizer = make(name, [{"params": [params[0]], "grid": (4, 4)}, {"params": [params[1]], "grid": (16,)}])
        base = torch.optim.SGD([{"params": [p], "grid": (16,)} for p in params], lr=0.1)
        wrapper = WienerFilter(base, every=1)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(8, 16)
            optimizer.step()
            base.step()
        assert list(optimizer.snr().parameters) == list(wrapper.coherence()) == ["0", "1"]

    def test_a_grid_that_is_changed_after_loading_is_learnt_anew(self, name):
        params = [nn.Parameter(torch.randn(8, 64))]
        trained = make(name, [{"params": params, "grid": (4, 16)}])
        for _ in range(3):
            params[0].grad = torch.randn(8, 64)
            trained.step()
        optimizer = make(name, [{"params": params, "grid": (4, 16)}])
        optimizer.load_state_dict(trained.state_dict())
        optimizer.param_groups[0]["grid"] = (16, 4)
        optimizer.step()
        assert not optimizer.state[params[0]]["coherence"].any()

    def test_a_grid_of_one_element_logs_no_nan(self, name):
        params = [nn.Parameter(torch.randn(8, 1))]
        optimizer = make(name, [{"params": params, "grid": (1, 1)}])
        for _ in range(3):
            params[0].grad = torch.randn(8, 1)
            optimizer.step()
        assert not any(math.isnan(value) for value in optimizer.snr_scalars().values())

    def test_the_scale_keeps_the_gradients_power_or_the_constant(self, name):
        grads = gradients(400)[:200]
        for scale in ("energy", "unit dc"):
            params = new_params()
            optimizer = make(name, groups(params), scale=scale, snr_annealing=False)
            train(optimizer, params, grads)
            learnt = optimizer.snr().parameters["0"]
            if scale == "unit dc":
                assert learnt.gain[learnt.frequency == 0] == pytest.approx(1)
            else:
                assert learnt.gain.max() > 1 > learnt.gain.min()

    def test_multiplying_the_loss_by_a_constant_changes_neither_gain_nor_annealing(self, name):
        learnt = []
        for by in (1.0, 1e-6, 1e6):
            params = new_params()
            optimizer = make(name, groups(params), lr=1e-9, annealing_ema=0.9)
            train(optimizer, params, [[by * grad for grad in step] for step in gradients(60)])
            learnt.append(optimizer.snr())
        for other in learnt[1:]:
            assert other.factor == pytest.approx(learnt[0].factor, rel=1e-4)
            torch.testing.assert_close(other.parameters["0"].gain, learnt[0].parameters["0"].gain, rtol=1e-4, atol=0)
        assert learnt[0].factor < 1

    def test_what_is_read_for_a_logger_is_floats(self, name):
        params = new_params()
        optimizer = make(name, [{"params": [("first.weight", params[0])], "grid": (6, 5)}])
        assert math.isnan(optimizer.snr_scalars()["rho"])
        train(optimizer, params[:1], [grads[:1] for grads in gradients(80)[:40]])
        scalars = optimizer.snr_scalars()
        assert set(scalars) == {"rho", "factor", "coherence/first.weight/low", "coherence/first.weight/high"}
        assert all(isinstance(value, float) for value in scalars.values())
        assert scalars["coherence/first.weight/low"] > 2 * scalars["coherence/first.weight/high"]


@for_each_optimizer
class TestGrids:
    @pytest.mark.parametrize(
        ("shape", "grid"),
        [((4, 30), (6, 5)), ((4, 60), (2, 6, 5)), ((3, 2, 6, 5), (6, 5)), ((4, 30), (30,)), ((4, 30), (6, 1, 5))],
    )
    def test_fold_trailing_axes_and_do_not_smooth_over_channels(self, name, shape, grid):
        p = nn.Parameter(torch.zeros(shape))
        optimizer = make(name, [{"params": [p], "grid": grid}], snr_annealing=False)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            p.grad = torch.randn(shape, generator=generator)
            optimizer.step()
        # A gradient in one field stays there, whatever the gain.
        before = p.detach().clone()
        optimizer.state.clear()
        p.grad = torch.zeros(shape)
        p.grad.view(-1)[: math.prod(grid[-2:])] = torch.randn(math.prod(grid[-2:]), generator=generator)
        optimizer.step()
        changed = (p.detach() != before).view(-1)
        assert changed.any()
        assert not changed[math.prod(grid[-2:]) :].any()

    @pytest.mark.parametrize("grid", [(5, 5), (28, 28), (2, 6, 5)])
    def test_that_do_not_fit_are_refused_by_name(self, name, grid):
        p = nn.Parameter(torch.zeros(4, 30))
        with pytest.raises(ValueError, match=rf"grid \({grid[0]}.*weight.*\(4, 30\)"):
            make(name, [{"params": [("weight", p)], "grid": grid}])

    @pytest.mark.parametrize("grid", [(), (0, 5), (6.0, 5), 30, (1, 1, 6, 5), (True, 30)])
    def test_that_are_no_grids_are_refused(self, name, grid):
        with pytest.raises(ValueError, match="grid"):
            make(name, [{"params": new_params()[:1], "grid": grid}])

    @pytest.mark.parametrize("layout", ["transposed", "channels_last"])
    @pytest.mark.parametrize("fused", [False, True])
    def test_memory_layout_does_not_matter(self, name, layout, fused):
        outcomes = []
        for strided in (False, True):
            p = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
            if strided and layout == "channels_last":
                p = p.contiguous(memory_format=torch.channels_last)
            elif strided:
                p = p.transpose(0, 1).contiguous().transpose(0, 1)
            p = nn.Parameter(p)
            other = nn.Parameter(p.detach().clone())
            optimizer = make(
                name, [{"params": [p], "grid": (6, 5)}, {"params": [other]}], fused=fused, snr_annealing=False
            )
            generator = torch.Generator().manual_seed(1)
            for _ in range(4):
                for q in (p, other):
                    q.grad = torch.empty_like(q).copy_(torch.randn(4, 3, 6, 5, generator=generator))
                optimizer.step()
            outcomes.append((p, other))
        for a, b in zip(*outcomes, strict=True):
            torch.testing.assert_close(a, b)


@for_each_optimizer
class TestUnusualSteps:
    def test_a_rate_of_zero_teaches_nothing(self, name):
        params, grads = new_params(), gradients(60)
        optimizer = make(name, groups(params), annealing_ema=0.9)
        train(optimizer, params, grads[:30])
        learnt = optimizer.snr()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        before = [p.detach().clone() for p in params]
        train(optimizer, params, grads[30:])
        assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
        assert optimizer.snr().factor == learnt.factor
        assert torch.equal(optimizer.snr().parameters["0"].gain, learnt.parameters["0"].gain)

    @pytest.mark.parametrize("when", [0, 20])
    def test_a_gradient_of_zero_teaches_nothing(self, name, when):
        grads = gradients(60)
        learnt = []
        for zeros in (0, 2):
            params = new_params()
            optimizer = make(name, groups(params), lr=1e-6, annealing_ema=0.9)
            train(optimizer, params, grads[:when])
            train(optimizer, params, zeros * [[torch.zeros(4, 30), torch.zeros(7)]])
            # With nothing to compare with, the step after the zeros tells nothing either.
            train(optimizer, params, grads[when : when + 1] if zeros == 0 and when == 0 else [])
            train(optimizer, params, grads[when + (zeros == 0 and when == 0) :])
            learnt.append(optimizer.snr())
        assert all(gain.isfinite().all() for snr in learnt for gain in [snr.parameters["0"].gain])
        assert learnt[1].rho == pytest.approx(learnt[0].rho, abs=0.1)
        assert learnt[1].factor > 0

    def test_a_parameter_that_is_frozen_for_a_while_is_left_out(self, name):
        params, grads = new_params(), gradients(80)
        optimizer = make(name, groups(params), annealing_ema=0.9)
        for step, (first, second) in enumerate(grads):
            train(optimizer, params, [[None if 10 <= step < 30 else first, second]])
            if step == 10:
                learnt = optimizer.snr().parameters["0"].coherence
            if step == 30:
                assert torch.equal(optimizer.snr().parameters["0"].coherence, learnt)
        assert all(p.isfinite().all() for p in params)

    def test_no_gradients_at_all_is_no_step(self, name):
        params = new_params()
        optimizer = make(name, groups(params))
        train(optimizer, params, gradients(6)[:3])

        def kept():
            """But for the gradients of before: there is nothing to compare the next ones with."""
            states = [{**optimizer.state[p], "second_estimate": None} for p in params]
            agreement = optimizer.param_groups[0]["annealing"]
            return str([params, *(sorted(state.items()) for state in states), agreement, optimizer.snr()])

        before = kept()
        optimizer.zero_grad()
        for _ in range(5):
            optimizer.step()
        assert kept() == before

    def test_a_group_at_rest_does_not_keep_the_others_from_learning(self, name):
        params = [nn.Parameter(torch.zeros(4, 30)) for _ in range(2)]
        optimizer = make(name, [{"params": [p], "grid": (6, 5)} for p in params])
        optimizer.param_groups[0]["lr"] = 0.0
        train(optimizer, params, [[grad, grad] for grad, _ in gradients(10)[:5]])
        assert optimizer.snr().parameters["1"].coherence.any()

    @pytest.mark.parametrize("size", [1e-25, 1e25])
    def test_gradients_whose_squares_float32_does_not_hold_are_compared_all_the_same(self, name, size):
        rhos = []
        for by in (1.0, size):
            params = new_params()
            optimizer = make(name, params, lr=1e-30)
            train(optimizer, params, [[by * grad for grad in step] for step in gradients(20)])
            rhos.append(optimizer.snr().rho)
        assert rhos[1] == pytest.approx(rhos[0], rel=1e-3)

    def test_a_step_that_grad_scaler_skips_is_not_seen(self, name):
        params = new_params()
        optimizer = make(name, groups(params))
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        generator = torch.Generator().manual_seed(0)
        seen = []
        for broken in (False, False, False, True):
            optimizer.zero_grad()
            loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in params)
            scaler.scale(loss * (float("inf") if broken else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            seen.append(optimizer.snr())
        assert seen[3].rho == seen[2].rho
        assert torch.equal(seen[3].parameters["0"].gain, seen[2].parameters["0"].gain)
        assert not torch.equal(seen[2].parameters["0"].gain, seen[1].parameters["0"].gain)

    def test_gradients_that_cannot_be_smoothed_are_refused_before_anything_is_updated(self, name):
        embedding = nn.Embedding(5, 3, sparse=True)
        p = nn.Parameter(torch.ones(7))
        optimizer = make(name, [{"params": [p]}, {"params": embedding.parameters()}])
        embedding(torch.tensor([1])).sum().backward()
        p.grad = torch.ones(7)
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
        assert torch.equal(p, torch.ones(7))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_statistics_are_at_least_float32(self, name, dtype):
        params = new_params(dtype)
        optimizer = make(name, groups(params), lr=1e-3)
        train(optimizer, params, gradients(80)[:40])
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        assert optimizer.state[params[0]]["coherence"].dtype == precision
        assert all(p.isfinite().all() for p in params)
        twin = copy.deepcopy(optimizer)
        twin.load_state_dict(optimizer.state_dict())
        ours, theirs = (next(iter(one.state.values()))["coherence"] for one in (optimizer, twin))
        assert theirs.dtype == precision
        assert torch.equal(ours, theirs)

    def test_the_gradient_itself_stays_as_it_is_and_a_closure_is_called_once(self, name):
        params, grads = new_params(), gradients(2)
        optimizer = make(name, groups(params))
        calls = []

        def closure():
            assert torch.is_grad_enabled()
            calls.append(1)
            for p, grad in zip(params, grads[len(calls) - 1], strict=True):
                p.grad = grad.clone()
            return 3.0

        assert [optimizer.step(closure) for _ in range(2)] == [3.0, 3.0]
        assert len(calls) == 2
        assert all(torch.equal(p.grad, grad) for p, grad in zip(params, grads[1], strict=True))


@for_each_optimizer
class TestLikeTorchs:
    @pytest.mark.parametrize(
        ("second_estimate", "train_on"), [("previous step", train), ("half batches", train_by_halves)]
    )
    @pytest.mark.parametrize("through", ["state_dict", "pickle"])
    def test_training_resumed_is_training_that_never_stopped(self, name, through, second_estimate, train_on):
        grads, options = gradients(60), {"annealing_ema": 0.9, "second_estimate": second_estimate}
        params = new_params()
        optimizer = make(name, groups(params), **options)
        train_on(optimizer, params, grads[:30])
        resumed = [nn.Parameter(p.detach().clone()) for p in params]
        if through == "pickle":
            other = pickle.loads(pickle.dumps(optimizer))
            resumed = [p for group in other.param_groups for p in group["params"]]
        else:
            buffer = io.BytesIO()
            torch.save(optimizer.state_dict(), buffer)
            buffer.seek(0)
            other = make(name, groups(resumed), **{**options, "lr": 0.7})
            other.load_state_dict(torch.load(buffer, weights_only=True))
        for one, p in ((optimizer, params), (other, resumed)):
            train_on(one, p, grads[30:])
        assert 0 < optimizer.snr().factor == other.snr().factor < 1
        assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))

    def test_a_schedule_comes_on_top_and_a_tensor_is_a_learning_rate_too(self, name):
        outcomes = []
        for lr in (0.1, torch.tensor(0.1)):
            params = new_params()
            optimizer = make(name, groups(params), lr=lr, annealing_ema=0.9)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
            for step_grads in gradients(40):
                train(optimizer, params, [step_grads])
                schedule.step()
            assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1 * 0.95**40, rel=1e-4)
            outcomes.append(params)
        for a, b in zip(*outcomes, strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("implementation", [{"foreach": True}, {"foreach": False}, {"fused": True}])
    def test_all_implementations_agree(self, name, implementation):
        outcomes = []
        for options in ({}, implementation):
            params = new_params()
            train(make(name, groups(params), annealing_ema=0.9, **options), params, gradients(40))
            outcomes.append(params)
        for a, b in zip(*outcomes, strict=True):
            torch.testing.assert_close(a, b)

    def test_it_keeps_at_most_one_more_gradient_than_the_base(self, name):
        sizes = []
        for make_one in (lambda p: make(name, [{"params": p, "grid": (28, 28)}]), lambda p: BASES[name](p)):
            p = nn.Parameter(torch.randn(128, 784))
            optimizer = make_one([p])
            train(optimizer, [p], [[torch.randn(128, 784)]] * 3)
            sizes.append(sum(t.numel() for t in optimizer.state[p].values() if isinstance(t, torch.Tensor)))
        assert sizes[0] <= sizes[1] + p.numel() + 100

    @pytest.mark.slow
    @pytest.mark.skipif(
        torch.__version__.startswith("2.6."), reason="torch 2.6's compiler fails with an internal error"
    )
    def test_the_step_compiles_as_a_whole_and_not_again_after_the_third_though_its_rate_changes(self, name):
        counters = torch._dynamo.utils.counters
        torch._dynamo.reset()
        counters.clear()
        grads = gradients(8)
        compiled, eager = new_params(), new_params()
        optimizers = [make(name, groups(params), warmup=2) for params in (compiled, eager)]
        steps = [torch.compile(optimizers[0].step, backend="aot_eager"), optimizers[1].step]
        graphs = []
        for step_grads in grads:
            for params, optimizer, step in zip((compiled, eager), optimizers, steps, strict=True):
                for p, grad in zip(params, step_grads, strict=True):
                    p.grad = grad.clone()
                step()
                for group in optimizer.param_groups:
                    group["lr"] *= 0.9  # as a scheduler does
            graphs.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"]
        assert graphs[2:] == [graphs[2]] * 6
        for a, b in zip(compiled, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"lr": -1.0}, "lr"),
            ({"weight_decay": -1.0}, "weight_decay"),
            ({"coherence_ema": 1.0}, "coherence_ema"),
            ({"annealing_ema": -0.1}, "annealing_ema"),
            ({"gain": "round"}, "radial, separable"),
            ({"scale": "dc"}, "unit dc"),
            ({"second_estimate": "next step"}, "half batches"),
            ({"power": -1.0}, "power"),
            ({"onset": 0.0}, "onset"),
            ({"warmup": 1.5}, "warmup"),
            ({"fused": True, "foreach": True}, "fused and foreach"),
        ],
    )
    def test_options_out_of_range_are_refused_by_name(self, name, options, said):
        with pytest.raises(ValueError, match=said):
            make(name, new_params(), **options)

    def test_what_holds_for_all_groups_cannot_be_set_for_one(self, name):
        params = new_params()
        with pytest.raises(ValueError, match=r"power must be the same in all param groups, got 1\.0 and 2\.0"):
            make(name, [{"params": params[:1], "power": 1.0}, {"params": params[1:]}], power=2.0)


def test_options_of_the_bases_are_refused_by_name():
    for make_one, said in (
        (lambda p: WienerSGD(p, momentum=1.0), "momentum"),
        (lambda p: WienerSGD(p, momentum=0.0, nesterov=True), "nesterov"),
        (lambda p: WienerAdamW(p, betas=(0.9, 1.0)), r"betas\[1\]"),
        (lambda p: WienerAdamW(p, eps=-1.0), "eps"),
    ):
        with pytest.raises(ValueError, match=said):
            make_one(new_params())


def test_coupled_weight_decay_is_added_after_smoothing():
    plain, decayed = new_params(), new_params()
    train(WienerSGD(groups(plain), lr=0.1, momentum=0.0), plain, gradients(1))
    train(WienerSGD(groups(decayed), lr=0.1, momentum=0.0, weight_decay=0.5), decayed, gradients(1))
    for a, b, start in zip(plain, decayed, new_params(), strict=True):
        torch.testing.assert_close(b, a - 0.1 * 0.5 * start)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@for_each_optimizer
def test_a_step_does_not_wait_for_the_device(name):
    params = [nn.Parameter(p.detach().cuda()) for p in new_params()]
    optimizer = make(name, groups(params))
    grads = [[grad.cuda() for grad in step] for step in gradients(10)]
    train(optimizer, params, grads[:5])
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(optimizer, params, grads[5:])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_overshoots_passes_where_the_signals_magnitude_counts():
    """Two signals in noise: one agrees from step to step, the other turns round at each."""
    passed = {}
    for signal in ("magnitude", "positive part"):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.zeros(400, 16))
        sgd = torch.optim.SGD([{"params": [weight], "grid": (16,)}], lr=0.1)
        wiener = WienerFilter(sgd, every=1, signal=signal, noise_weight=0.01)
        steady, turning = (spectrum.dct_matrix(16)[k].float() for k in (1, 9))
        for step in range(60):
            weight.grad = steady + (-1) ** step * turning + 0.1 * torch.randn(400, 16)
            wiener.optimizer.step()
        (learnt,) = wiener.coherence().values()
        passed[signal] = learnt.gain
    noise = [k for k in range(16) if k not in (1, 9)]
    assert passed["magnitude"][9] == pytest.approx(passed["magnitude"][1].item(), rel=0.01)
    assert (passed["magnitude"][noise] < 0.7 * passed["magnitude"][1]).all()
    assert passed["positive part"][9] == 0
