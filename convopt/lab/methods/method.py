"""What a method of training is put together from, and the registries that its parts are listed in.

A part is listed by name where it is defined; a run names its parts and gives them options.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from convopt.lab.data import Dataset
from convopt.lab.names import require_known
from convopt.lab.runs import Choice, Run

Optimizers = dict[str, Optimizer]
"""Optimizers over parts of one model, by name. One alone is called ""."""

Grid = tuple[int, ...]
"""Elements along each axis of a data set's grid."""

Groups = list[dict[str, Any]]
"""Param groups, whose ``params`` are pairs of a name and a parameter."""

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets, 0-dim."""


class Setup(NamedTuple):
    """What parts are made for: a run, its model with initial weights, and its data."""

    run: Run
    model: nn.Module
    dataset: Dataset


class Batch(NamedTuple):
    """What one step is taken on."""

    model: nn.Module
    x: Tensor
    y: Tensor
    loss_of: LossFunction

    def loss(self) -> Tensor:
        """0-dim, with its graph."""
        return self.loss_of(self.model(self.x), self.y)

    def halves(self) -> tuple["Batch", "Batch"]:
        """The batch as two."""
        (x, x2), (y, y2) = self.x.chunk(2), self.y.chunk(2)
        return self._replace(x=x, y=y), self._replace(x=x2, y=y2)


def backward(_: Optimizers, batch: Batch) -> float:
    """The batch's loss, its gradient added to the parameters'; none where it is not finite."""
    loss = batch.loss()
    value = loss.item()
    if math.isfinite(value):
        loss.backward()
    return value


def step(optimizers: Optimizers, batch: Batch, loss: float) -> None:
    """One step of each."""
    for optimizer in optimizers.values():
        optimizer.step()


def nothing(*_: Any) -> dict[str, Any]:
    """What is told of a part that has nothing to tell."""
    return {}


@dataclass(frozen=True)
class Method:
    """How an optimizer is made, and what it needs in a training loop.

    Attributes:
        make: from param groups, the setup and options: the optimizer.
        prepare: puts a batch's gradients into place and returns its loss; before it there are none.
        step: steps, given the batch and its loss.
        kernels: what was learnt that is recorded before training and after each epoch, by name.
        curves: what is recorded after each epoch, by the names of ``curves.CURVES``.
        set_mode: to "train" or "eval".
    """

    make: Callable[..., Optimizer]
    prepare: Callable[[Optimizers, Batch], float] = backward
    step: Callable[[Optimizers, Batch, float], None] = step
    kernels: Callable[[Optimizers], dict[str, Tensor]] = nothing
    curves: Callable[[Optimizers], dict[str, float]] = nothing
    set_mode: Callable[[Optimizers, str], Any] = nothing


def of_groups(make: Callable[..., Optimizer], **fixed: Any) -> Callable[..., Optimizer]:
    """A method's ``make`` of an optimizer that needs the param groups alone."""
    return lambda groups, setup, **options: make(groups, **fixed, **options)


Arrangement = dict[str, Groups]
"""The param groups of each optimizer, by its name."""


@dataclass(frozen=True)
class Wrapper:
    """What is hung on optimizers.

    Attributes:
        attach: from the optimizers, the setup and options, one wrapper for each, by its name. A wrapper has a
            ``state_dict()``.
        curves: of these, what is recorded after each epoch, by the names of ``curves.CURVES``.
        arrange: which optimizers there must be, and their groups, given those that there would be otherwise.
    """

    attach: Callable[..., dict[str, Any]]
    curves: Callable[[dict[str, Any]], dict[str, float]] = nothing
    arrange: Callable[[Arrangement, Setup], Arrangement] = lambda arrangement, _: arrangement


def to_each(make: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A wrapper's ``attach`` that makes one for each optimizer."""
    return lambda optimizers, setup, **options: {name: make(each, **options) for name, each in optimizers.items()}


def stepping(optimizer: Optimizer) -> Optimizer:
    """The optimizer that changes the weights: within SAM it is another, whose gradients are those at other weights."""
    return getattr(optimizer, "base_optimizer", optimizer)


def layer_of(parameter: str) -> str:
    """The name of the module that a parameter, by its name, belongs to."""
    return parameter.rpartition(".")[0]


def chosen_from(groups: Groups, is_chosen: Callable[[str, nn.Parameter], bool]) -> Groups:
    """The groups with the parameters only that are chosen by name or by themselves; none without any."""
    found = [{**group, "params": [pair for pair in group["params"] if is_chosen(*pair)]} for group in groups]
    return [group for group in found if group["params"]]


OPTIMIZERS: dict[str, Method] = {}
"""Optimizers by name."""

FILTERS: dict[str, Wrapper] = {}
"""What filters gradients, by name."""

ANNEALINGS: dict[str, Wrapper] = {}
"""What scales steps by what is seen in training, by name."""

LOSSES: dict[str, Callable[..., LossFunction]] = {}
"""What may be minimised in place of the task's loss, by name; made from options."""

INPUTS: dict[str, Callable[..., Any]] = {}
"""What is done to inputs, by name; an ``inputs.Inputs`` made from the data set's grid and options."""


@dataclass(frozen=True)
class Averaging:
    """What averages weights.

    Attributes:
        judged: a context, in which there is the model to evaluate.
        kept: the tensors that it keeps from step to step.
        after_step: called after each step.
        curves: what is recorded after each epoch, by the names of ``curves.CURVES``.
    """

    judged: Callable[[], AbstractContextManager[nn.Module]]
    kept: Callable[[], Iterable[Tensor]]
    after_step: Callable[[], Any] = nothing
    curves: Callable[[], dict[str, float]] = nothing


AVERAGINGS: dict[str, Callable[..., Averaging]] = {}
"""Averages of weights by name, made from the model, its optimizers and options."""

Part = TypeVar("Part")


def named(registry: Mapping[str, Part], what: str, choice: Choice) -> Part:
    """The part that is chosen. ValueError where there is none of that name; ``what`` says of which kind."""
    require_known(what, choice.name, registry)
    return registry[choice.name]
