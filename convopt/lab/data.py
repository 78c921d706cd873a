"""MNIST and scikit-learn's digits as tensors, checked, split and, where asked for, with wrong labels."""

import hashlib
import math
import os
import struct
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from convopt.lab.names import require_known
from convopt.lab.vision import torchvision

DATASETS = ("mnist", "digits")

MNIST_FILES = {
    "train-images-idx3-ubyte": (2051, (60000, 28, 28)),
    "train-labels-idx1-ubyte": (2049, (60000,)),
    "t10k-images-idx3-ubyte": (2051, (10000, 28, 28)),
    "t10k-labels-idx1-ubyte": (2049, (10000,)),
}
"""Magic number and dimensions of each file."""


class DataError(RuntimeError):
    """Data that is missing, damaged or not to be had. The message says which file and what to do."""


@dataclass(frozen=True)
class Split:
    """Pictures and their labels.

    Attributes:
        x: float32, ``(n, pixels)``, normalised.
        y: int64, ``(n,)``.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int) -> "Split":
        """The first ``n`` pictures, or all of them where there are fewer."""
        return Split(self.x[:n], self.y[:n])


@dataclass(frozen=True)
class Dataset:
    """A data set with the splits of this study.

    Attributes:
        name: "mnist" or "digits".
        grid: pixels along height and width.
        classes: number of classes.
        train: what may be trained on; experiments take the first n.
        validation: what hyperparameters are chosen on.
        test: what is reported.
        confirmation: test pictures kept for the last epoch, or None.
        checksum: SHA-256 over the raw pictures and labels.
    """

    name: str
    grid: tuple[int, int]
    classes: int
    train: Split
    validation: Split
    test: Split
    confirmation: Split | None
    checksum: str


def load(name: str) -> Dataset:
    """The data set called ``name``; loaded once per process.

    Raises:
        ValueError: no such data set.
        DataError: files are missing and cannot be downloaded, or are damaged.
    """
    require_known("dataset", name, DATASETS)
    return _digits() if name == "digits" else _mnist(str(data_folder()))


def permute_pixels(dataset: Dataset, order: Tensor) -> Dataset:
    """The data set with the pixels of every picture in another order, ``(pixels,)``, the same for all.

    ValueError unless ``order`` holds each pixel once.
    """
    pixels = math.prod(dataset.grid)
    if not torch.equal(order.sort().values, torch.arange(pixels)):
        raise ValueError(f"order must hold each of the pixels 0 to {pixels - 1} once")
    return transform_pictures(dataset, lambda x: x[:, order])


def transform_pictures(dataset: Dataset, transform: Callable[[Tensor], Tensor]) -> Dataset:
    """The data set with its pictures, ``(n, pixels)``, transformed split by split."""
    splits = {
        name: Split(transform(split.x), split.y)
        for name in ("train", "validation", "test", "confirmation")
        if (split := getattr(dataset, name)) is not None
    }
    return replace(dataset, **splits)


def data_folder() -> Path:
    """Where MNIST is looked for and downloaded to: $CONVOPT_DATA, or else ./data."""
    return Path(os.environ.get("CONVOPT_DATA") or "data").resolve()


def is_at_hand(name: str) -> bool:
    """Whether the data set called ``name`` can be loaded without a download."""
    return name == "digits" or not _missing_files(data_folder())


@lru_cache(maxsize=1)
def _digits() -> Dataset:
    """scikit-learn's 1797 bundled digits of 8x8 pixels with values 0 to 16: 1200 train, 200 validation, 397 test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target).long()
    x = images.float() / 16
    x = (x - x[:1200].mean()) / x[:1200].std()
    return Dataset(
        name="digits",
        grid=(8, 8),
        classes=10,
        train=Split(x[:1200], labels[:1200]),
        validation=Split(x[1200:1400], labels[1200:1400]),
        test=Split(x[1400:], labels[1400:]),
        confirmation=None,
        checksum=_checksum(images.to(torch.uint8), labels.to(torch.uint8)),
    )


