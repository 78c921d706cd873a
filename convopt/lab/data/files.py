"""The reader's own data: .npz, a table, text, or a folder of images. What is not as it should be is refused."""

import decimal
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convopt.lab.data import texts
from convopt.lab.data.dataset import TEST, VALIDATION, Dataset, Kind, Split, checksum, normalise
from convopt.lab.names import did_you_mean, quoted
from convopt.lab.vision import torchvision

SPLIT_SEED = 0
"""Of the order in which such a file is cut."""

ARRAYS = ("x_train", "y_train", "x_test", "y_test", "x_validation", "y_validation", "y_train_noisy", "grid")
"""What is read of an .npz file; the first four must be there."""

MOST_CLASSES = 1000
"""Integers of more different values are numbers to regress on, not classes."""

MOST_TEXTS = 20
"""In a column of a table with few rows: more are names or dates, which have no place in a network as they are."""

FEWEST_ROWS = 20
"""That a file must have where some of its rows are kept for validation."""

VALIDATIONS = ("val", "valid", "validation")
"""Names of a folder of validation images beside those to train on."""

SIDE = 32
"""Pixels along each side to which images of a folder are resized."""

LARGEST = 1e30
"""That a number may be; squares of larger ones are beyond what networks compute with."""

Array = NDArray[Any]


def load(name: str) -> Dataset:
    """The data at a path, which ``::`` and a table's column to predict may follow.

    ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test`` and, where there are any, ``x_validation``,
    ``y_validation``, ``y_train_noisy`` (labels to train on in place of ``y_train``) and ``grid`` (the axes of a field
    that rows hold flattened); ``.csv`` or ``.parquet``; ``.txt``; or a folder with a folder of images for each class.

    ValueError in one sentence that names the file and the array or column.
    """
    path, mark, column = name.partition("::")
    readers: dict[str, Callable[[Path, str], Dataset]] = {
        ".npz": lambda path, _: of_npz(path),
        ".csv": _table,
        ".parquet": _table,
        ".txt": lambda path, _: texts.load(path),
    }
    suffix = Path(path).suffix.lower()
    reader = _folder if Path(path).is_dir() else readers.get(suffix)
    if reader is None:
        raise ValueError(f"{path}: expected a file ending in {', '.join(readers)}, or a folder of images")
    if mark and reader is not _table:
        raise ValueError(f"{path}: target must be left out, only tables have columns, got {quoted(column)}")
    dataset = reader(Path(path), column)
    return dataset if dataset.kind == "tokens" else _in_random_order(dataset)


def _in_random_order(dataset: Dataset) -> Dataset:
    """Rows are often sorted by class, and experiments take the first ones."""
    rng = np.random.default_rng(SPLIT_SEED)
    orders = {
        part: torch.from_numpy(rng.permutation(len(getattr(dataset, part)))) for part in ("train", "validation", "test")
    }
    splits = {part: getattr(dataset, part)[order] for part, order in orders.items()}
    clean = None if dataset.clean is None else dataset.clean[orders["train"]]
    return replace(dataset, **splits, clean=clean)


def of_table(name: str, x: Array, y: Array, note: str = "") -> Dataset:
    """Rows, ``(n, features)``, with their targets, split at random."""
    _require_enough(name, len(y), "rows")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
    n_test, n_validation = round(TEST * len(y)), round(VALIDATION * len(y))
    parts = np.split(order, [len(y) - n_test - n_validation, len(y) - n_test])
    arrays = {
        f"{axis}_{part}": values[rows]
        for part, rows in zip(("train", "validation", "test"), parts, strict=True)
        for axis, values in (("x", x), ("y", y))
    }
    split = f"split at random with seed {SPLIT_SEED}: {', '.join(str(len(rows)) for rows in parts)} rows"
    return of_arrays(name, arrays, checksum(x, y), note, split)


