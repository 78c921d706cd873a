"""SNRAnnealing scales the steps of any optimizer by how well its consecutive gradients agree, and leaves no trace."""

import copy
import math

import pytest
import pytorch_optimizer
import schedulefree
import torch

from convopt import ConvolutionalSGDv2, SNRAnnealing

OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "SGD, tensor lr": lambda params: torch.optim.SGD(params, lr=torch.tensor(0.1), momentum=0.9),
    "fused Adam": lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
    "AdamW, capturable lr": lambda params: torch.optim.AdamW(params, lr=torch.tensor(0.01), foreach=False),
    "ConvolutionalSGDv2": lambda params: ConvolutionalSGDv2(params, lr=0.1),
    "schedule-free AdamW": lambda params: in_training(schedulefree.AdamWScheduleFree(params, lr=0.01)),
    "Lion": lambda params: pytorch_optimizer.Lion(params, lr=0.01),
}
if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
    OPTIMIZERS["Muon"] = lambda params: torch.optim.Muon(params, lr=0.01)


def in_training(optimizer):
    optimizer.train()
    return optimizer


def new_params() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(6, 5, generator=generator)) for _ in range(2)]


def gradients(steps: int, noise: float = 1.0, seed: int = 1) -> list[list[torch.Tensor]]:
    """A constant signal that fades after half of the steps, in noise."""
    generator = torch.Generator().manual_seed(seed)
    signal = [torch.randn(6, 5, generator=generator) for _ in range(2)]
    return [
        [(s if step < steps / 2 else 0 * s) + noise * torch.randn(6, 5, generator=generator) for s in signal]
        for step in range(steps)
    ]


