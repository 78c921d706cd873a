"""Notebooks, and the template for new ones, are committed clean, listed in the book, and executed in a real kernel."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT
from distributed import LocalCluster

from convopt.lab import commands, notebooks, workspace

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEMPLATE = ROOT / "templates" / "experiment.ipynb"

for_each_notebook = pytest.mark.parametrize("path", [*NOTEBOOKS, TEMPLATE], ids=lambda path: path.stem)


def table_of_contents() -> list[str]:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    return [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_table_of_contents_lists_it_after_the_pages_that_it_needs(path):
    files = table_of_contents()
    first = nbformat.read(path, as_version=4).cells[0].source
    (needed,) = re.findall(r"\*\*You need:\*\*(.*?)\*\*Running time:\*\*", first, re.DOTALL)
    place = files.index(f"executed/{path.stem}")
    assert all(files.index(f"executed/{page}") < place for page in re.findall(r"\]\(([\w-]+)\)", needed))


@for_each_notebook
class TestCommitted:
    def test_without_outputs(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert not cell.outputs
                assert cell.execution_count is None

    def test_with_typed_and_commented_parameters(self, path):
        cells = nbformat.read(path, as_version=4).cells
        (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        for line in parameters.source.splitlines():
            assert ": " in line.split("=")[0], line
            assert "  # " in line, line

    def test_ending_with_a_summary_and_provenance(self, path):
        *_, summary, last = nbformat.read(path, as_version=4).cells
        assert re.search("^## Summary$.*^## Provenance$", summary.source, re.MULTILINE | re.DOTALL)
        assert "provenance" in last.metadata.get("tags", [])
        assert f'provenance.page("{path.stem}"' in last.source

    def test_opening_with_what_it_teaches_needs_and_takes(self, path):
        first = nbformat.read(path, as_version=4).cells[0].source
        assert all(heading in first for heading in ("**What you will learn:**", "**You need:**", "**Running time:**"))

    def test_with_imports_and_parameters_folded(self, path):
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        folded = [code[0], *(cell for cell in code if "parameters" in cell.metadata.get("tags", []))]
        assert len(folded) == 2
        assert all({"hide-input", "remove-input"} & {*cell.metadata.get("tags", [])} for cell in folded)

    def test_an_experiment_s_page_opening_with_its_finding_and_a_figure(self, path):
        """All that comes before are imports, parameters and what makes the study, which show nothing."""
        cells = nbformat.read(path, as_version=4).cells
        if not any("study = Study(" in cell.source for cell in cells):
            pytest.skip("not an experiment's")
        (first, *_) = re.findall("^## (.*)$", "\n".join(cell.source for cell in cells), re.MULTILINE)
        assert first.startswith(("The finding", "The answer"))
        finding = next(i for i, cell in enumerate(cells) if f"## {first}" in cell.source)
        after = [cell for cell in cells[finding + 1 :] if cell.cell_type == "code"]
        shown = [cell for cell in after if not {"remove-input", "hide-cell"} & {*cell.metadata.get("tags", [])}]
        until = next(i for i, cell in enumerate(shown) if "figure" in cell.metadata.get("mystnb", {}))
        assert all("study = Study(" in cell.source for cell in shown[:until])

    def test_figures_with_alternative_text(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and "figure = figures." in cell.source:
                assert len(cell.metadata["mystnb"]["image"]["alt"]) > 20

    def test_tables_that_round_what_they_show_and_not_their_numbers(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert ".round(" not in cell.source

    def test_training_in_no_cell_whose_figure_has_a_name(self, path):
        """Its progress bar would be a second output of the cell, and the name would be given twice."""
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        studies = re.findall(r"^(\w+) = Study\(", "\n".join(cell.source for cell in cells), re.MULTILINE)
        training = re.compile(rf"\b(?:{'|'.join(['Study', *studies])})(?:\.search)?\(")
        for cell in cells:
            if "figure" in cell.metadata.get("mystnb", {}):
                assert not training.search(cell.source)

    def test_with_no_result_typed_into_the_prose(self, path):
        """Results come from records by glue. What a run is given, or an interval's level, may stand in the text."""
        result = re.compile(r"[\d.]+ ?%(?! (?:label noise|(?:of the )?training labels|(?:whole )?intervals?)\b)")
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                assert not result.findall(cell.source)


