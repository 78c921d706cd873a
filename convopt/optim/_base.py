"""What the optimizers share: SGD with momentum on a gradient that passes through a smoothing kernel."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from convopt.theory.kernel_loss import KernelLoss
from convopt.theory.kernels import NAMED_KERNELS, check_size
from convopt.theory.smoothing import LineShifts, at_least_float32, goes_in_pieces

T = TypeVar("T")


class SmoothingOptimizer(Optimizer, ABC):
    """SGD with momentum whose gradients are smoothed before the update.

    A kernel that several parameters share lives in its param group and one kernel per parameter in
    ``state[p]``, so that both survive ``state_dict``, pickle and deepcopy. They stay float32 whatever the
    parameters' dtype: a step of a kernel is below the resolution of half precision.

    ``momentum``, ``weight_decay``, ``nesterov`` and ``maximize`` are those of torch.optim.SGD, without dampening.
    Weight decay is added to the smoothed gradient: it is no noise that smoothing should remove.
    """

    _float32_state: tuple[str, ...] = ()
    _shared_kernels: tuple[str, ...] = ()
    _elementwise = True
    """Whether ``_descend`` looks at each element by itself, so that a parameter can pass through it in pieces."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Checkpoints and pickles from before an option existed get its default."""
        super().__setstate__(state)
        complete_options(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not name are the defaults. ValueError names an option that is invalid."""
        self._check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name, value in self._initial_shared_state(group).items():
            group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Update the parameters from their ``grad``, which stays as it is.

        Args:
            closure: called once, before anything else, with gradients enabled. It may only compute the loss of
                the batch whose gradients are in place, or do zero_grad, backward and return the loss; it may
                return a tensor or a float. With GradScaler it must not do backward, whose gradients nobody would
                unscale: pass ``loss``.
            loss: the loss of this batch if it is at hand already, a tensor or a float. It replaces the closure
                and saves its forward pass.

        Returns:
            What the closure returned, or ``loss``.

        Raises:
            ValueError: both ``closure`` and ``loss`` were given.
            TypeError: the loss is not one number.
            RuntimeError: a gradient is sparse or complex, or a parameter is sharded. Nothing has been updated then.
        """
        if closure is not None:
            if loss is not None:
                raise ValueError("closure and loss were both given, expected one of them")
            with torch.enable_grad():
                loss = closure()
        scalar = _as_scalar(loss)
        params_of_groups = [params_with_grad(group) for group in self.param_groups]
        for group, params in zip(self.param_groups, params_of_groups, strict=True):
            if params:
                for name in self._shared_kernels:
                    group[name] = group[name].to(params[0].device)
                self._step_group(group, params, scalar)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint, as in torch; float32 statistics of half-precision parameters stay float32."""
        super().load_state_dict(state_dict)
        restore_float32_state(self, state_dict, self._float32_state)

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

    def _check_options(self, options: dict[str, Any]) -> None:
        check_number("lr", options["lr"], at_least=0)
        check_number("momentum", options["momentum"], at_least=0, below=1)
        check_number("weight_decay", options["weight_decay"], at_least=0)
        if options["nesterov"] and not options["momentum"]:
            raise ValueError("nesterov needs a momentum, got momentum 0")
        if "kernel_size" in options:
            check_size(options["kernel_size"])
            initial_kernel(options["kernel_init"], options["kernel_size"], ndim=1)

    def _initial_shared_state(self, group: dict[str, Any]) -> dict[str, Any]:
        """What all parameters of a group share, to be kept in the group."""
        return {}

    @abstractmethod
    def _kernels_of(self, group: dict[str, Any]) -> dict[str, Tensor]: ...

    @abstractmethod
    def _step_group(self, group: dict[str, Any], params: list[Tensor], loss: Tensor | float | None) -> None: ...

    def _descend(self, group: dict[str, Any], params: list[Tensor], directions: list[Tensor]) -> None:
        """One step of SGD along ``directions``, which may be the gradients themselves, as torch.optim.SGD does it."""
        if params:
            buffers = [self._momentum_buffer(p) for p in params] if group["momentum"] else []
            descend(group, params, directions, buffers)

    def _momentum_buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _goes_in_pieces(self, p: Tensor) -> bool:
        tensors = p, grad_of(p), self.state[p].get("momentum_buffer", p)
        return self._elementwise and all(goes_in_pieces(tensor) for tensor in tensors)

    def _descend_smoothed(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        smooth: Callable[[list[Tensor]], list[Tensor]],
        smooth_pieces: Callable[[Tensor], Iterable[tuple[slice, Tensor]]],
    ) -> None:
        """One step of SGD along smoothed gradients: of large parameters flattened, piece by piece, of others whole."""
        whole = []
        for p in params:
            if self._goes_in_pieces(p):
                self._descend_in_pieces(group, p, (-1,), smooth_pieces(grad_of(p).view(-1)))
            else:
                whole.append(p)
        self._descend(group, whole, smooth([grad_of(p) for p in whole]))

    def _descend_in_pieces(
        self, group: dict[str, Any], p: Tensor, shape: tuple[int, ...], directions: Iterable[tuple[slice, Tensor]]
    ) -> None:
        """One step of SGD for some rows after the other of ``p``, seen as ``shape``: no tensor as large is needed."""
        buffers = [self._momentum_buffer(p).view(shape)] if group["momentum"] else []
        for place, direction in directions:
            descend(group, [p.view(shape)[place]], [direction], [buffer[place] for buffer in buffers])


def descend(group: dict[str, Any], params: list[Tensor], directions: list[Tensor], buffers: list[Tensor]) -> None:
    """One step of SGD along ``directions``; ``buffers`` are those of the momentum, empty without one."""
    directions = [direction.to(p.dtype) for p, direction in zip(params, directions, strict=True)]
    if group["maximize"]:
        directions = list(torch._foreach_neg(directions))
    if group["weight_decay"]:
        directions = list(torch._foreach_add(directions, params, alpha=group["weight_decay"]))
    if group["momentum"]:
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, directions)
        if group["nesterov"]:
            directions = list(torch._foreach_add(directions, buffers, alpha=group["momentum"]))
        else:
            directions = buffers
    lr = group["lr"]
    if isinstance(lr, Tensor):
        torch._foreach_sub_(params, torch._foreach_mul(directions, lr.reshape(())))
    else:
        torch._foreach_add_(params, directions, alpha=-lr)


def is_at_rest(lr: float | Tensor) -> bool:
    """Whether a learning rate is 0: then a step is for show, as distributed checkpoints make one with zero gradients.

    A tensor is read on the CPU only: elsewhere the host would have to wait for the device.
    """
    if isinstance(lr, Tensor):
        return not torch.compiler.is_compiling() and lr.device.type == "cpu" and lr.item() == 0
    return lr == 0


def check_number(name: str, value: Any, *, at_least: float, below: float = math.inf) -> None:
    """Raise ValueError unless ``at_least <= value < below``; tensors of one element are numbers too."""
    is_number = isinstance(value, int | float | Tensor) and not isinstance(value, bool)
    if not is_number or (isinstance(value, Tensor) and value.numel() != 1) or not at_least <= value < below:
        raise ValueError(f"{name} must be a number in [{at_least}, {below}), got {value!r}")


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")


def complete_options(optimizer: Optimizer) -> None:
    """Give the param groups the options that they lack, being of a checkpoint from before these existed."""
    for group in optimizer.param_groups:
        for name, value in optimizer.defaults.items():
            if name != "differentiable":  # torch adds it to all defaults; checkpoints must have equal keys
                group.setdefault(name, value)


def restore_float32_state(optimizer: Optimizer, state_dict: dict[str, Any], names: Iterable[str]) -> None:
    """After ``load_state_dict``, which casts to the parameters' dtype: the state called ``names`` as it was saved."""
    saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for saved_id, p in zip(saved_ids, params, strict=True):
        saved = state_dict["state"].get(saved_id, {})
        for name in names:
            if name in saved:
                optimizer.state[p][name] = copy.deepcopy(saved[name]).to(p.device)


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
    valid = kernel_init.shape in ((size,), (size, size)) and kernel_init.isfinite().all() and (kernel_init >= 0).all()
    if not (valid and kernel_init.sum() > 0):
        raise ValueError(
            f"kernel_init must have shape ({size},) or ({size}, {size}) and hold finite taps that are not negative "
            f"and sum to a positive number, got {kernel_init}"
        )
    kernel = kernel_init.detach().float()
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


def params_with_grad(group: dict[str, Any]) -> list[Tensor]:
    """The group's parameters that have a gradient; RuntimeError where one is sparse, complex or sharded."""
    params = [p for p in group["params"] if p.grad is not None]
    for p in params:
        if is_sharded(p):
            raise RuntimeError(
                "sharded parameters (DTensor, as fully_shard and FSDP make them) are not supported, because a gradient "
                "is smoothed and compared as a whole: use DistributedDataParallel"
            )
        grad = grad_of(p)
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"sparse gradients are not supported, got layout {grad.layout} of shape {tuple(p.shape)}"
            )
        if grad.is_complex():
            raise RuntimeError(f"complex gradients are not supported, got {grad.dtype} of shape {tuple(p.shape)}")
    return params


def grad_of(p: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert p.grad is not None
    return p.grad


def is_sharded(p: Tensor) -> bool:
    """Whether a rank holds a part of ``p`` only: a DTensor, or a piece of FSDP's flat parameter."""
    # By their attributes, since torch builds without torch.distributed have no such classes to import.
    return hasattr(p, "full_tensor") or getattr(p, "_fsdp_flattened", False)


def _as_scalar(loss: Any) -> Tensor | float | None:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return at_least_float32(loss.detach().reshape(())).clone()
    if loss is None or isinstance(loss, int | float):
        return loss
    raise TypeError(f"loss must be one number, a tensor or a float, got {loss!r}")


def named_params(group: dict[str, Any]) -> Iterable[tuple[str, Tensor]]:
    """The group's parameters with the names they were given to the optimizer with, or else their indices."""
    names = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
    return zip(names, group["params"], strict=True)
