"""Gradients of a network in training, probed for signal and noise."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convopt.lab import arithmetic, data, experiments
from convopt.lab.runs import Run
from convopt.lab.trainer import Trainer, dataset_of, epochs
from convopt.theory import snr, spectrum
from convopt.theory.snr import Powers


def draw(split: data.Split, count: int, seed: int) -> data.Split:
    """``count`` images drawn independently, so that the split's own gradient is the signal: some may come twice."""
    index = torch.randint(len(split), (count,), generator=torch.Generator().manual_seed(seed))
    return data.Split(split.x[index], split.y[index])


def layer_powers(gradients: dict[str, Tensor]) -> dict[str, Powers]:
    """Unbiased powers by layer, weights and biases together, and of ``all``.

    Args:
        gradients: of each sample by parameter, ``(B, *shape)``, as of ``snr.per_sample_gradients``.
    """
    layers: dict[str, Powers] = {}
    for name, gradient in gradients.items():
        estimate = snr.per_sample_powers(gradient)
        for layer in (name.rpartition(".")[0], "all"):
            old = layers.get(layer, (0, 0))
            layers[layer] = Powers(*(a + b for a, b in zip(old, estimate, strict=True)))
    return layers


class FreshGradients(NamedTuple):
    """Gradients of a network before training.

    Attributes:
        powers: of the whole gradient, the noise that of one sample, both without bias.
        samples: of each sample with respect to one hidden unit's weights, ``(n, height, width)``.
        signal: the mean of such gradients over all training images, ``(height, width)``.
    """

    powers: Powers
    samples: Tensor
    signal: Tensor


def fresh_gradients(dataset: str, label_noise: float, images: int, seed: int = 0) -> FreshGradients:
    """Of the stress test's network; the hidden unit is the one with the median of the signal's power.

    Args:
        dataset: a name of ``data.ENTRIES``, of images.
        label_noise: share of wrong training labels.
        images: how many are drawn, two or more.
        seed: of the run whose initial weights, label noise and first probe these are.
    """
    run = replace(experiments.STRESS, label_noise=label_noise).run(experiments.SGD, dataset, None, seed)
    trainer = Trainer(run)
    model, split, grid = trainer.model, trainer.split, trainer.dataset.grid
    gradients = _sample_gradients(model, draw(split, images, run.stream("probe 0")))
    (signal,) = torch.autograd.grad(F.cross_entropy(model(split.x), split.y), [next(model.parameters())])
    unit = signal.square().sum(1).median(0).indices
    samples = next(iter(gradients.values()))[:, unit]
    powers = layer_powers(gradients)["all"]
    return FreshGradients(powers, samples.unflatten(-1, grid), signal[unit].unflatten(-1, grid))


class Spectra(NamedTuple):
    """Power per frequency of a batch's gradient, averaged over each ring: ``(rings,)``.

    Attributes:
        signal: without bias, so it may come out negative.
        total: of signal and noise.
    """

    signal: Tensor
    total: Tensor


def pixel_spectra(gradients: Tensor, grid: tuple[int, int], batch: int, rings: int) -> Spectra:
    """The spectra over pixels of a first layer's gradient, summed over its units.

    The signal is the cross spectrum of the mean gradients of the first and the second half of the samples, the total
    the power spectrum of batches.

    Args:
        gradients: of each sample with respect to the weights, ``(n, units, pixels)``, samples drawn independently.
        grid: height and width.
        batch: samples per batch.
        rings: number of rings of the radial frequency.

    Raises:
        ValueError: n is odd or no multiple of ``batch``.
    """
    n, units, _ = gradients.shape
    if n % 2 or n % batch:
        raise ValueError(f"the number of samples must be even and a multiple of batch {batch}, got {n}")
    fields = gradients.unflatten(-1, grid)
    halves = [half.mean(0) for half in fields.chunk(2)]
    batches = fields.unflatten(0, (-1, batch)).mean(1)
    axes, bins = (-2, -1), spectrum.radial_bins(grid, rings)
    return Spectra(
        spectrum.radial_mean(units * spectrum.cross_spectrum(*halves, axes), bins, rings),
        spectrum.radial_mean(units * spectrum.power_spectrum(batches, axes), bins, rings),
    )


