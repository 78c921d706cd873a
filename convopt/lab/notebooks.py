"""Executing the notebooks with papermill, strictly: a misspelt parameter or a failing cell is an error."""

import ast
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import papermill
import zmq
from nbclient.exceptions import DeadKernelError
from papermill.iorw import load_notebook_node
from tqdm.auto import tqdm

from convopt.lab import cluster
from convopt.lab.profiles import PROFILES
from convopt.lab.workspace import project_folder


class NotebookError(RuntimeError):
    """A notebook failed. The message says which and where what it had computed is kept."""


def available() -> dict[str, Path]:
    """The project's notebooks by stem, in order."""
    return {path.stem: path for path in sorted((project_folder() / "notebooks").glob("*.ipynb"))}


def parameters_of(notebook: Path) -> dict[str, str]:
    """The names and declared types of the parameters in the notebook's cell tagged "parameters"."""
    inferred = papermill.inspect_notebook(str(notebook))
    return {name: parameter["inferred_type_name"] for name, parameter in inferred.items()}


@dataclass(frozen=True)
class Execution:
    """A notebook to execute.

    Attributes:
        notebook: the committed one.
        output: the executed one.
        parameters: values by name.
        timeout: seconds that a cell may take.
    """

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    timeout: int


def execute_all(
    names: list[str],
    given: dict[str, list[str]],
    profile: str,
    output: Path,
    timeout: int,
    jobs: int = 1,
    scheduler: str | None = None,
) -> list[Path]:
    """Execute notebooks; the executed ones, ``output/<name>.ipynb``.

    Args:
        names: stems of notebooks; none stands for all.
        given: parameters as text. Each must be known to at least one of the notebooks. Where some have several values,
            notebooks are executed with every combination of them, as ``output/<name>.<parameter>=<value>.ipynb``.
        profile: a name of ``PROFILES``; ``given`` takes precedence.
        output: folder of the executed notebooks, made if need be. Earlier ones of the same name are replaced.
        timeout: seconds that a cell may take.
        jobs: how many are executed side by side, each in a process of its own.
        scheduler: address of a running Dask scheduler whose workers execute them instead. They need the project's
            folder and ``output`` under the same paths.

    Raises:
        ValueError: an unknown notebook, parameter or value. Nothing has been executed then.
        NotebookError: notebooks failed; raised when all others are done.
        cluster.ClusterError: the scheduler or workers went away.
    """
    notebooks = available()
    for name in names:
        if name not in notebooks:
            raise ValueError(f"notebook must be one of {', '.join(notebooks)}, got {name!r}")
    chosen = [notebooks[name] for name in names or notebooks]
    declared = {path: parameters_of(path) for path in chosen}
    known = sorted({parameter for types in declared.values() for parameter in types})
    for parameter in given:
        if parameter not in known:
            raise ValueError(f"parameter must be one of {', '.join(known)}, got {parameter!r}")
    errors = []
    with tempfile.TemporaryDirectory(prefix="convopt-quick-") as new_store:
        fixed = {**PROFILES[profile], **({"store": new_store} if profile == "quick" else {})}
        executions = [
            Execution(path, output / f"{'.'.join([path.stem, *marks])}.ipynb", parameters, timeout)
            for path, types in declared.items()
            for marks, parameters in _grid(types, fixed, given)
        ]
        with closing(cluster.completed(_attempt, executions, jobs, scheduler, unit="notebook")) as outcomes:
            for execution, seconds, error in outcomes:
                if error is None:
                    told = f"{execution.output.stem}: executed in {seconds:.0f} s -> {execution.output}"
                    tqdm.write(told, file=sys.stderr)
                else:
                    errors.append(error)
    if errors:
        raise NotebookError("\n".join(errors))
    return [execution.output for execution in executions]


def _grid(
    types: dict[str, str], fixed: dict[str, Any], given: dict[str, list[str]]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Of a notebook with parameters of these types, for each combination: what tells it from the others; parameters."""
    own = {parameter: list(dict.fromkeys(texts)) for parameter, texts in given.items() if parameter in types}
    for combination in itertools.product(*own.values()):
        texts = dict(zip(own, combination, strict=True))
        marks = [f"{parameter}={quote(texts[parameter], safe='')}" for parameter in own if len(own[parameter]) > 1]
        yield (
            marks,
            {
                **{parameter: value for parameter, value in fixed.items() if parameter in types},
                **{parameter: _parse(parameter, text, types[parameter]) for parameter, text in texts.items()},
            },
        )


def _attempt(execution: Execution) -> tuple[Execution, float, str | None]:
    """The execution, the seconds it took, and what went wrong or None."""
    start = time.perf_counter()
    try:
        execute(execution)
        error = None
    except NotebookError as failed:
        error = str(failed)
    return execution, time.perf_counter() - start, error


def execute(execution: Execution) -> None:
    """Execute one notebook in the project folder.

    What a failed one had computed is kept beside the output as ``<name>.failed.ipynb``. A kernel that does not start,
    as happens when two start at once, gets one more try. NotebookError says what went wrong.
    """
    output = execution.output
    output.parent.mkdir(parents=True, exist_ok=True)
    running, failed = (output.with_name(f"{output.stem}.{state}.ipynb") for state in ("running", "failed"))
    try:
        _papermill_with_one_retry(execution.notebook, running, execution.parameters, execution.timeout)
    except Exception as error:
        kept = ""
        if running.exists():
            os.replace(running, failed)
            kept = f"; what it had computed is in {failed}"
        raise NotebookError(f"notebook {output.stem} failed: {error}{kept}") from error
    os.replace(running, output)
    failed.unlink(missing_ok=True)


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
        progress_bar=sys.stderr.isatty() and multiprocessing.parent_process() is None,
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
