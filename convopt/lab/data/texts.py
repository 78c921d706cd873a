"""The reader's own text, whose characters are to be predicted."""

from pathlib import Path

import torch
from torch import Tensor

from convopt.lab.data.dataset import TEST, VALIDATION, Dataset, Split, checksum

CONTEXT = 32
"""Tokens of one input."""


def load(path: Path) -> Dataset:
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
