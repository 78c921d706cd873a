"""The ``convopt`` command: a thin layer over ``convopt.lab``."""

import argparse
import json
import math
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NoReturn

import convopt


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with an argument."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 for a failure, 2 for a bad argument, 130 when interrupted, and 141 when nobody reads on,
        as with ``convopt report ... | head``.
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    warnings.formatwarning = lambda message, *_: f"convopt: warning: {message}\n"
    try:
        status = options.command(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its exit
        return 141
    except ModuleNotFoundError as error:
        return _complain(f"{error}. The experiments need more than the optimizers: pip install 'convopt[lab]'", 1)
    except (ValueError, FileNotFoundError) as error:
        return _complain(str(error), 2)
    except (RuntimeError, OSError) as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted; finished runs are kept, the same command goes on from there", 130)


def _complain(message: str, status: int) -> int:
    print(f"convopt: error: {message}", file=sys.stderr)
    return status


def _make_parser() -> _Parser:
    parser = _Parser(prog="convopt", description=convopt.__doc__)
    parser.add_argument("--version", action="version", version=f"convopt {convopt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="train what an experiment lacks and print its table")
    _add_experiment(run)
    run.add_argument("--dataset", choices=("mnist", "digits"), default="mnist", help="default: mnist")
    run.add_argument("--seeds", type=_positive, metavar="N", help="paired seeds 0 to N-1; default: the experiment's")
    run.add_argument("--epochs", type=_positive, metavar="N", help="default: the experiment's")
    _add_store(run)
    _add_workers(run, jobs=None)
    _add_retry(run)
    run.set_defaults(command=_run)

    report = commands.add_parser("report", help="print an experiment's table from records")
    _add_experiment(report)
    _add_store(report)
    report.set_defaults(command=_report)

    records = commands.add_parser("records", help="look after records")
    check = records.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser).add_parser(
        "check", help="list records that are corrupt, orphaned, of other data or of an unknown configuration"
    )
    _add_store(check)
    check.set_defaults(command=_check_records)

    publish = commands.add_parser("publish", help="write the table of published runs from a store")
    publish.add_argument("--store", metavar="DIR", default="runs", help="default: runs")
    publish.set_defaults(command=_publish)

    verify = commands.add_parser("verify", help="train some published runs again and compare")
    verify.add_argument("--sample", type=_positive, metavar="N", required=True, help="how many, drawn at random")
    verify.add_argument("--experiment", metavar="EXPERIMENT", help="draw from its runs only")
    verify.add_argument("--seed", type=int, metavar="S", help="of the draw; default: a new one, which is printed")
    verify.add_argument(
        "--max-seconds", type=_positive, metavar="T", default=math.inf, help="leave out what took longer; default: none"
    )
    _add_workers(verify, jobs=None)
    verify.set_defaults(command=_verify)

    reproduce = commands.add_parser("reproduce", help="train all published runs anew and print the differences")
    reproduce.add_argument(
        "--experiment", action="append", metavar="EXPERIMENT", help="only this one; may be repeated; default: all"
    )
    reproduce.add_argument(
        "--store", metavar="DIR", default="runs/reproduced", help="where new records go; default: runs/reproduced"
    )
    _add_workers(reproduce, jobs=None)
    _add_retry(reproduce)
    reproduce.set_defaults(command=_reproduce)

    bench = commands.add_parser("bench", help="measure what a step of each optimizer costs on this machine")
    bench.add_argument("--quick", action="store_true", help="SimpleNet on one thread alone: half a minute")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.add_argument("--publish", action="store_true", help="keep it as the measurement that the book shows")
    bench.set_defaults(command=_bench)

    notebooks = commands.add_parser("notebooks", help="execute notebooks with papermill")
    notebooks.add_argument("names", nargs="*", metavar="NAME", help="for example 06-stress-test; default: all")
    notebooks.add_argument("--profile", choices=("published", "quick"), default="published", help="default: published")
    notebooks.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="may be repeated; several values of one make a grid",
    )
    notebooks.add_argument("--output", type=Path, default=Path("executed"), metavar="DIR", help="default: executed")
    notebooks.add_argument("--timeout", type=_positive, default=7200, metavar="SECONDS", help="per cell; default: 7200")
    _add_workers(notebooks, jobs=1)
    notebooks.set_defaults(command=_notebooks)
    return parser


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="for example 06-stress-test")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", metavar="DIR", help="folder of records; default: ./runs on top of the published records"
    )


def _add_workers(parser: argparse.ArgumentParser, jobs: int | None) -> None:
    default = jobs or "one per core"
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", default=jobs, help=f"worker processes; default: {default}"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a running Dask scheduler to use in their place: tcp://host:8786"
    )


def _add_retry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-failed", action="store_true", help="also train what failed in an earlier sweep")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from convopt.lab import experiments, sweep, workspace

    experiment = experiments.find(options.experiment)
    store = workspace.open_store(options.store)
    seeds = range(options.seeds) if options.seeds else None
    runs = experiment.runs(options.dataset, seeds, options.epochs)
    records = sweep.sweep(runs, store, options.jobs, options.scheduler, options.retry_failed)
    _print_report(options, experiment, records)
    return 0


