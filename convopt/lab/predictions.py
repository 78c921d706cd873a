"""What a network said of each input, kept compactly: intervals can then be taken over seeds and inputs alike."""

import base64
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

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


@dataclass
class Differences:
    """Packed classes of many runs as what differs from the first run's: networks agree on most inputs.

    To be used for one list of runs, from its first to its last, and in the same order again to undo it.

    Attributes:
        first: the first classes of so many inputs of a split, by both.
    """

    first: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    def taken(self, runs: Iterable[Packed]) -> Iterator[Packed]:
        """Each run's predictions; those of classes but the first, marked with a "^", as differences."""
        for run in runs:
            yield {split: self._taken(split, text) for split, text in run.items()}

    def undone(self, runs: Iterable[Packed]) -> Iterator[Packed]:
        """What :meth:`taken` was given. ValueError where a text is damaged or what it differs from is missing."""
        for run in runs:
            yield {split: self._undone(split, text) for split, text in run.items()}

    def _taken(self, split: str, text: str) -> str:
        values = unpack(text)
        if values.dtype != np.uint8:
            return text
        first = self.first.setdefault((split, len(values)), values)
        return text if first is values else "^" + pack(values ^ first)

    def _undone(self, split: str, text: str) -> str:
        values = unpack(text.removeprefix("^"))
        if not text.startswith("^"):
            if values.dtype == np.uint8:
                self.first.setdefault((split, len(values)), values)
            return text
        if (split, len(values)) not in self.first:
            raise ValueError(f"predictions of {len(values)} inputs must differ from earlier ones, got none before them")
        return pack(values ^ self.first[split, len(values)])
