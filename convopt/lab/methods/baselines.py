"""Methods of others that the study compares with, and what they need in a training loop."""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode

from convopt.lab.methods.controls import mean_factor, smooth_over_pixels
from convopt.lab.methods.method import (
    ANNEALINGS,
    AVERAGINGS,
    LOSSES,
    OPTIMIZERS,
    Averaging,
    Batch,
    Groups,
    Method,
    Optimizers,
    Setup,
    Wrapper,
    chosen_from,
    of_groups,
    to_each,
)
from convopt.optim._agreement import products_of


def _sgd(groups: Groups, setup: Setup, pixel_kernel: tuple[str, int] | None = None, **options: Any) -> Optimizer:
    """torch's SGD; with ``pixel_kernel``, name and size, see ``controls.smooth_over_pixels``."""
    optimizer = torch.optim.SGD(groups, fused=True, **options)
    if pixel_kernel is not None:
        smooth_over_pixels(optimizer, next(setup.model.parameters()), setup.dataset.grid, *pixel_kernel)
    return optimizer


class Together(Optimizer):
    """Several optimizers that step as one, with the param groups of all."""

    def __init__(self, *optimizers: Optimizer):
        self._optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    def step(self, closure: None = None) -> None:
        """One step of each."""
        for optimizer in self._optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """What each keeps from step to step."""
        return {"state": [optimizer.state_dict()["state"] for optimizer in self._optimizers]}


