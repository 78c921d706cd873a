"""What the commands of ``convopt`` do, each with the parsed options. They return the exit status."""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from convopt.lab import data, experiments, records, report, workspace
from convopt.lab.experiments import Experiment
from convopt.lab.folders import require_writable
from convopt.lab.names import quoted, require_known
from convopt.lab.parameters import check_parameters
from convopt.lab.records import Record
from convopt.lab.runs import Run
from convopt.lab.selection import DEFAULT_DATASET, select


def run_experiments(options: argparse.Namespace) -> int:
    """Train what experiments lack and print their tables."""
    from convopt.lab import sweep

    _complete_dataset(options)
    chosen = _taking(_chosen([options.experiment], options.only), options.dataset)
    store = workspace.open_store(options.store)
    dataset = options.dataset or DEFAULT_DATASET
    runs = [experiment.runs(dataset, _seeds(experiment, options), options.epochs) for experiment in chosen]
    distinct = list(dict.fromkeys(run for of_one in runs for run in of_one))
    found = sweep.sweep(distinct, store, options.jobs, options.scheduler, options.retry_failed)
    by_run = dict(zip(distinct, found, strict=True))
    _warn_of_mixed_data(found)
    tables = [
        (experiment, [by_run[run] for run in of_one], None) for experiment, of_one in zip(chosen, runs, strict=True)
    ]
    _print_tables(tables, options)
    return 0


def report_experiments(options: argparse.Namespace) -> int:
    """Print experiments' tables from the records that there are."""
    _complete_dataset(options)
    chosen = _taking(_chosen([options.experiment], options.only), options.dataset)
    _require_store(options.store)
    store = workspace.open_store(options.store)
    recorded = store.runs()
    tables: list[tuple[Experiment, list[Record], str | None]] = []
    for experiment in chosen:
        selected = select(experiment, recorded, options.dataset, _seeds(experiment, options), options.epochs)
        if (note := selected.note()) is not None:
            _print_note(f"{experiment.name}: {note}")
        shown = [record for run in selected.shown if (record := store.load(run)) is not None]
        tables.append((experiment, shown, selected.told_of_others()))
    _warn_of_mixed_data(record for _, shown, _ in tables for record in shown)
    _print_tables(tables, options)
    return 0


def try_on_data(options: argparse.Namespace) -> int:
    """Answer whether anything here helps on one's own data; 130 where that was interrupted."""
    from convopt.lab.tryout.question import Question

    if options.report is not None:
        _require_new_file("report", Path(options.report))
    store = options.store or str(workspace.runs_folder())
    question = Question(
        options.data, options.target or "", options.model or "", options.budget_minutes, store, options.jobs or 0
    )
    print("\n".join(question.seen), flush=True)
    print(f"{question.plan}\n", flush=True)
    answer = question.answer()
    if options.report is not None:  # before anything is printed: whoever reads it may have gone
        records.write_atomically(Path(options.report), answer.page().encode())
    print(f"{answer.paragraph}\n\n{answer.table}\n\n{answer.snippet}")
    return 130 if answer.outcome.interrupted else 0


def _require_new_file(what: str, path: Path) -> None:
    """ValueError where there is something at ``path``, or nothing can be written there."""
    if path.exists():
        raise ValueError(f"{what} must be a file that does not exist yet, got {quoted(str(path))}")
    require_writable(what, path.parent)


def list_pages(options: argparse.Namespace) -> int:
    """Print the pages, their experiments and how many of their runs have records."""
    from convopt.lab.catalogue import as_text, catalogue

    _complete_dataset(options)
    _require_store(options.store)
    pages = catalogue(set(workspace.open_store(options.store).runs()), options.dataset)
    print(json.dumps(pages, indent=1) if options.json else as_text(pages))
    return 0


def _complete_dataset(options: argparse.Namespace) -> None:
    """Put the path and the column to predict together. ValueError where there are no such data, or of no use."""
    if options.dataset is not None:
        options.dataset = data.full_name(options.dataset, options.target)
        data.describe(options.dataset)
    elif options.target is not None:
        raise ValueError("target needs --dataset with the path of a table")


