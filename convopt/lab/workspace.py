"""Where things are: the project's notebooks, its published records, and the store of one's own runs."""

import os
from pathlib import Path

import convopt
from convopt.lab.folders import RECORDS, is_project, working_folder
from convopt.lab.records import Record, Store, Table

PUBLISHED = RECORDS / "published.parquet"
"""The table of published runs inside the project folder."""

LABELS = RECORDS / "labels.json"
"""The classes of the inputs that published predictions are about, inside the project folder."""

COSTS = {"cpu": RECORDS / "costs.json", "cuda": RECORDS / "costs-cuda.json"}
"""The published measurements of what steps cost, by device, inside the project folder."""

FIELDS = RECORDS / "fields.json"
"""The published reconstructions of fields that are seen through weighted sums, inside the project folder."""

WAVEFORM = RECORDS / "fields-waveform.json"
"""Those of velocities, inside the project folder."""

TRANSFER = RECORDS / "fields-transfer.json"
"""The published changes of images that mislead networks, inside the project folder."""


def runs_folder() -> Path:
    """The store of one's own runs, in the working folder; relative to the current one."""
    return Path(os.path.relpath(working_folder() / "runs"))


def project_folder() -> Path:
    """The checkout with the notebooks and the book: the current folder or a parent, else where convopt lies.

    Raises:
        FileNotFoundError: neither holds them, as with a convopt that was installed without its checkout.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(convopt.__file__).parent.parent):
        if is_project(folder):
            return folder
    raise FileNotFoundError(
        f"no folder with notebooks/ and {RECORDS}/ at or above {here}: run this inside a checkout of the project"
    )


def open_store(folder: str | Path | None = None) -> Store:
    """The store in ``folder``; without one, ``./runs`` for new runs on top of the published records."""
    return Store(folder) if folder else Store(runs_folder(), published=published_table())


def published_table() -> Path | None:
    """Where the table of published runs is; None without a project folder or a table in it."""
    try:
        table = project_folder() / PUBLISHED
    except FileNotFoundError:
        return None
    return table if table.exists() else None


def published() -> Table:
    """The published records.

    Raises:
        FileNotFoundError: there is no project folder, or no table in it.
        RecordsError: the table is damaged.
    """
    path = project_folder() / PUBLISHED
    if not path.exists():
        raise FileNotFoundError(f"{path} must hold the published records, and is not there")
    return Table(path)


def published_records() -> list[Record]:
    """All published records, always in the same order. Raises what :func:`published` does."""
    return published().records()
