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
from papermill.models import Parameter
from tqdm.auto import tqdm

from convopt.lab import cluster
from convopt.lab.folders import require_writable
from convopt.lab.names import quoted, require_known
from convopt.lab.parameters import check_parameters
from convopt.lab.portable import PORTABLE
from convopt.lab.profiles import PROFILES
from convopt.lab.workspace import project_folder


class NotebookError(RuntimeError):
    """A notebook failed. The message says which and where what it had computed is kept."""


def available() -> dict[str, Path]:
    """The project's notebooks by stem, in order. FileNotFoundError where there are none."""
    folder = project_folder() / "notebooks"
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not found:
        raise FileNotFoundError(f"there are no notebooks in {folder}")
    return found


def parameters_of(notebook: Path) -> dict[str, Parameter]:
    """The parameters in the notebook's cell tagged "parameters", by name; ``default`` is what the cell says.

    ValueError where the file is no notebook.
    """
    try:
        inferred = papermill.inspect_notebook(_literally(notebook))
    except Exception as error:  # of many kinds: whatever a damaged file makes of its reader
        raise ValueError(f"{notebook} is not a readable notebook ({type(error).__name__})") from error
    return {name: Parameter(**parameter) for name, parameter in inferred.items()}


def _literally(path: Path) -> str:
    """The path as papermill takes it: it fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


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
    store: str | None = None,
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
        store: folder of records for those that have the parameter; None takes their defaults or, with the profile
            "quick", a new one that they share.

    Raises:
        ValueError: an unknown notebook, parameter or value, or nothing can be written into ``output``. Nothing has been
            executed then.
        NotebookError: notebooks failed; raised when all others are done.
        cluster.ClusterError: the scheduler or workers went away.
    """
    notebooks = available()
    for name in names:
        require_known("notebook", name, notebooks)
    require_known("profile", profile, PROFILES)
    declared = {notebooks[name]: parameters_of(notebooks[name]) for name in names or notebooks}
    known = {parameter for parameters in declared.values() for parameter in parameters}
    for parameter in given:
        require_known("parameter", parameter, known)
    errors = []
    with tempfile.TemporaryDirectory(prefix="convopt-quick-") as new_store:
        store = store or (new_store if profile == "quick" else None)
        fixed = PROFILES[profile] if store is None else {**PROFILES[profile], "store": store}
        executions = [
            Execution(path, output / f"{'.'.join([path.stem, *marks])}.ipynb", parameters, timeout)
            for path, of_it in declared.items()
            for marks, parameters in _grid(of_it, fixed, given)
        ]
        _require_output(output, executions)
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
    declared: dict[str, Parameter], fixed: dict[str, Any], given: dict[str, list[str]]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Of a notebook with these parameters, for each combination: what tells it from the others, and its parameters.

    ValueError for a value that a parameter must not have.
    """
    own = {name: _distinct(declared[name], texts) for name, texts in given.items() if name in declared}
    known = {name: value for name, value in fixed.items() if name in declared}
    or_zero = [name for name, parameter in declared.items() if parameter.default == "0"]
    for combination in itertools.product(*own.values()):
        values = dict(zip(own, combination, strict=True))
        parameters = {**known, **{name: value for name, (_, value) in values.items()}}
        check_parameters(or_zero, **parameters)
        yield [f"{name}={quote(values[name][0], safe='')}" for name in own if len(own[name]) > 1], parameters


def _distinct(parameter: Parameter, texts: list[str]) -> list[tuple[str, Any]]:
    """The values that the texts stand for, each once, with the first text that says so."""
    distinct: list[tuple[str, Any]] = []
    for text in texts:
        value = _parse(parameter, text)
        if value not in [earlier for _, earlier in distinct]:
            distinct.append((text, value))
    return distinct


def _require_output(output: Path, executions: list[Execution]) -> None:
    """ValueError unless the executed notebooks can be written into the folder ``output``."""
    require_writable("output", output)
    for execution in executions:
        if execution.output.is_dir():
            raise ValueError(f"output must have no folder called {execution.output.name}, got {quoted(str(output))}")
        if output.resolve() == execution.notebook.parent.resolve():
            raise ValueError(f"output must be another folder than that of the notebook, got {quoted(str(output))}")


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
    # A kernel that trains in its own process has to compute as worker processes do.
    environment = PORTABLE if execution.parameters.get("jobs") == 1 else {}
    # The kernel works in the project folder. Modules of one's own are in this one.
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), os.getcwd())))
    try:
        with cluster.environment_with({**environment, "PYTHONPATH": path}):
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
        _literally(notebook),
        _literally(output),
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


def _parse(parameter: Parameter, text: str) -> Any:
    """The value that ``text`` stands for in a parameter declared as int, float, bool or str."""
    declared = parameter.inferred_type_name
    if declared == "str":
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    allowed = {"int": (int,), "float": (int, float), "bool": (bool,)}.get(declared)
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and declared != "bool")):
        raise ValueError(f"parameter {parameter.name} must be of type {declared}, got {quoted(text)}")
    return value
