"""What the optimizers with learned kernels share."""

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from convopt.optim._base import Part, SmoothingOptimizer
from convopt.theory._shifts import LineShifts
from convopt.theory.kernel_loss import KernelLoss
from convopt.theory.kernels import NAMED_KERNELS, check_size

T = TypeVar("T")


class KernelOptimizer(SmoothingOptimizer):
    """SGD with momentum along gradients that are convolved with learned kernels.

    A kernel that several parameters share lives in their param group, one of a single parameter in its state. Kernels
    stay float32 whatever the parameters' dtype: a step of a kernel is below the resolution of half precision. Weight
    decay is added to the smoothed gradient, since it is no noise that smoothing should remove.
    """

    _fixed_options = ("kernel_size", "kernel_init")
    _group_kernels: ClassVar[tuple[str, ...]] = ()

    def kernels(self) -> dict[str, Tensor]:
        """The kernels in use by name, each summing to 1: detached float32 copies.

        With more than one param group, names start with the group's index.
        """
        several = len(self.param_groups) > 1
        return {
            f"{index}/{name}" if several else name: kernel.detach().clone()
            for index, group in enumerate(self.param_groups)
            for name, kernel in self._kernels_of(group).items()
        }

    @abstractmethod
    def _kernels_of(self, group: dict[str, Any]) -> dict[str, Tensor]: ...

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_size(options["kernel_size"])
        initial_kernel(options["kernel_init"], options["kernel_size"], ndim=1)

    def _observe(self, parts: list[Part], loss: Tensor | float | None) -> Any:
        for group, params, _ in parts:
            for name in self._group_kernels:
                group[name] = group[name].to(params[0].device)
        return loss


def initial_kernel(kernel_init: str | Tensor, size: int, ndim: int) -> Tensor:
    """The kernel that ``kernel_init`` describes: float32, shape ``(size,) * ndim``, summing to 1.

    ``kernel_init`` is a name of ``NAMED_KERNELS`` ("uniform", "laplacian", ...) or a tensor of non-negative taps, of
    shape ``(size,)`` or ``(size, size)``. Of a 1-D tensor the 2-D kernel is the outer product with itself, of a 2-D
    tensor the 1-D kernel is the sum over its rows.
    """
    if isinstance(kernel_init, str) and kernel_init in NAMED_KERNELS:
        return NAMED_KERNELS[kernel_init](size, ndim)
    if not isinstance(kernel_init, Tensor):
        raise ValueError(f"kernel_init must be one of {', '.join(NAMED_KERNELS)} or a tensor, got {kernel_init!r}")
    has_form = not kernel_init.is_complex() and kernel_init.shape in ((size,), (size, size))
    kernel = kernel_init.detach().float() if has_form else kernel_init
    valid = has_form and kernel.isfinite().all() and (kernel >= 0).all()
    if not (valid and 0 < kernel.sum() < math.inf):
        raise ValueError(
            f"kernel_init must have shape ({size},) or ({size}, {size}) and hold finite taps that are not negative "
            f"and sum to a positive number, got {kernel_init}"
        )
    kernel = kernel / kernel.sum()
    if ndim == 1 and kernel.ndim == 2:
        return kernel.sum(0)
    if ndim == 2 and kernel.ndim == 1:
        return torch.outer(kernel, kernel)
    return kernel


def smooth_flattened(grads: list[Tensor], size: int, kernel: Tensor) -> list[Tensor]:
    """Each gradient flattened, smoothed and shaped as it was; one shorter than the kernel passes through."""
    smoothed = list(grads)
    long = [i for i, grad in enumerate(grads) if grad.numel() >= size]
    for indices in together(long, key=lambda i: (grads[i].device, grads[i].dtype)):
        flat = LineShifts([grads[i].reshape(-1) for i in indices], size).smooth(kernel)
        for i, direction in zip(indices, flat, strict=True):
            smoothed[i] = direction.view(grads[i].shape)
    return smoothed


def together(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Lists of the items with equal keys. Small tensors are cheaper to smooth together than one by one."""
    lists: dict[Hashable, list[T]] = {}
    for item in items:
        lists.setdefault(key(item), []).append(item)
    return list(lists.values())


def mean_statistics(losses: list[KernelLoss]) -> dict[str, Tensor]:
    """The mean value and cosine similarity of kernel losses, as 0-dim tensors; empty without any."""
    if not losses:
        return {}
    return {
        "kernel_loss": torch.stack([loss.value for loss in losses]).mean(),
        "cosine_similarity": torch.stack([loss.cosine_similarity for loss in losses]).mean(),
    }