def of_npz(path: Path, **more: Array) -> Dataset:
    """The arrays of an .npz, and ``more`` that it lacks; see :func:`load`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in ARRAYS} | more
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as .npz without pickled objects ({error})") from error
    for key in ARRAYS[:4]:
        if key not in arrays:
            raise ValueError(f"{path}: has no array {key}; it has {', '.join(arrays) or 'none'}")
    found = checksum(*(arrays[key] for key in sorted(arrays)))
    _require_lengths(path, arrays, "train")
    noisy = arrays.get("y_train_noisy", arrays["y_train"])
    if len(noisy) != len(arrays["y_train"]):
        raise ValueError(
            f"{path}: y_train_noisy must have a label for each of the {len(arrays['y_train'])} rows of y_train, got "
            f"{len(noisy)}"
        )
    if ("x_validation" in arrays) != ("y_validation" in arrays):
        raise ValueError(f"{path}: must have both of x_validation and y_validation, or neither")
    if "x_validation" in arrays:
        return of_arrays(str(path), arrays, found, "", "")
    _require_enough(path, len(arrays["y_train"]), "training rows")
    arrays, split = _with_validation(arrays)
    return of_arrays(str(path), arrays, found, "", split)


def _require_enough(where: object, rows: int, called: str) -> None:
    if rows < FEWEST_ROWS:
        raise ValueError(f"{where}: needs at least {FEWEST_ROWS} {called}, some are kept for validation; got {rows}")


def _with_validation(arrays: dict[str, Array]) -> tuple[dict[str, Array], str]:
    """Some of the training rows kept for validation, with their clean targets; and what was done."""
    n = len(arrays["y_train"])
    order = np.random.default_rng(SPLIT_SEED).permutation(n)
    trained, kept = np.split(order, [n - round(VALIDATION * n)])
    split = {name: values[trained] if "train" in name else values for name, values in arrays.items()}
    split |= {f"{axis}_validation": arrays[f"{axis}_train"][kept] for axis in ("x", "y")}
    return split, f"{len(kept)} training rows were kept for validation, drawn with seed {SPLIT_SEED}"


def _require_lengths(where: object, arrays: dict[str, Array], part: str) -> None:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.ndim < 2 or y.ndim == 0 or len(x) != len(y) or len(x) == 0 or x[:1].size == 0:
        raise ValueError(
            f"{where}: x_{part} and y_{part} must have as many rows, at least one, got shapes {x.shape} and {y.shape}"
        )


def of_arrays(name: str, arrays: dict[str, Array], found: str, note: str, split: str) -> Dataset:
    """A data set of arrays as in .npz, with a validation split."""
    for part in ("train", "validation", "test"):
        _require_lengths(name, arrays, part)
    task, outputs, targets = _targets(name, arrays)
    kind, inputs = _inputs(name, arrays)
    scale = 1.0
    if task == "regression":
        mean, scale = targets["train"].mean(), targets["train"].std(correction=0).item()
        targets = {part: ((y - mean) / scale).to(torch.float32) for part, y in targets.items()}
        for part, y in targets.items():
            _require_finite(f"{name}: y_{part}, divided by the standard deviation of y_train,", y.numpy())
    train = targets.get("train_noisy", targets["train"])
    return Dataset(
        name=name,
        kind=kind,
        task=task,
        outputs=outputs,
        train=Split(inputs["train"], train),
        validation=Split(inputs["validation"], targets["validation"]),
        test=Split(inputs["test"], targets["test"]),
        confirmation=None,
        checksum=found,
        target_scale=scale,
        clean=targets["train"] if "train_noisy" in targets else None,
        note="; ".join(filter(None, [f"{kind} {tuple(inputs['train'].shape[1:])}", task, note, split])),
        dtypes=", ".join(f"{key} {arrays[key].dtype}" for key in sorted(arrays)),
    )


def _require_finite(where: str, values: Array) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has values that are not finite")
    if np.abs(values.astype(np.float64)).max() > LARGEST:
        raise ValueError(f"{where} has values beyond {LARGEST:g}, too large to compute with")


def _targets(name: str, arrays: dict[str, Array]) -> tuple[str, int, dict[str, Tensor]]:
    """The task, the number of outputs, and the targets by part."""
    parts = {key[2:]: values for key, values in arrays.items() if key.startswith("y_")}
    for part, values in parts.items():
        if values.ndim == 2 and values.shape[1] == 1:
            parts[part] = values = values[:, 0]
        if values.ndim != 1:
            raise ValueError(f"{name}: y_{part} must have one target for each row, got shape {values.shape}")
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{name}: y_{part} must hold integers or numbers, got {values.dtype}")
        _require_finite(f"{name}: y_{part}", values)
    train = parts["train"]
    if train.dtype.kind == "f" or len(np.unique(train)) > MOST_CLASSES:
        if train.min() == train.max():
            raise ValueError(f"{name}: y_train has the same value {train[0]} in all rows: there is nothing to learn")
        return "regression", 1, {part: torch.from_numpy(y.astype(np.float64)) for part, y in parts.items()}
    classes = np.unique(train)
    if len(classes) < 2:
        raise ValueError(f"{name}: y_train has one class only, {classes[0]}: there is nothing to learn")
    if classes[0] < 0 or classes[-1] >= 10 * len(classes):
        raise ValueError(
            f"{name}: y_train must hold classes 0, 1, 2, ..., got {len(classes)} integers from {classes[0]} to "
            f"{classes[-1]}; as decimal numbers (1.0) they would be a regression's"
        )
    outputs = int(classes[-1]) + 1
    for part, values in parts.items():
        if values.dtype.kind == "f" or values.min() < 0 or values.max() >= outputs:
            raise ValueError(
                f"{name}: y_{part} must hold classes from 0 to {outputs - 1} as y_train does, got {values.dtype} from "
                f"{values.min()} to {values.max()}"
            )
    return "classification", outputs, {part: torch.from_numpy(y.astype(np.int64)) for part, y in parts.items()}


def _inputs(name: str, arrays: dict[str, Array]) -> tuple[Kind, dict[str, Tensor]]:
    """What kind of inputs there are, and they, normalised, by part."""
    parts = {key[2:]: values for key, values in arrays.items() if key.startswith("x_")}
    shape = parts["train"].shape[1:]
    for part, values in parts.items():
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{name}: x_{part} must hold numbers, got {values.dtype}")
        if values.shape[1:] != shape:
            raise ValueError(f"{name}: x_{part} must have rows of shape {shape} as x_train, got {values.shape[1:]}")
        _require_finite(f"{name}: x_{part}", values)
    if "grid" in arrays:
        grid, size = tuple(np.atleast_1d(arrays["grid"]).ravel().tolist()), int(np.prod(shape))
        are_lengths = len(grid) in (1, 2) and all(isinstance(length, int) and length > 0 for length in grid)
        pixels = math.prod(grid) if are_lengths else 0
        if not pixels or size % pixels:
            raise ValueError(
                f"{name}: grid must be one or two lengths, integers that divide the {size} numbers of a row, got {grid}"
            )
        parts = {part: values.reshape(len(values), size // pixels, *grid) for part, values in parts.items()}
    elif len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4):
        parts = {part: np.moveaxis(values, -1, 1) for part, values in parts.items()}
    kinds: dict[int, Kind] = {1: "features", 2: "series", 3: "image"}
    dimensions = parts["train"].ndim - 1
    if dimensions not in kinds:
        raise ValueError(
            f"{name}: x_train must be (n, features), (n, channels, steps) or (n, channels, height, width), got "
            f"{parts['train'].shape}"
        )
    if (parts["train"] == parts["train"][:1]).all():
        raise ValueError(f"{name}: x_train is the same in all rows: there is nothing to learn from")
    tensors = {part: torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)) for part, values in parts.items()}
    train, others = tensors.pop("train"), tensors
    first, *rest = normalise(train, others.values(), kinds[dimensions])
    for part, normalised in zip(others, rest, strict=True):
        _require_finite(f"{name}: x_{part}, divided by the standard deviation of x_train,", normalised.numpy())
    return kinds[dimensions], {"train": first, **dict(zip(others, rest, strict=True))}


def _table(path: Path, column: str) -> Dataset:
    """One-hot where a column holds text; the target too becomes classes then."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from error
    for name in frame.select_dtypes(include=["object"]):
        if len(frame) and all(isinstance(value, decimal.Decimal) for value in frame[name]):
            frame[name] = frame[name].astype(float)  # as databases export prices
    told = ", ".join(map(str, frame.columns[:20]))
    if not column:
        raise ValueError(f"{path}: target must name the column to predict; there are {told}")
    if column not in frame:
        meant = did_you_mean(column, list(map(str, frame.columns)))
        raise ValueError(f"{path}: has no column {quoted(column)}; there are {told}{meant}")
    missing = frame.columns[frame.isna().any()]
    if len(missing):
        raise ValueError(f"{path}: column {quoted(missing[0])} has missing values")
    unnamed = [name for name in frame.columns if str(name).startswith("Unnamed: ")]
    if unnamed:
        raise ValueError(
            f"{path}: column {quoted(unnamed[0])} has no name; an index would tell the order of the rows: leave it "
            "out, as to_csv(index=False) does"
        )
    target, note = frame.pop(column), f"predicts {column}"
    if target.dtype.kind not in "biuf":
        names = sorted(target.astype(str).unique())
        if len(names) > MOST_CLASSES:
            raise ValueError(
                f"{path}: column {quoted(column)} has {len(names)} different texts: no classes to tell apart"
            )
        note += f" ({', '.join(f'{i} is {name}' for i, name in enumerate(names[:10]))})"
        target = target.astype(str).map({name: i for i, name in enumerate(names)})
    for name in frame.select_dtypes(include=["object"]):
        several = [value for value in frame[name] if isinstance(value, list | dict | np.ndarray)]
        if several:
            kind = type(several[0]).__name__
            raise ValueError(f"{path}: column {quoted(name)} must hold a text or a number in each row, got {kind}")
    if frame.empty:
        raise ValueError(f"{path}: needs rows, and columns beside {quoted(column)}")
    for name in frame.select_dtypes(exclude=["number", "bool"]):
        if (distinct := frame[name].astype(str).nunique()) > max(MOST_TEXTS, len(frame) // 10):
            raise ValueError(
                f"{path}: column {quoted(name)} holds {distinct} different texts in {len(frame)} rows: leave it out, "
                "or make numbers of it"
            )
    x = pd.get_dummies(frame, dtype=float)
    return of_table(f"{path}::{column}", x.to_numpy(np.float64), target.to_numpy(), note)


def _folder(path: Path, _: str) -> Dataset:
    """torchvision's ImageFolder; images become 32x32 and RGB.

    Of the folder, or of ``train`` in it and ``test``, ``val``, ``valid`` or ``validation``: one of them alone is the
    test.
    """
    found = {name: path / name for name in ("train", "test", *VALIDATIONS) if (path / name).is_dir()}
    validations = [root for name, root in found.items() if name in VALIDATIONS]
    tests = [*([found["test"]] if "test" in found else []), *validations]
    if not found:
        x, y, classes = _images_of(path)
        return of_table(str(path), x, y, _told(classes))
    if "train" not in found or not tests or len(validations) > 1:
        raise ValueError(
            f"{path}: must hold train, and test or one of {', '.join(VALIDATIONS)} or both; or a folder of images for "
            f"each class; got {', '.join(found)}"
        )
    arrays: dict[str, Array] = {}
    _, _, classes = of_train = _images_of(found["train"])
    for part, root in {"train": found["train"], **dict(zip(("test", "validation"), tests, strict=False))}.items():
        x, y, names = of_train if part == "train" else _images_of(root)
        if names != classes:
            raise ValueError(f"{root}: must have the classes of {found['train']}, {classes}, got {names}")
        arrays |= {f"x_{part}": x, f"y_{part}": y}
    together = checksum(*arrays.values())
    arrays, split = (arrays, "") if "x_validation" in arrays else _with_validation(arrays)
    return of_arrays(str(path), arrays, together, _told(classes), split)


def _told(classes: list[str]) -> str:
    return ", ".join(f"{i} is {name}" for i, name in enumerate(classes[:10]))


def _images_of(root: Path) -> tuple[Array, Array, list[str]]:
    """Images, ``(n, 3, 32, 32)``, their labels, and the classes' names."""
    try:
        found = torchvision().datasets.ImageFolder(str(root))
    except FileNotFoundError as error:
        raise ValueError(
            f"{root}: must hold a folder of images for each class ({str(error).splitlines()[0]})"
        ) from error
    images = [_image(file) for file, _ in found.samples]
    return np.stack(images).transpose(0, 3, 1, 2), np.array(found.targets), found.classes


def _image(file: str) -> Array:
    """An image as ``(32, 32, 3)``."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # would be cut off at 255
                raise ValueError(f"{file}: must have 8 bits for each channel, got the mode {image.mode}")
            return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read as an image ({str(error).splitlines()[0]})") from error
