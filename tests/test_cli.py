"""The ``convopt`` command: what a user types, sees and gets wrong."""

import json
import os
import re
import subprocess
import sys

import pytest

from convopt.lab import experiments
from convopt.lab.workspace import PUBLISHED, project_folder

COMMANDS = ["run", "report", "verify", "reproduce", "records", "publish", "notebooks"]


def convopt(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "convopt.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


def test_help_names_every_command():
    shown = convopt("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "99-nothing"], "06-stress-test"),
        (["run", "06-stress-test", "--dataset", "cifar"], "cifar"),
        (["run", "06-stress-test", "--seeds", "0"], "--seeds"),
        (["run", "06-stress-test", "--epochs", "three"], "three"),
        (["run", "06-stress-test", "--jobs", "-1"], "--jobs"),
        (["report", "06-stress-test", "--store", "no-such-folder"], "no-such-folder"),
        (["report"], "EXPERIMENT"),
        (["records"], "COMMAND"),
        (["verify"], "--sample"),
        (["verify", "--sample", "9999"], "published runs to draw from"),
        (["reproduce", "--experiment", "99-nothing"], "06-stress-test"),
        (["bake"], "bake"),
        ([], "COMMAND"),
        (["notebooks", "no-such-notebook"], "06-stress-test"),
        (["notebooks", "06-stress-test", "-p", "sedes", "2"], "dataset, epochs, jobs, seeds, store"),
        (["notebooks", "06-stress-test", "-p", "seeds", "two"], "seeds"),
        (["notebooks", "06-stress-test", "--profile", "slow"], "slow"),
    ],
)
def test_a_bad_argument_gets_one_clear_line_and_exit_2(arguments, said):
    shown = convopt(*arguments, cwd=project_folder())
    assert shown.returncode == 2
    assert len(shown.stderr.strip().splitlines()) == 1
    assert said in shown.stderr
    assert not shown.stdout


def test_missing_data_is_one_line_and_exit_1(tmp_path):
    environment = {**os.environ, "CONVOPT_DATA": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    environment["http_proxy"] = environment["https_proxy"]
    arguments = [
        "run",
        "06-stress-test",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--store",
        str(tmp_path / "s"),
        "--jobs",
        "1",
    ]
    shown = convopt(*arguments, env=environment)
    assert shown.returncode == 1
    assert "CONVOPT_DATA" in shown.stderr.splitlines()[-1]
    assert "Traceback" not in shown.stderr


def test_run_prints_the_table_and_report_prints_it_again(tmp_path):
    arguments = ["06-stress-test", "--store", str(tmp_path / "store")]
    ran = convopt("run", *arguments, "--dataset", "digits", "--seeds", "1", "--epochs", "1", "--jobs", "1")
    assert ran.returncode == 0, ran.stderr
    reported = convopt("report", *arguments)
    assert reported.stdout == ran.stdout
    assert "ConvolutionalSGDv2 (uniform)" in reported.stdout
    rows = json.loads(convopt("report", *arguments, "--json").stdout)
    assert [row["optimizer"] for row in rows] == [label for label, _, _ in experiments.find("06-stress-test").arms]
    assert {"optimizer", "condition", "n", "best", "final", "stability"} <= rows[0].keys()


def test_report_without_a_store_shows_the_published_records(tmp_path):
    shown = convopt("report", "06-stress-test", "--json", cwd=project_folder() / "notebooks")
    published = [row for row in json.loads(shown.stdout) if row["condition"]["dataset"] == "mnist"]
    assert {row["n"] for row in published} == {10}


def test_an_empty_store_says_how_to_fill_it(tmp_path):
    shown = convopt("report", "06-stress-test", "--store", str(tmp_path))
    assert shown.returncode == 0
    assert "convopt run 06-stress-test" in shown.stdout


def test_it_stops_in_silence_where_nobody_reads_on():
    reading, writing = os.pipe()
    os.close(reading)
    report = [sys.executable, "-m", "convopt.cli", "report", "06-stress-test"]
    stopped = subprocess.run(report, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    os.close(writing)
    assert stopped.returncode == 141
    assert stopped.stderr == ""


def test_publish_refuses_an_incomplete_study(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    shown = convopt("publish", "--store", str(tmp_path / "runs"), cwd=tmp_path)
    assert shown.returncode == 1
    assert re.search(r"(\d+) of \1 published runs have no record", shown.stderr)
    assert not (tmp_path / PUBLISHED).exists()


def test_importing_convopt_imports_nothing_but_itself_and_torch():
    code = "import sys, torch; before = set(sys.modules); import convopt; print(*set(sys.modules) - before)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = shown.stdout.split()
    assert "convopt.optim" in imported
    assert {name.split(".")[0] for name in imported} == {"convopt"}
    assert not any(name.startswith("convopt.lab") for name in imported)
