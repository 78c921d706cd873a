"""Where a result comes from: versions, machine, commit."""

import os
import platform
import shlex
import subprocess
from collections.abc import Iterable
from datetime import date
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.display import Markdown

import convopt
from convopt.lab import arithmetic
from convopt.lab.profiles import PROFILES

if TYPE_CHECKING:
    from convopt.lab.records import Record


def collect(data_checksum: str) -> dict[str, Any]:
    """The provenance of a result computed now, here, on data of this checksum: strings and ints by name."""
    return {**_environment(), "data": data_checksum}


def dated(data_checksum: str = "none") -> dict[str, Any]:
    """That of :func:`collect`, with the day: for measurements, which no run's configuration identifies."""
    return collect(data_checksum) | {"date": date.today().isoformat()}


@lru_cache(maxsize=1)
def _environment() -> dict[str, Any]:
    return {
        "convopt": convopt.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "arithmetic": arithmetic.settle(),
    }


def _commit() -> str | None:
    """The git commit of the package's checkout, "+" appended where the package has changed since; None without one."""
    folder = Path(convopt.__file__).parent
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # else it is installed within another repository
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    """The processor's model name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def page(
    notebook: str, parameters: dict[str, Any], records: "Iterable[Record]" = (), published: bool = True
) -> Markdown:
    """How a page came about, how to make it again and what of it can be downloaded, for its last cell.

    Args:
        notebook: the notebook's stem.
        parameters: the values this execution had.
        records: those the page shows.
        published: whether such records can be downloaded; those that were made with the page cannot.
    """
    here = _environment()
    lines = [
        f"This page was executed at commit `{here['commit']}` with convopt {here['convopt']}, torch {here['torch']}, "
        f"Python {here['python']} on {here['system']} ({here['processor']}, {here['cores']} cores).",
    ]
    downloads = [f'<a href="../_sources/executed/{notebook}.ipynb" download>this page as a notebook</a>']
    records = list(records)
    if records:
        named = ("commit", "torch", "processor")
        sources = {name: sorted({str(record.provenance[name]) for record in records}) for name in named}
        datasets = sorted({(record.run.dataset, str(record.provenance["data"])) for record in records})
        lines.append(
            f"Its {len(records)} records are of "
            f"{', '.join(f'{name} (`{checksum[:12]}…`)' for name, checksum in datasets)}, with the SHA-256 of the raw "
            f"data, made at commit "
            f"{', '.join(f'`{commit}`' for commit in sources['commit'])} with torch {', '.join(sources['torch'])} "
            f"on {', '.join(sources['processor'])}."
        )
    if records and published:
        table = '<a href="../published.parquet" download>all published records</a>'
        downloads.append(f"{table}, and below each table its numbers")
    lines.append(f"To download: {', '.join(downloads)}.")
    again = f"""The same page again, in a checkout after `make setup && source .venv/bin/activate`:

```bash
{papermill_command(notebook, parameters)}
```
"""
    quick = {name: value for name, value in PROFILES["quick"].items() if name in parameters}
    if quick:
        again += f"""
{"In minutes, on the embedded digits:" if "dataset" in quick else "The quick version:"}

```bash
{papermill_command(notebook, quick)}
```
"""
    return Markdown("\n".join(f"- {line}" for line in lines) + f"\n\n{again}")


def papermill_command(notebook: str, parameters: dict[str, Any]) -> str:
    """The command that executes ``notebook``, a stem, with these parameters; what is "" is left to its default."""
    given = "".join(f" -p {name} {shlex.quote(str(value))}" for name, value in parameters.items() if value != "")
    return f"papermill notebooks/{notebook}.ipynb out.ipynb{given}"
