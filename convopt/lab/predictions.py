"""What a network said of each input, kept compactly: intervals can then be taken over seeds and inputs alike."""

import base64
import zlib

import numpy as np


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
