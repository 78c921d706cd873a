"""The optimizers as one would write them down: parameter after parameter, convolutions and slopes by torch.

What is fast in the package has to agree with these to rounding, and ``benchmarks`` measures it against them. They know
no options but those of the idea.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn
from scipy.linalg import solve_circulant
from torch import Tensor

from convopt.theory import kernels
from convopt.theory.spectrum import radial_bins


class SGDTwin:
    """SGD with momentum along what ``direction`` makes of each gradient."""

    def __init__(self, params, lr: float = 0.01):
        self.params, self.lr = list(params), lr
        self.averages = [torch.zeros_like(p) for p in self.params]

    def step(self, loss: float | None = None) -> None:
        self.update([self.direction(p) for p in self.params])

    def direction(self, p: Tensor) -> Tensor:
        return p.grad

    def update(self, directions: list[Tensor]) -> None:
        for p, average, direction in zip(self.params, self.averages, directions, strict=True):
            average.mul_(0.9).add_(direction)
            p.data.sub_(self.lr * average)


def convolve_line(line: Tensor, kernel: Tensor) -> Tensor:
    padded = F.pad(line.view(1, 1, -1), [len(kernel) // 2] * 2, mode="reflect")
    return F.conv1d(padded, kernel.view(1, 1, -1).to(line.dtype)).flatten()


def convolve_images(images: Tensor, kernel: Tensor) -> Tensor:
    stack = images.reshape(-1, 1, *images.shape[-2:])
    padded = F.pad(stack, [len(kernel) // 2] * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None].to(stack.dtype)).view(images.shape)


def slope(loss_of: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss_of(at), at)[0]


class ConvolutionalSGDTwin(SGDTwin):
    def __init__(self, params, lr: float = 0.01):
        super().__init__(params, lr)
        self.kernel, self.previous = kernels.uniform(5), None

    def direction(self, p: Tensor) -> Tensor:
        return p.grad if p.numel() < 5 else convolve_line(p.grad.flatten(), self.kernel).view(p.shape)

    def step(self, loss: float | None = None) -> None:
        super().step()
        if loss is not None and self.previous is not None:
            grown = self.kernel + 0.001 * kernels.identity(5)
            kernel = grown if loss < self.previous else 0.9 * self.kernel + 0.1 * kernels.uniform(5)
            self.kernel = kernel / kernel.sum()
        self.previous = loss


class LocalLossConvSGDTwin(SGDTwin):
    def __init__(self, params, lr: float = 0.01, local_lr: float = 0.001):
        super().__init__(params, lr)
        self.local_lr = local_lr
        self.kernels = {p: kernels.uniform(5) for p in self.params}

    def direction(self, p: Tensor) -> Tensor:
        if p.numel() < 5:
            return p.grad
        line, kernel = p.grad.flatten(), self.kernels[p]

        def loss(w: Tensor) -> Tensor:
            smoothed = convolve_line(line, w / w.sum())
            return 0.1 * smoothed.var(correction=0) - F.cosine_similarity(line, smoothed, dim=0)

        stepped = (kernel - self.local_lr * slope(loss, kernel)).clamp_min(0)
        self.kernels[p] = stepped / stepped.sum()
        return convolve_line(line, kernel).view(p.shape)


class ConvolutionalSGDv2Twin(SGDTwin):
    def __init__(self, params, lr: float = 0.01, kernel_lr: float = 0.005):
        super().__init__(params, lr)
        self.kernel_lr, self.steps, self.signals = kernel_lr, 0, {}
        self.logits = {ndim: kernels.NAMED_KERNELS["gaussian"](5, ndim).log() for ndim in (1, 2)}

    def direction(self, p: Tensor) -> Tensor:
        grad = p.grad
        self.signals[p] = signal = 0.99 * self.signals[p] + 0.01 * grad if p in self.signals else grad.clone()
        if p.ndim in (2, 4) and min(p.shape[-2:]) >= 5:
            ndim, fold = 2, lambda t: t
        elif p.ndim == 4 and min(p.shape[:2]) >= 5:
            ndim, fold = 2, lambda t: t.permute(2, 3, 0, 1)
        elif p.numel() >= 5:
            ndim, fold = 1, lambda t: t.flatten()
        else:
            return grad
        convolve = convolve_line if ndim == 1 else convolve_images

        def smooth(logits: Tensor) -> Tensor:
            return convolve(fold(grad), torch.softmax(logits.flatten(), 0).view(logits.shape))

        def loss(logits: Tensor) -> Tensor:
            smoothed = smooth(logits)
            cosine = F.cosine_similarity(fold(grad).flatten(), smoothed.flatten(), dim=0)
            return 0.5 * (1 - cosine) + (smoothed - fold(signal)).square().mean()

        smoothed = smooth(self.logits[ndim])
        if self.steps % 5 == 0:
            self.logits[ndim] = self.logits[ndim] - self.kernel_lr * slope(loss, self.logits[ndim])
        return smoothed.view(p.shape) if ndim == 1 else fold(smoothed)  # each folding of axes is its own inverse

    def step(self, loss: float | None = None) -> None:
        self.steps += 1
        super().step()


class LaplacianSmoothingSGDTwin(SGDTwin):
    def direction(self, p: Tensor) -> Tensor:
        column = np.zeros(p.numel())
        column[[0, 1, -1]] = 3.0, -1.0, -1.0  # I - L on a ring
        return torch.from_numpy(solve_circulant(column, p.grad.flatten().numpy())).view(p.shape).to(p.dtype)


class WienerSGDTwin(SGDTwin):
    """``grids``: of the parameters that are images, the grid."""

    def __init__(self, params, grids: dict[Tensor, tuple[int, int]], lr: float = 0.01):
        super().__init__(params, lr)
        self.grids, self.base_lr = grids, lr
        self.seen, self.agreement, self.power, self.peak = 0, 0.0, 0.0, 0.0
        self.learnt = {p: np.zeros((2, max(grid))) for p, grid in grids.items()}
        self.steps, self.previous = 0, {}

    def step(self, loss: float | None = None) -> None:
        if self.steps % 4 == 0 and self.previous:
            self.compare()
        if self.steps % 4 == 3:
            self.previous = {p: p.grad.clone() for p in self.params}
        self.steps += 1
        self.lr = self.base_lr * self.factor()
        super().step()

    def compare(self) -> None:
        product = sum((p.grad * self.previous[p]).sum().item() for p in self.params)
        power = sum(p.grad.square().sum().item() for p in self.params)
        weight = max(4 / (self.seen + 4), 1 - 0.999**4)
        self.agreement += weight * (product - self.agreement)
        self.power += weight * (power - self.power)
        if self.seen >= 200:
            self.peak = max(self.peak, self.rho())
        self.seen += 4
        for p, grid in self.grids.items():
            now, before = (spectrum_of(gradient, grid) for gradient in (p.grad, self.previous[p]))
            rings = radial_bins(grid, max(grid)).flatten().numpy()
            counts = np.maximum(np.bincount(rings, minlength=max(grid)), 1)
            for of_it, products in zip(self.learnt[p], (now * before, now * now), strict=True):
                observed = np.bincount(rings, products.sum(0).flatten(), minlength=max(grid)) / counts
                of_it += (1 - 0.998**4) * (observed - of_it)

    def rho(self) -> float:
        return max(self.agreement / self.power, 1e-4)

    def factor(self) -> float:
        return 1.0 if self.seen <= 200 else min(1.0, self.rho() / (0.8 * self.peak)) ** 1.5

    def direction(self, p: Tensor) -> Tensor:
        if p not in self.grids or not self.learnt[p].any():
            return p.grad
        signal, power = self.learnt[p][:, radial_bins(self.grids[p], max(self.grids[p])).numpy()]
        gain = abs(signal) / (abs(signal) + 0.003 * (power - abs(signal)))
        gain = gain * np.sqrt(power.sum() / (gain**2 * power).sum())
        for axis in (0, 1):  # what is next to nothing is left out
            along = (gain**2 * power).sum(1 - axis)
            kept = along[::-1].cumsum()[::-1] > 1e-3 * along.sum()
            gain = gain * (kept[:, None] if axis == 0 else kept)
        filtered = idctn(gain * spectrum_of(p.grad, self.grids[p]), axes=(1, 2), norm="ortho")
        return torch.from_numpy(filtered).view(p.shape).to(p.dtype)


def spectrum_of(gradient: Tensor, grid: tuple[int, int]) -> np.ndarray:
    return dctn(gradient.reshape(-1, *grid).double().numpy(), axes=(1, 2), norm="ortho")


class WienerAdamWTwin(WienerSGDTwin):
    def __init__(self, params, grids: dict[Tensor, tuple[int, int]], lr: float = 1e-3):
        super().__init__(params, grids, lr)
        self.squares = [torch.zeros_like(p) for p in self.params]

    def update(self, directions: list[Tensor]) -> None:
        for p, first, second, direction in zip(self.params, self.averages, self.squares, directions, strict=True):
            first.lerp_(direction, 0.1)
            second.lerp_(direction.square(), 0.001)
            mean, spread = first / (1 - 0.9**self.steps), second / (1 - 0.999**self.steps)
            p.data.mul_(1 - 0.01 * self.lr).sub_(self.lr * mean / (spread.sqrt() + 1e-8))