def train(optimizer, params, grads) -> None:
    for step_grads in grads:
        for p, grad in zip(params, step_grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()


def reference_factors(grads, onset, power, warmup, ema, every) -> list[float]:
    """The factor of each step, by the formulas, in double precision."""
    product = total = square = peak = 0.0
    steps, share, factors, previous = 0, 1.0, [], None
    memory = ema**every
    for step, step_grads in enumerate(grads):
        vector = torch.cat([grad.flatten() for grad in step_grads]).double()
        if step and step % every == 0:
            ready = steps >= warmup
            steps += every
            beta = min(memory, 1 - every / steps)
            product = beta * product + (1 - beta) * (vector @ previous).item()
            total = beta * total + (1 - beta) * (vector @ vector).item()
            square = beta * square + (1 - beta) * (vector @ previous).item() ** 2
            rho = product / total
            peak = max(peak, rho) if ready else peak
            error = math.sqrt(square / min(steps / every, (1 + memory) / (1 - memory))) / total
            share = rho / (onset * max(peak, 3 * error)) if steps > warmup else 1.0
        factors.append(min(1, max(share, 1e-3)) ** power)
        previous = vector
    return factors


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(("onset", "power"), [(1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (0.5, 2.0), (0.7, 1.0)])
def test_the_factor_follows_the_formulas_and_scales_the_same_step(onset, power, every):
    params, grads = new_params(), gradients(120)
    optimizer = torch.optim.SGD(params, lr=0.1)
    annealing = SNRAnnealing(optimizer, onset=onset, power=power, warmup=20, ema=0.95, every=every)
    expected = reference_factors(grads, onset, power, 20, 0.95, every)
    assert power == 0 or min(expected) < 0.8
    for step_grads, factor in zip(grads, expected, strict=True):
        before = [p.detach().clone() for p in params]
        train(optimizer, params, [step_grads])
        assert annealing.factor() == pytest.approx(factor, rel=1e-4)
        for p, old, grad in zip(params, before, step_grads, strict=True):
            torch.testing.assert_close(p.detach(), old - 0.1 * factor * grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestAnyOptimizer:
    def test_is_itself_during_the_warmup_and_makes_smaller_steps_when_gradients_stop_agreeing(self, name):
        grads = gradients(150, noise=0.5)
        plain, annealed = new_params(), new_params()
        alone, optimizer = OPTIMIZERS[name](plain), OPTIMIZERS[name](annealed)
        annealing = SNRAnnealing(optimizer, warmup=40, ema=0.9)
        train(alone, plain, grads[:40])
        train(optimizer, annealed, grads[:40])
        assert all(torch.equal(a, b) for a, b in zip(plain, annealed, strict=True))
        train(optimizer, annealed, grads[40:])
        assert annealing.factor() < 0.5

    def test_the_learning_rate_between_steps_is_the_users(self, name):
        params = new_params()
        optimizer = OPTIMIZERS[name](params)
        rate = optimizer.param_groups[0]["lr"]
        value = float(rate)
        annealing = SNRAnnealing(optimizer, warmup=5, ema=0.9)
        train(optimizer, params, gradients(40))
        assert optimizer.param_groups[0]["lr"] is rate or not isinstance(rate, torch.Tensor)
        assert float(optimizer.param_groups[0]["lr"]) == value
        assert annealing.factor() < 1

    def test_training_resumed_from_a_checkpoint_is_training_that_never_stopped(self, name):
        grads = gradients(60)
        params = new_params()
        optimizer = OPTIMIZERS[name](params)
        annealing = SNRAnnealing(optimizer, warmup=10, ema=0.9, read_every=3)
        train(optimizer, params, grads[:31])
        saved = copy.deepcopy((optimizer.state_dict(), annealing.state_dict(), [p.detach() for p in params]))
        train(optimizer, params, grads[31:])
        resumed = [torch.nn.Parameter(p) for p in saved[2]]
        other = OPTIMIZERS[name](resumed)
        other.load_state_dict(saved[0])
        SNRAnnealing(other, warmup=10, ema=0.9, read_every=3).load_state_dict(saved[1])
        train(other, resumed, grads[31:])
        assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))

    def test_once_detached_it_is_the_optimizer_alone(self, name):
        grads = gradients(60)
        plain, params = new_params(), new_params()
        alone, optimizer = OPTIMIZERS[name](plain), OPTIMIZERS[name](params)
        SNRAnnealing(optimizer, warmup=0).detach()
        train(alone, plain, grads)
        train(optimizer, params, grads)
        assert all(torch.equal(a, b) for a, b in zip(plain, params, strict=True))


def test_it_comes_on_top_of_a_schedule():
    grads = gradients(60)
    params = new_params()
    optimizer = torch.optim.SGD(params, lr=1.0)
    annealing = SNRAnnealing(optimizer, warmup=10, ema=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step, step_grads in enumerate(grads):
        before = params[0].detach().clone()
        train(optimizer, params, [step_grads])
        torch.testing.assert_close(
            before - params[0].detach(), 0.9**step * annealing.factor() * step_grads[0], rtol=1e-3, atol=1e-6
        )
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.9 ** (step + 1))


def trained_on(grads, lr: float, **options) -> SNRAnnealing:
    """What is around SGD after a step for each gradient."""
    params = new_params()
    annealing = SNRAnnealing(torch.optim.SGD(params, lr=lr), **options)
    train(annealing.optimizer, params, grads)
    return annealing


def scaled(grads, by: float) -> list[list[torch.Tensor]]:
    return [[by * grad for grad in step] for step in grads]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_multiplying_the_loss_by_a_constant_changes_nothing(scale):
    factors = []
    for by in (1.0, scale):
        annealing = trained_on(scaled(gradients(80), by), lr=1e-9, warmup=10, ema=0.9)
        factors.append(annealing.factor())
    assert factors[1] == pytest.approx(factors[0], rel=1e-4)
    assert factors[0] < 1


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_gradients_whose_squares_float32_does_not_hold_are_compared_all_the_same(size):
    rhos = [trained_on(scaled(gradients(20), by), lr=1e-30, every=1).rho() for by in (1.0, size)]
    assert rhos[1] == pytest.approx(rhos[0], rel=1e-3)


def test_unless_told_otherwise_it_is_as_documented():
    documented = {"onset": 0.8, "power": 1.5, "warmup": 200, "ema": 0.999, "read_every": 1, "every": 4}
    factors = [trained_on(gradients(600), lr=0.1, **options).factor() for options in ({}, documented)]
    assert factors[0] == factors[1] < 1


@pytest.mark.parametrize(("norm", "teaches"), [(25.0, True), (40.0, False)])
def test_a_gradient_of_up_to_thirty_times_the_usual_norm_teaches(norm, teaches):
    powers = []
    for last in (1.0, norm):
        annealing = trained_on([[k * torch.ones(6, 5)] * 2 for k in (*[1.0] * 9, last)], lr=1e-9, every=1)
        powers.append(annealing.state_dict()["statistics"][2].item())
    assert (powers[1] > 10 * powers[0]) == teaches
    assert teaches or powers[1] == pytest.approx(powers[0])


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_gradients_that_are_zero_or_not_finite_move_no_statistics(value):
    params, grads = new_params(), gradients(60)
    optimizer = torch.optim.SGD(params, lr=1e-3)
    annealing = SNRAnnealing(optimizer, warmup=10, ema=0.9, every=1)
    train(optimizer, params, grads[:30])
    factor, rho, learnt = annealing.factor(), annealing.rho(), annealing.state_dict()["statistics"]
    optimizer.param_groups[0]["lr"] = 1e-30
    train(optimizer, params, [[torch.full((6, 5), value)] * 2])
    assert (annealing.factor(), annealing.rho()) == (factor, rho)
    assert torch.equal(annealing.state_dict()["statistics"][:-1], learnt[:-1])  # the last is how large they usually are
    train(optimizer, params, grads[30:])
    assert 0 < annealing.factor() <= 1


def test_a_learning_rate_of_zero_is_not_a_step():
    params, grads = new_params(), gradients(60)
    optimizer = torch.optim.SGD(params, lr=0.1)
    annealing = SNRAnnealing(optimizer, warmup=10, ema=0.9)
    train(optimizer, params, grads[:30])
    factor = annealing.factor()
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, params, grads[30:])
    assert annealing.factor() == factor