def _chosen(names: Iterable[str], only: bool) -> list[Experiment]:
    """The experiments with these names, each once. A page's name stands for all of its experiments, unless ``only``."""
    found = [[experiments.find(name)] if only else experiments.on_page(name) for name in names]
    return list({experiment.name: experiment for of_one in found for experiment in of_one}.values())


def _taking(chosen: list[Experiment], dataset: str | None) -> list[Experiment]:
    """The experiments, with those arms alone that can train on ``dataset``, if it is given. ValueError for none."""
    if dataset is None:
        return chosen
    found = [experiment for each in chosen if (experiment := each.taking(dataset)).arms]
    own = {arm.setting.dataset for experiment in chosen for arm in experiment.arms}
    if not found and own:
        kept_to = ", ".join(sorted(filter(None, own)))
        raise ValueError(f"dataset must be one that {chosen[0].name} keeps to, {kept_to}, got {quoted(dataset)}")
    return found


def _seeds(experiment: Experiment, options: argparse.Namespace) -> range | None:
    """The seeds that are asked for; None for the experiment's own.

    On a page of several, what is tuned keeps to its own: it must not see the seeds that are compared.
    """
    if options.seeds is not None:
        check_parameters(seeds=options.seeds)
    keeps_its_own = experiment.is_search and options.experiment != experiment.name
    return None if options.seeds is None or keeps_its_own else experiment.first_seeds(options.seeds)


def _require_store(folder: str | None) -> None:
    if folder and not Path(folder).is_dir():
        raise ValueError(f"store must be a folder of records, got {quoted(folder)}")


def _warn_of_mixed_data(shown: Iterable[Record]) -> None:
    for told in _mixed_data(shown):
        _print_note(told)


def _print_note(told: str | None) -> None:
    if told is not None:
        print(f"convopt: note: {told}", file=sys.stderr)


def _mixed_data(of_records: Iterable[Record]) -> list[str]:
    """A line on each data set that was not the same in all records: their means are of different things."""
    return [
        f"records of {dataset} are of different data, with the checksums {', '.join(sorted(checksums))}; "
        "`convopt records check` names those of other data"
        for dataset, checksums in sorted(records.checksums(of_records).items())
        if len(checksums) > 1
    ]


def _print_tables(tables: Iterable[tuple[Experiment, list[Record], str | None]], options: argparse.Namespace) -> None:
    """Of each experiment the table of its records, and what is to be said of others."""
    told, rows = [], []
    for experiment, of_it, others in tables:
        of_rows = report.rows(experiment, of_it)
        rows += [{"experiment": experiment.name, **row} for row in of_rows]
        told.append("\n".join(filter(None, [_as_text(experiment, of_it, of_rows, options.dataset), others])))
        if options.json and others:
            _print_note(f"{experiment.name}: {others}")
    print(_as_json(rows) if options.json else "\n\n".join(told))


def _as_json(rows: list[dict[str, Any]]) -> str:
    """JSON in which infinity is null: JSON has no other word for it."""
    return json.dumps(json.loads(json.dumps(rows), parse_constant=lambda _: None), indent=1)


def _as_text(experiment: Experiment, of_it: list[Record], rows: list[dict[str, Any]], dataset: str | None) -> str:
    if not rows:
        asked = f" --dataset {dataset}" if dataset else ""
        return f"There are no records of {experiment.name} yet; `convopt run {experiment.name}{asked}` makes them."
    tested = " or ".join(str(count) for count in sorted({record.run.n_test for record in of_it}))
    condition = ", ".join(f"{report.CONDITIONS[name]} {value}" for name, value in report.common_condition(rows).items())
    end = f"Means over seeds with 95 % intervals; best and final on the first {tested} test inputs."
    return "\n".join([experiment.title, condition, str(report.table(experiment, rows)), end])


def check_records(options: argparse.Namespace) -> int:
    """List what is wrong with records; 1 where anything is."""
    from convopt.lab import check

    _require_store(options.store)
    store = Path(options.store) if options.store else workspace.runs_folder()
    checked, findings = check.check(store, None if options.store else workspace.published_table())
    for fault, said in findings:
        print(f"{fault}: {said}")
    counts = [f"{sum(fault == found for found, _ in findings)} {fault}" for fault in check.FAULTS]
    print(f"{checked} records checked: {', '.join(counts)}.")
    if not data.is_at_hand("mnist"):
        print("MNIST is not at hand (see CONVOPT_DATA); the checksums of its records were not compared.")
    return 1 if findings else 0


