"""Records of runs: one JSON file per run, written atomically, or one Parquet table of many."""

import json
import math
import os
import statistics
import traceback
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from convopt.lab.curves import CURVES, SECONDS
from convopt.lab.folders import require_folder
from convopt.lab.names import damaged, in_a_line
from convopt.lab.parquet import with_checksum, without_checksum
from convopt.lab.predictions import References, from_bytes, references, to_bytes
from convopt.lab.rounding import DIGITS_OF_KERNELS, DIGITS_OF_SECONDS, with_digits
from convopt.lab.runs import Run
from convopt.lab.tasks import Measure, measure_of


class RecordsError(RuntimeError):
    """A file of records that is damaged or cannot be written. The message names it and says what to do."""


@dataclass(frozen=True)
class Record:
    """The outcome of one run.

    Attributes:
        run: its configuration.
        status: "finished", "diverged" where a loss was not finite, or "training" while it goes on.
        curves: under each name of ``CURVES`` one value per completed epoch, as far as it applies to the run.
        kernels: the optimizer's kernels, or gains by frequency, by name, before training and after each completed
            epoch.
        confirmation_accuracy: the task's measure on test inputs that are looked at once, in the last epoch; or None.
        provenance: see ``provenance.collect``.
        predictions: after the last epoch, of the "test" and the "confirmation" inputs, packed by ``predictions.pack``:
            the class; of a regression, the squared error in the targets' unit; of texts, the mean nats of each. Empty
            in records of the first published study.
    """

    run: Run
    status: str
    curves: dict[str, list[float]]
    kernels: list[dict[str, Any]]
    confirmation_accuracy: float | None
    provenance: dict[str, Any]
    predictions: dict[str, str] = field(default_factory=dict)

    @property
    def measure(self) -> Measure:
        """What the task is judged by."""
        return measure_of(self.curves)

    @property
    def best(self) -> float:
        """The measure's best value on the test inputs, over the epochs."""
        return self.measure.best(self._of("test"))

    @property
    def final(self) -> float:
        """The measure on the test inputs after the last epoch."""
        return self._of("test")[-1]

    @property
    def early_stopped(self) -> float:
        """The measure on the test inputs after the first epoch that is best on the validation inputs."""
        validation = self._of("validation")
        return self._of("test")[validation.index(self.measure.best(validation))]

    def _of(self, split: str) -> list[float]:
        return self.curves[f"{split}_{self.measure.name}"]

    @property
    def stability(self) -> float:
        """Population standard deviation over epochs of the epoch-mean gradient norm; lower is steadier.

        Infinite where a norm was, as in single precision with a far too high learning rate.
        """
        norms = self.curves["gradient_norm"]
        return statistics.pstdev(norms) if all(map(math.isfinite, norms)) else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        told = {**vars(self), "run": self.run.to_json(), "id": self.run.id}
        return told if self.predictions else {name: value for name, value in told.items() if name != "predictions"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        """The inverse of ``to_json``. KeyError, TypeError or ValueError where ``data`` is no record."""
        fields = {key: value for key, value in data.items() if key != "id"}
        record = cls(**{**fields, "run": Run.from_json(data["run"])})
        _require_identity(data["id"], record.run)
        record._require_whole()
        return record

    def _require_whole(self) -> None:
        """ValueError where a part is of another kind than it should be, or an end is missing."""
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {in_a_line(repr(getattr(self, name)))}")
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        if not all(isinstance(curve, list) for curve in self.curves.values()):
            raise ValueError("curves must be lists of numbers, one per epoch")
        if self.status == "finished" and self.run.epochs and not self.curves.get(f"test_{self.measure.name}"):
            raise ValueError("curves of a finished run must say how it ended on the test inputs, got none that does")


def _require_identity(told: str, run: Run) -> None:
    """ValueError where ``run`` has another id than is told, TypeError for an option that is a list or a dict."""
    hash(run)
    if run.id != told:
        raise ValueError(f"id is {told!r} but the run's configuration hashes to {run.id!r}")


STATUSES = ("finished", "diverged", "training")
"""Of a record."""

_KINDS = {"curves": dict, "kernels": list, "provenance": dict, "predictions": dict}


@dataclass(frozen=True)
class Failure:
    """That a run raised an error.

    Attributes:
        run: its configuration.
        error: the error's type and message, one line.
        traceback: where it came from.
    """

    run: Run
    error: str
    traceback: str

    @classmethod
    def of(cls, run: Run, error: Exception) -> "Failure":
        """What ``error``, just caught, says of ``run``."""
        return cls(run, in_a_line(error), "".join(traceback.format_exception(error)))

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and strings."""
        return {**vars(self), "run": self.run.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Failure":
        """The inverse of ``to_json``."""
        return cls(**{**data, "run": Run.from_json(data["run"])})


Outcome = TypeVar("Outcome", Record, Failure)


def finished(records: Iterable[Record]) -> list[Record]:
    """Those that trained to their end, and whose measure is a number there: else they have diverged, too."""
    return [record for record in records if record.status == "finished" and math.isfinite(record.final)]


def checksums(records: Iterable[Record]) -> dict[str, set[str]]:
    """Those of the data that records were trained on, by the name of the data set."""
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record.run.dataset, set()).add(str(record.provenance.get("data")))
    return found


class Store:
    """A folder of records, ``<id>.json``, one per run; optionally on top of a table of published records.

    Runs that raised an error are noted in its folder ``failed``, until they have a record. A file that does not parse
    is reported by name in a warning and counts as absent, so that its run is run again.

    Args:
        folder: made when the first record is written. ValueError where a file is in its way.
        published: a table made by ``write_table``, only read; one that does not exist counts as empty.
    """

    def __init__(self, folder: str | Path, published: Path | None = None):
        self.folder = Path(folder)
        require_folder("store", self.folder)
        self._published = Table(published) if published is not None and published.exists() else None

    def load(self, run: Run) -> Record | None:
        """The record of ``run``, or None."""
        own = _read_or_warn(self._path(run), Record)
        return self._published.load(run) if own is None and self._published else own

    def save(self, record: Record) -> None:
        """Write a record so that a crash at any moment leaves the old file, the new one, or none.

        RecordsError where it cannot be written, for example on a full disk.
        """
        write_atomically(self._path(record.run), json.dumps(record.to_json()).encode())
        self.failure_path(record.run).unlink(missing_ok=True)

    def load_failure(self, run: Run) -> Failure | None:
        """The note that ``run`` failed, or None; one that does not parse counts as none."""
        return _read_or_warn(self.failure_path(run), Failure)

    def save_failure(self, failure: Failure) -> None:
        """Note that a run failed. RecordsError where it cannot be written."""
        write_atomically(self.failure_path(failure.run), json.dumps(failure.to_json(), indent=1).encode())

    def failure_path(self, run: Run) -> Path:
        """Where the note is that ``run`` failed, if it did."""
        return self.folder / "failed" / f"{run.id}.json"

    def runs(self) -> list[Run]:
        """Those that have a record, each once."""
        own = [record.run for path in self.paths() if (record := _read_or_warn(path, Record)) is not None]
        published = self._published.runs() if self._published else []
        return list(dict.fromkeys(published + own))

    def paths(self) -> list[Path]:
        """The files in the folder that should be records."""
        return sorted(self.folder.glob("*.json"))

    def _path(self, run: Run) -> Path:
        return self.folder / f"{run.id}.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path`` and rename it there; the folder is made if need be.

    RecordsError where that fails; what was at ``path`` before is there still.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RecordsError(
            f"cannot write {path}: {error.strerror or error}; what was saved before is kept, "
            "the same command goes on from there"
        ) from error


def write_table(records: Iterable[Record], path: Path) -> None:
    """One Parquet table, a row per record: scalars as columns, curves as lists, what is nested as JSON.

    Kernels, seconds and predictions are rounded as in new records.
    """
    rows = []
    # runs that are alike stand together and so compress better
    ordered = sorted(records, key=lambda record: (record.run.dataset, json.dumps(record.run.to_json(), sort_keys=True)))
    predictions = to_bytes([(record.run.dataset, record.predictions) for record in ordered])
    for record, predicted in zip(ordered, predictions, strict=True):
        data = record.to_json()
        rows.append(
            {
                "id": data["id"],
                "status": record.status,
                "optimizer": record.run.optimizer.name,
                "dataset": record.run.dataset,
                "seed": record.run.seed,
                "confirmation_accuracy": record.confirmation_accuracy,
                **{name: _kept(name, record.curves[name]) if name in record.curves else None for name in CURVES},
                **{name: json.dumps(data[name], separators=(",", ":")) for name in ("run", "provenance")},
                "kernels": json.dumps(with_digits(data["kernels"], DIGITS_OF_KERNELS), separators=(",", ":")),
                **dict.fromkeys(_PREDICTIONS.values()),
                **{_PREDICTIONS[split]: content for split, content in predicted.items()},
            }
        )
    by_value = [name for name in rows[0] if name not in (*_RARELY_EQUAL, *_PREDICTIONS.values())] if rows else []
    table = pd.DataFrame(rows).to_parquet(
        None,
        index=False,
        compression="zstd",
        compression_level=19,
        data_page_size=1 << 24,  # each page is compressed by itself
        use_dictionary=[*by_value, *(f"{name}.list.element" for name in CURVES if name not in _RARELY_EQUAL)],
        use_byte_stream_split=[f"{name}.list.element" for name in _RARELY_EQUAL],
    )
    write_atomically(path, with_checksum(table))


_RARELY_EQUAL = ("gradient_norm", "train_loss", "test_loss", "rho", "annealing_factor")
"""Curves whose values hardly ever come twice: they take less place byte by byte than by a dictionary."""


_PREDICTIONS = {split: f"{split}_predictions" for split in ("test", "confirmation")}


def _kept(name: str, curve: list[float]) -> list[float]:
    return with_digits(curve, DIGITS_OF_SECONDS) if name in SECONDS else curve


class Table:
    """The records of a table written by :func:`write_table`, each parsed when it is first asked for.

    Args:
        path: of the file. RecordsError where it is damaged, at once or when a damaged record is asked for.
    """

    def __init__(self, path: Path):
        self._path = path
        with self._damage_told():
            table = pd.read_parquet(BytesIO(without_checksum(path.read_bytes())))
            self._rows = {row["id"]: row for row in table.to_dict("records")}
            self._references = references((row["dataset"], _predictions_of(row)) for row in self._rows.values())
        self._parsed: dict[str, Record] = {}

    def load(self, run: Run) -> Record | None:
        """The record of ``run``, or None."""
        return self._record(run.id) if run.id in self._rows else None

    def runs(self) -> list[Run]:
        """The records' runs, in the table's order: many times faster than all that is recorded of them."""
        with self._damage_told():
            return [_run_of(row) for row in self._rows.values()]

    def records(self) -> list[Record]:
        """All records, in the table's order."""
        return [self._record(name) for name in self._rows]

    def _record(self, name: str) -> Record:
        if name not in self._parsed:
            with self._damage_told():
                row = self._rows[name]
                self._parsed[name] = _from_row(row, self._references)
        return self._parsed[name]

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordsError(damaged(self._path, error)) from error


def _predictions_of(row: dict[str, Any]) -> dict[str, bytes]:
    return {split: row[column] for split, column in _PREDICTIONS.items() if row[column] is not None}


def _run_of(row: dict[str, Any]) -> Run:
    run = Run.from_json(json.loads(row["run"]))
    _require_identity(row["id"], run)
    return run


def _from_row(row: dict[str, Any], known: References) -> Record:
    confirmation = row["confirmation_accuracy"]
    parsed = {name: json.loads(row[name]) for name in ("run", "kernels", "provenance")}
    return Record.from_json(
        {
            "id": row["id"],
            "status": row["status"],
            "curves": {name: row[name].tolist() for name in CURVES if row.get(name) is not None},
            "confirmation_accuracy": None if pd.isna(confirmation) else confirmation,
            **parsed,
            "predictions": from_bytes(row["dataset"], _predictions_of(row), known),
        }
    )


def read_record(path: Path) -> Record:
    """The record in a file of a store. RecordsError where there is none, or one of another run than the name says."""
    return _read_json(path, Record)


def _read_json(path: Path, kind: type[Outcome]) -> Outcome:
    try:
        outcome = kind.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordsError(f"{path} is not a readable {kind.__name__.lower()} ({in_a_line(error)})") from error
    if outcome.run.id != path.stem:
        raise RecordsError(f"{path} is of another run, {outcome.run.id}")
    return outcome


def _read_or_warn(path: Path, kind: type[Outcome]) -> Outcome | None:
    try:
        return _read_json(path, kind)
    except FileNotFoundError:
        return None
    except RecordsError as error:
        warnings.warn(f"{error} and is ignored; its run will be run again", stacklevel=3)
        return None
