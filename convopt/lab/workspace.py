"""Where things are: the project's notebooks, its published records, and the store of one's own runs."""

from pathlib import Path

import convopt
from convopt.lab.records import Store

PUBLISHED = Path("book/records/published.parquet")
"""The table of published runs inside the project folder."""


def project_folder() -> Path:
    """The checkout with the notebooks and the book: the current folder or a parent, else where convopt lies.

    Raises:
        FileNotFoundError: neither holds them, as with a convopt that was installed without its checkout.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(convopt.__file__).parent.parent):
        if (folder / "notebooks").is_dir() and (folder / "book").is_dir():
            return folder
    raise FileNotFoundError(
        f"no folder with notebooks/ and book/ at or above {here}: run this inside a checkout of the project"
    )


def open_store(folder: str | Path | None = None) -> Store:
    """The store in ``folder``; without one, ``./runs`` for new runs on top of the published records."""
    if folder:
        return Store(folder)
    try:
        published = project_folder() / PUBLISHED
    except FileNotFoundError:
        published = None
    return Store("runs", published=published)