def publish_records(options: argparse.Namespace) -> int:
    """Write the table of published runs, and the classes that their predictions are about."""
    from convopt.lab import correctness

    published = workspace.project_folder() / workspace.PUBLISHED
    store = records.Store(options.store, published=published)
    runs = experiments.published_runs()
    # A record that cannot be read is an error here: elsewhere it would be left out.
    own = {record.run: record for record in map(records.read_record, store.paths())}
    found = [record for run in runs if (record := own.get(run) or store.load(run)) is not None]
    if len(found) < len(runs):
        raise RuntimeError(
            f"{len(runs) - len(found)} of {len(runs)} published runs have no record in {options.store}; "
            "`convopt run EXPERIMENT` makes them"
        )
    new = sum(record.run in own for record in found)
    if not new:  # what was published before would be written again, and called new
        raise ValueError(f"store must be a folder with records of published runs, got {quoted(options.store)}")
    _require_publishable(found)
    trials = experiments.tuning_runs()  # of which nobody asks for predictions
    found = [replace(record, predictions={}) if record.run in trials else record for record in found]
    labels = correctness.packed_labels(found)
    records.write_table(found, published)
    records.write_atomically(published.parent / workspace.LABELS.name, json.dumps(labels, indent=1).encode())
    print(f"{len(found)} records, {new} of them from {options.store} -> {published}")
    return 0


def _require_publishable(found: list[Record]) -> None:
    """RuntimeError where a run did not come to an end, or a data set was not the same in all runs."""
    unended = [record.run.id for record in found if record.status == "training"]
    if unended:
        raise RuntimeError(f"published runs must have ended, got {len(unended)} that have not, {unended[0]} the first")
    if mixed := _mixed_data(found):
        raise RuntimeError(f"published runs on a data set must be of the same data: {mixed[0]}")


def choose_settings(options: argparse.Namespace) -> int:
    """Write what a search chose, by its records, into the file that the experiments read."""
    from convopt.lab import searches

    require_known("search", options.search, experiments.SEARCHES)
    _require_store(options.store)
    search, before = experiments.find(options.search), experiments.read_choices()
    found = searches.choose(search, workspace.open_store(options.store).load)
    changed = {choice: value for choice, value in found.items() if before.get(search.name, {}).get(choice) != value}
    searches.write_choices({**before, search.name: {**before.get(search.name, {}), **changed}})
    for choice, value in changed.items():
        print(f"{choice}: {value}")
    print(f"{len(found)} choices from records, {len(changed)} of them new -> {experiments.search.CHOSEN_FILE}")
    return 0


