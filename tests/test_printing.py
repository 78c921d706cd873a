"""The book on paper: one PDF with all of its pages."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import CHROMIUM, ROOT
from pypdf import PdfReader

from convopt.lab import printing
from convopt.lab.catalogue import _heading

BOOK = ROOT / "book"
PRINT = [sys.executable, "-m", "convopt.lab.printing"]


def pages() -> list[str]:
    """Without endings, as the table of contents has them."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def title(page: str) -> str:
    if (BOOK / f"{page}.md").exists():
        return re.search(r"^# (.*)$", (BOOK / f"{page}.md").read_text(), re.MULTILINE)[1]
    return _heading(ROOT / "notebooks" / f"{page.removeprefix('executed/')}.ipynb")


def bookmarks(outline: list) -> Iterator[str]:
    for entry in outline:
        if isinstance(entry, list):
            yield from bookmarks(entry)
        else:
            yield entry.title


def bare(text: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"\W", "", text)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.skipif(
    not all((BOOK / f"{page}.ipynb").exists() for page in pages() if page.startswith("executed/")),
    reason="no book: run `make book` first",
)
def test_the_pdf_has_all_pages_and_nothing_that_is_cut_off(tmp_path, browser):
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    build = [jupyter_book, "build", BOOK, "--builder", "singlehtml", "--path-output", tmp_path]
    subprocess.run(build, check=True, capture_output=True)
    single, pdf = tmp_path / "_build" / "singlehtml" / "index.html", tmp_path / "book.pdf"
    subprocess.run([*PRINT, single, pdf], check=True)
    marked = " ".join(map(bare, bookmarks(PdfReader(pdf).outline)))
    assert [page for page in pages() if bare(title(page)) not in marked] == []

    page = browser.new_page(viewport={"width": round(680 / printing.SCALE), "height": 1400})  # A4 within its margins
    page.emulate_media(media="print")
    page.goto(single.as_uri(), wait_until="networkidle")
    printing.await_formulas(page)
    wide = (
        "all => all.filter(e => e.scrollWidth > e.closest('article').clientWidth).map(e => e.outerHTML.slice(0, 200))"
    )
    assert page.eval_on_selector_all("article :is(table, pre, figure)", wide) == []


def test_without_chromium_it_says_so_in_a_line():
    environment = {**os.environ, "PATH": ""}
    done = subprocess.run(PRINT, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("the PDF needs Chromium")
    assert done.stderr.count("\n") == 1
