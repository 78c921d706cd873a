"""What people read has the field's terms."""

import ast
import re
from collections.abc import Iterator

import nbformat
import pytest
from conftest import ROOT

from convopt.lab import experiments

RETIRED = {
    r"(?<![</])pictures?": "image",  # <picture> is an HTML element
    r"rivals?": "baseline, or method",
    r"the README's": "the original proposal's: this repository's README is another text",
    r"first report": "original proposal",
    r"wrong labels": "label noise, or noisy labels",
    r"by heart": "memorize",
}
"""Regular expressions of words that were in use, and what is written in their place."""


def pages() -> Iterator[tuple[str, str]]:
    for path in (ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))):
        yield path.name, path.read_text()


def notebooks() -> Iterator[tuple[str, str]]:
    """With captions and alternative texts."""
    for path in (*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "templates" / "experiment.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        yield path.name, "\n".join(f"{cell.source}\n{cell.metadata}" for cell in cells)


def docstrings() -> Iterator[tuple[str, str]]:
    documented = ast.Module, ast.ClassDef, ast.FunctionDef
    for path in sorted((ROOT / "convopt").rglob("*.py")):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
        yield str(path.relative_to(ROOT)), "\n".join(filter(None, map(ast.get_docstring, nodes)))


@pytest.mark.parametrize("word", RETIRED, ids=RETIRED.get)
@pytest.mark.parametrize("texts", [pages, notebooks, docstrings])
def test_a_retired_word_is_nowhere(texts, word):
    retired = re.compile(rf"\b{word}\b", re.IGNORECASE)
    assert not {name for name, text in texts() if retired.search(" ".join(text.split()))}


def test_the_project_s_settings_speak_of_baselines_too():
    assert "rival" not in (ROOT / "pyproject.toml").read_text()


def test_no_file_experiment_or_line_of_code_speaks_of_rivals():
    """Names stand in addresses of pages, in messages and on command lines."""
    code = [path for folder in ("convopt", "notebooks", "templates", "book") for path in (ROOT / folder).glob("**/*.*")]
    code = [path for path in code if not {"_build", "executed", "extra", "__pycache__"} & {*path.parts}]
    names = [*experiments.EXPERIMENTS, *(path.name for path in code)]
    texts = [path.read_text() for path in code if path.suffix in (".py", ".json", ".yml", ".ipynb", ".css", ".js")]
    assert len(names) > 100
    assert not [text[:80] for text in (*names, *texts) if "rival" in text.lower()]


def sentences(text: str) -> list[str]:
    """Of the prose: without code, tables, figures and headings."""
    prose = re.sub(r"```.*?```|<picture>.*?</picture>|^[|#].*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"{[\w:]+}`[^`]*`", "figure", prose)
    return [
        part for part in re.split(r"(?<=[.?!])\W*\s|\n\s*\n|^- ", prose, flags=re.MULTILINE) if len(part.split()) > 1
    ]


@pytest.mark.parametrize("page", ["README.md", "book/index.md", "book/quickstart.md"])
def test_sentences_are_short(page):
    lengths = [len(sentence.split()) for sentence in sentences((ROOT / page).read_text())]
    assert len(lengths) > 10
    assert sum(lengths) / len(lengths) < 20
