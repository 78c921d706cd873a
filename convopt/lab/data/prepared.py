"""Data sets that have to be put into the data folder: series, tables, a text, and images with human labels."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convopt.lab.data import files
from convopt.lab.data.dataset import DataError, Dataset, checksum

N_TEST = 1000
"""Test inputs that are reported after each epoch; the others are kept for confirmation."""

N_WINDOWS = 300
"""Of a text, that choices are made on: networks of tokens are slow."""


class Prepared(NamedTuple):
    """Files that hold a data set.

    Attributes:
        files: their paths under the data folder.
        content: what they must hold, and where that comes from.
    """

    files: tuple[str, ...]
    content: str


_SPLIT = "x_train, y_train, x_test and y_test"

CROP = Prepared(("series/crop.npz",), f"{_SPLIT} of UCR's Crop, series of 46 steps in 24 classes")
ADULT = Prepared(("tabular/adult.npz",), f"{_SPLIT} of UCI's Adult, one-hot, 92 columns")
HOUSING = Prepared(("tabular/california_housing.npz",), f"{_SPLIT} of California housing, 13 columns")
SHAKESPEARE = Prepared(("text/tinyshakespeare.txt",), "Karpathy's tiny Shakespeare, a megabyte of text")
CIFAR10N = Prepared(
    ("cifar10/cifar10_jpegq75.npz", "cifar10/cifar10n_first8000.npz"),
    f"{_SPLIT} of CIFAR-10's first 8000 training images, and their labels in CIFAR-10N (Wei et al., ICLR 2022)",
)


def missing(known: Prepared, root: Path) -> list[str]:
    """Which of the files are not under ``root``."""
    return [file for file in known.files if not (root / file).is_file()]


@lru_cache(maxsize=4)
def table(name: str, known: Prepared, root: Path) -> Dataset:
    """Rows with a test split of their own."""
    (path,) = _require(name, known, root)
    return _with_confirmation(name, files.of_npz(path))


@lru_cache(maxsize=1)
def crop(name: str, known: Prepared, root: Path) -> Dataset:
    """Series, which the file holds as rows."""
    (path,) = _require(name, known, root)
    return _with_confirmation(name, files.of_npz(path, grid=np.array([46])))


@lru_cache(maxsize=1)
def text(name: str, known: Prepared, root: Path) -> Dataset:
    """A text, of whose validation windows the first are used."""
    (path,) = _require(name, known, root)
    found = _with_confirmation(name, files.load(str(path)))
    return replace(found, validation=found.validation.first(N_WINDOWS))


LABELS_OF_CIFAR10N = {
    "cifar10n-worst": "worse_label",
    "cifar10n-random": "random_label1",
    "cifar10n-aggregate": "aggre_label",
    "cifar10n-clean": "clean_label",
}
"""By the name of the data set: the worst of three people's labels, one's, what most of them say, CIFAR-10's own."""


@lru_cache(maxsize=1)
def human_labels(name: str, known: Prepared, root: Path) -> Dataset:
    """Train on images 0 to 4999 with one of ``LABELS_OF_CIFAR10N``; validate on 5000 to 7999 with CIFAR-10's labels."""
    images, labels = (np.load(path) for path in _require(name, known, root))
    arrays = {
        "x_train": images["x_train"][:5000],
        "y_train": images["y_train"][:5000],
        "y_train_noisy": labels[LABELS_OF_CIFAR10N[name]][:5000],
        "x_validation": images["x_train"][5000:],
        "y_validation": images["y_train"][5000:],
        "x_test": images["x_test"],
        "y_test": images["y_test"],
    }
    found = checksum(*(arrays[key] for key in sorted(arrays)))
    return _with_confirmation(name, files.of_arrays(name, arrays, found, "", ""))


def _require(name: str, known: Prepared, root: Path) -> list[Path]:
    if absent := missing(known, root):
        raise DataError(
            f"{name} is not under {root} (missing: {', '.join(absent)}). Put it there, with {known.content}; or set "
            "CONVOPT_DATA to the folder that holds it."
        )
    return [root / file for file in known.files]


def _with_confirmation(name: str, dataset: Dataset) -> Dataset:
    """The data set under its name; the first test inputs are reported, the others confirm."""
    test = dataset.test
    return replace(dataset, name=name, note="", test=test.first(N_TEST), confirmation=test[N_TEST:])
