"""The SNR estimators against a known truth."""

import itertools

import pytest
import torch
from torch import nn

from convopt.theory import snr

SIMULATIONS, BATCH, SIZE = 2000, 8, 50


@pytest.fixture(scope="module")
def simulation():
    """2,000 batches of 8 sample gradients around a known signal, with noise that differs from element to element."""
    generator = torch.Generator().manual_seed(0)
    signal = 0.1 * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    scales = torch.linspace(0.5, 2, SIZE, dtype=torch.float64)
    noise = torch.randn(SIMULATIONS, BATCH, SIZE, generator=generator, dtype=torch.float64)
    truth = snr.Powers(signal.square().sum(), scales.square().sum())
    return truth, signal + scales * noise


ESTIMATORS = {
    "per sample": snr.per_sample_powers,
    "two halves": lambda batch: snr.half_batch_powers(
        batch[: BATCH // 2].mean(0), batch[BATCH // 2 :].mean(0), BATCH // 2
    ),
    "big and small, one inside the other": lambda batch: snr.big_small_powers(
        batch.mean(0), batch[:2].mean(0), BATCH, 2
    ),
    "big and small, apart": lambda batch: snr.big_small_powers(batch[2:].mean(0), batch[:2].mean(0), BATCH - 2, 2),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_over_many_batches_lies_within_four_standard_errors_of_the_truth(simulation, estimator):
    truth, batches = simulation
    estimates = [ESTIMATORS[estimator](batch) for batch in batches]
    for name in snr.Powers._fields:
        values = torch.stack([getattr(estimate, name) for estimate in estimates])
        standard_error = values.std() / SIMULATIONS**0.5
        assert abs(values.mean() - getattr(truth, name)) < 4 * standard_error, name
        assert standard_error < 0.5 * getattr(truth, name)  # the band is narrow enough to mean something


def test_a_biased_estimator_would_be_caught(simulation):
    truth, batches = simulation
    naive = torch.stack([batch.mean(0).square().sum() for batch in batches])  # |mean|^2 holds noise, too
    assert (naive.mean() - truth.signal) / (naive.std() / SIMULATIONS**0.5) > 4


@pytest.mark.parametrize("beta", [0.9, 0.99])
def test_the_emas_floors_on_pure_noise(beta):
    generator = torch.Generator().manual_seed(1)
    size, settled, steps = 2000, round(8 / (1 - beta)), round(60 / (1 - beta))
    average = torch.zeros(size, dtype=torch.float64)
    powers, from_previous = [], []
    for step in range(steps):
        grad = torch.randn(size, generator=generator, dtype=torch.float64)
        previous = average
        average = beta * average + (1 - beta) * grad
        if step >= settled:
            powers.append(snr.ema_powers(average, grad))
            from_previous.append(snr.ema_powers(previous, grad).noise)
    signal = torch.stack([power.signal for power in powers]).mean().item()
    noise = torch.stack([power.noise for power in powers]).mean().item()
    noise_from_previous = torch.stack(from_previous).mean().item()
    floors = snr.ema_floors(beta)
    assert signal / size == pytest.approx(floors.signal, rel=0.05)
    assert signal / noise == pytest.approx(floors.snr, rel=0.05)
    assert signal / noise_from_previous == pytest.approx(floors.snr_from_previous, rel=0.05)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_the_ema_lags_behind_a_steady_drift(beta):
    average, drift = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for step in range(round(40 / (1 - beta))):
        grad = step * drift
        average = beta * average + (1 - beta) * grad
    torch.testing.assert_close(grad - average, snr.ema_lag(beta) * drift)


def test_per_sample_gradients_average_to_the_batchs_and_leave_the_model_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    x, y = torch.randn(6, 12), torch.arange(6) % 4
    loss = torch.nn.functional.cross_entropy
    gradients = snr.per_sample_gradients(model, loss, x, y)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    loss(model(x), y).backward()
    for name, parameter in model.named_parameters():
        assert gradients[name].shape == (6, *parameter.shape)
        torch.testing.assert_close(gradients[name].mean(0), parameter.grad)
    single = torch.autograd.grad(loss(model(x[:1]), y[:1]), list(model.parameters()))
    torch.testing.assert_close(gradients["0.weight"][0], single[0])


def test_a_zero_gradient_has_no_power_and_what_is_not_finite_spreads():
    zero = torch.zeros(4, 3)
    unknown = torch.full((4, 3), float("nan"))
    for grads, expected in ((zero, lambda value: value == 0), (unknown, torch.isnan)):
        estimates = [
            snr.per_sample_powers(grads),
            snr.half_batch_powers(grads[0], grads[1], 2),
            snr.big_small_powers(grads[0], grads[1], 4, 2),
            snr.ema_powers(grads[0], grads[1]),
        ]
        assert all(expected(value) for powers in estimates for value in powers)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: snr.per_sample_powers(torch.zeros(1, 3)), "(1, 3)"),
        (lambda: snr.per_sample_powers(torch.tensor(1.0)), "()"),
        (lambda: snr.half_batch_powers(torch.zeros(3), torch.zeros(4), 2), "(4,)"),
        (lambda: snr.half_batch_powers(torch.zeros(3), torch.zeros(3), 0), "0"),
        (lambda: snr.big_small_powers(torch.zeros(3), torch.zeros(3), 4, 4), "4"),
        (lambda: snr.big_small_powers(torch.zeros(3), torch.zeros(2), 4, 2), "(2,)"),
        (lambda: snr.ema_powers(torch.zeros(3), torch.zeros(2)), "(2,)"),
        (lambda: snr.ema_floors(1.0), "1.0"),
        (lambda: snr.ema_lag(0), "0"),
        (
            lambda: snr.per_sample_gradients(
                nn.Linear(3, 2), torch.nn.functional.cross_entropy, torch.zeros(2, 3), torch.zeros(1)
            ),
            "2 and 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert said in str(error.value)


def test_half_precision_is_measured_in_float32():
    large = torch.full((2, 70_000), 2.0, dtype=torch.float16)
    assert snr.half_batch_powers(large[0], large[1], 2) == (280_000, 0)
    assert snr.per_sample_powers(large) == (280_000, 0)
    assert snr.big_small_powers(large[0], large[1], 4, 2) == (280_000, 0)
    assert snr.ema_powers(large[0], large[1]) == (280_000, 0)


def test_batches_of_one_epoch_tell_the_signal_exactly_once_corrected():
    """Over all pairs of disjoint batches, and all batches, of a small training set."""
    samples = torch.randn(8, 5, dtype=torch.float64) + 0.3
    batches = {chosen: samples[list(chosen)].mean(0) for chosen in itertools.combinations(range(8), 2)}
    pairs = [(a, b) for a, b in itertools.permutations(batches, 2) if not {*a} & {*b}]
    product = torch.stack([batches[a] @ batches[b] for a, b in pairs]).mean()
    power = torch.stack([batch.square().sum() for batch in batches.values()]).mean()
    truth = samples.mean(0).square().sum()
    assert product < truth - 0.01
    torch.testing.assert_close(snr.without_replacement(product, power, batches=4), truth)


def test_two_products_give_the_curvature_and_the_best_step_of_a_quadratic():
    """With the expectations of a quadratic put in, what comes out is its curvature and the step that lowers it most."""
    curvatures = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    theta, noise, lr = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), 0.7, 0.05
    signal = (curvatures * theta).square()
    power = signal + noise
    found = snr.step_ratio(signal, signal - lr * curvatures * power, power, lr)
    torch.testing.assert_close(found.curvature, curvatures)
    steps = torch.linspace(0, 20 * lr, 200_001, dtype=torch.float64)
    for i in range(3):
        losses = curvatures[i] / 2 * ((theta[i] - steps * curvatures[i] * theta[i]) ** 2 + steps**2 * noise)
        assert steps[losses.argmin()].item() == pytest.approx((found.best[i] * lr).item(), abs=2e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: snr.without_replacement(1.0, 2.0, 1), "batches must be at least 2, got 1"),
        (lambda: snr.step_ratio(*torch.ones(3), lr=0.0), "lr must be positive, got 0.0"),
        (lambda: snr.step_ratio(torch.ones(2), torch.ones(3), torch.ones(2), lr=1.0), "gradients must have one shape"),
    ],
)
def test_products_that_say_nothing_are_refused_by_name(call, said):
    with pytest.raises(ValueError, match=said):
        call()
