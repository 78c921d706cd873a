"""What a network said of each input, kept compactly: intervals can then be taken over seeds and inputs alike."""

import base64
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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


Key = tuple[str, str, str, int]
"""What predictions are about: data set, split, dtype and number."""


@dataclass(frozen=True)
class Ranking:
    """How many runs predict which class for each input.

    Attributes:
        classes: ``(classes, inputs)``, of each input all classes from the commonest on.
        doubt: ``(inputs,)``, how often runs predict another than the commonest, from 0 to ``_MOST_DOUBT``.
    """

    classes: np.ndarray
    doubt: np.ndarray

    @classmethod
    def of(cls, predicted: np.ndarray) -> "Ranking":
        """Of ``(runs, inputs)``."""
        counts = np.stack([(predicted == each).sum(axis=0) for each in range(int(predicted.max()) + 1)])
        doubt = _MOST_DOUBT * (1 - counts.max(axis=0) / len(predicted))
        return cls(np.argsort(-counts, axis=0, kind="stable").astype(np.uint8), np.rint(doubt).astype(np.uint8))

    @classmethod
    def parsed(cls, content: bytes) -> tuple["Ranking", bytes]:
        """The inverse of ``to_bytes``, and what comes after it."""
        rows = np.frombuffer(content, np.uint8, offset=2).reshape(content[1] + 3, -1)
        return cls(rows[:-2], rows[-2]), rows[-1].tobytes()

    def to_bytes(self) -> bytes:
        """What a table keeps of it."""
        return _RANKING + np.uint8(len(self.classes) - 1).tobytes() + self.classes.tobytes() + self.doubt.tobytes()

    def ranks(self, values: np.ndarray) -> bytes:
        """Of each input the rank of its class, those first of which there is the least doubt."""
        return (self.classes == values).argmax(axis=0).astype(np.uint8)[self._order].tobytes()

    def values(self, content: bytes) -> np.ndarray:
        """The inverse of ``ranks``."""
        ranks = np.empty(len(self.doubt), np.uint8)
        ranks[self._order] = np.frombuffer(content, np.uint8)
        if ranks.max() >= len(self.classes):
            raise ValueError(f"predictions' ranks must be below {len(self.classes)}, got {ranks.max()}")
        return np.take_along_axis(self.classes, ranks[None], axis=0)[0]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.doubt, kind="stable")


References = dict[Key, Any]
"""What runs' predictions are told by: a ranking of classes, or a first run's numbers."""

_RANKING, _RANKS, _STEPS = b"#", b"^", b"~"

_MOST_DOUBT = 31
"""Steps in which doubt is kept: finer ones take more place than they save."""

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


def to_bytes(runs: Sequence[tuple[str, Packed]]) -> list[dict[str, bytes]]:
    """Runs' predictions for a table that compresses columns: networks agree on most inputs.

    A class is told by its rank among those that runs predict for its input, the commonest being 0, which compresses to
    half of what differences from one run do. Inputs on which runs agree come first: long rows of zeros save a sixth.

    Args:
        runs: of each the name of its data set, and its packed predictions.
    """
    kept = [(dataset, {split: rounded(unpack(text)) for split, text in run.items()}) for dataset, run in runs]
    rankings, told = _rankings(kept), References()
    return [
        {split: _content(_key(dataset, split, values), values, rankings, told) for split, values in run.items()}
        for dataset, run in kept
    ]


def _key(dataset: str, split: str, values: np.ndarray) -> Key:
    return dataset, split, values.dtype.name, len(values)


def _rankings(runs: Iterable[tuple[str, dict[str, np.ndarray]]]) -> dict[Key, Ranking]:
    found: dict[Key, list[np.ndarray]] = {}
    for dataset, run in runs:
        for split, values in run.items():
            if values.dtype == np.uint8 and len(values):
                found.setdefault(_key(dataset, split, values), []).append(values)
    return {key: Ranking.of(np.stack(predicted)) for key, predicted in found.items()}


def _content(key: Key, values: np.ndarray, rankings: dict[Key, Ranking], told: References) -> bytes:
    """One run's predictions; where no run of the same ``key`` has come before, with what the next are told by."""
    if key in rankings:
        ranking = rankings[key]
        first = key not in told
        told[key] = ranking
        return (ranking.to_bytes() if first else _RANKS) + ranking.ranks(values)
    steps = _steps(values)
    if steps is not None and key in told:
        return _STEPS + _planes(_folded(steps - told[key]))
    if steps is not None:
        told[key] = steps
    return values.dtype.name.encode() + b":" + _planes(values)


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
    """What the first runs of a table, by the name of their data set, say that the others are told by."""
    found: References = {}
    for dataset, run in runs:
        for split, content in run.items():
            if content.startswith((_RANKS, _STEPS)):
                continue
            if content.startswith(_RANKING):
                ranking, _ = Ranking.parsed(content)
                found.setdefault((dataset, split, "uint8", len(ranking.doubt)), ranking)
            else:
                values = _numbers(content)
                key = _key(dataset, split, values)
                if key not in found and (steps := _steps(values)) is not None:
                    found[key] = steps
    return found


def from_bytes(dataset: str, run: dict[str, bytes], known: References) -> Packed:
    """The inverse of :func:`to_bytes`. ValueError where bytes are damaged or there is no reference for them."""
    return {split: pack(_values(dataset, split, content, known)) for split, content in run.items()}


def _values(dataset: str, split: str, content: bytes, known: References) -> np.ndarray:
    if content.startswith(_RANKING):
        ranking, ranks = Ranking.parsed(content)
        return ranking.values(ranks)
    if content.startswith(_RANKS):
        return _reference(known, dataset, split, "uint8", len(content) - 1).values(content[1:])
    if content.startswith(_STEPS):
        folded = _from_planes(content[1:], np.dtype(np.uint32))
        steps = _unfolded(folded) + _reference(known, dataset, split, "float32", len(folded))
        return (steps.astype(np.uint32) << np.uint32(_DROPPED)).view(np.float32)
    return _numbers(content)


def _numbers(content: bytes) -> np.ndarray:
    name, _, numbers = content.partition(b":")
    return _from_planes(numbers, np.dtype(name.decode()))


def _reference(known: References, dataset: str, split: str, dtype: str, count: int) -> Any:
    if (dataset, split, dtype, count) not in known:
        raise ValueError(f"predictions of {count} inputs of {dataset} must have a reference, got none of this number")
    return known[dataset, split, dtype, count]
