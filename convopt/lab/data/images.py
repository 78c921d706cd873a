"""Images: scikit-learn's digits, MNIST, Fashion-MNIST and CIFAR-10, found or downloaded, checked and split."""

import struct
import urllib.error
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from convopt.lab.data.dataset import DataError, Dataset, Split, checksum
from convopt.lab.vision import torchvision

MNIST_FILES = {
    "train-images-idx3-ubyte": (2051, (60000, 28, 28)),
    "train-labels-idx1-ubyte": (2049, (60000,)),
    "t10k-images-idx3-ubyte": (2051, (10000, 28, 28)),
    "t10k-labels-idx1-ubyte": (2049, (10000,)),
}
"""Magic number and dimensions of each file."""


class Idx(NamedTuple):
    """A data set in MNIST's format.

    Attributes:
        title: of torchvision's class.
        mean, std: of its pixels, from 0 to 1.
    """

    title: str
    mean: float
    std: float


MNIST = Idx("MNIST", 0.1307, 0.3081)
FASHION_MNIST = Idx("FashionMNIST", 0.2860, 0.3530)


@lru_cache(maxsize=1)
def digits(_: Path) -> Dataset:
    """scikit-learn's 1797 bundled digits of 8x8 pixels with values 0 to 16: 1200 train, 200 validation, 397 test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target).long()
    x = images.float() / 16
    x = ((x - x[:1200].mean()) / x[:1200].std()).view(-1, 1, 8, 8)
    return Dataset(
        name="digits",
        kind="image",
        task="classification",
        outputs=10,
        train=Split(x[:1200], labels[:1200]),
        validation=Split(x[1200:1400], labels[1200:1400]),
        test=Split(x[1400:], labels[1400:]),
        confirmation=None,
        checksum=checksum(images.to(torch.uint8), labels.to(torch.uint8)),
    )


@lru_cache(maxsize=2)
def idx(name: str, known: Idx, root: Path) -> Dataset:
    """Train on images 0 to 4999, validate on 5000 to 9999; test images 0 to 999 and 1000 to 9999."""
    parts = _read_idx(name, known, root)

    def split(part: int, start: int, stop: int) -> Split:
        images, labels = parts[part]
        x = (images[start:stop].unsqueeze(1).float() / 255 - known.mean) / known.std
        return Split(x, labels[start:stop].long())

    return Dataset(
        name=name,
        kind="image",
        task="classification",
        outputs=10,
        train=split(0, 0, 5000),
        validation=split(0, 5000, 10000),
        test=split(1, 0, 1000),
        confirmation=split(1, 1000, 10000),
        checksum=checksum(*(array for images, labels in parts for array in (images, labels.to(torch.uint8)))),
    )


def _read_idx(name: str, known: Idx, root: Path) -> list[tuple[Tensor, Tensor]]:
    """Raw images and labels of the training and the test part, downloaded to ``root`` when absent."""
    load, raw = getattr(torchvision().datasets, known.title), root / known.title / "raw"
    missing = missing_idx_files(known, root)
    if missing:
        try:
            load(str(root), download=True)
        except (RuntimeError, OSError, urllib.error.URLError) as error:
            raise DataError(
                f"{known.title} is not under {raw} (missing: {', '.join(missing)}) and could not be downloaded "
                f"({_reason(error)}). Either put the four uncompressed files there or set CONVOPT_DATA to the folder "
                f"that holds {known.title}/raw; or go on without {known.title} by choosing the dataset 'digits', which "
                "is built in."
            ) from error
    for file, (magic, shape) in MNIST_FILES.items():
        _check_idx_file(raw / file, magic, shape)
    parts = [load(str(root), train=train) for train in (True, False)]
    return [(part.data, part.targets) for part in parts]


def missing_idx_files(known: Idx, root: Path) -> list[str]:
    """Which of a data set's files are not under ``root``."""
    return [name for name in MNIST_FILES if not (root / known.title / "raw" / name).is_file()]


@lru_cache(maxsize=1)
def cifar10(root: Path) -> Dataset:
    """Train on images 0 to 4999, validate on 5000 to 9999; test images 0 to 999 and 1000 to 9999."""
    load = torchvision().datasets.CIFAR10
    try:
        parts = [load(str(root), train=train, download=not has_cifar10(root)) for train in (True, False)]
    except (RuntimeError, OSError, urllib.error.URLError) as error:
        raise DataError(
            f"CIFAR-10 is not under {root / load.base_folder} and could not be downloaded ({_reason(error)}). Either "
            f"put torchvision's files there or set CONVOPT_DATA to the folder that holds {load.base_folder}."
        ) from error
    images = [torch.from_numpy(part.data).movedim(-1, 1) for part in parts]
    labels = [torch.tensor(part.targets) for part in parts]
    scaled = [of_part[:10000].float() / 255 for of_part in images]
    mean, std = (getattr(scaled[0][:5000], name)((0, 2, 3), keepdim=True) for name in ("mean", "std"))

    def split(part: int, start: int, stop: int) -> Split:
        return Split((scaled[part][start:stop] - mean) / std, labels[part][start:stop])

    return Dataset(
        name="cifar10",
        kind="image",
        task="classification",
        outputs=10,
        train=split(0, 0, 5000),
        validation=split(0, 5000, 10000),
        test=split(1, 0, 1000),
        confirmation=split(1, 1000, 10000),
        checksum=checksum(images[0], labels[0].to(torch.uint8), images[1], labels[1].to(torch.uint8)),
    )


def has_cifar10(root: Path) -> bool:
    """Whether torchvision's CIFAR-10 is under ``root``."""
    return (root / "cifar-10-batches-py" / "data_batch_1").is_file()


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(":")


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
