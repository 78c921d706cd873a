"""Prints the book, built as a single page, as one PDF: ``python -m convopt.lab.printing PAGE PDF``.

It needs Chromium, and Playwright, which comes with the extra ``convopt[test]``.
"""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Of the browser, on the path."""

MARGINS = {"top": "15mm", "bottom": "18mm", "left": "15mm", "right": "15mm"}

PAGE_NUMBERS = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'

SCALE = 0.7
"""So that the widest tables and formulas fit."""

MINUTE = 60_000
"""In milliseconds. Hundreds of formulas take their time."""


def chromium() -> str | None:
    """Where the browser is, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def require_chromium() -> str:
    """Where the browser is. FileNotFoundError says what to install."""
    found = chromium()
    if found is None:
        raise FileNotFoundError(f"the PDF needs Chromium on the path, as one of {', '.join(NAMES)}: install it")
    return found


def await_formulas(page: "Page") -> None:
    """Return when the formulas of a loaded page are set, if it has some.

    MathJax itself is fetched after the page has loaded. What is printed meanwhile may lack formulas and even bookmarks.
    """
    page.wait_for_function("!document.querySelector('.math') || window.MathJax?.startup?.promise")
    page.evaluate("window.MathJax?.startup?.promise")


def print_page(page: Path, pdf: Path) -> None:
    """Write the HTML file ``page`` as ``pdf``, A4, with its headings as an outline. FileNotFoundError as above."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require_chromium(), args=["--no-sandbox"])
        opened = browser.new_page(color_scheme="light")
        opened.set_default_timeout(5 * MINUTE)
        opened.add_init_script("localStorage.setItem('mode', 'light'); localStorage.setItem('theme', 'light')")
        opened.goto(page.resolve().as_uri(), wait_until="networkidle")
        await_formulas(opened)
        options = {"margin": MARGINS, "display_header_footer": True, "header_template": "<span></span>"}
        opened.pdf(
            path=pdf, format="A4", scale=SCALE, outline=True, tagged=True, footer_template=PAGE_NUMBERS, **options
        )
        browser.close()


if __name__ == "__main__":  # without a page it says whether it could print one
    try:
        require_chromium()
        if sys.argv[1:]:
            print_page(*map(Path, sys.argv[1:]))
    except FileNotFoundError as error:
        sys.exit(str(error))