class EMAProbe:
    """Follows an optimizer's gradients as the original proposal does; powers are averaged between readings.

    Args:
        optimizer: any of torch's; its gradients are read after each step.
        betas: factors of the EMAs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, betas: Sequence[float]):
        self.averages: dict[float, Tensor] = {}
        self.powers: dict[float, list[Powers]] = {beta: [] for beta in betas}
        optimizer.register_step_post_hook(self._follow)

    def read(self) -> dict[float, Powers]:
        """The mean powers since the last reading, by factor; there must have been a step."""
        means = {
            beta: Powers(*(torch.stack(values).mean() for values in zip(*powers, strict=True)))
            for beta, powers in self.powers.items()
        }
        self.powers = {beta: [] for beta in self.powers}
        return means

    @torch.no_grad()
    def _follow(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradient = torch.cat(grads)
        for beta, powers in self.powers.items():
            average = self.averages.setdefault(beta, gradient.clone()).lerp_(gradient, 1 - beta)
            powers.append(snr.ema_powers(average, gradient))


class Course(NamedTuple):
    """What the probes saw of one training run.

    Attributes:
        powers: columns ``epoch``, ``estimate`` (a layer, "all", or an EMA of all), ``signal``, ``noise``, the noise
            that of a batch of the run's size.
        spectra: columns ``epoch``, ``ring``, ``signal``, ``total``, of a batch of the run's size.
    """

    powers: pd.DataFrame
    spectra: pd.DataFrame


def course(run: Run, dataset: data.Dataset, images: int, betas: Sequence[float] = (), rings: int = 8) -> Course:
    """Train ``run`` and probe the network before training and after each epoch, on one thread.

    The layers' powers are unbiased, from the gradients of training images drawn anew for each epoch. The EMAs' powers
    are averages over the steps of the epoch.

    Args:
        run: of a model whose first parameter is the weight over the pixels; its ``dataset`` is not looked at.
        dataset: what it trains on.
        images: how many are drawn for a probe, even and a multiple of the run's batch size.
        betas: factors of the EMAs.
        rings: of the radial frequency.

    Raises:
        ValueError: ``images`` is odd or no multiple of the batch size, or training diverged.
    """
    with arithmetic.threads(1):
        trainer = Trainer(run, dataset)
        emas = EMAProbe(trainer.optimizers[""], betas)
        powers, spectra = [], []
        for epoch, batches in enumerate([[], *trainer.epochs()]):
            if batches and trainer.train_epoch(batches) is None:
                raise ValueError(f"training diverged in epoch {epoch}")
            probe = draw(trainer.split, images, run.stream(f"probe {epoch}"))
            gradients = _sample_gradients(trainer.model, probe)
            estimates = {
                name: Powers(power.signal, power.noise / run.batch_size)
                for name, power in layer_powers(gradients).items()
            }
            if batches:
                estimates |= {f"EMA, beta {beta}": power for beta, power in emas.read().items()}
            powers += [
                {"epoch": epoch, "estimate": name, "signal": power.signal.item(), "noise": power.noise.item()}
                for name, power in estimates.items()
            ]
            first_weight = next(iter(gradients.values()))
            rows = zip(*pixel_spectra(first_weight, dataset.grid, run.batch_size, rings), strict=True)
            spectra += [
                {"epoch": epoch, "ring": ring, "signal": signal.item(), "total": total.item()}
                for ring, (signal, total) in enumerate(rows)
            ]
    return Course(pd.DataFrame(powers), pd.DataFrame(spectra))


def _sample_gradients(model: nn.Module, probe: data.Split) -> dict[str, Tensor]:
    model.eval()
    return snr.per_sample_gradients(model, F.cross_entropy, probe.x, probe.y)


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the batch's mean loss, all parameters as one vector."""
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def courses(
    dataset: str,
    arms: Iterable[tuple[int, str]],
    seeds: Iterable[int],
    epochs: int,
    label_noise: float,
    images: int,
    betas: Sequence[float] = (),
) -> Course:
    """The courses of SGD in the stress test's setting, one below the other, with columns for what tells them apart.

    Args:
        dataset: a name of ``data.ENTRIES``, of images.
        arms: batch size and order of the pixels, "natural" or "permuted": one random order per seed, kept throughout.
        seeds: of initial weights, batches, label noise, probes and the order of the pixels.
        epochs: passes over the training images.
        label_noise: share of wrong training labels.
        images: of a probe, see :func:`course`.
        betas: factors of the EMAs.

    Returns:
        Powers and spectra with the further columns ``batch_size``, ``pixels`` and ``seed``.

    Raises:
        ValueError: as :func:`course`; an order of the pixels is neither of the two.
    """
    powers, spectra = [], []
    for (batch_size, pixels), seed in itertools.product(arms, seeds):
        setting = replace(experiments.STRESS, batch_size=batch_size, label_noise=label_noise, pixels=pixels)
        run = setting.run(experiments.SGD, dataset, epochs, seed)
        seen = course(run, dataset_of(run), images, betas)
        powers.append(seen.powers.assign(batch_size=batch_size, pixels=pixels, seed=seed))
        spectra.append(seen.spectra.assign(batch_size=batch_size, pixels=pixels, seed=seed))
    return Course(pd.concat(powers, ignore_index=True), pd.concat(spectra, ignore_index=True))


