"""The ``convopt`` command: what a user types, sees and gets wrong."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from convopt.cli import main
from convopt.lab import bench, data, experiments, sweep, workspace
from convopt.lab.records import Store
from convopt.lab.workspace import PUBLISHED, project_folder

COMMANDS = ["run", "report", "list", "verify", "reproduce", "records", "publish", "bench", "notebooks"]


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
        (["verify", "--sample", "99999"], "published runs to draw from"),
        (["run", "06-stress-test", "--seeds", "100000000"], "seeds must be an integer from 1 to 10000, got 100000000"),
        (["bench", "--store", "."], '--store must be a file, got the folder "."'),
        (["reproduce", "--experiment", "99-nothing"], "06-stress-test"),
        (["bake"], "bake"),
        ([], "COMMAND"),
        (["notebooks", "no-such-notebook"], "06-stress-test"),
        (["notebooks", "06-stress-test", "-p", "sedes", "2"], "dataset, epochs, jobs, seeds, store"),
        (["notebooks", "06-stress-test", "-p", "seeds", "two"], "seeds"),
        (["notebooks", "06-stress-test", "--profile", "slow"], "slow"),
        (["run", "stress-test"], 'got "stress-test"; did you mean 06-stress-test?'),
        (["run", "06-stres-test"], "did you mean 06-stress-test?"),
        (["run", "control"], "did you mean 09-controls?"),
        (["report", "mnist", "06-stress-test"], "did you mean 06-stress-test --dataset mnist?"),
        (["report", "06-stress-test", "mnist"], "did you mean 06-stress-test --dataset mnist?"),
        (["report", "06-stress-test", "05-standard"], 'one name, got "06-stress-test" and "05-standard"'),
        (["run", "06-stress-test", "--sedes", "3"], "did you mean --seeds?"),
        (["run", "06-stress-test", "--dataset", "minst"], "did you mean mnist?"),
        (["rport"], "did you mean report?"),
        (["verify", "--sample", "1", "--experiment", "xx"], "06-stress-test"),
        (["verify", "--sample", "1", "--experiment", "06-stres-test"], "did you mean 06-stress-test?"),
        pytest.param(["verify", "--sample", str(10**9)], "published runs to draw from", marks=pytest.mark.slow),
        (["verify", "--sample", "9" * 5000], "--sample"),
        (["verify", "--sample", "1", "--seed", "\u0663"], "--seed"),
        (["run", "06-stress-test", "--seeds", "\u0663"], "--seeds"),
        (["run", "06-stress-test", "--jobs", "0"], "--jobs"),
        (["run", "06-stress-test", "--store", ""], "--store"),
        (["run", "06-stress-test", "--scheduler", ""], "--scheduler"),
        (["report", "06-stress-test", "--store", ""], "--store"),
        (["bench", "--quick", "--publish"], "--quick"),
        (["bench", "--quick", "--store", "costs.json"], "--quick"),
        pytest.param(
            ["bench", "--device", "cuda"],
            "finds none here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        (["notebooks", "06-stres-test"], "did you mean 06-stress-test?"),
        (["notebooks", "06-stress-test", "--output", ""], "--output"),
        (["notebooks", "06-stress-test", "--output", "README.md"], "output must be a folder"),
        (["notebooks", "06-stress-test", "--output", "notebooks"], "output must be another folder than that"),
        (["notebooks", "06-stress-test", "--output", "README.md/below"], "output must be a folder"),
        (["notebooks", "06-stress-test", "--output", "/proc/x"], "output must be a folder that can be written to"),
        (
            ["notebooks", "06-stress-test", "-p", "dataset", "minst"],
            'got "minst"; did you mean mnist?',
        ),
        (["notebooks", "06-stress-test", "-p", "sedes", "2"], "did you mean seeds?"),
        (["notebooks", "06-stress-test", "-p", "seeds", "-1"], "seeds must be an integer from 1 to 10000, got -1"),
        (["notebooks", "06-stress-test", "-p", "seeds", "0"], "seeds must be an integer from 1 to 10000, got 0"),
        (["notebooks", "06-stress-test", "-p", "seeds", "\u0663"], "seeds must be of type int"),
        (["notebooks", "06-stress-test", "-p", "epochs", "-1e3"], "epochs must be of type int"),
        (["notebooks", "06-stress-test", "-p", "jobs", "-2"], "jobs must be an integer of at least 1, or 0"),
        (["notebooks", "06-stress-test", "-p", "store", "README.md"], "store must be a folder"),
        (["notebooks", "05-standard", "-p", "seeds", "-1"], "or 0 for the default, got -1"),
        (["notebooks", "03-snr", "-p", "label_noise", "-1e-3"], "label_noise must be a number from 0 to 1, got -0.001"),
        (["notebooks", "13-cost", "-p", "seconds", "1e999"], "seconds must be a finite number"),
    ],
)
def test_a_bad_argument_gets_one_clear_line_and_exit_2(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CONVOPT_DATA", str(tmp_path))  # of runs without data there may be more to say
    monkeypatch.chdir(project_folder())
    before = sorted(project_folder().iterdir())
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    shown = capsys.readouterr()
    assert status == 2
    assert len(shown.err.strip().splitlines()) == 1
    assert said in shown.err
    assert not shown.out
    assert sorted(project_folder().iterdir()) == before


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


@pytest.mark.slow
def test_run_prints_the_table_and_report_prints_it_again(tmp_path):
    arguments = ["06-stress-test", "--store", str(tmp_path / "store")]
    ran = convopt("run", *arguments, "--dataset", "digits", "--seeds", "1", "--epochs", "1", "--jobs", "1")
    assert ran.returncode == 0, ran.stderr
    reported = convopt("report", *arguments)
    assert reported.stdout == ran.stdout
    assert "ConvolutionalSGDv2 (uniform)" in reported.stdout
    rows = json.loads(convopt("report", *arguments, "--json").stdout)
    assert [row["optimizer"] for row in rows] == [arm.label for arm in experiments.find("06-stress-test").arms]
    assert {"optimizer", "condition", "n", "best", "final", "stability"} <= rows[0].keys()


def test_report_without_a_store_shows_the_published_records(tmp_path):
    shown = convopt("report", "06-stress-test", "--json", cwd=project_folder() / "notebooks")
    published = [row for row in json.loads(shown.stdout) if row["condition"]["dataset"] == "mnist"]
    assert {row["n"] for row in published} == {10}


def test_an_empty_store_says_how_to_fill_it(tmp_path):
    shown = convopt("report", "06-stress-test", "--store", str(tmp_path))
    assert shown.returncode == 0
    assert "convopt run 06-stress-test" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["report", "06-stress-test"], ["list"], ["--help"]])
def test_it_stops_in_silence_where_nobody_reads_on(arguments, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "convopt.cli", *arguments]
    streams = {"stdout": writing, "stderr": subprocess.PIPE, "env": {**os.environ, "PYTHONUNBUFFERED": unbuffered}}
    stopped = subprocess.run(command, **streams, text=True, timeout=240, check=False)
    os.close(writing)
    assert stopped.returncode == 141 or (arguments == ["--help"] and unbuffered)  # argparse overlooks it then
    assert stopped.stderr == ""


def in_shell(command: str, redirected: str, **options) -> subprocess.CompletedProcess:
    line = f"{sys.executable} -m convopt.cli {command} {redirected}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=240, **options)


@pytest.mark.slow
def test_with_standard_output_closed_it_does_its_work_and_prints_to_nowhere(tmp_path):
    shown = in_shell("report 06-stress-test", ">&-", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    setting = "--dataset digits --seeds 1 --epochs 1 --jobs 1"
    shown = in_shell(f"run 09-controls-layers {setting} --store {tmp_path}/store", "<&- >&- 2>&-")
    assert (shown.returncode, shown.stdout) == (0, "")
    assert len(Store(tmp_path / "store").runs()) == len(experiments.find("09-controls-layers").arms)


@pytest.mark.slow
def test_with_standard_error_closed_an_error_is_told_by_the_status_alone():
    shown = in_shell("run stress-test", "2>&-")
    assert (shown.returncode, shown.stdout) == (2, "")


@pytest.mark.slow
def test_a_full_disk_behind_standard_output_is_one_line():
    shown = in_shell("list", ">/dev/full", env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert shown.returncode == 1
    assert shown.stderr == "convopt: error: cannot write to standard output: No space left on device\n"


@pytest.fixture
def not_trained(monkeypatch):
    """Training is an error."""
    monkeypatch.setattr(sweep, "train", lambda run: pytest.fail("a run was trained"))


@pytest.mark.parametrize("place", ["file", "file/below", "link", "/proc/nowhere", "x" * 300])
@pytest.mark.parametrize("command", ["run 06-stress-test --dataset digits --seeds 1 --jobs 1", "reproduce --jobs 1"])
def test_a_store_that_cannot_be_written_is_refused_before_training(
    command, place, tmp_path, monkeypatch, capsys, not_trained
):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(project_folder())
    monkeypatch.setenv("CONVOPT_DATA", str(tmp_path))
    store = str(tmp_path / place)
    assert main([*command.split(), "--store", store]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("convopt: error: store must be a folder")
    assert f'got "{store}"' in said
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


# Of a folder the published records are read, too.
@pytest.mark.parametrize(
    "place", ["file", "file/below", *(pytest.param(name, marks=pytest.mark.slow) for name in ("absent", "empty"))]
)
def test_publish_refuses_a_store_that_is_no_folder_of_records_and_writes_nothing(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(project_folder())
    table = project_folder() / PUBLISHED
    before = table.stat().st_mtime_ns
    assert main(["publish", "--store", str(tmp_path / place)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("convopt: error: store must be a folder")
    assert table.stat().st_mtime_ns == before


def test_only_a_command_that_keeps_runs_says_so_when_interrupted(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", interrupted)
    assert main(["bench", "--quick"]) == 130
    assert capsys.readouterr().err == "convopt: error: interrupted\n"
    assert main(["bench", "--store", str(tmp_path / "costs.json")]) == 130
    assert "finished runs are kept" in capsys.readouterr().err


def test_a_measurement_that_could_not_be_kept_is_not_begun(tmp_path, monkeypatch, capsys):
    for folder in ("notebooks", "book"):
        (tmp_path / folder).mkdir()
    (tmp_path / "book" / "records").write_text("a file in the way")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("something was measured"))
    assert main(["bench", "--publish"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "must be a folder" in said


@pytest.mark.slow
def test_the_quick_measurement_has_no_column_of_nothing():
    table = convopt("bench", "--quick").stdout
    assert "over_sgd" in table
    assert "NaN" not in table


def test_a_page_stands_for_all_of_its_experiments(tmp_path, capsys, monkeypatch):
    two = {name: experiments.EXPERIMENTS[name] for name in ("09-controls-layers", "09-controls-step", "05-standard")}
    monkeypatch.setattr(experiments.registry, "EXPERIMENTS", two)
    setting = ["--dataset", "digits", "--seeds", "1", "--epochs", "1", "--store", str(tmp_path)]
    assert main(["run", "09-controls", *setting, "--jobs", "1"]) == 0
    ran = capsys.readouterr().out
    assert ran.index(two["09-controls-layers"].title) < ran.index(two["09-controls-step"].title)
    assert len(list(tmp_path.glob("*.json"))) == 8  # SGD and v1 are in both
    assert main(["report", "09-controls", *setting]) == 0
    assert capsys.readouterr().out == ran
    assert main(["report", "09-controls", *setting, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["experiment"] for row in rows] == ["09-controls-layers"] * 4 + ["09-controls-step"] * 6


def test_notebooks_that_jupyterlab_runs_in_their_folder_share_runs_and_data_with_the_commands(monkeypatch):
    monkeypatch.delenv("CONVOPT_DATA", raising=False)
    found = []
    for folder in (project_folder(), project_folder() / "notebooks"):
        monkeypatch.chdir(folder)
        found.append((workspace.runs_folder().resolve(), data.registry.data_folder()))
    assert found == 2 * [(project_folder() / "runs", project_folder() / "data")]


@pytest.mark.slow
def test_the_published_page_reports_its_own_experiments_and_one_alone_where_asked(capsys, monkeypatch):
    monkeypatch.chdir(project_folder() / "notebooks")
    assert main(["report", "07-batch-size", "--json"]) == 0
    whole = {row["experiment"] for row in json.loads(capsys.readouterr().out)}
    assert whole == {"07-batch-size", "07-batch-size-tuning", "07-batch-size-tuned"}
    assert main(["report", "07-batch-size", "--only", "--json"]) == 0
    assert {row["experiment"] for row in json.loads(capsys.readouterr().out)} == {"07-batch-size"}
    assert main(["report", "04-wiener-harmless", "--json"]) == 0  # no page: another's name begins with it, too
    assert {row["experiment"] for row in json.loads(capsys.readouterr().out)} == {"04-wiener-harmless"}


def test_the_list_tells_pages_their_experiments_and_how_much_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(project_folder() / "notebooks")
    assert main(["list", "--json"]) == 0
    pages = {page["page"]: page for page in json.loads(capsys.readouterr().out)}
    assert pages.keys() == {path.stem for path in (project_folder() / "notebooks").glob("*.ipynb")}
    listed = [entry for page in pages.values() for entry in page["experiments"]]
    assert {entry["name"] for entry in listed} == experiments.EXPERIMENTS.keys()
    assert pages["06-stress-test"]["title"].startswith("Stress test: small batches")
    (entry,) = pages["06-stress-test"]["experiments"]
    assert entry == {"name": "06-stress-test", "title": experiments.find("06-stress-test").title} | {
        "runs": 70,
        "records": 70,
    }
    assert main(["list", "--store", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^  06-stress-test +0 of 70 runs have records  Stress test: SimpleNet", told, re.MULTILINE)
    assert re.search(r"^09-controls: Controls", told, re.MULTILINE)


def test_a_project_without_notebooks_says_so(tmp_path, monkeypatch, capsys):
    for folder in ("notebooks", "book/records"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["notebooks"]) == 2
    assert f"there are no notebooks in {tmp_path / 'notebooks'}" in capsys.readouterr().err
    (tmp_path / "notebooks" / "01-damaged.ipynb").write_text("no notebook")
    assert main(["notebooks"]) == 2
    assert f"{tmp_path / 'notebooks' / '01-damaged.ipynb'} is not a readable notebook" in capsys.readouterr().err


def test_publish_refuses_an_incomplete_study(tmp_path):
    for folder in ("notebooks", "book/records"):
        (tmp_path / folder).mkdir(parents=True)
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
