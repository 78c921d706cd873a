"""What a network said of each input, kept compactly: intervals can then be taken over seeds and inputs alike."""

import base64
import zlib
from collections.abc import Iterable

import numpy as np

Packed = dict[str, str]
"""What :func:`pack` made of a run's predictions, by split."""


def pack(values: np.ndarray) -> str:
    """An array of one axis as text: its dtype, and its bytes compressed."""
    return f"{values.dtype.name}:{base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()}"


def unpack(text: str) -> np.ndarray:
    """The inverse of :func:`pack`. ValueError where ``text`` is damaged."""
    name, _, content = text.partition(":")
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(content, validate=True)), dtype=name)
    except (TypeError, zlib.error) as error:
        raise ValueError(f"predictions must be what pack() wrote, got {text[:40]!r}") from error


References = dict[tuple[str, str, int], np.ndarray]
"""The classes, by data set, split and number, that those of other runs are kept as differences from."""

_WHOLE, _DIFFERENCES = b"=", b"^"

_MANTISSA = 12
"""Bits of a number's mantissa that are kept: a ten thousandth of it, where seeds differ by far more."""


def rounded(values: np.ndarray) -> np.ndarray:
    """Classes as they are, numbers in float32 to about four digits, which take half the place."""
    if values.dtype != np.float32:
        return values
    dropped = 23 - _MANTISSA
    half, kept = np.uint32(1 << (dropped - 1)), np.uint32((0xFFFFFFFF << dropped) & 0xFFFFFFFF)
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
        values = unpack(text)
        if values.dtype == np.uint8:
            key = dataset, split, len(values)
            mark = _DIFFERENCES if key in first else _WHOLE
            told[split] = mark + (values ^ first.get(key, np.uint8(0))).tobytes()
            first.setdefault(key, values)
        else:  # the first bytes of all numbers, then the second ones: alike, they compress better
            whole = rounded(values)
            told[split] = (
                whole.dtype.name.encode() + b":" + whole.view(np.uint8).reshape(len(whole), whole.itemsize).T.tobytes()
            )
    return told


def references(runs: Iterable[tuple[str, dict[str, bytes]]]) -> References:
    """The classes that runs, by the name of their data set, have kept whole."""
    return {
        (dataset, split, len(content) - 1): np.frombuffer(content, np.uint8, offset=1)
        for dataset, run in runs
        for split, content in run.items()
        if content.startswith(_WHOLE)
    }


def from_bytes(dataset: str, run: dict[str, bytes], first: References) -> Packed:
    """The inverse of :func:`to_bytes`. ValueError where bytes are damaged or there is no reference for them."""
    told = {}
    for split, content in run.items():
        if content.startswith((_WHOLE, _DIFFERENCES)):
            values = np.frombuffer(content, np.uint8, offset=1)
            if content.startswith(_DIFFERENCES):
                if (dataset, split, len(values)) not in first:
                    raise ValueError(
                        f"predictions of {len(values)} inputs of {dataset} must have a reference, got none of this "
                        "number"
                    )
                values = values ^ first[dataset, split, len(values)]
        else:
            name, _, numbers = content.partition(b":")
            dtype = np.dtype(name.decode())
            by_place = np.frombuffer(numbers, np.uint8).reshape(dtype.itemsize, -1)
            values = np.ascontiguousarray(by_place.T).view(dtype)[:, 0]
        told[split] = pack(values)
    return told
