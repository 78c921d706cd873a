"""Executing the notebooks with papermill, strictly: a misspelt parameter or a failing cell is an error."""

import ast
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import papermill
import zmq
from nbclient.exceptions import DeadKernelError
from papermill.iorw import load_notebook_node

from convopt.lab.workspace import project_folder

PROFILES: dict[str, dict[str, Any]] = {
    "published": {},
    "quick": {"dataset": "digits", "seeds": 2, "epochs": 3},
}
"""Parameters that a profile sets where a notebook has them. "quick" also trains into a new store."""


class NotebookError(RuntimeError):
    """A notebook failed. The message says which and where what it had computed is kept."""


def available() -> dict[str, Path]:
    """The project's notebooks by stem, in order."""
    return {path.stem: path for path in sorted((project_folder() / "notebooks").glob("*.ipynb"))}


def parameters_of(notebook: Path) -> dict[str, str]:
    """The names and declared types of the parameters in the notebook's cell tagged "parameters"."""
    inferred = papermill.inspect_notebook(str(notebook))
    return {name: parameter["inferred_type_name"] for name, parameter in inferred.items()}


def execute_all(names: list[str], given: dict[str, str], profile: str, output: Path, timeout: int) -> list[Path]:
    """Execute notebooks one after the other; the executed ones, ``output/<name>.ipynb``.

    Args:
        names: stems of notebooks; none stands for all.
        given: parameters as text. Each must be known to at least one of the notebooks.
        profile: a name of ``PROFILES``; ``given`` takes precedence.
        output: folder of the executed notebooks, made if need be. Earlier ones of the same name are replaced.
        timeout: seconds that a cell may take.

    Raises:
        ValueError: an unknown notebook, parameter or value. Nothing has been executed then.
        NotebookError: a notebook failed; those before it are done.
    """
    notebooks = available()
    for name in names:
        if name not in notebooks:
            raise ValueError(f"notebook must be one of {', '.join(notebooks)}, got {name!r}")
    chosen = {name: notebooks[name] for name in names or notebooks}
    declared = {name: parameters_of(path) for name, path in chosen.items()}
    known = sorted({parameter for types in declared.values() for parameter in types})
    for parameter in given:
        if parameter not in known:
            raise ValueError(f"parameter must be one of {', '.join(known)}, got {parameter!r}")
    with tempfile.TemporaryDirectory(prefix="convopt-quick-") as new_store:
        fixed = {**PROFILES[profile], **({"store": new_store} if profile == "quick" else {})}
        parameters = {
            name: {
                **{parameter: value for parameter, value in fixed.items() if parameter in types},
                **{
                    parameter: _parse(parameter, text, types[parameter])
                    for parameter, text in given.items()
                    if parameter in types
                },
            }
            for name, types in declared.items()
        }
        return [execute(path, output, parameters[name], timeout) for name, path in chosen.items()]


def execute(notebook: Path, output: Path, parameters: dict[str, Any], timeout: int) -> Path:
    """Execute one notebook in the project folder and return ``output/<name>.ipynb``.

    What a failed one had computed is kept as ``output/<name>.failed.ipynb``. A kernel that does not start, as
    happens when two start at once, gets one more try.
    """
    output.mkdir(parents=True, exist_ok=True)
    done = output / notebook.name
    running = output / f"{notebook.stem}.running.ipynb"
    failed = output / f"{notebook.stem}.failed.ipynb"
    start = time.perf_counter()
    try:
        _papermill_with_one_retry(notebook, running, parameters, timeout)
    except Exception as error:
        kept = ""
        if running.exists():
            os.replace(running, failed)
            kept = f"; what it had computed is in {failed}"
        raise NotebookError(f"notebook {notebook.stem} failed: {error}{kept}") from error
    os.replace(running, done)
    failed.unlink(missing_ok=True)
    print(f"{notebook.stem}: executed in {time.perf_counter() - start:.0f} s -> {done}", file=sys.stderr)
    return done


def _papermill_with_one_retry(notebook: Path, output: Path, parameters: dict[str, Any], timeout: int) -> None:
    try:
        _papermill(notebook, output, parameters, timeout)
    except (RuntimeError, zmq.ZMQError) as error:
        if isinstance(error, DeadKernelError) or _has_started(output):
            raise
        print(f"{notebook.stem}: the kernel did not start ({error}), trying once more", file=sys.stderr)
        _papermill(notebook, output, parameters, timeout)


def _papermill(notebook: Path, output: Path, parameters: dict[str, Any], timeout: int) -> None:
    papermill.execute_notebook(
        str(notebook),
        str(output),
        parameters=parameters,
        cwd=str(notebook.parent.parent),
        progress_bar=sys.stderr.isatty(),
        execution_timeout=timeout,
    )


def _has_started(executed: Path) -> bool:
    """Whether any cell was run."""
    if not executed.exists():
        return False
    notebook = load_notebook_node(str(executed))
    return any(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")


def _parse(name: str, text: str, declared: str) -> Any:
    """The value that ``text`` stands for in a parameter declared as int, float, bool or str."""
    if declared == "str":
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    allowed = {"int": (int,), "float": (int, float), "bool": (bool,)}.get(declared)
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and declared != "bool")):
        raise ValueError(f"parameter {name} must be of type {declared}, got {text!r}")
    return value
