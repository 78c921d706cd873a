"""The last cell of a page says how to have it again. That this works, test_project shows."""

import re
import subprocess

from convopt.lab import experiments, provenance, training
from convopt.lab.records import Record

PARAMETERS = {"dataset": "mnist", "seeds": 10, "epochs": 30, "store": ""}


def commands(page: str) -> list[str]:
    return re.findall(r"```bash\n(.*)\n```", page)


def test_the_commands_hold_this_page_s_parameters_and_those_of_the_quick_version():
    exact, quick = commands(provenance.page("06-stress-test", {**PARAMETERS, "store": "my runs"}).data)
    assert exact.endswith("06-stress-test.ipynb out.ipynb -p dataset mnist -p seeds 10 -p epochs 30 -p store 'my runs'")
    assert quick.endswith("06-stress-test.ipynb out.ipynb -p dataset digits -p seeds 2 -p epochs 1")


def test_a_page_whose_parameters_the_quick_version_leaves_alone_has_one_command():
    (only,) = commands(provenance.page("01-idea", {"seed": 0, "batch_size": 8}).data)
    assert only == "papermill notebooks/01-idea.ipynb out.ipynb -p seed 0 -p batch_size 8"


def test_the_executed_notebook_can_be_downloaded_and_of_a_page_with_records_their_table():
    run = experiments.STRESS.run(experiments.SGD, "digits", epochs=1, seed=0)
    without, with_records, with_own = (
        provenance.page("06-stress-test", PARAMETERS, *records).data
        for records in ([], [[training.train(run)]], [[training.train(run)], False])
    )
    assert all("_sources/executed/06-stress-test.ipynb" in page for page in (without, with_records, with_own))
    assert "published.parquet" in with_records
    assert "published.parquet" not in without + with_own
    assert "1 records are of digits" in with_own


def test_each_data_set_has_its_own_checksum():
    runs = [experiments.STRESS.run(experiments.SGD, name, epochs=1, seed=0) for name in ("mnist", "adult")]
    made = {name: "" for name in ("commit", "torch", "processor")}
    records = [Record(run, "finished", {}, [], None, {**made, "data": run.dataset[::-1] * 4}) for run in runs]
    assert "2 records are of adult (`tludatludatl…`), mnist (`tsinmtsinmts…`)" in provenance.page("x", {}, records).data


def test_a_package_within_a_foreign_repository_has_no_commit(tmp_path, monkeypatch):
    package = tmp_path / "venv" / "convopt"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / ".gitignore").write_text("venv\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", ".gitignore"], [*identity, "commit", "-qm", "foreign"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance.convopt, "__file__", str(package / "__init__.py"))
    assert provenance._commit() is None
