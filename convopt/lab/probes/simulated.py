"""Simulated gradients, whose signal and noise are known."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from convopt.theory import snr
from convopt.theory.snr import Powers

SETTLED = 8
"""An EMA has forgotten its start after this many times 1 / (1 - beta) steps: e^-8 of it is left."""

ESTIMATORS: dict[str, Callable[[Tensor], Powers]] = {
    "per sample": snr.per_sample_powers,
    "two halves": lambda batch: snr.half_batch_powers(*(half.mean(0) for half in batch.chunk(2)), len(batch) // 2),
    "big and small": lambda batch: snr.big_small_powers(
        batch.mean(0), batch[: len(batch) // 4].mean(0), len(batch), len(batch) // 4
    ),
}
"""Unbiased estimators by name: from one batch's sample gradients, ``(B, ...)`` with B a multiple of 4, its Powers."""


def simulate_batches(count: int, batch: int, size: int, batch_snr: float, seed: int) -> tuple[Tensor, Powers]:
    """Sample gradients around a signal of power 1, and the true powers: ``|s|^2`` and one sample's noise power.

    Args:
        count: number of batches.
        batch: samples in each.
        size: elements of a gradient. The noise is Gaussian, its scale rises fourfold from the first to the last.
        batch_snr: signal power over the noise power of the batch's mean.
        seed: of a generator of its own.

    Returns:
        float64, ``(count, batch, size)``, and the truth.

    Raises:
        ValueError: ``batch_snr`` is not positive.
    """
    if batch_snr <= 0:
        raise ValueError(f"batch_snr must be positive, got {batch_snr!r}")
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(size, generator=generator, dtype=torch.float64)
    signal /= signal.norm()
    scales = torch.linspace(0.5, 2, size, dtype=torch.float64)
    scales *= math.sqrt(batch / batch_snr) / scales.norm()
    noise = torch.randn(count, batch, size, generator=generator, dtype=torch.float64)
    return signal + scales * noise, Powers(signal.square().sum(), scales.square().sum())


def ema_estimates(gradients: Tensor, beta: float) -> Powers:
    """The EMA's estimate after each of many independent sequences, its noise that of one of the gradients.

    Args:
        gradients: of batches, ``(sequences, steps, size)``. The EMA starts at the first step's.
        beta: its factor; the deviation is taken from the average that holds the current gradient.

    Returns:
        Powers of shape ``(sequences,)``.
    """
    average = gradients[:, 0].clone()
    for gradient in gradients.unbind(1):
        average.lerp_(gradient, 1 - beta)
    return torch.vmap(snr.ema_powers)(average, gradients[:, -1])


def estimator_table(
    batch_snrs: Iterable[float], batch: int, beta: float, count: int = 1000, size: int = 20, seed: int = 0
) -> pd.DataFrame:
    """Each estimator against the truth, one row per true SNR and estimator.

    Args:
        batch_snrs: true SNRs of a batch's gradient.
        batch: samples per batch, a multiple of 4.
        beta: the EMA's factor; each of its estimates takes a sequence of its own, long enough to settle.
        count: independent estimates behind each mean and standard error.
        size: elements of a gradient.
        seed: of the simulation.

    Returns:
        Columns ``SNR`` (true), ``estimator``, and for ``signal`` and ``noise`` (of one sample) the ``mean``, its
        standard error ``s.e.`` and the ``truth``, then ``ratio``: the ratio of the means, as the SNR of a batch.
    """
    steps = math.ceil(SETTLED / (1 - beta))
    rows = []
    for batch_snr in batch_snrs:
        batches, truth = simulate_batches(count, batch, size, batch_snr, seed)
        # to an EMA, a batch's mean is one sample with 1 / batch of the noise power
        sequences, _ = simulate_batches(count * steps, 1, size, batch_snr, seed)
        ema = ema_estimates(sequences.reshape(count, steps, size), beta)
        estimates = {f"EMA, beta {beta}": Powers(ema.signal, batch * ema.noise)}
        estimates |= {name: torch.vmap(estimator)(batches) for name, estimator in ESTIMATORS.items()}
        for name, powers in estimates.items():
            row: dict[str, Any] = {"SNR": batch_snr, "estimator": name}
            for quantity in Powers._fields:
                values = getattr(powers, quantity)
                row[f"{quantity}: mean"] = values.mean().item()
                row[f"{quantity}: s.e."] = values.std().item() / math.sqrt(count)
                row[f"{quantity}: truth"] = getattr(truth, quantity).item()
            row["ratio"] = batch * row["signal: mean"] / row["noise: mean"]
            rows.append(row)
    return pd.DataFrame(rows)


