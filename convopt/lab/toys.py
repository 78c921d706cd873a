"""Small problems whose truth is known, for the pages that derive and check the theory."""

import copy
import time
from collections.abc import Callable, Sequence
from statistics import median

import pandas as pd
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convopt.lab.data import Dataset
from convopt.lab.networks import SimpleNet
from convopt.optim import ConvolutionalSGD
from convopt.theory.kernel_loss import TapsLoss, local_loss_of_taps, through_softmax, wiener_taps
from convopt.theory.kernels import from_logits
from convopt.theory.smoothing import ShiftStatistics, mean_shift_statistics, shift_statistics
from convopt.theory.spectrum import apply_gain


def descend_quadratic(kernel: Tensor, steps: int, lr: float, length: int = 64) -> list[float]:
    """The loss ``|theta|^2 / 2`` before each of ``steps`` steps of ConvolutionalSGD with this kernel, held fixed.

    The start is white noise of seed 0, ``(length,)``; there is no momentum.
    """
    theta = torch.randn(length, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    size = kernel.numel()
    optimizer = ConvolutionalSGD([theta], lr=lr, momentum=0, kernel_size=size, kernel_lr=0, kernel_init=kernel)
    losses = []
    for _ in range(steps):
        loss = theta.square().sum() / 2
        losses.append(loss.item())
        (theta.grad,) = torch.autograd.grad(loss, theta)
        optimizer.step()
    return losses


def smooth_signal(length: int, width: float = 4.0) -> Tensor:
    """A signal of unit variance that varies over about ``width`` elements: seed 0, float64, ``(length,)``."""
    white = torch.randn(length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequencies = torch.fft.rfftfreq(length, dtype=torch.float64)
    signal = torch.fft.irfft(torch.fft.rfft(white) * torch.exp(-((torch.pi * width * frequencies) ** 2)), length)
    return (signal - signal.mean()) / signal.std(correction=0)


def noisy(signal: Tensor, noise: float, seed: int) -> Tensor:
    """The signal plus white noise of standard deviation ``noise``."""
    return signal + noise * torch.randn(signal.shape, generator=torch.Generator().manual_seed(seed), dtype=signal.dtype)


def pair_statistics(signal: Tensor, noise: float, size: int, pairs: int) -> ShiftStatistics:
    """The statistics of noisy copies of a signal, each with another one as its target, averaged over ``pairs``.

    Boundaries are circular, where the expectation of white noise's is exact.
    """
    gradients = [noisy(signal, noise, seed) for seed in range(2 * pairs)]
    return mean_shift_statistics(
        [
            shift_statistics(gradient, size, other, "circular")
            for gradient, other in zip(gradients[::2], gradients[1::2], strict=True)
        ]
    )


def minimise_on_simplex(loss: Callable[[Tensor], TapsLoss], size: int) -> Tensor:
    """The positive taps that sum to 1 at which a kernel loss is lowest, from a uniform start: float64, ``(size,)``.

    Quasi-Newton (scipy's BFGS) on the logits, with the loss's exact gradient.
    """

    def of_logits(logits):
        taps = from_logits(torch.from_numpy(logits))
        value, gradient = loss(taps)
        return value.item(), through_softmax(gradient, taps).numpy()

    outcome = scipy.optimize.minimize(of_logits, torch.zeros(size, dtype=torch.float64).numpy(), jac=True, tol=1e-10)
    return from_logits(torch.from_numpy(outcome.x))


def train_smoothed_and_blurred(dataset: Dataset, gain: Tensor, steps: int, lr: float) -> pd.DataFrame:
    """Two trainings by plain SGD that theory says are one, step by step, in float64.

    One smooths the first layer's gradient over the pixels by ``gain``; the other leaves it and trains on images
    blurred by the square root of the gain, from first-layer weights such that both networks start as one function.

    Args:
        dataset: its grid is the gain's.
        gain: positive factors on the DCT's frequencies of the pixels.
        steps: batches of 8 to train on.
        lr: learning rate.

    Returns:
        One row per step: ``smoothed`` and ``blurred``, the losses in nats, and ``difference``, the largest difference
        between the smoothed network's first weights and those that theory predicts from the blurred one, relative to
        the largest weight.
    """
    blur = gain.sqrt()
    smoothed = fresh_network(dataset).double()
    blurred = copy.deepcopy(smoothed)
    with torch.no_grad():
        blurred.hidden1.weight.copy_(_over_pixels(smoothed.hidden1.weight, 1 / blur))
    rows = []
    for index in batches(dataset, steps, 8):
        x, y = dataset.train.x[index].flatten(1).double(), dataset.train.y[index]
        losses = [_sgd_step(smoothed, x, y, lr, gain), _sgd_step(blurred, _over_pixels(x, blur), y, lr, None)]
        weight, predicted = smoothed.hidden1.weight, _over_pixels(blurred.hidden1.weight, blur)
        difference = ((weight - predicted).abs().max() / weight.abs().max()).item()
        rows.append({"smoothed": losses[0], "blurred": losses[1], "difference": difference})
    return pd.DataFrame(rows)


def first_layer_taps(dataset: Dataset, size: int, batch_size: int, pairs: int, shuffled: bool = False) -> Tensor:
    """The taps that the cross-gradient loss teaches a fresh network's first layer, over its pixels.

    Args:
        dataset: its grid is what the taps smooth over.
        size: taps along height and width, odd.
        batch_size: images behind each gradient.
        pairs: pairs of gradients whose statistics are averaged.
        shuffled: whether the pixels are put into an arbitrary order, the same for all gradients.

    Returns:
        :func:`~convopt.theory.kernel_loss.wiener_taps`, scaled to a sum of 1, ``(size, size)``.
    """
    model, pixels = fresh_network(dataset), torch.Size(dataset.grid).numel()
    order = torch.randperm(pixels, generator=torch.Generator().manual_seed(0)) if shuffled else torch.arange(pixels)
    gradients = []
    for index in batches(dataset, 2 * pairs, batch_size):
        loss = F.cross_entropy(model(dataset.train.x[index]), dataset.train.y[index])
        (gradient,) = torch.autograd.grad(loss, [model.hidden1.weight])
        gradients.append(gradient[:, order].unflatten(1, dataset.grid).double())
    statistics = [
        shift_statistics(first, size, second, "symmetric")
        for first, second in zip(gradients[::2], gradients[1::2], strict=True)
    ]
    taps = wiener_taps(mean_shift_statistics(statistics)).view(size, size)
    return taps / taps.sum()


def fresh_network(dataset: Dataset) -> SimpleNet:
    """A small network with the initial weights of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SimpleNet(torch.Size(dataset.grid).numel(), 32, dataset.outputs)


def batches(dataset: Dataset, count: int, batch_size: int) -> Tensor:
    """Positions of training images, drawn with replacement by seed 0: ``(count, batch_size)``."""
    return torch.randint(len(dataset.train), (count, batch_size), generator=torch.Generator().manual_seed(0))


def _over_pixels(rows: Tensor, gain: Tensor) -> Tensor:
    """Each row, a flattened image, with its frequencies scaled by ``gain``."""
    return apply_gain(rows.unflatten(1, gain.shape), gain).flatten(1)


def _sgd_step(model: nn.Module, x: Tensor, y: Tensor, lr: float, gain: Tensor | None) -> float:
    """A step of SGD, with the first layer's gradient smoothed over the pixels where there is a gain; the loss."""
    loss = F.cross_entropy(model(x), y)
    gradients = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, model.parameters()), strict=True))
    if gain is not None:
        gradients["hidden1.weight"] = _over_pixels(gradients["hidden1.weight"], gain)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter -= lr * gradients[name]
    return loss.item()


