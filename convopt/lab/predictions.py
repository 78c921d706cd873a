"""What a network said of each input, kept compactly: intervals can then be taken over seeds and inputs alike."""

import base64
import zlib
from collections.abc import Iterable

import numpy as np

Packed = dict[str, str]
"""What :func:`pack` made of a run's predictions, by split."""

MARK = "^"  # of differences; no dtype starts with it


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


def references(runs: Iterable[tuple[str, Packed]]) -> References:
    """Of runs by the name of their data set, the first classes of each key that are no differences themselves."""
    found: References = {}
    for dataset, run in runs:
        for split, text in run.items():
            if not text.startswith(MARK):
                values = unpack(text)
                if values.dtype == np.uint8:
                    found.setdefault((dataset, split, len(values)), values)
    return found


def as_differences(dataset: str, run: Packed, first: References) -> Packed:
    """A run's predictions, of classes what differs from the reference, marked: networks agree on most inputs."""
    told = dict(run)
    for split, text in run.items():
        values = unpack(text)
        if values.dtype == np.uint8 and (values != (reference := first[dataset, split, len(values)])).any():
            told[split] = MARK + pack(values ^ reference)
    return told


def from_differences(dataset: str, run: Packed, first: References) -> Packed:
    """What :func:`as_differences` was given. ValueError where a text is damaged or there is no reference for it."""
    told = dict(run)
    for split, text in run.items():
        if text.startswith(MARK):
            values = unpack(text.removeprefix(MARK))
            if (dataset, split, len(values)) not in first:
                raise ValueError(
                    f"predictions of {len(values)} inputs of {dataset} must have a reference, got none of this number"
                )
            told[split] = pack(values ^ first[dataset, split, len(values)])
    return told
