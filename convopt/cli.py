"""The ``convopt`` command: its arguments, its standard streams and its errors. ``lab.commands`` does the rest."""

import argparse
import math
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import convopt
from convopt.lab import streams
from convopt.lab.names import did_you_mean, quoted


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with an argument, and what may have been meant."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        args = sys.argv[1:] if args is None else args
        options, left = self.parse_known_args(_with_negative_values(args), namespace)
        if left:
            self.error(_told_of_rest(options, left))
        return options

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(found[1], [name.strip("'") for name in found[2].split(", ")])
        self.exit(2, f"{self.prog}: error: {message}\n")


NEGATIVE = re.compile(r"-[0-9.]|-(inf|nan)", re.IGNORECASE)
MARK = "\0"  # no argument of a program has it


def _with_negative_values(arguments: Sequence[str]) -> list[str]:
    """The arguments with a mark before each negative value of a parameter: argparse takes some, -1e3, for options."""
    told = list(arguments)
    for place in range(2, len(told)):
        if told[place - 2] in ("-p", "--parameter") and NEGATIVE.match(told[place]):
            told[place] = MARK + told[place]
    return told


def _told_of_rest(options: argparse.Namespace, left: list[str]) -> str:
    """What is wrong with the arguments that are ``left`` when a command has taken its ``options``."""
    if left[0].startswith("-"):
        known = [f"--{name.replace('_', '-')}" for name in vars(options) if name != "command"]
        return f"unknown option {quoted(left[0])}{did_you_mean(left[0], known)}"
    if not isinstance(getattr(options, "experiment", None), str):
        return f"unexpected argument {quoted(left[0])}"
    names = [options.experiment, left[0]]
    message = f"EXPERIMENT must be one name, got {' and '.join(map(quoted, names))}"
    from convopt.lab.data import ENTRIES

    for dataset, other in (names, reversed(names)):
        if dataset in ENTRIES and "dataset" in options:
            return f"{message}; did you mean {other} --dataset {dataset}?"
    return message


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 for a failure, 2 for a bad argument, 130 when interrupted, and 141 when nobody reads on,
        as with ``convopt report ... | head``. Where standard output is closed from the start, the command does its work
        and prints to nowhere.
    """
    streams.replace_closed()
    try:
        try:
            status = _parse_and_run(arguments)
        finally:
            sys.stdout.flush()
        return status
    except BrokenPipeError as error:
        return 141 if streams.silence_broken() else _complain(str(error), 1)
    except OSError as error:
        streams.silence([sys.stdout.fileno()])
        return _complain(f"cannot write to standard output: {error.strerror or error}", 1)


def _parse_and_run(arguments: list[str] | None) -> int:
    options = _make_parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_: f"convopt: warning: {message}\n"
    try:
        from convopt.lab import commands

        return getattr(commands, options.command)(options)
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        return _complain(f"{error}. The experiments need more than the optimizers: pip install 'convopt[lab]'", 1)
    except (ValueError, FileNotFoundError) as error:
        return _complain(str(error), 2)
    except (RuntimeError, OSError) as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        kept = "; finished runs are kept, the same command goes on from there" if _keeps_what_is_done(options) else ""
        return _complain(f"interrupted{kept}", 130)


def _keeps_what_is_done(options: argparse.Namespace) -> bool:
    if options.command == "measure_costs":
        return options.store is not None
    return options.command in ("run_experiments", "try_on_data", "reproduce_records", "execute_notebooks")


def _complain(message: str, status: int) -> int:
    print(f"convopt: error: {message}", file=sys.stderr)
    return status


_Commands = Any  # what argparse returns from add_subparsers has no public name


def _make_parser() -> _Parser:
    parser = _Parser(prog="convopt", description=convopt.__doc__)
    parser.add_argument("--version", action="version", version=f"convopt {convopt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (
        _add_run,
        _add_report,
        _add_try,
        _add_list,
        _add_records,
        _add_publish,
        _add_choose,
        _add_verify,
        _add_reproduce,
        _add_bench,
        _add_notebooks,
    ):
        add(commands)
    return parser


def _add_run(commands: _Commands) -> None:
    run = commands.add_parser("run", help="train what an experiment lacks and print its table")
    _add_experiment(run)
    _add_setting(run)
    _add_store(run)
    _add_workers(run, jobs=None)
    _add_retry(run)
    run.set_defaults(command="run_experiments")


def _add_report(commands: _Commands) -> None:
    report = commands.add_parser(
        "report", help="print the table that an experiment's page shows, or that `run` would print, from records"
    )
    _add_experiment(report)
    _add_setting(report)
    _add_store(report)
    report.set_defaults(command="report_experiments")


def _add_try(commands: _Commands) -> None:
    trying = commands.add_parser(
        "try", help="does anything here help on your own data? Looks, tunes, compares and answers, within a budget"
    )
    trying.add_argument("data", nargs="?", default="breast-cancer", type=_text, metavar="DATA", help=DATA_HELP)
    _add_target(trying)
    trying.add_argument("--model", type=_text, metavar="NAME", help="a network's name, or package.module:function")
    trying.add_argument("--budget-minutes", type=_minutes, default=10.0, metavar="M", help="default: 10")
    trying.add_argument("--report", type=_text, metavar="FILE", help="write the answer as one page of HTML, too")
    trying.add_argument("--store", type=_text, metavar="DIR", help="folder of records; default: ./runs")
    trying.add_argument("--jobs", type=_positive, metavar="N", help="worker processes; default: one per core")
    trying.set_defaults(command="try_on_data")


def _add_list(commands: _Commands) -> None:
    listing = commands.add_parser("list", help="list the pages, their experiments and how many runs have records")
    _add_dataset(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    _add_store(listing)
    listing.set_defaults(command="list_pages")


def _add_records(commands: _Commands) -> None:
    records = commands.add_parser("records", help="look after records")
    check = records.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser).add_parser(
        "check", help="list records that are corrupt, orphaned, of other data or of an unknown configuration"
    )
    _add_store(check)
    check.set_defaults(command="check_records")


def _add_publish(commands: _Commands) -> None:
    publish = commands.add_parser("publish", help="write the table of published runs from a store")
    publish.add_argument("--store", type=_text, metavar="DIR", default="runs", help="default: runs")
    publish.set_defaults(command="publish_records")


def _add_choose(commands: _Commands) -> None:
    choose = commands.add_parser("choose", help="write what a search chose, by its records, where experiments read it")
    choose.add_argument("search", metavar="SEARCH", help="for example 11-baselines-tuning")
    _add_store(choose)
    choose.set_defaults(command="choose_settings")


def _add_verify(commands: _Commands) -> None:
    verify = commands.add_parser("verify", help="train some published runs again and compare")
    verify.add_argument("--sample", type=_positive, metavar="N", required=True, help="how many, drawn at random")
    verify.add_argument("--experiment", metavar="EXPERIMENT", help="draw from its runs only, or from a page's")
    _add_only(verify)
    verify.add_argument("--seed", type=_integer, metavar="S", help="of the draw; default: a new one, which is printed")
    verify.add_argument(
        "--max-seconds", type=_positive, metavar="T", default=math.inf, help="leave out what took longer; default: none"
    )
    _add_workers(verify, jobs=None)
    verify.set_defaults(command="verify_records")


def _add_reproduce(commands: _Commands) -> None:
    reproduce = commands.add_parser("reproduce", help="train all published runs anew and print the differences")
    reproduce.add_argument(
        "--experiment",
        action="append",
        metavar="EXPERIMENT",
        help="only it, or a page's; may be repeated; default: all",
    )
    _add_only(reproduce)
    reproduce.add_argument(
        "--store",
        type=_text,
        metavar="DIR",
        default="runs/reproduced",
        help="where new records go; default: runs/reproduced",
    )
    _add_workers(reproduce, jobs=None)
    _add_retry(reproduce)
    reproduce.set_defaults(command="reproduce_records")


def _add_bench(commands: _Commands) -> None:
    bench = commands.add_parser("bench", help="measure what a step of each optimizer costs on this machine")
    bench.add_argument("--quick", action="store_true", help="SimpleNet on one thread alone: half a minute")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.add_argument("--publish", action="store_true", help="keep it as the measurement that the book shows")
    bench.add_argument("--store", type=Path, metavar="FILE", help="write each result as it comes; a later call goes on")
    bench.set_defaults(command="measure_costs")


def _add_notebooks(commands: _Commands) -> None:
    notebooks = commands.add_parser("notebooks", help="execute notebooks with papermill")
    notebooks.add_argument("names", nargs="*", metavar="NAME", help="for example 06-stress-test; default: all")
    notebooks.add_argument("--profile", choices=("published", "quick"), default="published", help="default: published")
    notebooks.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        type=lambda text: text.removeprefix(MARK),
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="may be repeated; several values of one make a grid",
    )
    notebooks.add_argument(
        "--output",
        type=lambda text: Path(_text(text)),
        default=Path("executed"),
        metavar="DIR",
        help="default: executed",
    )
    notebooks.add_argument(
        "--store",
        type=_text,
        metavar="DIR",
        help="folder of records; default: the notebooks' own, with quick a new one",
    )
    notebooks.add_argument("--timeout", type=_positive, default=7200, metavar="SECONDS", help="per cell; default: 7200")
    _add_workers(notebooks, jobs=1)
    notebooks.set_defaults(command="execute_notebooks")


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="for example 06-stress-test, or a page, 09-controls, for all of its own",
    )
    _add_only(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", action="store_true", help="the one experiment, where a page has the same name, as 04-wiener has"
    )


def _add_setting(parser: argparse.ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("--seeds", type=_positive, metavar="N", help="paired seeds 0 to N-1; default: the experiment's")
    parser.add_argument("--epochs", type=_positive, metavar="N", help="default: the experiment's")


DATA_HELP = (
    "mnist, digits, fashion-mnist, cifar10, breast-cancer, diabetes, or a path: .npz, .csv, .parquet, .txt, or a "
    "folder with a folder of images for each class"
)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", type=_text, metavar="NAME", help=f"{DATA_HELP}; default: mnist")
    _add_target(parser)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=_text, metavar="COLUMN", help="of a table, the column to predict")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=_text, metavar="DIR", help="folder of records; default: ./runs on top of the published records"
    )


def _add_workers(parser: argparse.ArgumentParser, jobs: int | None) -> None:
    default = jobs or "one per core"
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", default=jobs, help=f"worker processes; default: {default}"
    )
    parser.add_argument(
        "--scheduler",
        type=_text,
        metavar="ADDRESS",
        help="a running Dask scheduler to use in their place: tcp://host:8786",
    )


def _add_retry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-failed", action="store_true", help="also train what failed in an earlier sweep")


def _positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {quoted(text)}")
    return int(text)


def _minutes(text: str) -> float:
    from convopt.lab.parameters import NUMBERS

    values = NUMBERS["budget_minutes"]
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not values.hold(minutes):
        raise argparse.ArgumentTypeError(f"expected {values.expected}, got {quoted(text)}")
    return minutes


def _integer(text: str) -> int:
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"expected an integer, got {quoted(text)}")
    return int(text)


def _text(text: str) -> str:
    """The text, which must not be empty: a variable of the shell that is not set would be taken for the default."""
    if not text:
        raise argparse.ArgumentTypeError('expected some text, got ""')
    return text


if __name__ == "__main__":
    sys.exit(main())
