"""Folders that results will be written to. They are tried before the work begins, and nothing is left behind."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convopt.lab.names import quoted

RECORDS = Path("book/records")
"""The published records inside the project folder."""


def is_project(folder: Path) -> bool:
    """Whether it holds the notebooks and the published records. Others, too, have folders of notebooks and a book."""
    return (folder / "notebooks").is_dir() and (folder / RECORDS).exists()


def working_folder() -> Path:
    """Where one's own runs and data are: the current folder.

    JupyterLab runs a notebook in the notebook's folder; of the project's own, it is the project folder.
    """
    here = Path.cwd()
    return here.parent if here.name == "notebooks" and is_project(here.parent) else here


def require_folder(what: str, folder: Path) -> None:
    """ValueError where something that is no folder is in the way. A folder that does not exist yet is fine."""
    with _refused(what, folder):
        if not _nearest_existing(folder).is_dir():
            raise NotADirectoryError


def require_writable(what: str, folder: Path) -> None:
    """ValueError where ``folder`` cannot be made, or nothing can be written into it."""
    # A name of its own: another process may make the same folder at this moment.
    with _refused(what, folder), tempfile.TemporaryDirectory(prefix=".convopt-", dir=_nearest_existing(folder)):
        pass


@contextmanager
def _refused(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except NotADirectoryError as error:
        raise ValueError(f"{what} must be a folder, got {quoted(str(folder))}: a file is in the way") from error
    except OSError as error:
        raise ValueError(
            f"{what} must be a folder that can be written to, got {quoted(str(folder))}: {error.strerror or error}"
        ) from error


def _nearest_existing(folder: Path) -> Path:
    """The folder or the nearest of its parents that exists. OSError where one of them cannot be looked at."""
    absolute = folder.absolute()
    for candidate in (absolute, *absolute.parents):
        try:
            candidate.lstat()  # of a link to nowhere, the link: no folder can be made there
        except FileNotFoundError:
            continue
        return candidate
    raise FileNotFoundError(f"no folder above {folder}")
