"""What a network said of each input, kept compactly: intervals can then be taken over seeds and inputs alike."""

import base64
import zlib
from collections.abc import Iterable

import numpy as np

Packed = dict[str, str]
"""What :func:`pack` made of a run's predictions, by split."""


def pack(values: np.ndarray) -> str:
    """An array of one axis as text: its dtype, and its bytes compressed, quickly: pages unpack thousands."""
    return f"{values.dtype.name}:{base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()}"


def unpack(text: str) -> np.ndarray:
    """The inverse of :func:`pack`. ValueError where ``text`` is damaged."""
    name, _, content = text.partition(":")
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(content, validate=True)), dtype=name)
    except (TypeError, zlib.error) as error:
        raise ValueError(f"predictions must be what pack() wrote, got {text[:40]!r}") from error


References = dict[tuple[str, str, str, int], np.ndarray]
"""What runs' predictions are kept as differences from, by data set, split, dtype and number: those of a first run."""

_WHOLE, _DIFFERENCES, _STEPS = b"=", b"^", b"~"

_MANTISSA = 8
"""Bits of a number's mantissa that are kept: two thousandths of it, where seeds differ by far more."""

_DROPPED = 23 - _MANTISSA


def rounded(values: np.ndarray) -> np.ndarray:
    """Classes as they are, numbers in float32 to two thousandths of themselves, which take less place."""
    if values.dtype != np.float32:
        return values
    half, kept = np.uint32(1 << (_DROPPED - 1)), np.uint32((0xFFFFFFFF << _DROPPED) & 0xFFFFFFFF)
    shorter = ((values.view(np.uint32) + half) & kept).view(np.float32)
    # rounding up the largest numbers would make them infinite
    return np.where(np.isfinite(values) & np.isfinite(shorter), shorter, values)


def to_bytes(dataset: str, run: Packed, first: References) -> dict[str, bytes]:
    """A run's predictions for a table that compresses columns: networks agree on most inputs.

    Args:
        dataset: what the run is of.
        run: its packed predictions.
        first: the references so far; classes without one become one, and are kept whole.
    """
    told = {}
    for split, text in run.items():
        values = rounded(unpack(text))
        key = dataset, split, values.dtype.name, len(values)
        if values.dtype == np.uint8:
            mark = _DIFFERENCES if key in first else _WHOLE
            told[split] = mark + (values ^ first.get(key, np.uint8(0))).tobytes()
            first.setdefault(key, values)
        elif (steps := _steps(values)) is not None and key in first:
            told[split] = _STEPS + _planes(_folded(steps - first[key]))
        else:
            told[split] = values.dtype.name.encode() + b":" + _planes(values)
            if steps is not None:
                first[key] = steps
    return told


def _steps(values: np.ndarray) -> np.ndarray | None:
    """Rounded numbers as integers, which differ little where the numbers do; None where some were not rounded."""
    if values.dtype != np.float32 or (values.view(np.uint32) & ((1 << _DROPPED) - 1)).any():
        return None
    return (values.view(np.uint32) >> _DROPPED).astype(np.int64)


def _folded(differences: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ...: what is small has zeros in front."""
    return ((differences << 1) ^ (differences >> 63)).astype(np.uint32)


def _unfolded(folded: np.ndarray) -> np.ndarray:
    return (folded >> 1).astype(np.int64) ^ -(folded & 1).astype(np.int64)


def _planes(values: np.ndarray) -> bytes:
    """The first bytes of all numbers, then the second ones: alike, they compress better."""
    return values.view(np.uint8).reshape(len(values), values.itemsize).T.tobytes()


def _from_planes(content: bytes, dtype: np.dtype) -> np.ndarray:
    by_place = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(by_place.T).view(dtype)[:, 0]


def references(runs: Iterable[tuple[str, dict[str, bytes]]]) -> References:
    """What runs, by the name of their data set, have kept whole, and others as differences from it."""
    found: References = {}
    for dataset, run in runs:
        for split, content in run.items():
            if content.startswith(_WHOLE):
                found.setdefault(
                    (dataset, split, "uint8", len(content) - 1), np.frombuffer(content, np.uint8, offset=1)
                )
            elif not content.startswith((_DIFFERENCES, _STEPS)):
                values = _numbers(content)
                key = dataset, split, values.dtype.name, len(values)
                if key not in found and (steps := _steps(values)) is not None:
                    found[key] = steps
    return found


def from_bytes(dataset: str, run: dict[str, bytes], first: References) -> Packed:
    """The inverse of :func:`to_bytes`. ValueError where bytes are damaged or there is no reference for them."""
    return {split: pack(_values(dataset, split, content, first)) for split, content in run.items()}


def _values(dataset: str, split: str, content: bytes, first: References) -> np.ndarray:
    if content.startswith(_WHOLE):
        return np.frombuffer(content, np.uint8, offset=1)
    if content.startswith(_DIFFERENCES):
        values = np.frombuffer(content, np.uint8, offset=1)
        return values ^ _reference(first, dataset, split, "uint8", len(values))
    if content.startswith(_STEPS):
        folded = _from_planes(content[1:], np.dtype(np.uint32))
        steps = _unfolded(folded) + _reference(first, dataset, split, "float32", len(folded))
        return (steps.astype(np.uint32) << np.uint32(_DROPPED)).view(np.float32)
    return _numbers(content)


def _numbers(content: bytes) -> np.ndarray:
    name, _, numbers = content.partition(b":")
    return _from_planes(numbers, np.dtype(name.decode()))


def _reference(first: References, dataset: str, split: str, dtype: str, count: int) -> np.ndarray:
    if (dataset, split, dtype, count) not in first:
        raise ValueError(f"predictions of {count} inputs of {dataset} must have a reference, got none of this number")
    return first[dataset, split, dtype, count]
