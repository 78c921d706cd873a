"""The reader's own data: .npz, a table, text, or a folder of images. What is not as it should be is refused."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convopt.lab.data.dataset import Dataset, Kind, Split, checksum, normalise
from convopt.lab.names import did_you_mean, quoted
from convopt.lab.vision import torchvision

TEST, VALIDATION = 0.2, 0.16
"""Shares of a file's rows that are kept for either, where it has no such split."""

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

CONTEXT = 32
"""Tokens of one input of a text."""

SIDE = 32
"""Pixels along each side to which images of a folder are resized."""

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
        ".txt": _text,
    }
    suffix = Path(path).suffix.lower()
    reader = _folder if Path(path).is_dir() else readers.get(suffix)
    if reader is None:
        raise ValueError(f"{path}: expected a file ending in {', '.join(readers)}, or a folder of images")
    if mark and reader is not _table:
        raise ValueError(f"{path}: target must be left out, only tables have columns, got {quoted(column)}")
    return reader(Path(path), column)


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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
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
    if "x_validation" in arrays and "y_validation" in arrays:
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
    )


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
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: y_{part} has values that are not finite")
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
            f"{name}: y_train must hold classes 0, 1, 2, ..., got {len(classes)} of them from {classes[0]} to "
            f"{classes[-1]}"
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
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: x_{part} has values that are not finite")
    if "grid" in arrays:
        grid = tuple(np.atleast_1d(arrays["grid"]).tolist())
        pixels, size = int(np.prod(grid)), int(np.prod(shape))
        if len(grid) not in (1, 2) or pixels < 1 or size % pixels:
            raise ValueError(
                f"{name}: grid must be one or two lengths that divide the {size} numbers of a row, got {grid}"
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
    return kinds[dimensions], {"train": first, **dict(zip(others, rest, strict=True))}


def _table(path: Path, column: str) -> Dataset:
    """One-hot where a column holds text; the target too becomes classes then."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from error
    told = ", ".join(map(str, frame.columns[:20]))
    if not column:
        raise ValueError(f"{path}: target must name the column to predict; there are {told}")
    if column not in frame:
        meant = did_you_mean(column, list(map(str, frame.columns)))
        raise ValueError(f"{path}: has no column {quoted(column)}; there are {told}{meant}")
    missing = frame.columns[frame.isna().any()]
    if len(missing):
        raise ValueError(f"{path}: column {quoted(missing[0])} has missing values")
    target, note = frame.pop(column), f"predicts {column}"
    if target.dtype.kind not in "biuf":
        names = sorted(target.astype(str).unique())
        if len(names) > MOST_CLASSES:
            raise ValueError(
                f"{path}: column {quoted(column)} has {len(names)} different texts: no classes to tell apart"
            )
        note += f" ({', '.join(f'{i} is {name}' for i, name in enumerate(names[:10]))})"
        target = target.astype(str).map({name: i for i, name in enumerate(names)})
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


def _text(path: Path, _: str) -> Dataset:
    """Characters: the next one is to be predicted. The last fifth is the test, what is before it the validation."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    vocabulary = sorted(set(text))
    if len(text) < 100 * CONTEXT or len(vocabulary) < 2:
        raise ValueError(
            f"{path}: must have at least {100 * CONTEXT} characters, not all the same, got {len(text)}, "
            f"{len(vocabulary)} of them different"
        )
    places = {character: i for i, character in enumerate(vocabulary)}
    tokens = torch.tensor([places[character] for character in text])
    cuts = [round(len(tokens) * share) for share in (1 - TEST - VALIDATION, 1 - TEST)]
    parts = [_windows(part) for part in tokens.tensor_split(cuts)]
    return Dataset(
        name=str(path),
        kind="tokens",
        task="next token",
        outputs=len(vocabulary),
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        confirmation=None,
        checksum=checksum(tokens.to(torch.int32)),
        note=f"{len(vocabulary)} characters, inputs of {CONTEXT}; the text's last fifth is the test",
    )


def _windows(tokens: Tensor) -> Split:
    """Consecutive inputs, and for each token of theirs the next one."""
    count = (len(tokens) - 1) // CONTEXT
    shown = tokens[: count * CONTEXT], tokens[1 : count * CONTEXT + 1]
    x, y = (part.view(count, CONTEXT) for part in shown)
    return Split(x, y)


def _folder(path: Path, _: str) -> Dataset:
    """torchvision's ImageFolder, of the folder or of ``train`` and ``test`` in it; images become 32x32 and RGB."""
    roots = [path / "train", path / "test"]
    roots = roots if all(root.is_dir() for root in roots) else [path]
    parts = [_images_of(root) for root in roots]
    names = [classes for _, _, classes in parts]
    if names[0] != names[-1]:
        raise ValueError(f"{roots[-1]}: must have the classes of {roots[0]}, {names[0]}, got {names[-1]}")
    note = ", ".join(f"{i} is {name}" for i, name in enumerate(names[0][:10]))
    if len(parts) == 1:
        return of_table(str(path), *parts[0][:2], note)
    (x, y, _), (x_test, y_test, _) = parts
    found = checksum(x, y, x_test, y_test)
    arrays, split = _with_validation({"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test})
    return of_arrays(str(path), arrays, found, note, split)


def _images_of(root: Path) -> tuple[Array, Array, list[str]]:
    """Images, ``(n, 3, 32, 32)``, their labels, and the classes' names."""
    from PIL import Image, UnidentifiedImageError

    try:
        found = torchvision().datasets.ImageFolder(str(root))
        images = [
            np.asarray(found.loader(file).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for file, _ in found.samples
        ]
    except (FileNotFoundError, UnidentifiedImageError) as error:
        raise ValueError(
            f"{root}: must hold a folder of images for each class ({str(error).splitlines()[0]})"
        ) from error
    return np.stack(images).transpose(0, 3, 1, 2), np.array(found.targets), found.classes
