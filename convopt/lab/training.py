"""Training one run and recording its course."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convopt.lab import data, provenance
from convopt.lab.models import MODELS
from convopt.lab.records import Record
from convopt.lab.runs import Run
from convopt.optim import ConvolutionalSGD, ConvolutionalSGDv2, LocalLossConvSGD
from convopt.optim._base import SmoothingOptimizer

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    # torch's fastest on a CPU
    "SGD": partial(torch.optim.SGD, fused=True),
    "Adam": partial(torch.optim.Adam, fused=True),
    "ConvolutionalSGD": ConvolutionalSGD,
    "LocalLossConvSGD": LocalLossConvSGD,
    "ConvolutionalSGDv2": ConvolutionalSGDv2,
}
"""Optimizers of the experiments by name."""


def train(run: Run) -> Record:
    """Train ``run`` on one thread and return its record. Nothing outside is changed, global random state included.

    A run whose loss is not finite ends at once; its record has status "diverged" and the epochs it completed.
    """
    dataset = data.load(run.dataset)
    with one_thread():
        return _train(run, dataset)


def make_model(run: Run, dataset: data.Dataset) -> nn.Module:
    """The run's model with the initial weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.stream("initial weights"))
        return MODELS[run.model.name](dataset.grid, dataset.classes, **dict(run.model.options))


def make_optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """The run's optimizer over all of the model's parameters."""
    return OPTIMIZERS[run.optimizer.name](model.named_parameters(), **dict(run.optimizer.options))


def training_split(run: Run, dataset: data.Dataset) -> data.Split:
    """The pictures the run trains on, with its wrong labels."""
    clean = dataset.train.first(run.n_train)
    return data.Split(
        clean.x, data.corrupt_labels(clean.y, run.label_noise, dataset.classes, run.stream("wrong labels"))
    )


def epochs(run: Run, split: data.Split) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """For each epoch its batches of pictures and labels; the last incomplete batch is dropped."""
    generator = torch.Generator().manual_seed(run.stream("batches"))
    n = len(split) - len(split) % run.batch_size
    for _ in range(run.epochs):
        order = torch.randperm(len(split), generator=generator)[:n]
        yield list(zip(split.x[order].split(run.batch_size), split.y[order].split(run.batch_size), strict=True))


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]
) -> tuple[float, float] | None:
    """Mean loss and mean gradient norm over the batches; None if a loss was not finite."""
    model.train()
    takes_loss = isinstance(optimizer, SmoothingOptimizer)
    params = list(model.parameters())
    total_loss, total_norm = 0.0, 0.0
    for x, y in batches:
        for p in params:
            p.grad = None
        loss = F.cross_entropy(model(x), y)
        value = loss.item()
        if not math.isfinite(value):
            return None
        loss.backward()
        total_loss += value
        total_norm += math.hypot(*(torch.linalg.vector_norm(p.grad).item() for p in params))
        optimizer.step(**({"loss": value} if takes_loss else {}))
    return total_loss / len(batches), total_norm / len(batches)


def _train(run: Run, dataset: data.Dataset) -> Record:
    model = make_model(run, dataset)
    optimizer = make_optimizer(run, model)
    train_split = training_split(run, dataset)
    test_split = dataset.test.first(run.n_test)
    if len(train_split) < run.batch_size:
        raise ValueError(f"batch_size {run.batch_size} exceeds the {len(train_split)} training pictures")
    curves: dict[str, list[float]] = {}
    kernels = [_snapshot(optimizer)]
    status, confirmation = "finished", None
    for epoch, batches in enumerate(epochs(run, train_split), start=1):
        start = time.perf_counter()
        outcome = train_epoch(model, optimizer, batches)
        if outcome is None:
            status = "diverged"
            break
        trained = time.perf_counter()
        test_loss, test_accuracy = evaluate(model, test_split)
        _, validation_accuracy = evaluate(model, dataset.validation)
        if epoch == run.epochs and dataset.confirmation is not None:
            _, confirmation = evaluate(model, dataset.confirmation)
        point = {
            "train_loss": outcome[0],
            "gradient_norm": outcome[1],
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "validation_accuracy": validation_accuracy,
            "seconds_training": trained - start,
            "seconds_evaluation": time.perf_counter() - trained,
        }
        for name, value in point.items():
            curves.setdefault(name, []).append(value)
        kernels.append(_snapshot(optimizer))
    return Record(
        run=run,
        status=status,
        curves=curves,
        kernels=kernels,
        confirmation_accuracy=confirmation,
        provenance=provenance.collect(dataset.checksum),
    )


@torch.no_grad()
def evaluate(model: nn.Module, split: data.Split) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy, 0 to 1, in evaluation mode."""
    model.eval()
    logits = torch.cat([model(x) for x in split.x.split(1000)])
    return F.cross_entropy(logits, split.y).item(), (logits.argmax(1) == split.y).float().mean().item()


def _snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's kernels by name as nested lists; empty for one without kernels."""
    kernels = optimizer.kernels() if isinstance(optimizer, SmoothingOptimizer) else {}
    return {name: kernel.tolist() for name, kernel in kernels.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: runs go to all cores side by side, and results do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
