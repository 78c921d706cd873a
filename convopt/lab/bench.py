"""What a step costs, measured in one run: every optimizer in turn, again and again, so that noise strikes all alike."""

import copy
import ctypes
import inspect
import math
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from convopt import (
    ConvolutionalSGD,
    ConvolutionalSGDv2,
    FieldAdam,
    LocalLossConvSGD,
    SNRAnnealing,
    WeightAveraging,
    WienerFilter,
    spatial_param_groups,
)
from convopt.lab import arithmetic, timings
from convopt.lab.methods import OURS, Setup
from convopt.lab.methods.baselines import muon
from convopt.lab.networks import ConvNet, GRULanguageModel, SimpleNet
from convopt.lab.report import Table
from convopt.lab.vision import torchvision

BLOCK = 20
"""Steps of which the mean is one time: a whole number of turns for what happens every fourth or fifth step."""

WARM_UP = 6
"""Steps before those that are timed."""

TRAINING_ROUNDS = 3
"""At least so many of whole training steps, whose ratios lie near 1; of steps alone, one where they take seconds."""

LARGE_BLOCK, LARGE_ROUNDS = 4, 5
"""The same of training steps that take seconds: a median of more times in less than an hour."""


@dataclass(frozen=True)
class Model:
    """A network.

    Attributes:
        make: it.
        batch: makes inputs, given how many.
        trained: batch sizes at which whole training steps are timed, by device; none where the step alone is.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[int], Tensor]
    trained: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _resnet18() -> nn.Module:
    return torchvision().models.resnet18(num_classes=10)


def _vit_b_16() -> nn.Module:
    return torchvision().models.vit_b_16()


def _squares(millions: float) -> nn.Module:
    """Linear layers of one width, with about so many million parameters."""
    width = round((millions * 1e6 / 4) ** 0.5)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(4)])


def _images(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape)


VOCABULARY = 65
"""Characters of tiny Shakespeare."""


def _texts(count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count, 100))


_SMALL = {"cpu": (8, 64), "cuda": (8, 64)}
_LANGUAGE_MODEL = partial(GRULanguageModel, VOCABULARY)
MODELS = {
    "SimpleNet": Model(SimpleNet, _images(1, 28, 28), _SMALL),
    "ConvNet": Model(ConvNet, _images(1, 28, 28), _SMALL),
    "GRU language model": Model(_LANGUAGE_MODEL, _texts, {"cpu": (32,), "cuda": (32,)}),
    "ResNet-18": Model(_resnet18, _images(3, 32, 32), {"cpu": (32,), "cuda": (32, 256)}),
    "ViT-B/16": Model(_vit_b_16, _images(3, 224, 224), {"cpu": (4,), "cuda": (32,)}),
    **{f"{millions:g} M": Model(partial(_squares, millions), _images(0)) for millions in (0.1, 1.0, 10.0, 100.0)},
}
"""By name."""

LARGE = {"ViT-B/16": ("SGD", "AdamW", "WienerSGD", "WienerAdamW", "AdamW + SNRAnnealing")}
"""Of networks whose training step takes seconds on a CPU, the optimizers that it is timed with there."""


class Stepping(NamedTuple):
    """An optimizer, and what is attached to it."""

    optimizer: torch.optim.Optimizer
    attached: tuple[Any, ...] = ()

    def kept(self) -> int:
        """Bytes that are kept from step to step beside the parameters."""
        states = self.optimizer.state_dict()["state"], *(each.state_dict() for each in self.attached)
        tensors = [leaf for leaf in tree_leaves(states) if isinstance(leaf, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


Make = Callable[[nn.Module, Tensor], Stepping]


def _with(attached: type, make: Make, model: nn.Module, sample: Tensor) -> Stepping:
    optimizer = make(model, sample).optimizer
    return Stepping(optimizer, (attached(optimizer),))


def _groups(model: nn.Module, sample: Tensor) -> list[dict[str, Any]]:
    return spatial_param_groups(model, sample)[0] if sample.ndim == 4 else [{"params": [*model.named_parameters()]}]


def _on_grids(cls: type, model: nn.Module, sample: Tensor) -> Stepping:
    return Stepping(cls(_groups(model, sample), lr=1e-4))


def _muon(model: nn.Module, sample: Tensor) -> Stepping:
    precision = "bfloat16" if sample.is_cuda else "float32"  # many CPUs are slow at products in bfloat16
    return Stepping(muon(_groups(model, sample), Setup(None, model, None), lr=1e-4, precision=precision))


def _plain(cls: type, model: nn.Module, sample: Tensor, **options: Any) -> Stepping:
    return Stepping(cls(model.parameters(), lr=1e-4, **options))


_BASES: dict[str, Make] = {
    "SGD": partial(_plain, torch.optim.SGD, momentum=0.9),
    "Adam": partial(_plain, torch.optim.Adam),
    "AdamW": partial(_plain, torch.optim.AdamW),
}

OPTIMIZERS: dict[str, Make] = {
    **_BASES,
    **{
        name: partial(_on_grids if "grid" in inspect.signature(cls).parameters else _plain, cls)
        for name, cls in OURS.items()
        if cls is not FieldAdam  # which is made for fields, not for weights
    },
    "SGD + SNRAnnealing": partial(_with, SNRAnnealing, _BASES["SGD"]),
    "AdamW + SNRAnnealing": partial(_with, SNRAnnealing, _BASES["AdamW"]),
    "SGD + WeightAveraging": partial(_with, WeightAveraging, _BASES["SGD"]),
}
"""What is measured, all with their defaults."""

MUON: dict[str, Make] = {"Muon": _muon, "Muon + WienerFilter": partial(_with, WienerFilter, _muon)}
WITH_MUON = ("SimpleNet", "ConvNet")
"""Whose training steps are timed with Muon, too. In larger networks its matrix products take seconds on a CPU."""

SIZES = (3, 5, 9, 15, 25)
"""Kernel sizes whose steps are timed, on the network of a million parameters."""

COMPILED = (ConvolutionalSGD, ConvolutionalSGDv2)
"""Whose compiled steps are timed, on the network of ten million parameters, where there is a C++ compiler."""


def _compiled(cls: type, model: nn.Module, sample: Tensor) -> Stepping:
    optimizer = cls(model.parameters(), lr=1e-4)
    optimizer.step = torch.compile(optimizer.step)
    return Stepping(optimizer)


def _makers(name: str, device: str) -> dict[str, Make]:
    """What is measured on one of ``MODELS``."""
    more: dict[str, Make] = {}
    if name == "1 M" and device == "cpu":
        more = {
            f"{cls.__name__}, {size} taps": partial(_plain, cls, kernel_size=size)
            for cls in (ConvolutionalSGD, LocalLossConvSGD, ConvolutionalSGDv2)
            for size in SIZES
        }
    elif name == "10 M" and device == "cpu" and (shutil.which("g++") or shutil.which("clang++")):
        more = {f"{cls.__name__}, compiled": partial(_compiled, cls) for cls in COMPILED}
    return OPTIMIZERS | more


TOUCHED = dict.fromkeys(
    ("Adam", "AdamW", "AdamW + SNRAnnealing", "WienerAdamW", "ConvolutionalSGDv2", "ConvolutionalSGDv2, compiled"), 7
)
"""How often an update must read or write each parameter's bytes: the gradient once, the parameter and each of its
buffers twice. That is 5 for one buffer, as SGD with momentum has, and this for two."""

FLOORS = {f"floor {touched}": touched for touched in sorted({5, *TOUCHED.values()})}


def measure(models: Iterable[str], device: str, seconds: float, store: Path | None = None) -> list[dict[str, Any]]:
    """Rows of ``optimizer``, ``model``, ``what``, ``device``, ``median_ms``, ``over_sgd``, ``over_adamw``,
    ``over_floor`` and ``kept_mib``. On one thread.

    ``what`` is "step" or "training step, batch N". The floor, for steps alone, is the time to copy as many bytes as the
    update must touch. Steps have gradients of white noise, in which the Wiener filter has nothing to leave out. What is
    kept from step to step beside the parameters is told of steps alone, too, in MiB.

    Args:
        models: names of ``MODELS``.
        device: "cpu" or "cuda".
        seconds: how long to measure each model, roughly, for each kind of step.
        store: a file that keeps rows as they come. What it holds already is not measured again.

    Raises:
        ValueError: the store is no such file, or was measured elsewhere or with other versions.
    """
    _keep_freed_memory()
    rows = timings.rows_of(store, device) if store and store.exists() else []
    known = {(row["model"], row["what"]) for row in rows}
    cases = [(name, batch) for name in models for batch in (None, *MODELS[name].trained.get(device, ()))]
    for name, batch in tqdm(cases, desc="measurements", disable=len(cases) < 2):
        if (name, _what(batch)) not in known:
            rows += _measured(name, batch, device, seconds)
            if store:
                timings.write(rows, store)
    return rows


def _what(batch: int | None) -> str:
    return f"training step, batch {batch}" if batch else "step"


def _measured(name: str, batch: int | None, device: str, seconds: float) -> list[dict[str, Any]]:
    """The rows of one network, of its steps alone or, with a batch, of whole training steps."""
    with arithmetic.threads(1):
        times, kept = _training_steps(name, batch, device, seconds) if batch else _steps(name, device, seconds)
    medians = {label: statistics.median(of_it) for label, of_it in times.items()}
    rows = []
    for label in [label for label in medians if label not in FLOORS]:
        floor = medians.get(f"floor {TOUCHED.get(label, 5)}")
        rows.append(
            {
                "optimizer": label,
                "model": name,
                "what": _what(batch),
                "device": device,
                "median_ms": 1000 * medians[label],
                "over_sgd": medians[label] / medians["SGD"],
                "over_adamw": medians[label] / medians["AdamW"],
                "over_floor": medians[label] / floor if floor else None,
                "kept_mib": kept[label] / 2**20 if label in kept else None,
            }
        )
    return rows


def _keep_freed_memory() -> None:
    """Have glibc's malloc keep freed memory, but for single tensors of 32 MiB and more.

    By default it gives memory back and asks for it again, at every step or never, as what ran before has it: then
    whatever needs temporary tensors, torch's Adam too, takes up to twice as long in one measurement as in the next.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**25)