def ways_to_average(
    batch_snr: float, batch: int, count: int = 50_000, size: int = 20, seed: int = 0
) -> dict[str, float]:
    """The SNR of a batch from the two halves of ``count`` batches, by four ways to average, and the truth.

    Returns:
        By name: ``truth``, ``ratio of averages``, ``ratio of clamped averages`` (each signal estimate clamped at 0
        before it is averaged), ``average of ratios`` and ``average of clamped ratios``.
    """
    batches, _ = simulate_batches(count, batch, size, batch_snr, seed)
    signal, noise = torch.vmap(ESTIMATORS["two halves"])(batches)
    clamped = signal.clamp_min(0)
    return {
        "truth": batch_snr,
        "ratio of averages": (batch * signal.mean() / noise.mean()).item(),
        "ratio of clamped averages": (batch * clamped.mean() / noise.mean()).item(),
        "average of ratios": (batch * signal / noise).mean().item(),
        "average of clamped ratios": (batch * clamped / noise).mean().item(),
    }


def ema_on_noise_and_drift(betas: Iterable[float], size: int = 20_000, seed: int = 0) -> pd.DataFrame:
    """What settled EMAs report of white noise of unit variance, and by how many steps they lag behind a drift.

    Args:
        betas: factors, each in (0, 1).
        size: elements of the gradients; one settled step is measured, the relative errors are about 1 / sqrt(size).
        seed: of the noise.

    Returns:
        One row per factor, with the measured counterparts of ``snr.ema_floors`` (``signal``, ``snr``,
        ``snr_from_previous``) and of ``snr.ema_lag`` (``lag``, with a drift of one standard deviation per step).
    """
    rows = []
    for beta in betas:
        generator = torch.Generator().manual_seed(seed)
        average, drifting = torch.zeros(size), torch.zeros(size)
        for step in range(math.ceil(SETTLED / (1 - beta))):
            noise = torch.randn(size, generator=generator)
            previous = average
            average = torch.lerp(average, noise, 1 - beta)
            drifting.lerp_(noise + step, 1 - beta)
        powers = snr.ema_powers(average, noise)
        row = {
            "beta": beta,
            "signal": powers.signal / size,  # the true noise power is ``size``
            "snr": powers.signal / powers.noise,
            "snr_from_previous": powers.signal / snr.ema_powers(previous, noise).noise,
            "lag": (noise + step - drifting).mean(),
        }
        rows.append({name: float(value) for name, value in row.items()})
    return pd.DataFrame(rows)


