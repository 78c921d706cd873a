"""The data sets that are known by name, and how a name or a path is loaded."""

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from convopt.lab.data import bundled, files, images, prepared
from convopt.lab.data.dataset import Dataset, Kind
from convopt.lab.folders import working_folder
from convopt.lab.names import did_you_mean, quoted


class Description(NamedTuple):
    """What is known of a data set before it is loaded.

    Attributes:
        kind: of its inputs.
        task: a name of ``tasks.TASKS``.
        n_train: inputs that experiments may train on.
        n_test: inputs that experiments may report.
    """

    kind: Kind
    task: str
    n_train: int
    n_test: int


class Entry(NamedTuple):
    """A data set that is known by name.

    Attributes:
        description: what is in it.
        load: makes it from the folder of downloaded data.
        is_at_hand: whether that folder, or the installation, has it.
        is_downloaded: whether it is fetched where it is not at hand; else the reader has to put it there.
    """

    description: Description
    load: Callable[[Path], Dataset]
    is_at_hand: Callable[[Path], bool] = lambda folder: True
    is_downloaded: bool = True


_TEN_CLASSES = Description("image", "classification", 5000, 1000)


def _prepared(
    description: Description,
    load: Callable[[str, prepared.Prepared, Path], Dataset],
    known: prepared.Prepared,
    name: str,
) -> Entry:
    return Entry(description, partial(load, name, known), lambda folder: not prepared.missing(known, folder), False)


ENTRIES: dict[str, Entry] = {
    "mnist": Entry(
        _TEN_CLASSES,
        partial(images.idx, "mnist", images.MNIST),
        lambda folder: not images.missing_idx_files(images.MNIST, folder),
    ),
    "digits": Entry(Description("image", "classification", 1200, 397), images.digits),
    "fashion-mnist": Entry(
        _TEN_CLASSES,
        partial(images.idx, "fashion-mnist", images.FASHION_MNIST),
        lambda folder: not images.missing_idx_files(images.FASHION_MNIST, folder),
    ),
    "cifar10": Entry(_TEN_CLASSES, images.cifar10, images.has_cifar10),
    "crop": _prepared(Description("series", "classification", 4838, 1000), prepared.crop, prepared.CROP, "crop"),
    "adult": _prepared(Description("features", "classification", 27351, 1000), prepared.table, prepared.ADULT, "adult"),
    "california-housing": _prepared(
        Description("features", "regression", 13870, 1000), prepared.table, prepared.HOUSING, "california-housing"
    ),
    "tiny-shakespeare": _prepared(
        Description("tokens", "next token", 22307, 1000), prepared.text, prepared.SHAKESPEARE, "tiny-shakespeare"
    ),
    **{
        name: _prepared(_TEN_CLASSES, prepared.human_labels, prepared.CIFAR10N, name)
        for name in prepared.LABELS_OF_CIFAR10N
    },
    "breast-cancer": Entry(Description("features", "classification", 364, 114), bundled.breast_cancer),
    "diabetes": Entry(Description("features", "regression", 283, 88), bundled.diabetes),
}


def load(name: str) -> Dataset:
    """The data set called ``name``, or the reader's own at that path; loaded once per process.

    A path may be followed by ``::`` and the column to predict, for a table; see ``files.load``.

    Raises:
        ValueError: no such data set or path, or the file's content cannot be used; the message names file and array.
        DataError: files are missing and cannot be downloaded, or are damaged.
    """
    require_dataset(name)
    if name in ENTRIES:
        return ENTRIES[name].load(data_folder())
    return _load_file(name, _state_of(Path(name.partition("::")[0])))


@lru_cache(maxsize=4)
def _load_file(name: str, state: tuple[int, int]) -> Dataset:
    return files.load(name)


def _state_of(path: Path) -> tuple[int, int]:
    """What changes when a file is changed; of a folder, only what is directly in it is seen."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def describe(name: str) -> Description:
    """What is in the data set called ``name``. One's own has to be loaded for that."""
    require_dataset(name)
    if name in ENTRIES:
        return ENTRIES[name].description
    dataset = load(name)
    return Description(dataset.kind, dataset.task, len(dataset.train), len(dataset.test))


def fingerprint(name: str) -> str:
    """What tells one's own data under a path from others that were there before; empty for those known by name."""
    if name in ENTRIES:
        return ""
    dataset = load(name)
    shapes = [tuple(getattr(dataset, part).x.shape) for part in ("train", "validation", "test")]
    told = f"{dataset.checksum} {dataset.task} {dataset.outputs} {shapes} {dataset.dtypes}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def require_dataset(name: object, called: str = "dataset") -> None:
    """ValueError unless ``name`` is that of a data set, or the path of a file or folder; messages say ``called``."""
    if isinstance(name, str) and (name in ENTRIES or _exists(name.partition("::")[0])):
        return
    raise ValueError(
        f"{called} must be one of {', '.join(sorted(ENTRIES))}, or the path of a file, got {quoted(name)}"
        f"{did_you_mean(name, ENTRIES)}"
    )


def _exists(path: str) -> bool:
    """Whether there is something at the path; "" is none, though for Path it is the current folder."""
    try:
        return bool(path) and Path(path).exists()
    except OSError:  # a name that is too long, or a folder that must not be looked into
        return False


def full_name(name: str, column: str | None = None, called: str = "dataset") -> str:
    """The name of a known data set, or the absolute path of one's own with a table's ``column`` to predict.

    ValueError, which says ``called`` of the name, where there is no such data set, or where a column is given for one
    that is known.
    """
    require_dataset(name, called)
    if name in ENTRIES:
        if column is not None:
            raise ValueError(f"target must be left out for {name}, whose target is known, got {quoted(column)}")
        return name
    path, mark, given = name.partition("::")
    return str(Path(path).resolve()) + (f"::{column or given}" if column or mark else "")


def data_folder() -> Path:
    """Where downloaded data are looked for and put: $CONVOPT_DATA, or else data/ in the working folder."""
    return Path(os.environ.get("CONVOPT_DATA") or working_folder() / "data").resolve()


def is_at_hand(name: str) -> bool:
    """Whether the data set called ``name`` can be loaded without a download."""
    return name not in ENTRIES or ENTRIES[name].is_at_hand(data_folder())


def can_be_had(name: str) -> bool:
    """Whether the data set called ``name`` can be loaded, if need be after a download."""
    return is_at_hand(name) or ENTRIES[name].is_downloaded
