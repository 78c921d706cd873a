"""The built book, read in a real browser: `make book` first, chromium on the path.

The browser finds no other machine, and what asks for one fails the test: the pages are seen as they are offline.
"""

import functools
import gzip
import http.server
import io
import threading
from typing import Literal
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from conftest import CHROMIUM, ROOT
from PIL import Image
from playwright.sync_api import Locator, Page

HTML = ROOT / "book" / "_build" / "html"
PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)

ALLOWED = ["Identifier 'THEBE_JS_URL' has already been declared"]  # jupyter-book's inert settings for thebe, twice

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not PAGES, reason="no book: run `make book` first"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]
for_every_page = pytest.mark.parametrize("name", PAGES)
WITH_FORMULAS = [name for name in PAGES if 'class="math' in (HTML / name).read_text()]
SLIDER = "figure input[type=range]"
WITH_SLIDERS = [name for name in PAGES if 'type="range"' in (HTML / name).read_text()]
for_every_page_with_sliders = pytest.mark.parametrize("name", WITH_SLIDERS)


class Troubles(list):
    def append(self, trouble: str) -> None:
        if not any(allowed in trouble for allowed in ALLOWED):
            super().append(trouble)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser, address):
    """A page, with what went wrong in its attribute ``troubles``."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.troubles = Troubles()
    at_hand = address, "file:", "data:", "blob:"
    page.on("request", lambda request: request.url.startswith(at_hand) or page.troubles.append(f"left: {request.url}"))
    page.on("requestfailed", lambda request: page.troubles.append(f"failed: {request.url}"))
    page.on("response", lambda response: response.ok or page.troubles.append(f"{response.status}: {response.url}"))
    page.on("pageerror", lambda error: page.troubles.append(f"error: {error}"))
    page.on("console", lambda line: line.type == "error" and page.troubles.append(f"console: {line.text}"))
    yield page
    context.close()


def visit(page: Page, url: str, until: Literal["load", "networkidle"] = "load") -> None:
    page.goto(url, wait_until=until)
    page.evaluate("window.MathJax?.startup?.promise")


@for_every_page
def test_it_loads_whole_and_from_this_machine_alone(page, address, name):
    visit(page, f"{address}/{name}", until="networkidle")
    assert page.troubles == []
    images = page.eval_on_selector_all(
        "img", "all => all.filter(i => !i.naturalWidth || !i.alt.trim()).map(i => i.outerHTML.slice(0, 200))"
    )
    assert images == []


@for_every_page
def test_from_a_file_it_looks_the_same(page, address, name):
    images = []
    for url in (f"{address}/{name}", (HTML / name).as_uri()):
        visit(page, url, until="networkidle")
        shot = page.screenshot(animations="disabled")
        images.append(np.asarray(Image.open(io.BytesIO(shot)).convert("L"), dtype=float))
    assert page.troubles == []
    assert (abs(images[0] - images[1]) > 30).mean() < 1e-3


@pytest.mark.parametrize("name", WITH_FORMULAS)
def test_formulas_are_rendered(page, address, name):
    visit(page, f"{address}/{name}")
    written = page.locator(".math").count()
    assert page.locator(".math mjx-container").count() >= written > 0
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0


@for_every_page
def test_nothing_sticks_out_to_the_side(page, address, name):
    page.set_viewport_size({"width": 375, "height": 900})
    visit(page, f"{address}/{name}")
    for width in (375, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


ALL_RULES, OF_COLOURS = {}, {"runOnly": ["color-contrast", "link-in-text-block"]}


@for_every_page
@pytest.mark.parametrize(("theme", "rules"), [("light", ALL_RULES), ("dark", OF_COLOURS)], ids=["light", "dark"])
def test_axe_finds_nothing_serious(page, address, name, theme, rules):
    """Legible, named, reachable; in the dark, where nothing but colours is another, legible."""
    page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    visit(page, f"{address}/{name}")
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.wait_for_timeout(300)  # until colours have faded in
    # Sphinx calls its bibliography a list, and its entries, rightly, bibliography entries.
    found = Axe().run(page, context={"exclude": [".citation-list"]}, options=rules).response["violations"]
    serious = {
        violation["id"]: [node["html"][:150] for node in violation["nodes"]][:3]
        for violation in found
        if violation["impact"] in ("serious", "critical")
    }
    assert serious == {}


@for_every_page
def test_internal_links_lead_somewhere(name):
    for link in BeautifulSoup((HTML / name).read_text(), "html.parser").select("a[href]"):
        href = urlsplit(urljoin(f"http://book/{name}", link["href"]))
        if href.netloc != "book":
            continue
        target = HTML / (unquote(href.path).strip("/") or "index.html")
        assert target.is_file(), link
        if href.fragment and target.suffix == ".html":
            assert f'id="{unquote(href.fragment)}"' in target.read_text(), link


@for_every_page_with_sliders
def test_a_slider_follows_keyboard_and_mouse_and_leaves_the_others_alone(page, address, name):
    visit(page, f"{address}/{name}")
    sliders = page.locator(SLIDER)
    for i in range(sliders.count()):
        others = [shown(sliders.nth(j)) for j in range(sliders.count()) if j != i]
        slider = sliders.nth(i)
        seen = [shown(slider)]
        slider.focus()
        page.keyboard.press("Home")
        seen.append(shown(slider))
        page.keyboard.press("ArrowRight")
        seen.append(shown(slider))
        box = slider.bounding_box()
        page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + box["height"] / 2, steps=5)
        page.mouse.up()
        seen.append(shown(slider))
        page.keyboard.press("End")
        seen.append(shown(slider))
        places = min(4, int(slider.get_attribute("max")) + 1)  # the quick book has fewer epochs to show
        assert len({image for image, _ in seen[1:]}) == len({value for _, value in seen[1:]}) == places
        assert [shown(sliders.nth(j)) for j in range(sliders.count()) if j != i] == others
    assert page.troubles == []


@for_every_page_with_sliders
def test_a_slider_follows_a_finger(browser, address, name):
    context = browser.new_context(viewport={"width": 375, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    visit(page, f"{address}/{name}")
    for slider in page.locator(SLIDER).all():
        slider.scroll_into_view_if_needed()
        seen = []
        for share in (0.05, 0.5, 0.95):
            box = slider.bounding_box()
            page.touchscreen.tap(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
            seen.append(shown(slider))
        places = min(3, int(slider.get_attribute("max")) + 1)  # the quick book has fewer epochs to show
        assert len({image for image, _ in seen}) == len({value for _, value in seen}) == places
    context.close()


def shown(slider: Locator) -> tuple[str, str]:
    """The one image that the slider shows, by its alternative text, and the value beside the slider."""
    figure = slider.locator("xpath=ancestor::figure[1]")
    images = figure.locator("img:visible")
    assert images.count() == 1
    value = figure.locator("output").inner_text()
    assert slider.get_attribute("aria-valuetext") == value
    assert images.get_attribute("alt").endswith(f" {value}")
    return images.get_attribute("alt"), value


def test_there_are_sliders_to_move():
    pages = " ".join(WITH_SLIDERS)
    assert all(name in pages for name in ("01-idea", "02-kernel-loss", "03-snr", "04-wiener", "06-stress-test"))


def test_search_finds_the_wiener_page(page, address):
    visit(page, f"{address}/search.html?q=Wiener")
    page.wait_for_selector("ul.search li a")
    assert any("04-wiener" in link for link in page.eval_on_selector_all("ul.search a", "all => all.map(a => a.href)"))
    assert page.troubles == []


def test_the_keyboard_reaches_the_menu_and_a_page(page, address):
    page.set_viewport_size({"width": 375, "height": 800})
    visit(page, f"{address}/index.html")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.primary-toggle')"):
            break
    else:
        pytest.fail("no menu button in 60 stops of the keyboard")
    page.keyboard.press("Enter")
    link = page.get_by_role("link", name="What each optimizer supports")
    link.wait_for()
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/supports.html")


def test_the_book_and_its_front_page_are_small(page, address):
    assert sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file()) < 30e6
    sizes = []  # as web servers send them
    page.on("response", lambda response: sizes.append(len(gzip.compress(response.body()))))
    visit(page, f"{address}/index.html")
    assert sum(sizes) < 1.5e6
