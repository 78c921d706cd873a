"""What people read has the field's terms."""

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

RECORDED = re.compile(r"\bwrong_labels(?:_learnt)?\b|\"wrong labels\"")
"""A curve of the published records, what computes it, and the name that their noisy labels are drawn under."""


def pages() -> Iterator[tuple[str, str]]:
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "book").glob("*.md"))):
        yield path.name, path.read_text()


def notebooks() -> Iterator[tuple[str, str]]:
    """With captions and alternative texts."""
    for path in (*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "templates" / "experiment.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        yield path.name, "\n".join(f"{cell.source}\n{cell.metadata}" for cell in cells)


def sources() -> Iterator[tuple[str, str]]:
    """Code with its docstrings, comments and names, and the file's own."""
    for folder in ("convopt", "book", "templates"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            generated = {"_build", "executed", "extra", "__pycache__"} & {*path.parts}
            if path.suffix in (".py", ".yml", ".css", ".js") and not generated:
                name = str(path.relative_to(ROOT))
                yield name, f"{name}\n{path.read_text()}"


def uses(word: str, text: str) -> bool:
    """Whether the word is in the text, also as a part of a name, where "_" and "-" stand for spaces."""
    words = re.sub(r"[\s_-]+", " ", RECORDED.sub("", text))
    return re.search(rf"\b{word}\b", words, re.IGNORECASE) is not None


@pytest.mark.parametrize("word", RETIRED, ids=RETIRED.get)
@pytest.mark.parametrize("texts", [pages, notebooks, sources])
def test_a_retired_word_is_nowhere(texts, word):
    assert not {name for name, text in texts() if uses(word, text)}


@pytest.mark.parametrize(
    "text", ["the first report", "first_report = 1", '"12-first-report"', "OF_THE_FIRST_REPORT", "a first\nreport"]
)
def test_a_retired_word_is_found_in_names_too(text):
    assert uses("first report", text)


def test_words_that_only_look_like_retired_ones_are_not_found():
    assert not uses("first report", "the first reported number; first_reports")
    assert not uses("wrong labels", '{"wrong_labels_learnt": 1}')
    assert not uses(next(iter(RETIRED)), '<picture>\n  <img src="dark.svg">\n</picture>')


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
