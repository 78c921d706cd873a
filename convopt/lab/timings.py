"""The files in which measurements of ``convopt bench`` are kept, with where they come from."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from convopt.lab import provenance
from convopt.lab.records import write_atomically

Rows = list[dict[str, Any]]


def write(rows: Rows, path: Path) -> None:
    """Write measurements to ``path``, with where they come from."""
    content = {"provenance": _here_and_now(rows[0]["device"]), "rows": rows}
    write_atomically(path, json.dumps(content, indent=1).encode())


def read(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Provenance and rows of published measurements."""
    content = json.loads(path.read_text())
    return content["provenance"], pd.DataFrame(content["rows"])


def rows_of(path: Path, device: str) -> Rows:
    """The rows that a file holds. ValueError if they come from another machine, version, commit or device."""
    try:
        content = json.loads(path.read_text())
        made = dict(content["provenance"])
        rows = [{"model": row["model"], "what": row["what"], **row} for row in content["rows"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--store must be a file of measurements, or none yet, got {path}") from None
    here = _here_and_now(device)
    for name in dict.fromkeys([*here, *made]):
        before, now = made.get(name), here.get(name)
        if name != "date" and before != now:
            raise ValueError(f"--store {path} was measured with {name} {before}, and this is {now}: name another file")
    return rows


def _here_and_now(device: str) -> dict[str, Any]:
    accelerator = {"accelerator": torch.cuda.get_device_name()} if device == "cuda" else {}
    return provenance.dated() | accelerator
