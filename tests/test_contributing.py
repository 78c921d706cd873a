"""What CONTRIBUTING.md promises: what joins the project touches few files, and hooks keep the habits."""

import json
import re
import subprocess

import nbformat
import pytest
from conftest import ROOT

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


def section(heading: str) -> str:
    return GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def patched(text: str, diff: str) -> str:
    """The text with each hunk's lines of before, found exactly once, replaced by those of after."""
    for hunk in diff.split("...\n"):
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def do_as_told(checkout, heading: str) -> list[str]:
    """Do what the guide says: each block belongs to the file named last before it. The files that are touched."""
    told, touched = section(heading), []
    for block in re.finditer(r"```(python|diff)\n(.*?)```", told, re.DOTALL):
        *_, name = re.findall(r"`(convopt/[\w/]+\.py)`", told[: block.start()])
        path = checkout.folder / name
        path.write_text(block[2] if block[1] == "python" else patched(path.read_text(), block[2]))
        touched.append(name)
    return touched


@pytest.mark.slow
def test_an_optimizer_joins_package_tests_and_stress_test_by_three_files(checkout):
    touched = do_as_told(checkout, "Add an optimizer")
    assert len(touched) == 3
    changed = checkout("git status --porcelain --untracked-files=all -- . ':!.venv'").splitlines()
    assert {line[3:] for line in changed} == set(touched)
    checkout("ruff check . && ruff format --check . && mypy")
    (commands,) = re.findall(r"```bash\n(.*?)```", section("Add an optimizer"), re.DOTALL)
    contract, *stress = commands.splitlines()
    assert int(re.search(r"(\d+) passed", checkout(contract))[1]) > 40
    *_, report = [checkout(command) for command in stress]
    assert re.search(r"^ *NeighbourSGD +\d", report, re.MULTILINE)
    assert "NeighbourSGD" in checkout("python -c 'from convopt.lab import bench; print(*bench.OPTIMIZERS)'")


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["Add a data set", "Add a network", "Add a baseline"])
def test_what_joins_the_lab_touches_two_files_at_most_and_is_tested_with_the_others(checkout, heading):
    touched = do_as_told(checkout, heading)
    assert 1 <= len(touched) <= 2
    checkout("ruff check . && ruff format --check .")
    (commands,) = re.findall(r"```bash\n(.*?)```", section(heading), re.DOTALL)
    tests, *others = commands.splitlines()
    assert int(re.search(r"(\d+) passed", checkout(tests))[1]) >= 1
    for command in others:
        checkout(command)


@pytest.mark.slow
def test_an_optimizer_that_is_not_like_sgd_is_told_where_to_say_so(checkout):
    path = checkout.folder / do_as_told(checkout, "Add an optimizer")[0]
    without = path.read_text().replace("        nesterov: bool = False,\n", "").replace(": nesterov,", ": False,")
    path.write_text(without)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        checkout("pytest tests/test_contract.py -k 'NeighbourSGD and options_of_the_base'")
    assert "does not take nesterov" in failed.value.output
    assert "PARTICULAR in tests/contract.py" in failed.value.output


@pytest.mark.slow
def test_a_notebook_from_the_template_is_a_page_like_the_others(checkout):
    (command,) = re.findall(r"`(cp templates/[^`]+)`", section("Add an experiment"))
    checkout(command)
    page, toc = checkout.folder / command.split()[-1], checkout.folder / "book" / "_toc.yml"
    page.write_text(page.read_text().replace('page(\\"experiment\\"', f'page(\\"{page.stem}\\"'))
    listed = "      - file: executed/06-stress-test\n"
    toc.write_text(patched(toc.read_text(), f" {listed}+      - file: executed/{page.stem}\n"))
    checkout(f"pytest tests/test_notebooks.py -m '' -k {page.stem}")


@pytest.mark.slow
def test_the_hooks_pass_on_the_repository_and_need_no_network(checkout):
    shown = checkout("http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 pre-commit run --all-files")
    assert shown.count("Passed") == len(re.findall(r"- id:", (ROOT / ".pre-commit-config.yaml").read_text()))


@pytest.mark.slow
def test_a_commit_of_notebooks_that_are_not_as_they_should_be_is_stopped(checkout):
    checkout("pre-commit install")
    for name, spoil in {
        "05-standard": lambda cells: cells[1].outputs.append(nbformat.v4.new_output("stream")),
        "06-stress-test": lambda cells: cells.pop(),  # the provenance
        "07-batch-size": lambda cells: cells[2].metadata.tags.remove("parameters"),
    }.items():
        path = checkout.folder / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        spoil(notebook.cells)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    checkout("git add notebooks")
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        checkout("git -c user.name=test -c user.email=test@localhost commit -m spoilt")
    for hook in ("notebooks without outputs", "notebooks with typed parameters"):
        assert re.search(rf"{hook}.*Failed", stopped.value.output)
    for failed in ("provenance[06-stress-test]", "parameters[07-batch-size]"):
        assert re.search(rf"FAILED .*{re.escape(failed)}", stopped.value.output)