def gain_course(run: Run, steps: Collection[int]) -> dict[int, Tensor]:
    """Train ``run``, which has a Wiener optimizer, and read its first layer's gain after some of the steps.

    Returns:
        The radial gains, ``(rings,)``, by step; those of the first few steps are 1, because nothing is known yet.
    """
    trainer = Trainer(run)
    gains: dict[int, Tensor] = {}
    step = itertools.count(1)

    def look() -> None:
        if (now := next(step)) in steps:
            gains[now] = next(iter(trainer.optimizers[""].snr().parameters.values())).gain

    with arithmetic.threads(1):
        for batches in trainer.epochs():
            trainer.train_epoch(batches, look)
    return gains


def with_snr(powers: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean ``signal`` and ``noise`` over the rows alike in the columns ``by``, and ``snr``, the ratio of the means."""
    means = powers.groupby(list(by), sort=False)[["signal", "noise"]].mean()
    return means.assign(snr=means.signal / means.noise).reset_index()


def with_gain(spectra: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean ``signal`` and ``total`` over the rows alike in the columns ``by``, and ``gain``, Wiener's, of the means."""
    means = spectra.groupby(list(by), sort=False)[["signal", "total"]].mean()
    gain = spectrum.wiener_gain(torch.tensor(means.signal.to_numpy()), torch.tensor(means.total.to_numpy()))
    return means.assign(gain=gain.numpy()).reset_index()


def agreements(run: Run, dataset: data.Dataset) -> pd.DataFrame:
    """Train ``run`` and estimate, epoch by epoch, the share of signal in the power of its gradients in two ways.

    Returns:
        A row per epoch: ``consecutive steps``, from the products of each gradient with the one before; and ``same
        parameters``, from the products with the gradient of a second, independent batch at the parameters as they are.
        Both over the mean squared norm.
    """
    with arithmetic.threads(1):
        trainer = Trainer(run, dataset)
        model, optimizer = trainer.model, trainer.optimizers[""]
        second_batches = epochs(replace(run, seed=run.seed + 1000), trainer.split)
        params = list(model.parameters())
        rows, previous = [], None
        for batches, others in zip(trainer.epochs(), second_batches, strict=True):
            model.train()
            sums = torch.zeros(3)
            for batch, other in zip(batches, others, strict=True):
                gradient, second = _gradient(model, *batch), _gradient(model, *other)
                before = gradient if previous is None else previous
                sums += torch.stack([gradient @ before, gradient @ second, gradient @ gradient])
                for p, part in zip(params, gradient.split([p.numel() for p in params]), strict=True):
                    p.grad = part.view_as(p)
                optimizer.step()
                previous = gradient
            consecutive, same, power = sums.tolist()
            rows.append({"consecutive steps": consecutive / power, "same parameters": same / power})
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="epoch"))


def curvatures(run: Run, dataset: data.Dataset, every: int = 5) -> pd.DataFrame:
    """Train ``run`` by plain SGD and compare, epoch by epoch, two ways to the curvature along its steps.

    Returns:
        A row per epoch: ``from products``, of consecutive gradients and of gradients at one point (see
        ``snr.step_ratio``); ``from second derivatives``, ``E[g' H g] / E|g|^2`` with H that of another batch, at each
        ``every``-th step; and ``best rate / rate used``.
    """
    with arithmetic.threads(1):
        trainer = Trainer(run, dataset)
        model, optimizer = trainer.model, trainer.optimizers[""]
        params = list(model.parameters())
        second_batches = epochs(replace(run, seed=run.seed + 1000), trainer.split)
        lr, rows, previous = optimizer.param_groups[0]["lr"], [], None
        for batches, others in zip(trainer.epochs(), second_batches, strict=True):
            model.train()
            products, bent = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
            for step, (batch, other) in enumerate(zip(batches, others, strict=True)):
                gradient = _gradient(model, *batch)
                if previous is not None:
                    second = _gradient(model, *other)
                    products += torch.stack([gradient @ second, gradient @ previous, gradient @ gradient])
                if step % every == 0:
                    bent += torch.stack([_second_derivative(model, *other, gradient), gradient @ gradient])
                for p, part in zip(params, gradient.split([p.numel() for p in params]), strict=True):
                    p.grad = part.view_as(p)
                optimizer.step()
                previous = gradient
            found = snr.step_ratio(*products, lr=lr)
            rows.append(
                {
                    "from products": found.curvature.item(),
                    "from second derivatives": (bent[0] / bent[1]).item(),
                    "best rate / rate used": found.best.item(),
                }
            )
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="epoch"))


def _second_derivative(model: nn.Module, x: Tensor, y: Tensor, along: Tensor) -> Tensor:
    """``v' H v`` of the loss on a batch, 0-dim."""
    params = list(model.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=True)
    parts = along.split([p.numel() for p in params])
    slope = sum((g.flatten() * part).sum() for g, part in zip(gradients, parts, strict=True))
    bent = torch.autograd.grad(slope, params)
    return sum((g.flatten() * part).sum() for g, part in zip(bent, parts, strict=True))
