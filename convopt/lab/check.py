"""Whether records are what they should be. Nothing is changed."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from convopt.lab import data, networks
from convopt.lab.experiments import EXPERIMENTS
from convopt.lab.names import in_a_line
from convopt.lab.records import Record, RecordsError, Store, Table, read_record
from convopt.lab.runs import Choice, Run
from convopt.lab.training import train

FAULTS = ("corrupt", "orphaned", "of other data", "unknown configuration")
"""What can be wrong: a file or table that does not parse or is misnamed; a run of no experiment; another checksum than
that of the data at hand; a configuration that cannot be set up any more."""


class Finding(NamedTuple):
    """One of ``FAULTS``, and a line that names the record and says why."""

    fault: str
    said: str


def check(folder: Path, published: Path | None = None) -> tuple[int, list[Finding]]:
    """How many records there are in the store ``folder`` and the table ``published``, and what is wrong with them.

    Checksums are compared for data sets that are at hand; nothing is downloaded.
    """
    checked, findings = 0, []
    for place, record in _read(folder, published):
        checked += 1
        if isinstance(record, RecordsError):
            findings.append(Finding("corrupt", str(record)))
        else:
            findings += [Finding(fault, f"{place}: {said}") for fault, said in _faults(record)]
    return checked, findings


def _read(folder: Path, published: Path | None) -> Iterator[tuple[str, Record | RecordsError]]:
    """Where each record is, and it or what is wrong with its file."""
    for path in Store(folder).paths():
        try:
            yield str(path), read_record(path)
        except RecordsError as error:
            yield str(path), error
    if published is not None:
        try:
            for record in Table(published).records():
                yield f"{published}, {record.run.id}", record
        except RecordsError as error:
            yield str(published), error


def _faults(record: Record) -> Iterator[tuple[str, str]]:
    run = record.run
    try:
        data.describe(run.dataset)
    except (ValueError, data.DataError):
        yield "unknown configuration", f"no data set {run.dataset!r}"
        return
    of_own_file = bool(run.data)  # which `convopt try` compares outside of any experiment
    if not of_own_file and not _is_of_an_experiment(replace(run, seed=0, epochs=1)):
        yield "orphaned", "belongs to no experiment"
    expected = _checksum(run.dataset)
    if expected not in (None, record.provenance.get("data")):
        yield "of other data", f"of data with the checksum {record.provenance.get('data')}, at hand is {expected}"
    # The reader's own network need not take digits, nor be importable from here.
    takes_digits = ":" not in run.model.name and networks.fitting(run.model.name, "image") == run.model.name
    on_images = run.model if takes_digits else Choice.of("SimpleNet")
    reason = _why_not_set_up(replace(run, seed=0, dataset="digits", data="", epochs=0, model=on_images))
    if reason is not None:
        yield "unknown configuration", reason


@cache
def _checksum(dataset: str) -> str | None:
    return data.load(dataset).checksum if data.is_at_hand(dataset) else None


@cache
def _is_of_an_experiment(run: Run) -> bool:
    """Whatever its seed and epochs, so that those need not be told apart."""
    return any(experiment.label(run) for experiment in EXPERIMENTS.values())


@cache
def _why_not_set_up(run: Run) -> str | None:
    """Why a run of no epochs, on the data set that is always at hand, does not even begin; None if it does."""
    try:
        train(run)
    except Exception as error:
        return in_a_line(error)
    return None