def tracking(beta: float, turns: float = 5.0, steps: int = 2000, size: int = 500, seed: int = 0) -> pd.DataFrame:
    """A simulated course: the SNR of a batch of 8 falls from 1 to 0.001 while the signal's direction turns.

    Args:
        beta: factor of all averages.
        turns: full turns of the signal in a plane, over the whole course.
        steps: its length.
        size: elements of a gradient.
        seed: of the simulation.

    Returns:
        One row per step: ``truth``; ``EMA``, the original proposal's estimate; and ``two halves``, unbiased powers of
        which EMAs with the same factor are taken apart and then divided.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.linalg.qr(torch.randn(size, 2, generator=generator)).Q.T
    batch, noise_power = 8, 1.0  # the noise power is that of one batch's gradient
    average, signal, noise = torch.zeros(size), 0.0, 0.0
    rows = []
    for step in range(steps):
        truth = 1000 ** -(step / steps)
        angle = 2 * math.pi * turns * step / steps
        mean = math.sqrt(truth * noise_power) * (math.cos(angle) * first + math.sin(angle) * second)
        halves = mean + math.sqrt(2 * noise_power / size) * torch.randn(2, size, generator=generator)
        gradient = halves.mean(0)
        average = torch.lerp(average, gradient, 1 - beta) if step else gradient
        ema = snr.ema_powers(average, gradient)
        unbiased = snr.half_batch_powers(*halves, batch // 2)
        signal, noise = (
            beta * old + (1 - beta) * new.item() for old, new in zip((signal, noise), unbiased, strict=True)
        )
        rows.append(
            {"step": step, "truth": truth, "EMA": (ema.signal / ema.noise).item(), "two halves": batch * signal / noise}
        )
    return pd.DataFrame(rows)


def sampling_table(
    batches: Iterable[int], share: float = 0.02, batch: int = 8, size: int = 500, pairs: int = 20_000, seed: int = 0
) -> pd.DataFrame:
    """What consecutive batches of one training set say of the signal, by how they are drawn; parameters stand still.

    Args:
        batches: batches in an epoch, a row each.
        share: of the signal in the power of a batch's gradient.
        batch: samples in each.
        size: elements of a gradient.
        pairs: of batches that are averaged.
        seed: of a generator of its own.

    Returns:
        Columns ``batches``; ``with replacement``, the mean product of batches that are drawn independently; ``without
        replacement``, that of consecutive batches of an epoch; ``corrected``, by ``snr.without_replacement``; all over
        the true power of the signal; and ``rho``, that signal's share in the power.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for count in batches:
        noise = torch.randn(count * batch, size, generator=generator)
        noise -= noise.mean(0)
        signal = torch.randn(size, generator=generator)
        signal *= math.sqrt(share / (1 - share) * size / batch) / signal.norm()
        samples, sums = signal + noise, torch.zeros(3, dtype=torch.float64)
        epochs = max(1, pairs // (count - 1))
        for _ in range(epochs):
            order = torch.randperm(len(samples), generator=generator)
            drawn = torch.randint(len(samples), (len(samples),), generator=generator)
            apart, gradients = (samples[index].view(count, batch, size).mean(1) for index in (drawn, order))
            products = [(each[1:] * each[:-1]).sum(1).mean() for each in (apart, gradients)]
            sums += torch.stack([*products, gradients.square().sum(1).mean()])
        independent, consecutive, power = (sums / epochs).tolist()
        truth = signal.square().sum().item()
        corrected = snr.without_replacement(consecutive, power, count)
        rows.append(
            {
                "batches": count,
                "with replacement": independent / truth,
                "without replacement": consecutive / truth,
                "corrected": corrected / truth,
                "rho": truth / power,
            }
        )
    return pd.DataFrame(rows)


def curvature_table(
    curvatures: Iterable[float], lr: float, size: int = 1000, steps: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Curvature of a quadratic from consecutive gradients of plain SGD, against the truth.

    Args:
        curvatures: of the loss ``curvature * |theta|^2 / 2``, a row each; the gradient's noise has variance 1.
        lr: of the steps, below twice the inverse of each curvature.
        size: parameters of each.
        steps: that are averaged, from far outside.
        seed: of a generator of its own.

    Returns:
        Columns ``curvature``, ``estimate`` and ``best rate / rate used``, see ``snr.step_ratio``.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for curvature in curvatures:
        theta, previous = torch.full((size,), 3.0), torch.zeros(size)
        sums = torch.zeros(3, dtype=torch.float64)
        for step in range(steps + 1):
            first, second = (curvature * theta + torch.randn(size, generator=generator) for _ in range(2))
            if step:
                sums += torch.stack([first @ second, first @ previous, first @ first])
            theta, previous = theta - lr * first, first
        found = snr.step_ratio(*sums / steps, lr=lr)
        rows.append(
            {
                "curvature": curvature,
                "estimate": found.curvature.item(),
                "best rate / rate used": found.best.item(),
            }
        )
    return pd.DataFrame(rows)