class _InFloat32(TorchFunctionMode):
    """Where a tensor is asked for in bfloat16, there is a copy in float32. Matrix products are NumPy's, see below."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        if func in (Tensor.matmul, Tensor.__matmul__):
            return _product(*args)
        if func is torch.addmm:
            added, *factors = args
            return _product(*factors).mul_(kwargs.get("alpha", 1)).add_(added, alpha=kwargs["beta"])
        return func(*args, **(kwargs or {}))


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.from_numpy(a.numpy() @ b.numpy())


class MuonInFloat32(torch.optim.Muon):
    """torch's Muon, which makes matrices orthogonal in float32.

    In bfloat16, as torch has it, that takes fifty times as long where the processor must emulate it, and the result
    depends on the processor. NumPy's matrix products are portable (see ``arithmetic``) and faster than MKL's portable
    ones.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step."""
        with _InFloat32():
            super().step()


def muon(groups: Groups, setup: Setup, lr: float, auxiliary: float = 0.1, precision: str = "bfloat16") -> Optimizer:
    """torch's Muon for the hidden matrices; AdamW for the output layer and all biases, at ``auxiliary`` times the rate.

    As Muon's author recommends: it is made for matrices within the network, and takes the kernels of a convolution as a
    matrix with a row per output channel. The output layer's are the last two. ``precision`` "float32" is that of
    :class:`MuonInFloat32`.
    """
    cls = {"bfloat16": torch.optim.Muon, "float32": MuonInFloat32}[precision]
    output = set(list(setup.model.parameters())[-2:])
    hidden = chosen_from(groups, lambda _, p: p.ndim >= 2 and p not in output)
    rest = chosen_from(groups, lambda _, p: p.ndim < 2 or p in output)
    matrices, kernels = _as_matrices(hidden)
    together = Together(
        cls(matrices, lr=lr, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=lr * auxiliary, weight_decay=0.0),
    )

    def take_gradients(*_: Any) -> None:
        for matrix, p in kernels.items():
            matrix.grad = p.grad.flatten(1)

    together.register_step_pre_hook(take_gradients)
    return together


def _as_matrices(groups: Groups) -> tuple[Groups, dict[nn.Parameter, nn.Parameter]]:
    """The groups with matrices that share memory with what has more axes, and to what each of those belongs."""
    kernels = {}

    def matrix(p: nn.Parameter) -> nn.Parameter:
        if p.ndim == 2:
            return p
        view = nn.Parameter(p.detach().view(len(p), -1))
        kernels[view] = p
        return view

    matrices = [{**group, "params": [(name, matrix(p)) for name, p in group["params"]]} for group in groups]
    return matrices, kernels


def from_library(module: str, name: str, *fixed: Any) -> Callable[..., Optimizer]:
    """A method's ``make`` of the library's optimizer called ``name``, imported when it is made: that takes seconds."""

    def make(groups: Groups, setup: Setup, **options: Any) -> Optimizer:
        return getattr(importlib.import_module(module), name)(groups, *fixed, **options)

    return make


def step_with_closure(optimizers: Optimizers, batch: Batch, loss: float) -> None:
    """One step of each, which may ask for the gradient at other weights."""
    for optimizer in optimizers.values():
        optimizer.step(lambda: batch.loss().backward())


def set_mode(optimizers: Optimizers, mode: str) -> None:
    """Call ``train()`` or ``eval()``, by ``mode``."""
    for optimizer in optimizers.values():
        getattr(optimizer, mode)()


OPTIMIZERS |= {
    # fused is torch's fastest on a CPU
    "SGD": Method(_sgd),
    "Adam": Method(of_groups(torch.optim.Adam, fused=True)),
    "AdamW": Method(of_groups(torch.optim.AdamW, fused=True)),
    "NAdam": Method(of_groups(torch.optim.NAdam)),
    "Muon": Method(muon),
    # sharpness-aware minimisation, around SGD
    "SAM": Method(from_library("pytorch_optimizer", "SAM", torch.optim.SGD), step=step_with_closure),
    "Lion": Method(from_library("pytorch_optimizer", "Lion")),
    "AdEMAMix": Method(from_library("pytorch_optimizer", "AdEMAMix")),
    "Grokfast": Method(from_library("pytorch_optimizer", "GrokFastAdamW")),
    "ScheduleFreeSGD": Method(from_library("schedulefree", "SGDScheduleFree"), set_mode=set_mode),
    "ScheduleFreeAdamW": Method(from_library("schedulefree", "AdamWScheduleFree"), set_mode=set_mode),
}


class PflugTest:
    """Halves the learning rates each time that consecutive gradients have pointed apart more than together.

    Inner products of consecutive gradients are summed up; where the sum is negative after ``burn_in`` steps, the rates
    are halved and the sum starts again.

    Source: Pflug (1983) as in Chee and Toulis (arXiv:1710.06382), algorithm 1, with halving in place of stopping.
    """

    def __init__(self, optimizer: Optimizer, burn_in: int):
        self._burn_in = burn_in
        self._previous: list[Tensor] = []
        self._sum, self._steps, self._factor = 0.0, 0, 1.0
        optimizer.register_step_post_hook(self._after_step)

    def factor(self) -> float:
        """What the rates have been multiplied by so far."""
        return self._factor

    def state_dict(self) -> dict[str, Any]:
        """What is kept from step to step."""
        return {"previous": self._previous, "sum": self._sum, "steps": self._steps, "factor": self._factor}

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        grads = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
        if self._previous:
            self._sum += products_of(grads, self._previous)[0].item()
        self._previous = grads
        self._steps += 1
        if self._steps > self._burn_in and self._sum < 0:
            for group in optimizer.param_groups:
                group["lr"] /= 2
            self._sum, self._steps, self._factor = 0.0, 0, self._factor / 2


ANNEALINGS["Pflug test"] = Wrapper(to_each(PflugTest), mean_factor)


def ema_of_weights(model: nn.Module, _: Optimizers, decay: float) -> Averaging:
    """An exponential moving average over the steps, buffers included."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return Averaging(
        judged=lambda: nullcontext(average),
        kept=average.parameters,
        after_step=lambda: average.update_parameters(model),
    )


AVERAGINGS["EMA"] = ema_of_weights


def label_smoothing(amount: float) -> nn.Module:
    """Cross-entropy in nats; ``amount`` of each label is given to all classes alike."""
    return nn.CrossEntropyLoss(label_smoothing=amount)


def generalised_cross_entropy(q: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of ``(1 - p ** q) / q``, p the label's probability: cross-entropy at q to 0, absolute error at 1.

    Source: Zhang and Sabuncu (arXiv:1805.07836), equation 6.
    """

    def loss_of(logits: Tensor, y: Tensor) -> Tensor:
        probability = logits.softmax(1).gather(1, y[:, None])
        return ((1 - probability**q) / q).mean()

    return loss_of


LOSSES["label smoothing"] = label_smoothing
LOSSES["generalised cross-entropy"] = generalised_cross_entropy
