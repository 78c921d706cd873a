"""The optimizers and wrappers of ``convopt.optim`` as methods."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from convopt import (
    SNRAnnealing,
    WeightAveraging,
    WienerAdamW,
    WienerFilter,
    WienerSGD,
    optim,
    spatial_param_groups,
)
from convopt.lab.methods.method import (
    ANNEALINGS,
    AVERAGINGS,
    FILTERS,
    OPTIMIZERS,
    Arrangement,
    Averaging,
    Batch,
    Groups,
    Method,
    Optimizers,
    Setup,
    Wrapper,
    backward,
    chosen_from,
    layer_of,
    nothing,
    stepping,
    to_each,
)

OURS: dict[str, type[Optimizer]] = {
    name: cls
    for name, cls in ((name, getattr(optim, name)) for name in optim.__all__)
    if isinstance(cls, type) and issubclass(cls, Optimizer)
}
"""The optimizers of ``convopt.optim`` by name."""


def step_with_loss(optimizers: Optimizers, batch: Batch, loss: float) -> None:
    """One step of each, told the batch's loss."""
    for optimizer in optimizers.values():
        optimizer.step(loss=loss)


def kernels(optimizers: Optimizers) -> dict[str, Tensor]:
    """All learnt kernels by name."""
    return {name: kernel for optimizer in optimizers.values() for name, kernel in optimizer.kernels().items()}


def smoothed_groups(groups: Groups, which: str) -> Groups:
    """Param groups in which "all layers" are smoothed, only the "first layer" or only the "other layers".

    In the rest the kernel has a single tap. ValueError for another ``which``.
    """
    if which not in ("all layers", "first layer", "other layers"):
        raise ValueError(f'smoothed must be "all layers", "first layer" or "other layers", got {which!r}')
    if which == "all layers":
        return groups
    layer = layer_of(groups[0]["params"][0][0])
    first = chosen_from(groups, lambda name, _: layer_of(name) == layer)
    others = chosen_from(groups, lambda name, _: layer_of(name) != layer)
    smoothed, plain = (first, others) if which == "first layer" else (others, first)
    return [*smoothed, *({**group, "kernel_size": 1} for group in plain)]


def smoothing(cls: Callable[..., Optimizer]) -> Method:
    """An optimizer with kernels. The option ``smoothed`` is that of :func:`smoothed_groups`."""

    def make(groups: Groups, setup: Setup, smoothed: str = "all layers", **options: Any) -> Optimizer:
        return cls(smoothed_groups(groups, smoothed), **options)

    return Method(make, step=step_with_loss, kernels=kernels if hasattr(cls, "kernels") else nothing)


STUDIED = {"signal": "positive part", "noise_weight": 1.0}
"""Wiener's own filter, unless an option says otherwise: so it was when the study's records got their names."""


def on_grids(groups: Groups, setup: Setup, **options: Any) -> Groups:
    """The groups divided by the grids that their parameters see; options are those of ``spatial_param_groups``."""
    found, _ = spatial_param_groups(setup.model, setup.dataset.train.x[:1], **options)
    wanted = {p for group in groups for _, p in group["params"]}
    return chosen_from(found, lambda _, p: p in wanted)


def _backward_in_halves(optimizers: Optimizers, batch: Batch) -> float:
    """As ``backward``; half a batch at a time where the optimizer compares the halves' gradients."""
    (optimizer,) = optimizers.values()
    if optimizer.param_groups[0]["second_estimate"] != "half batches":
        return backward(optimizers, batch)
    losses = []
    for half in batch.halves():
        loss = half.loss() / 2
        loss.backward()
        losses.append(loss.item())
        if len(losses) == 1:
            optimizer.mark_half()
    return sum(losses)


def _gains(optimizers: Optimizers) -> dict[str, Tensor]:
    (optimizer,) = optimizers.values()
    return {f"gain of {name}": of_p.gain for name, of_p in optimizer.snr().parameters.items()}