def test_a_parameter_without_a_gradient_for_a_while_is_left_out():
    params, grads = new_params(), gradients(60)
    optimizer = torch.optim.SGD(params, lr=0.1)
    annealing = SNRAnnealing(optimizer, warmup=5, ema=0.9)
    for step, step_grads in enumerate(grads):
        params[0].grad = step_grads[0].clone()
        params[1].grad = None if 20 <= step < 40 else step_grads[1].clone()
        optimizer.step()
    assert 0 < annealing.factor() < 1


def test_a_parameter_is_not_compared_with_a_gradient_of_long_ago():
    """Of one that had none for a while the first says nothing: the others alone are compared."""
    p, q = (torch.nn.Parameter(torch.zeros(64)) for _ in range(2))
    optimizer = torch.optim.SGD([p, q], lr=1e-9)
    annealing, seen = SNRAnnealing(optimizer, every=1), []
    for step in range(12):
        p.grad, q.grad = torch.ones(64), None if 4 <= step < 11 else torch.full((64,), (-1.0) ** step)
        optimizer.step()
        seen.append(annealing.state_dict()["statistics"][:3])
    (_, _, before), (steps, _, power) = seen[10:]
    assert (steps * power - (steps - 1) * before).item() == pytest.approx(64)


def test_a_group_at_rest_does_not_keep_the_others_from_being_compared():
    p, q = new_params()
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.0}, {"params": [q]}], lr=0.1)
    annealing = SNRAnnealing(optimizer, every=1)
    train(optimizer, (p, q), gradients(5))
    assert math.isfinite(annealing.rho())


class EvaluatesTwice(torch.optim.SGD):
    """Calls its closure twice in a step, as line searches and sharpness-aware minimisation do."""

    @torch.no_grad()
    def step(self, closure):
        closure()
        closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)


def test_a_closure_that_is_called_twice_is_one_observation_and_one_scaled_step():
    params, rates = new_params(), []
    optimizer = EvaluatesTwice(params, lr=0.1)
    annealing = SNRAnnealing(optimizer, every=1, warmup=0, ema=0.5)
    for step_grads in gradients(30):

        def closure(step_grads=step_grads):
            rates.append(optimizer.param_groups[0]["lr"])
            for p, grad in zip(params, step_grads, strict=True):
                p.grad = grad.clone()
            return 1.0

        before = [p.detach().clone() for p in params]
        optimizer.step(closure)
    assert annealing.state_dict()["statistics"][0] == 29
    assert rates == [0.1] * 60
    assert annealing.factor() < 1
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(old - p.detach(), 0.1 * annealing.factor() * p.grad)


def test_a_closure_is_measured_and_one_that_raises_leaves_the_rate_to_the_next_step():
    params = new_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    annealing = SNRAnnealing(optimizer, warmup=0, ema=0.5)
    generator = torch.Generator().manual_seed(0)

    def closure():
        optimizer.zero_grad()
        loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in params)
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
    assert annealing.factor() < 1

    def failing():
        raise OSError("no data")

    for _ in range(3):
        with pytest.raises(OSError, match="no data"):
            optimizer.step(failing)
    optimizer.step(closure)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_step_that_grad_scaler_skips_is_not_seen():
    params = new_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    annealing = SNRAnnealing(optimizer, warmup=0, ema=0.5, every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    generator = torch.Generator().manual_seed(0)
    rhos = []
    for broken in (False, False, False, True):
        optimizer.zero_grad()
        loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in params)
        scaler.scale(loss * (float("inf") if broken else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        rhos.append(annealing.rho())
    assert rhos[3] == rhos[2]


def test_what_cannot_be_annealed_is_refused():
    params = new_params()
    with pytest.raises(TypeError, match="LBFGS"):
        SNRAnnealing(torch.optim.LBFGS(params))
    with pytest.raises(TypeError, match="list"):
        SNRAnnealing(params)
    for options, said in (
        ({"power": -1}, "power"),
        ({"onset": 0}, "onset"),
        ({"ema": 1.0}, "ema"),
        ({"warmup": -1}, "warmup"),
        ({"read_every": 0}, "read_every"),
    ):
        with pytest.raises(ValueError, match=said):
            SNRAnnealing(torch.optim.SGD(params), **options)
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    SNRAnnealing(optimizer)
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)
    fused = torch.optim.Adam(params, fused=True)
    fused.grad_scale = torch.tensor(8.0)  # as GradScaler sets it
    SNRAnnealing(fused)
    with pytest.raises(RuntimeError, match="unscale_"):
        fused.step()
    annealing = SNRAnnealing(torch.optim.SGD(params))
    with pytest.raises(ValueError, match="2 previous gradients, got 1"):
        annealing.load_state_dict({"previous": [None]})


@pytest.mark.parametrize("every", [1, 4])
def test_steps_without_any_gradient_change_no_statistics(every):
    annealing = trained_on(gradients(20), lr=0.1, every=every)
    before = annealing.state_dict()["statistics"].clone()
    annealing.optimizer.zero_grad()
    for _ in range(20):
        annealing.optimizer.step()
    assert torch.equal(annealing.state_dict()["statistics"], before)