def verify_records(options: argparse.Namespace) -> int:
    """Train some published runs again; 1 where they come out otherwise."""
    from convopt.lab import reproduction, sweep

    chosen = _chosen([options.experiment], options.only) if options.experiment else None
    published = workspace.published_records()
    candidates, note = _with_data(reproduction.of_experiments(chosen, published) if chosen else published)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    try:
        drawn = reproduction.draw(candidates, options.sample, seed, options.max_seconds)
    except ValueError as error:  # in one line with the reason why there are so few
        raise ValueError("; ".join(filter(None, (str(error), note)))) from error
    _print_note(note)
    print(f"{len(drawn)} of {len(candidates)} published runs; --seed {seed} draws them again.", flush=True)
    with tempfile.TemporaryDirectory(prefix="convopt-verify-") as folder:

        def trained(runs: Iterable[Run]) -> list[Record]:
            return sweep.sweep(runs, records.Store(folder), options.jobs, options.scheduler)

        again = trained(record.run for record in drawn)
        compared = reproduction.compare(drawn, again, published)
        print(compared.to_string(index=False, float_format="%.3g"))
        # Where rounding differs, single runs tell little: whole arms are compared, too.
        rounded = [old for old, new in zip(drawn, again, strict=True) if not reproduction.is_identical(old, new)]
        fresh = trained(reproduction.fresh_runs(rounded, published))
    arms = reproduction.compare_arms(fresh, published)
    if len(arms):
        print(f"\nThe same arms with {len(reproduction.FRESH_SEEDS)} new seeds each:")
        print(arms.to_string(index=False, float_format="%.3g"))
    faults = [
        f"{count} of {of} {what} came out otherwise than published"
        for count, of, what in (
            (int((compared["verdict"] == "outside").sum()), len(drawn), "runs"),
            (int((arms["verdict"] == "differs").sum()), len(arms), "arms"),
        )
        if count
    ]
    for fault in faults:
        print(f"convopt: error: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _with_data(wanted: list[Record]) -> tuple[list[Record], str | None]:
    """The records whose data can be had, and what is missing of the others, if anything."""
    names = {record.run.dataset for record in wanted}
    absent = {name for name in names if not data.can_be_had(name)}
    if not absent:
        return wanted, None
    here = [record for record in wanted if record.run.dataset not in absent]
    return here, (
        f"{len(wanted) - len(here)} published runs are left out, whose data are not under {data.data_folder()} "
        f"and cannot be downloaded: {', '.join(sorted(absent))}"
    )


def reproduce_records(options: argparse.Namespace) -> int:
    """Train all published runs anew and print the differences."""
    from convopt.lab import reproduction, sweep

    chosen = _chosen(options.experiment or experiments.EXPERIMENTS, options.only)
    store = records.Store(options.store)
    if not store.folder.is_dir():  # before the published records are read, which takes a while
        require_writable("store", store.folder)
    # Seed by seed, so that an interrupted sweep holds whole pairs.
    published = reproduction.of_experiments(chosen, workspace.published_records())
    published.sort(key=lambda record: record.run.seed)
    wanted, note = _with_data(published)
    _print_note(note)
    runs = [record.run for record in wanted]
    again = sweep.sweep(runs, store, options.jobs, options.scheduler, options.retry_failed)
    for experiment in chosen:
        differences = reproduction.differences(experiment, again, published)
        if differences is not None:
            print(f"{experiment.title}\n{differences}\n")
    print("Reproduced minus published: means over paired seeds with 95 % intervals.")
    return 0


def measure_costs(options: argparse.Namespace) -> int:
    """Measure what steps cost."""
    import pandas as pd
    import torch

    from convopt.lab import bench, timings
    from convopt.lab.folders import require_writable

    for name in ("publish", "store"):
        if getattr(options, name) and options.quick:
            raise ValueError(f"--{name} keeps the whole measurement, of which --quick is a part: leave one of them out")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a CUDA device and a build of torch for it: torch finds none here")
    published = workspace.project_folder() / workspace.COSTS[options.device] if options.publish else None
    if published:
        require_writable("the folder of the published measurement", published.parent)
    if options.store:
        if options.store.is_dir():
            raise ValueError(f"--store must be a file, got the folder {quoted(str(options.store))}")
        require_writable("the folder of --store", options.store.resolve().parent)
    models = ["SimpleNet"] if options.quick else bench.MODELS
    seconds = 10 if options.device == "cpu" and not options.quick else 4
    rows = bench.measure(models, options.device, seconds, options.store)
    if published:
        timings.write(rows, published)
    # What was not measured is left empty: whole training steps have no floor.
    frame = pd.DataFrame(rows).dropna(axis=1, how="all").round(2)
    print(json.dumps(rows, indent=1) if options.json else frame.to_string(index=False, na_rep=""))
    return 0


def execute_notebooks(options: argparse.Namespace) -> int:
    """Execute notebooks."""
    from convopt.lab import notebooks

    names = [name.removesuffix(".ipynb") for name in options.names]
    given: dict[str, list[str]] = {}
    for name, value in options.parameter:
        given.setdefault(name, []).append(_from_here(name, value))
    output, store = options.output.resolve(), options.store and _from_here("store", options.store)
    notebooks.execute_all(
        names, given, options.profile, output, options.timeout, options.jobs, options.scheduler, store
    )
    return 0


def _from_here(parameter: str, value: str) -> str:
    """A notebook's parameter, with a path made absolute: notebooks execute in the project's folder."""
    path, mark, column = value.partition("::")
    is_file = parameter in ("data", "dataset") and value not in data.ENTRIES and Path(path).exists()
    return f"{Path(path).resolve()}{mark}{column}" if path and (is_file or parameter == "store") else value