def _report(options: argparse.Namespace) -> int:
    from convopt.lab import experiments, workspace

    experiment = experiments.find(options.experiment)
    _check_store(options.store)
    _print_report(options, experiment, workspace.open_store(options.store).records())
    return 0


def _check_store(folder: str | None) -> None:
    if folder and not Path(folder).is_dir():
        raise ValueError(f"store must be a folder of records, got {folder!r}")


def _check_records(options: argparse.Namespace) -> int:
    from convopt.lab import check, data, workspace

    _check_store(options.store)
    store = Path(options.store or workspace.RUNS)
    checked, findings = check.check(store, None if options.store else workspace.published_table())
    for fault, said in findings:
        print(f"{fault}: {said}")
    counts = [f"{sum(fault == found for found, _ in findings)} {fault}" for fault in check.FAULTS]
    print(f"{checked} records checked: {', '.join(counts)}.")
    if not data.is_at_hand("mnist"):
        print("MNIST is not at hand (see CONVOPT_DATA); the checksums of its records were not compared.")
    return 1 if findings else 0


def _print_report(options: argparse.Namespace, experiment: Any, records: list[Any]) -> None:
    from convopt.lab import report

    rows = report.rows(experiment, records)
    if options.json:
        print(json.dumps(rows, indent=1))
    elif rows:
        print(experiment.title)
        print(", ".join(f"{name} {value}" for name, value in report.common_condition(rows).items()))
        print(report.table(experiment, rows))
        print("Means over seeds with 95 % intervals; best and final on the first 1000 test pictures.")
    else:
        print(f"There are no records of {experiment.name} yet; `convopt run {experiment.name}` makes them.")


def _publish(options: argparse.Namespace) -> int:
    from convopt.lab import experiments, records, workspace

    published = workspace.project_folder() / workspace.PUBLISHED
    store = records.Store(options.store, published=published)
    runs = experiments.published_runs()
    found = [record for run in runs if (record := store.load(run)) is not None]
    if len(found) < len(runs):
        raise RuntimeError(
            f"{len(runs) - len(found)} of {len(runs)} published runs have no record in {options.store}; "
            "`convopt run EXPERIMENT` makes them"
        )
    records.write_table(found, published)
    print(f"{len(found)} records -> {published}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from convopt.lab import experiments, records, reproduction, sweep, workspace

    published = workspace.published_records()
    candidates = published
    if options.experiment:
        experiment = experiments.find(options.experiment)
        candidates = [record for record in published if experiment.label(record.run)]
    seed = random.randrange(10**6) if options.seed is None else options.seed
    drawn = reproduction.draw(candidates, options.sample, seed, options.max_seconds)
    print(f"{len(drawn)} of {len(candidates)} published runs; --seed {seed} draws them again.")
    with tempfile.TemporaryDirectory(prefix="convopt-verify-") as store:
        runs = [record.run for record in drawn]
        again = sweep.sweep(runs, records.Store(store), options.jobs, options.scheduler)
    compared = reproduction.compare(drawn, again, published)
    print(compared.to_string(index=False, float_format="%.1f"))
    outside = int((compared["verdict"] == "outside").sum())
    return _complain(f"{outside} of {len(drawn)} runs came out otherwise than published", 1) if outside else 0


def _reproduce(options: argparse.Namespace) -> int:
    from convopt.lab import experiments, records, reproduction, sweep, workspace

    chosen = [experiments.find(name) for name in options.experiment or experiments.EXPERIMENTS]
    # Seed by seed, so that an interrupted sweep holds whole pairs.
    published = sorted(workspace.published_records(), key=lambda record: record.run.seed)
    runs = [record.run for experiment in chosen for record in published if experiment.label(record.run)]
    again = sweep.sweep(runs, records.Store(options.store), options.jobs, options.scheduler, options.retry_failed)
    for experiment in chosen:
        differences = reproduction.differences(experiment, again, published)
        if differences is not None:
            print(f"{experiment.title}\n{differences}\n")
    print("Reproduced minus published: means over paired seeds with 95 % intervals.")
    return 0


def _bench(options: argparse.Namespace) -> int:
    import pandas as pd
    import torch

    from convopt.lab import bench, workspace
    from convopt.lab.cluster import available_cores

    if options.quick:
        rows = bench.measure(["SimpleNet"], [1], "cpu", seconds=4)
    else:
        rows = bench.measure(bench.MODELS, sorted({1, available_cores()}), "cpu", seconds=10)
        if torch.cuda.is_available():
            rows += bench.measure(bench.MODELS, [1], "cuda", seconds=10)
    if options.publish:
        bench.publish(rows, workspace.project_folder() / workspace.COSTS)
    print(json.dumps(rows, indent=1) if options.json else pd.DataFrame(rows).round(2).to_string(index=False))
    return 0


def _notebooks(options: argparse.Namespace) -> int:
    from convopt.lab import notebooks

    names = [name.removesuffix(".ipynb") for name in options.names]
    given: dict[str, list[str]] = {}
    for name, value in options.parameter:
        given.setdefault(name, []).append(value)
    output = options.output.resolve()
    notebooks.execute_all(names, given, options.profile, output, options.timeout, options.jobs, options.scheduler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