def comparison(frame: pd.DataFrame, what: str, column: str) -> Table:
    """A column of measurements, a row per optimizer and a column per network or, of training steps, batch size.

    Args:
        frame: rows of :func:`measure`.
        what: with what these begin, "step" or "training step".
        column: "over_sgd", "over_adamw", "over_floor", "median_ms" or "kept_mib".
    """
    known = [*OPTIMIZERS, *MUON]
    chosen = frame[frame.what.str.startswith(what) & frame.optimizer.isin(known)]
    network = chosen.model + chosen.what.str.removeprefix(what)
    pivot = chosen.assign(network=network).pivot(index="optimizer", columns="network", values=column)
    measured = [label for label in known if label in pivot.index]
    pivot = pivot.loc[measured, list(dict.fromkeys(network))]
    name = "-".join([*what.split(), column, *sorted(set(frame.device) - {"cpu"})])
    return Table(pivot.rename_axis(columns=None).reset_index(), name)


def figure_of(frame: pd.DataFrame, optimizer: str, model: str, column: str, what: str = "step") -> float:
    """One figure of the measurements; NaN where it was not measured."""
    row = frame[(frame.optimizer == optimizer) & (frame.model == model) & (frame.what == what)]
    return float(row[column].iloc[0]) if len(row) else math.nan