def _annealing(optimizers: Optimizers) -> dict[str, float]:
    (optimizer,) = optimizers.values()
    if not optimizer.param_groups[0]["snr_annealing"]:
        return {}
    snr = optimizer.snr()
    return {"rho": snr.rho, "annealing_factor": snr.factor}


def wiener(cls: Callable[..., Optimizer]) -> Method:
    """A Wiener optimizer over parameters divided by their grids.

    The option ``smallest_kernel`` is that of ``spatial_param_groups``. Steps are annealed unless an option says
    otherwise: so it was when the study's records got their names.
    """

    def make(groups: Groups, setup: Setup, smallest_kernel: int | None = None, **options: Any) -> Optimizer:
        kernel = {} if smallest_kernel is None else {"smallest_kernel": smallest_kernel}
        return cls(on_grids(groups, setup, **kernel), **{"snr_annealing": True, **STUDIED, **options})

    return Method(make, _backward_in_halves, step_with_loss, _gains, _annealing)


OPTIMIZERS |= {name: smoothing(cls) for name, cls in OURS.items() if cls not in (WienerSGD, WienerAdamW)}
OPTIMIZERS |= {cls.__name__: wiener(cls) for cls in (WienerSGD, WienerAdamW)}


def by_layer(arrangement: Arrangement, _: Setup) -> Arrangement:
    """An optimizer for each layer."""
    groups = [group for of_one in arrangement.values() for group in of_one]
    layers = dict.fromkeys(layer_of(name) for group in groups for name, _ in group["params"])
    return {layer: chosen_from(groups, lambda name, _, layer=layer: layer_of(name) == layer) for layer in layers}


def _curves(attached: dict[str, SNRAnnealing]) -> dict[str, float]:
    """Of the one there is: several have as many courses."""
    if len(attached) > 1:
        return {}
    (annealing,) = attached.values()
    return {"rho": annealing.rho(), "annealing_factor": annealing.factor()}


studied_annealing = partial(SNRAnnealing, every=1)
"""As it was when the study's records got their names: gradients are compared at every step."""

ANNEALINGS["SNRAnnealing"] = Wrapper(to_each(studied_annealing), _curves)
ANNEALINGS["SNRAnnealing per layer"] = Wrapper(to_each(studied_annealing), _curves, by_layer)


def filter_on_grids(optimizers: Optimizers, setup: Setup, **options: Any) -> dict[str, WienerFilter]:
    """A filter around each optimizer that has parameters on a grid. ValueError where none has."""
    found = {
        name: WienerFilter(stepping(optimizer), **{**STUDIED, **options})
        for name, optimizer in optimizers.items()
        if any(group["grid"] is not None for group in optimizer.param_groups)
    }
    if not found:
        raise ValueError(f"WienerFilter needs parameters that see a grid; those of {setup.run.model.name} see none")
    return found


FILTERS["WienerFilter"] = Wrapper(
    filter_on_grids,
    arrange=lambda arrangement, setup: {name: on_grids(groups, setup) for name, groups in arrangement.items()},
)


def weight_averaging(model: nn.Module, optimizers: Optimizers, **options: Any) -> Averaging:
    """WeightAveraging around each optimizer; the first has the model's buffers, too."""
    models = [model, *[None] * (len(optimizers) - 1)]
    attached = [
        WeightAveraging(stepping(optimizer), of_it, **options)
        for optimizer, of_it in zip(optimizers.values(), models, strict=True)
    ]

    @contextmanager
    def judged() -> Iterator[nn.Module]:
        with ExitStack() as stack:
            for each in attached:
                stack.enter_context(each.averaged())
            yield model

    return Averaging(
        judged,
        kept=lambda: (leaf for each in attached for leaf in tree_leaves(each.state_dict()) if isinstance(leaf, Tensor)),
        curves=lambda: {"average_in_place": fmean(each.helps() for each in attached)},
    )


AVERAGINGS["WeightAveraging"] = weight_averaging
