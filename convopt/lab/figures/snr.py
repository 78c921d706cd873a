"""Figures of signal and noise in gradients."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from convopt.lab import probes
from convopt.lab.figures.looks import QUIET, series
from convopt.lab.figures.style import SMALLEST, WIDEST
from convopt.theory import snr


def ema_biases(measured: pd.DataFrame) -> Figure:
    """The EMA's floors and its lag against 1 - beta: formulas as lines, ``probes.ema_on_noise_and_drift`` as dots."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    betas = 1 - np.geomspace(1 - measured.beta.min(), 1 - measured.beta.max(), 100)
    floors = [snr.ema_floors(beta) for beta in betas]
    labels = {
        "signal": "signal power / noise power",
        "snr": "SNR, deviation from the new average",
        "snr_from_previous": "SNR, deviation from the old average",
    }
    *shades, of_lag = (look.colour for look in series([*labels, "lag"]).values())
    for (name, label), colour in zip(labels.items(), shades, strict=True):
        left.plot(1 - betas, [getattr(floor, name) for floor in floors], color=colour, label=label)
        left.plot(1 - measured.beta, measured[name], "o", color=colour)
    left.set(title="pure noise: what is reported, should be 0", ylabel="reported value")
    left.legend(frameon=False, fontsize=SMALLEST)
    right.plot(1 - betas, [snr.ema_lag(beta) for beta in betas], color=of_lag, label="formula")
    right.plot(1 - measured.beta, measured.lag, "o", color=of_lag, label="measured")
    right.set(title="steady drift: lag", ylabel="steps")
    right.legend(frameon=False, fontsize=SMALLEST)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="1 - beta")
    return figure


def snr_courses(powers: pd.DataFrame, labels: dict[str, str], floors: dict[str, float] | None = None) -> Figure:
    """The SNR against the epoch, a panel per batch size: each seed's faint, the ratio of the averages over seeds bold.

    Args:
        powers: of ``probes.course``, with the columns ``batch_size`` and ``seed``.
        labels: of the estimates to show.
        floors: of some of them, dotted.
    """
    sizes = list(powers.batch_size.unique())
    figure, panels = plt.subplots(1, len(sizes), figsize=(min(5 * len(sizes), WIDEST), 3.8), squeeze=False)
    for size, axes in zip(sizes, panels[0], strict=True):
        for estimate, look in series(labels).items():
            colour = look.colour
            chosen = powers[(powers.batch_size == size) & (powers.estimate == estimate)]
            for _, one_seed in chosen.groupby("seed"):
                axes.plot(one_seed.epoch, one_seed.signal / one_seed.noise, color=colour, alpha=0.3, linewidth=0.7)
            means = probes.with_snr(chosen, ["epoch"])
            axes.plot(means.epoch, means.snr, color=colour, marker=look.marker, markersize=4, label=labels[estimate])
            if floors and estimate in floors:
                axes.axhline(floors[estimate], color=colour, linestyle=":")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="epoch", ylabel="SNR of a batch", title=f"batch {size}")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def snr_of_batches(seen: dict[float, probes.FreshGradients], label_noise: float, batch_size: int, title: str) -> Figure:
    """The SNR against the batch size, a line per label noise, and what it looks like at one of each.

    Beside the lines, one hidden unit's gradient over the pixels: of a batch, and the signal. Each has a colour scale of
    its own.

    Args:
        seen: of ``probes.fresh_gradients``, by label noise.
        label_noise: whose gradients are shown.
        batch_size: from 1 to as many images as were drawn.
        title: what the gradients are of.
    """
    figure, (left, *images) = plt.subplots(1, 3, figsize=(10, 3.4), width_ratios=(2, 1, 1))
    sizes = 2.0 ** np.arange(10)
    for (noise, (powers, _, _)), look in zip(seen.items(), series(map(str, seen)).values(), strict=True):
        ratio = (powers.signal / powers.noise).item()
        left.loglog(sizes, sizes * ratio, color=look.colour, label=f"{100 * noise:g} % label noise")
        if noise == label_noise:
            left.plot(batch_size, batch_size * ratio, look.marker, color=look.colour, markersize=10)
            left.set_title(f"{title}, batch {batch_size}: SNR {batch_size * ratio:.2g}")
    left.axhline(1, color=QUIET, linewidth=0.8)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:g}")
    left.set(xlabel="batch size", ylabel="SNR of a batch")
    left.legend(frameon=False, fontsize=SMALLEST)
    _, samples, signal = seen[label_noise]
    shown = {f"one hidden unit's gradient:\nbatch of {batch_size}": samples[:batch_size].mean(0), "signal": signal}
    for axes, (title, image) in zip(images, shown.items(), strict=True):
        most = image.abs().max().item() or 1  # the unit may be off for all of a small batch
        axes.imshow(image, cmap="PuOr", vmin=-most, vmax=most)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.set_title(title, fontsize=10)
    return figure


def ring_spectra(spectra: pd.DataFrame) -> Figure:
    """Signal and noise power by ring of the pixels' frequencies, and Wiener's gain; one colour per order of the pixels.

    Args:
        spectra: of ``probes.course``, with the columns ``pixels`` and ``seed``; seeds are faint, means bold.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for pixels, look in series(spectra.pixels.unique()).items():
        colour = look.colour
        chosen = spectra[spectra.pixels == pixels]
        means = probes.with_gain(chosen, ["ring"])
        signal = means.signal.where(means.signal > 0)  # a logarithmic axis has no place for the others
        left.plot(means.ring, signal, "o-", color=colour, markersize=3, label=f"{pixels}: signal")
        left.plot(means.ring, means.total - means.signal, "s--", color=colour, markersize=3, label=f"{pixels}: noise")
        for _, one_seed in probes.with_gain(chosen, ["seed", "ring"]).groupby("seed"):
            right.plot(one_seed.ring, one_seed.gain, color=colour, alpha=0.3, linewidth=0.7)
        right.plot(means.ring, means.gain, "o-", color=colour, markersize=3, label=pixels)
    left.set(yscale="log", xlabel="ring (0: the lowest frequencies)", ylabel="power per frequency", title="spectra")
    right.set(xlabel="ring (0: the lowest frequencies)", ylabel="Wiener's gain", title="coherence", ylim=(0, None))
    left.legend(frameon=False, fontsize=SMALLEST)
    right.legend(frameon=False, fontsize=SMALLEST)
    return figure


def snr_tracking(course: pd.DataFrame, beta: float) -> Figure:
    """Estimates of a falling SNR against the step: the EMA's, its floor, the two halves', and the truth."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    shown = series(["truth", "EMA", "two halves", "the EMA's floor"])
    for name in ("EMA", "two halves", "truth"):
        values = course[name].where(course[name] > 0)  # an unbiased estimate may be negative: a gap
        axes.plot(course.step, values, color=shown[name].colour, linewidth=2 if name == "truth" else 1.2, label=name)
    (*_, (floor, look)) = shown.items()
    axes.axhline(snr.ema_floors(beta).snr, color=look.colour, linestyle=":", label=floor)
    axes.set(yscale="log", ylim=(5e-4, 20), xlabel="step", ylabel="SNR of a batch", title=f"beta = {beta}")
    axes.legend(frameon=False, fontsize=SMALLEST, ncols=2)
    return figure