def write(path, *sources, parameters=None):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    if parameters:
        cells.insert(0, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with one notebook that works and one that fails."""
    for folder in ("notebooks", "book/records"):
        (tmp_path / folder).mkdir(parents=True)
    write(
        tmp_path / "notebooks" / "01-good.ipynb",
        "print(f'{seeds=} {dataset=} {word=}')",
        parameters="seeds: int = 7\ndataset: str = 'mnist'\nword: str = ''",
    )
    write(tmp_path / "notebooks" / "02-bad.ipynb", "print('before')", "1 / 0", "print('after')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_parameters_and_profile_reach_the_notebook_and_folders_are_made(project):
    output = project / "new" / "folder"
    (done,) = notebooks.execute_all(["01-good"], {"seeds": ["3"]}, "quick", output, timeout=60)
    assert done == output / "01-good.ipynb"
    assert "seeds=3 dataset='digits'" in printed(done)


@pytest.mark.parametrize("name", ["", "mine"])
def test_notebooks_of_a_quick_execution_share_a_new_store_or_the_one_that_is_given(project, name):
    for stem in ("03-first", "04-second"):
        path = project / "notebooks" / f"{stem}.ipynb"
        write(path, "print(store)", parameters="seeds: int = 1\nstore: str = ''")
    given = str(project / name) if name else None
    names = ["03-first", "04-second"]
    done = notebooks.execute_all(names, {}, "quick", project / "executed", timeout=60, store=given)
    (told,) = {printed(path).strip() for path in done}
    assert told == given if given else "convopt-quick-" in told


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_several_values_make_a_grid_of_named_outputs(project, jobs):
    output = project / "executed"
    given = {"word": ["c", "a/b"], "seeds": ["1", "2", "1", "+1"]}
    done = notebooks.execute_all(["01-good"], given, "published", output, timeout=60, jobs=jobs)
    assert [path.name for path in done] == [
        f"01-good.word={word}.seeds={seeds}.ipynb" for word in ("c", "a%2Fb") for seeds in (1, 2)
    ]
    assert sorted(output.iterdir()) == sorted(done)
    assert [printed(path).strip() for path in done] == [
        f"seeds={seeds} dataset='mnist' word='{word}'" for word in ("c", "a/b") for seeds in (1, 2)
    ]


def test_a_notebook_without_the_repeated_parameter_is_executed_once_and_failures_do_not_keep_the_others(project):
    output = project / "executed"
    threads = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    with LocalCluster(**threads, protocol="tcp", dashboard_address=":0") as local:
        grid = {"given": {"seeds": ["1", "2"]}, "profile": "published", "scheduler": local.scheduler_address}
        with pytest.raises(notebooks.NotebookError) as error:
            notebooks.execute_all([], output=output, timeout=60, **grid)
    assert len(re.findall("notebook .* failed", str(error.value))) == 1
    assert sorted(path.name for path in output.iterdir()) == [
        "01-good.seeds=1.ipynb",
        "01-good.seeds=2.ipynb",
        "02-bad.failed.ipynb",
    ]


def test_braces_in_paths_are_taken_as_they_are(project, monkeypatch):
    within = project / "{seeds} of {nothing}"
    shutil.copytree(project, within)
    monkeypatch.chdir(within)
    (done,) = notebooks.execute_all(["01-good"], {}, "published", within / "out{x}", timeout=60)
    assert done == within / "out{x}" / "01-good.ipynb"
    assert "seeds=7" in printed(done)
    assert sorted(path.name for path in within.iterdir()) == ["book", "notebooks", "out{x}"]


def test_a_grid_is_not_written_beside_the_notebooks(project):
    with pytest.raises(ValueError, match="output must be another folder than that of the notebook"):
        notebooks.execute_all(["01-good"], {"seeds": ["1", "2"]}, "published", project / "notebooks", timeout=60)
    assert len(list((project / "notebooks").iterdir())) == 2


def test_a_book_of_somebody_else_is_not_the_project(tmp_path, monkeypatch):
    for folder in ("notebooks", "book"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    assert workspace.project_folder() == ROOT


def test_a_folder_where_an_output_belongs_is_refused_before_anything_is_executed(project):
    (project / "executed" / "01-good.ipynb").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no folder called 01-good\.ipynb"):
        notebooks.execute_all([], {}, "published", project / "executed", timeout=60)
    assert [path.name for path in (project / "executed").iterdir()] == ["01-good.ipynb"]


def test_a_failing_notebook_is_kept_and_an_error_and_the_other_one_is_done(project):
    output = project / "executed"
    with pytest.raises(notebooks.NotebookError, match=r"02-bad.*failed") as error:
        notebooks.execute_all([], {}, "published", output, timeout=60)
    assert "02-bad.failed.ipynb" in str(error.value)
    assert sorted(path.name for path in output.iterdir()) == ["01-good.ipynb", "02-bad.failed.ipynb"]
    kept = printed(output / "02-bad.failed.ipynb")
    assert "before" in kept
    assert "after" not in kept


def test_a_kernel_finds_modules_of_the_folder_where_the_command_runs(project, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "nets_of_mine.py").write_text("name = 'mine'")
    monkeypatch.chdir(tmp_path / "own")
    own = write(project / "notebooks" / "03-own.ipynb", "import nets_of_mine; print(nets_of_mine.name)")
    executed = project / "executed" / own.name
    notebooks.execute(notebooks.Execution(own, executed, {}, timeout=60))
    assert "mine" in printed(executed)


def test_a_cell_that_never_ends_is_stopped(project):
    slow = write(project / "notebooks" / "03-slow.ipynb", "import time; time.sleep(600)")
    with pytest.raises(notebooks.NotebookError, match="03-slow"):
        notebooks.execute(notebooks.Execution(slow, project / "executed" / slow.name, {}, timeout=2))


def test_a_kernel_that_does_not_start_gets_one_more_try(project, monkeypatch):
    tries, real = [], notebooks._papermill

    def flaky(*arguments):
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("Kernel died before replying to kernel_info")
        real(*arguments)

    monkeypatch.setattr(notebooks, "_papermill", flaky)
    good = project / "notebooks" / "01-good.ipynb"
    notebooks.execute(notebooks.Execution(good, project / "executed" / good.name, {}, timeout=60))
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["09-none"], {}, "01-good, 02-bad"),
        (["01-god"], {}, "did you mean 01-good"),
        (["01-good"], {"sedes": ["3"]}, "dataset, seeds, word, got .*did you mean seeds"),
        (["01-good"], {"seeds": ["3", "-3"]}, "seeds must be an integer from 1 to 10000, got -3"),
        (["01-good"], {"dataset": ["minst"]}, 'got "minst"; did you mean mnist'),
        (["01-good"], {"seeds": ["many"]}, "int"),
        (["01-good"], {"seeds": ["3", "True"]}, "int"),
    ],
)
def test_what_is_unknown_is_refused_before_anything_is_executed(project, names, given, said):
    with pytest.raises(ValueError, match=said):
        notebooks.execute_all(names, given, "published", project / "executed", timeout=60)
    assert not (project / "executed").exists()


@pytest.mark.slow
def test_papermill_alone_runs_the_template(tmp_path):
    """That it runs the notebooks, the README's commands show."""
    import papermill

    known = notebooks.parameters_of(TEMPLATE)
    quick = {name: value for name, value in notebooks.PROFILES["quick"].items() if name in known}
    parameters = {**quick, "store": str(tmp_path / "store")}
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(str(TEMPLATE), str(out), parameters=parameters, cwd=str(ROOT), progress_bar=False)
    assert nbformat.read(out, as_version=4).cells[-1].outputs


def test_files_and_folders_are_those_where_the_command_is_given(tmp_path, monkeypatch):
    """Notebooks execute in the project's folder."""
    monkeypatch.chdir(tmp_path)
    Path("my.npz").touch()
    for parameter, value, expected in (
        ("store", "records", str(tmp_path / "records")),
        ("data", "my.npz", str(tmp_path / "my.npz")),
        ("data", "my.npz::price", f"{tmp_path / 'my.npz'}::price"),
        ("dataset", "digits", "digits"),
        ("seeds", "3", "3"),
    ):
        assert commands._from_here(parameter, value) == expected