def time_gradients(shapes: Sequence[tuple[int, ...]], size: int = 5, repeats: int = 5) -> pd.DataFrame:
    """Median milliseconds of the kernel loss's gradient by autograd and from statistics, taken turn by turn.

    One row per shape of the gradient, float32; the last column is their ratio.
    """
    rows = []
    for shape in shapes:
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        kernel = torch.full([size] * len(shape), 1 / size ** len(shape))
        ways = {
            "autograd": lambda g=gradient, w=kernel: _local_loss_by_autograd(g, w),
            "from statistics": lambda g=gradient, w=kernel: local_loss_of_taps(w, shift_statistics(g, size), 0.1),
        }
        times = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(1000 * (time.perf_counter() - start))
        medians = {f"{name} (ms)": median(values) for name, values in times.items()}
        autograd, statistics = medians.values()
        rows.append({"gradient": " x ".join(map(str, shape)), **medians, "ratio": statistics / autograd})
    return pd.DataFrame(rows).set_index("gradient")


def _local_loss_by_autograd(gradient: Tensor, kernel: Tensor) -> Tensor:
    kernel = kernel.clone().requires_grad_()
    padded = F.pad(gradient.unsqueeze(0), [kernel.shape[0] // 2] * 2 * kernel.ndim, mode="reflect")
    convolve = F.conv1d if kernel.ndim == 1 else F.conv2d
    smoothed = convolve(padded.unsqueeze(0), kernel[None, None]).flatten()
    loss = 0.1 * smoothed.var(correction=0) - F.cosine_similarity(smoothed, gradient.flatten(), dim=0)
    return torch.autograd.grad(loss, kernel)[0]
