"""What GitHub Pages would get can be published as it is, see also test_browser: `make book` first."""

import re

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

HTML = ROOT / "book" / "_build" / "html"
FILES = [path for path in HTML.rglob("*") if not path.is_dir()]
EXECUTED = sorted(path.stem for path in (HTML / "executed").glob("*.html"))

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not FILES, reason="no book: run `make book` first"),
]


def test_pages_is_told_to_serve_folders_with_a_leading_underscore():
    assert (HTML / ".nojekyll").is_file()


def test_names_are_those_that_pages_takes():
    refused = re.compile(r'["<>|:*?\r\n\\]')  # by actions/upload-artifact
    assert [path for path in FILES if path.is_symlink() or refused.search(path.relative_to(HTML).as_posix())] == []


def test_nothing_points_to_the_machine_that_built_it():
    here = re.compile(rf'(?:https?:)?//(?:localhost|127\.0\.0\.1)|file://|(?:href|src)="{re.escape(str(ROOT))}')
    pages = [path for path in FILES if path.suffix == ".html"]
    assert {path.name: found for path in pages if (found := here.findall(path.read_text()))} == {}


@pytest.mark.parametrize("name", EXECUTED)
def test_tables_have_words_for_headings_and_no_negative_zero(name):
    page = BeautifulSoup((HTML / "executed" / f"{name}.html").read_text(), "html.parser")
    headings = [heading.get_text() for heading in page.select("table thead th")]
    assert not [heading for heading in headings if "_" in heading]
    cells = [cell.get_text() for cell in page.select("table td")]
    assert not [cell for cell in cells if re.search(r"[-\u2212]0(?:\.0+)?(?![.\d])", cell)]


@pytest.mark.parametrize("name", EXECUTED)
def test_a_page_says_how_to_run_it_again_and_what_to_download(name):
    page = (HTML / "executed" / f"{name}.html").read_text()
    text = re.sub(r"<[^>]+>", "", page)
    assert f"papermill notebooks/{name}.ipynb out.ipynb" in text
    for target in re.findall(r'href="([^"#]+)" download', page):
        assert (HTML / "executed" / target).is_file() or target.startswith("data:"), target
    assert f'href="../_sources/executed/{name}.ipynb" download' in page
    downloaded = HTML / "_sources" / "executed" / f"{name}.ipynb"
    assert downloaded.read_bytes() == (ROOT / "notebooks" / downloaded.name).read_bytes()
    if "published records</a>" in page:  # an experiment: all its tables have their numbers
        assert len(re.findall(r'download="[^"]+\.csv"', page)) == len(re.findall(r"<table[^>]*dataframe", page))