@lru_cache(maxsize=1)
def _mnist(root: str) -> Dataset:
    """MNIST: train on images 0 to 4999, validate on 5000 to 9999; test images 0 to 999 and 1000 to 9999."""
    train_images, train_labels, test_images, test_labels = _read_mnist(Path(root))

    def split(images: Tensor, labels: Tensor, start: int, stop: int) -> Split:
        x = (images[start:stop].reshape(-1, 784).float() / 255 - 0.1307) / 0.3081
        return Split(x, labels[start:stop].long())

    return Dataset(
        name="mnist",
        grid=(28, 28),
        classes=10,
        train=split(train_images, train_labels, 0, 5000),
        validation=split(train_images, train_labels, 5000, 10000),
        test=split(test_images, test_labels, 0, 1000),
        confirmation=split(test_images, test_labels, 1000, 10000),
        checksum=_checksum(train_images, train_labels.to(torch.uint8), test_images, test_labels.to(torch.uint8)),
    )


def _read_mnist(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torchvision's MNIST under ``root``, downloaded there when absent: raw images and labels of both parts."""
    datasets = torchvision().datasets
    raw = root / "MNIST" / "raw"
    missing = _missing_files(root)
    if missing:
        try:
            datasets.MNIST(str(root), download=True)
        except (RuntimeError, OSError, urllib.error.URLError) as error:
            reason = str(error).splitlines()[0].rstrip(":")
            raise DataError(
                f"MNIST is not under {raw} (missing: {', '.join(missing)}) and could not be downloaded ({reason}). "
                "Either put the four uncompressed files there or set CONVOPT_DATA to the folder that holds "
                "MNIST/raw; or go on without MNIST by choosing the dataset 'digits', which is built in."
            ) from error
    for name, (magic, shape) in MNIST_FILES.items():
        _check_idx_file(raw / name, magic, shape)
    parts = [datasets.MNIST(str(root), train=train) for train in (True, False)]
    return parts[0].data, parts[0].targets, parts[1].data, parts[1].targets


def _missing_files(root: Path) -> list[str]:
    return [name for name in MNIST_FILES if not (root / "MNIST" / "raw" / name).is_file()]


def _check_idx_file(path: Path, magic: int, shape: tuple[int, ...]) -> None:
    """Raise DataError unless ``path`` is an IDX file of unsigned bytes with this magic number and shape."""
    header = struct.pack(f">i{len(shape)}i", magic, *shape)
    with path.open("rb") as file:
        start = file.read(len(header))
    if start[:4] != header[:4]:
        raise DataError(f"{path}: wrong magic number {start[:4].hex() or '(empty file)'}, expected {header[:4].hex()}")
    if start != header:
        raise DataError(f"{path}: the header does not announce {' x '.join(map(str, shape))} bytes")
    expected = len(header) + torch.Size(shape).numel()
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"{path}: {size} bytes, expected {expected}: the file is {'truncated' if size < expected else 'too long'}"
        )


def _checksum(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def corrupt_labels(labels: Tensor, rate: float, classes: int, seed: int) -> Tensor:
    """``labels`` with ``round(rate * n)`` of them replaced by a wrong one, drawn once and uniformly.

    Args:
        labels: int64, ``(n,)``, values 0 to ``classes - 1``. Left as they are.
        rate: share of wrong labels, 0 to 1.
        classes: number of classes, at least 2.
        seed: of a generator of its own, apart from everything else.

    Raises:
        ValueError: ``rate`` or ``classes`` is out of range.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate!r}")
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes!r}")
    generator = torch.Generator().manual_seed(seed)
    count = round(rate * len(labels))
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    offsets = torch.randint(1, classes, (count,), generator=generator)
    corrupted = labels.clone()
    corrupted[chosen] = (labels[chosen] + offsets) % classes
    return corrupted
