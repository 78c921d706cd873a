"""The pages, their experiments, and how much of each has been run."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from convopt.lab import experiments, workspace
from convopt.lab.runs import Run


def catalogue(recorded: Collection[Run], dataset: str | None = None) -> list[dict[str, Any]]:
    """The pages in order, each with ``page``, ``title`` and ``experiments``.

    An experiment has ``name``, ``title``, ``runs`` and ``records``: how many runs the study has, on
    ``dataset`` where one is given, and how many of them are among ``recorded``. The title of a page is None where its
    notebook is not at hand.
    """
    titles = _titles()
    told = {experiments.page_of(name) for name in experiments.EXPERIMENTS}
    return [
        {
            "page": page,
            "title": titles.get(page),
            "experiments": [
                _entry(experiment, recorded, dataset)
                for experiment in experiments.EXPERIMENTS.values()
                if experiments.page_of(experiment.name) == page
            ],
        }
        for page in sorted(told | titles.keys())
    ]


def _entry(experiment: experiments.Experiment, recorded: Collection[Run], dataset: str | None) -> dict[str, Any]:
    runs = set(experiment.taking(dataset).runs(dataset) if dataset else experiment.runs())
    return {
        "name": experiment.name,
        "title": experiment.title,
        "runs": len(runs),
        "records": len(runs.intersection(recorded)),
    }


def _titles() -> dict[str, str | None]:
    """The heading of each notebook of the project by its stem; none without a project folder."""
    try:
        folder = workspace.project_folder() / "notebooks"
    except FileNotFoundError:
        return {}
    return {path.stem: _heading(path) for path in folder.glob("*.ipynb")}


def _heading(notebook: Path) -> str | None:
    """The first line of the notebook, without its number sign; None where it is damaged."""
    try:
        first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return "".join(first).partition("\n")[0].lstrip("# ")


def as_text(pages: list[dict[str, Any]]) -> str:
    """The pages for reading: a line for each, and one for each of its experiments."""
    entries = [entry for page in pages for entry in page["experiments"]]
    width = max(len(entry["name"]) for entry in entries)
    lines = []
    for page in pages:
        lines.append(page["page"] + (f": {page['title']}" if page["title"] else ""))
        for entry in page["experiments"]:
            counts = f"{entry['records']} of {entry['runs']} runs"
            lines.append(f"  {entry['name']:{width}}  {counts:>17} have records  {entry['title']}")
    return "\n".join(lines)
