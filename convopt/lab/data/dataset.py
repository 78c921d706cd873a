"""What a data set is, whatever is in it, and what the experiments change about it."""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["image", "series", "features", "tokens"]
"""Of an input: (C, H, W), (C, T), (features,) or (T,) with integers."""


TEST, VALIDATION = 0.2, 0.16
"""Shares of the rows of one's own file that are kept for either, where it has no such split."""


class DataError(RuntimeError):
    """Data that is missing, damaged or not to be had. The message says which file and what to do."""


@dataclass(frozen=True)
class Split:
    """Inputs and their targets.

    Attributes:
        x: ``(n, *shape)``, float32 and normalised; of tokens int64.
        y: what is to be predicted: labels, int64, ``(n,)``; numbers, float32, ``(n,)``; or tokens, int64, ``(n, T)``.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int) -> "Split":
        """The first ``n`` inputs, or all of them where there are fewer."""
        return Split(self.x[:n], self.y[:n])

    def __getitem__(self, index: Any) -> "Split":
        return Split(self.x[index], self.y[index])


@dataclass(frozen=True)
class Dataset:
    """A data set with the splits of this study.

    Attributes:
        name: under which :func:`~convopt.lab.data.load` has it.
        kind: of its inputs.
        task: a name of ``tasks.TASKS``.
        outputs: numbers that a network must return: classes, 1 for a regression, or the size of the vocabulary.
        train: what may be trained on; experiments take the first n.
        validation: what hyperparameters are chosen on.
        test: what is reported.
        confirmation: test inputs kept for the last epoch, or None.
        checksum: SHA-256 over the raw data.
        target_scale: of a regression, the unit of its targets: they were divided by it.
        clean: where the training targets are known to hold noise, those without.
        note: what was decided about the reader's own file, for reading; empty for data that are known by name.
        dtypes: in which its arrays were stored: the same bytes are other numbers in another.
    """

    name: str
    kind: Kind
    task: str
    outputs: int
    train: Split
    validation: Split
    test: Split
    confirmation: Split | None
    checksum: str
    target_scale: float = 1.0
    clean: Tensor | None = None
    note: str = ""
    dtypes: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.train.x.shape[1:])

    @property
    def grid(self) -> tuple[int, ...] | None:
        """The axes along which neighbours are neighbours: height and width, or time; None without."""
        return {"image": self.shape[1:], "series": self.shape[1:]}.get(self.kind)

    @property
    def guessing(self) -> float | None:
        """The accuracy of the most frequent class; None for other tasks than a classification."""
        if self.task != "classification":
            return None
        return torch.bincount(self.train.y).max().item() / len(self.train)


def transform_inputs(dataset: Dataset, transform: Callable[[Tensor], Tensor]) -> Dataset:
    """The data set with its inputs, ``(n, *shape)``, transformed split by split."""
    splits = {
        name: Split(transform(split.x), split.y)
        for name in ("train", "validation", "test", "confirmation")
        if (split := getattr(dataset, name)) is not None
    }
    return replace(dataset, **splits)


def permute_pixels(dataset: Dataset, order: Tensor) -> Dataset:
    """The data set with the pixels of every input in another order, ``(pixels,)``, the same for all and all channels.

    ValueError for a data set without a grid, and unless ``order`` holds each pixel once.
    """
    if dataset.grid is None:
        raise ValueError(f"{dataset.name} has no pixels to permute: its inputs are {dataset.kind}")
    pixels, axes = math.prod(dataset.grid), len(dataset.grid)
    if not torch.equal(order.sort().values, torch.arange(pixels)):
        raise ValueError(f"order must hold each of the pixels 0 to {pixels - 1} once")
    return transform_inputs(dataset, lambda x: x.flatten(-axes)[..., order].view_as(x))


def corrupt_targets(y: Tensor, rate: float, outputs: int, seed: int) -> Tensor:
    """``y`` with ``round(rate * n)`` of its elements corrupted, drawn once and uniformly.

    A label or token becomes another one, all others alike. A number takes the place of another of those that are drawn.

    Args:
        y: labels or tokens, int64, values 0 to ``outputs - 1``, or numbers; any shape of n elements. Left as it is.
        rate: share of corrupted elements, 0 to 1.
        outputs: number of classes or tokens, at least 2; of numbers it is not looked at.
        seed: of a generator of its own, apart from everything else.

    Raises:
        ValueError: ``rate`` or ``outputs`` is out of range.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate!r}")
    if outputs < 2 and not y.is_floating_point():
        raise ValueError(f"outputs must be at least 2, got {outputs!r}")
    generator = torch.Generator().manual_seed(seed)
    count = round(rate * y.numel())
    chosen = torch.randperm(y.numel(), generator=generator)[:count]
    corrupted = y.flatten().clone()
    if y.is_floating_point():
        corrupted[chosen] = corrupted[chosen.roll(1)]
    else:
        offsets = torch.randint(1, outputs, (count,), generator=generator)
        corrupted[chosen] = (corrupted[chosen] + offsets) % outputs
    return corrupted.view_as(y)


def checksum(*arrays: Tensor | np.ndarray) -> str:
    """SHA-256 over the bytes of arrays, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def normalise(train: Tensor, others: Iterable[Tensor], kind: Kind) -> list[Tensor]:
    """All inputs with the mean and the standard deviation of the training inputs taken out, in float32.

    Those are of each feature or of each channel; what does not vary is divided by 1.
    """
    over = [0] if kind == "features" else [0, *range(2, train.ndim)]
    train = train.to(torch.float64)
    mean, std = train.mean(over, keepdim=True), train.std(over, keepdim=True, correction=0)
    std = torch.where(std > 0, std, 1.0)
    return [((x.to(torch.float64) - mean) / std).to(torch.float32) for x in (train, *others)]