def with_gradients(name: str, device: str) -> tuple[nn.Module, Tensor]:
    """One of ``MODELS``, its gradients white noise of one seed, and a batch of one that it takes."""
    model, generator = MODELS[name].make().to(device), torch.Generator(device).manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, device=device)
    return model, MODELS[name].batch(1).to(device)


def _steps(name: str, device: str, seconds: float) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per step of each optimizer with the same gradients, and of copying what must be touched; bytes kept."""
    steps: dict[str, Callable[[], Any]] = {}
    made: dict[str, Stepping] = {}
    model, sample = with_gradients(name, device)
    for label, make in _makers(name, device).items():
        copied = copy.deepcopy(model)
        for p, original in zip(copied.parameters(), model.parameters(), strict=True):
            p.grad = original.grad  # ten copies of large gradients would fill the memory
        made[label] = make(copied, sample)
        steps[label] = made[label].optimizer.step
    size = sum(p.numel() for p in model.parameters())
    source = torch.zeros(size * max(FLOORS.values()) // 2, device=device)
    target = torch.empty_like(source)
    for label, touched in FLOORS.items():
        copied_numbers = size * touched // 2  # a copy reads and writes
        steps[label] = partial(target[:copied_numbers].copy_, source[:copied_numbers])
    times = _interleaved(steps, device, seconds, rounds=1, in_a_row=BLOCK)
    return times, {label: stepping.kept() for label, stepping in made.items()}


def _training_steps(
    name: str, batch: int, device: str, seconds: float
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per training step, forward pass to update, with each optimizer; of what is kept nothing is told."""
    model = MODELS[name].make().to(device)
    x = MODELS[name].batch(batch).to(device)
    with torch.no_grad():
        outputs = model(x)
    y = torch.randint(outputs.shape[-1], outputs.shape[:-1], device=device)
    makers = OPTIMIZERS | (MUON if name in WITH_MUON else {})
    steps = {}
    large = device == "cpu" and name in LARGE
    for label in LARGE[name] if large else makers:
        copied = copy.deepcopy(model)
        steps[label] = partial(_train, copied, makers[label](copied, x[:1]).optimizer, x, y)
    block, rounds = (LARGE_BLOCK, LARGE_ROUNDS) if large else (BLOCK, TRAINING_ROUNDS)
    return _interleaved(steps, device, seconds, rounds, in_a_row=4, block=block), {}


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
    optimizer.step()


def _interleaved(
    steps: dict[str, Callable[[], Any]], device: str, seconds: float, rounds: int, in_a_row: int, block: int = BLOCK
) -> dict[str, list[float]]:
    """Seconds per call of each function: means over a ``block``, so many ``in_a_row``, then others in random order.

    For about so many seconds, but so many rounds at least. Before that each function is called a few times: what
    happens every fourth or fifth step has its first time, too.
    """
    times: dict[str, list[float]] = {label: [] for label in steps}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    order = random.Random(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["SGD"]) < rounds:
        spent = dict.fromkeys(steps, 0.0)
        for _ in range(block // in_a_row):
            # What leaves the caches empty would always strike the same one otherwise.
            for label, step in order.sample(list(steps.items()), len(steps)):
                if device == "cuda":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(in_a_row):
                    step()
                if device == "cuda":
                    torch.cuda.synchronize()
                spent[label] += time.perf_counter() - start
        for label in steps:
            times[label].append(spent[label] / block)
    return times
