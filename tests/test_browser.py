"""The built book, read in a real browser: `make book` first, chromium on the path.

The browser finds no other machine, and what asks for one fails the test: the pages are seen as they are offline.
"""

import functools
import gzip
import http.server
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Literal
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from conftest import CHROMIUM, ROOT
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from convopt.lab.printing import await_formulas

HTML = ROOT / "book" / "_build" / "html"
PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not PAGES, reason="no book: run `make book` first"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]
WITH_FORMULAS = [name for name in PAGES if 'class="math' in (HTML / name).read_text()]
SLIDER = "figure input[type=range]"
WITH_SLIDERS = [name for name in PAGES if 'type="range"' in (HTML / name).read_text()]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def new_page(browser: Browser, address: str) -> Iterator[Page]:
    """A page, with what goes wrong in its attribute ``troubles``."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.troubles = []
    at_hand = address, "file:", "data:", "blob:"
    page.on("request", lambda request: request.url.startswith(at_hand) or page.troubles.append(f"left: {request.url}"))
    page.on("requestfailed", lambda request: page.troubles.append(f"failed: {request.url}"))
    page.on("response", lambda response: response.ok or page.troubles.append(f"{response.status}: {response.url}"))
    page.on("pageerror", lambda error: page.troubles.append(f"error: {error}"))
    page.on("console", lambda line: page.troubles.append(f"console: {line.text}"))
    yield page
    context.close()


@pytest.fixture
def page(browser, address):
    with new_page(browser, address) as page:
        yield page


@pytest.fixture(scope="module")
def visited(browser, address, request):
    """Each page of the book, loaded once for all that looks at it; tests leave it as wide and as light as it was."""
    with new_page(browser, address) as page:
        page.add_init_script("localStorage.setItem('mode', 'light'); localStorage.setItem('theme', 'light')")
        visit(page, f"{address}/{request.param}", until="networkidle")
        page.first_seen = seen(page)
        page.troubles_of_loading = [*page.troubles]  # axe will look for style sheets where there are none
        yield page


for_every_page = pytest.mark.parametrize("name", PAGES)
on_every_page = pytest.mark.parametrize("visited", PAGES, indirect=True)


def visit(page: Page, url: str, until: Literal["load", "networkidle"] = "load") -> None:
    page.goto(url, wait_until=until)
    await_formulas(page)


def seen(page: Page) -> np.ndarray:
    shot = page.screenshot(animations="disabled")
    return np.asarray(Image.open(io.BytesIO(shot)).convert("L"), dtype=float)


@on_every_page
def test_it_loads_whole_and_from_this_machine_alone(visited):
    assert visited.troubles_of_loading == []
    images = visited.eval_on_selector_all(
        "img", "all => all.filter(i => !i.naturalWidth || !i.alt.trim()).map(i => i.outerHTML.slice(0, 200))"
    )
    assert images == []


@on_every_page
def test_from_a_file_it_looks_the_same(visited, page):
    visit(page, (HTML / urlsplit(visited.url).path.strip("/")).as_uri(), until="networkidle")
    assert page.troubles == []
    assert (abs(visited.first_seen - seen(page)) > 30).mean() < 1e-3


@pytest.mark.parametrize("visited", WITH_FORMULAS, indirect=True)
def test_formulas_are_rendered(visited):
    written = visited.locator(".math").count()
    assert visited.locator(".math mjx-container").count() >= written > 0
    assert visited.locator("mjx-merror, [data-mjx-error]").count() == 0


@on_every_page
def test_nothing_sticks_out_to_the_side(visited):
    for width in (375, 1440):
        visited.set_viewport_size({"width": width, "height": 900})
        assert visited.evaluate("document.documentElement.scrollWidth") <= width


@on_every_page
def test_figures_are_legible_on_a_telephone_too(visited):
    """None is smaller than three quarters of its own size, see ``test_looks.test_text_in_figures_is_legible``."""
    for width in (390, 1440):
        visited.set_viewport_size({"width": width, "height": 900})
        shares = visited.eval_on_selector_all(
            ".bd-article :is(figure, .output) img:not([hidden])",
            """all => all.map(image => [
                image.getBoundingClientRect().width / image.naturalWidth,
                image.getBoundingClientRect().height / image.naturalHeight,
            ])""",
        )
        assert min((of_width for of_width, _ in shares), default=1) > 0.749
        assert all(of_height == pytest.approx(of_width, rel=0.01) for of_width, of_height in shares)


@on_every_page
def test_figures_have_twice_the_pixels_for_screens_that_show_them(visited):
    shares = visited.eval_on_selector_all(
        ".bd-article img[src*='_images/']",
        """all => Promise.all(all.map(async shown => {
            const file = Object.assign(new Image(), {src: shown.src});
            await file.decode();
            return file.naturalWidth / shown.naturalWidth;
        }))""",
    )
    assert all(1.99 < share < 2.01 for share in shares)


@on_every_page
def test_what_is_wider_than_the_page_says_that_it_scrolls(visited):
    closed = visited.query_selector_all("details:not([open])")
    toggle = "all => all.forEach(each => each.toggleAttribute('open'))"
    visited.evaluate(toggle, closed)
    silent = """[...document.querySelectorAll('.bd-article :is(table, .frame)')].filter(
        wide => wide.scrollWidth > wide.clientWidth && !(
            wide.tabIndex === 0 && getComputedStyle(wide, '::before').content.includes('Scroll sideways')))"""
    for width in (390, 1440):
        visited.set_viewport_size({"width": width, "height": 900})
        visited.wait_for_function(f"{silent}.length === 0", timeout=5000)
    visited.evaluate(toggle, closed)


def test_a_click_enlarges_a_figure_and_another_one_makes_it_small_again(page, address):
    visit(page, f"{address}/executed/15-factorial.html")
    image = page.locator("#fig-factorial img")
    widths = []
    for _ in range(3):
        widths.append(image.bounding_box()["width"])
        image.click()
    assert widths[1] > 1.4 * widths[0] == 1.4 * widths[2]


def test_the_keyboard_enlarges_a_figure_too(page, address):
    visit(page, f"{address}/executed/15-factorial.html")
    image = page.locator("#fig-factorial img")
    image.focus()
    seen = []
    for key in ("Enter", "Space", "Tab"):
        seen.append((image.bounding_box()["width"], image.get_attribute("aria-pressed")))
        page.keyboard.press(key)
    assert seen[1][0] > 1.4 * seen[0][0] == 1.4 * seen[2][0]
    assert [pressed for _, pressed in seen] == ["false", "true", "false"]


@on_every_page
def test_axe_finds_nothing_serious(visited):
    check_with_axe(visited)


@on_every_page
def test_in_the_dark_it_is_legible_too(visited):
    """Nothing but colours is another there."""
    as_it_was = visited.evaluate("document.documentElement.dataset.theme")
    visited.evaluate("document.documentElement.dataset.theme = 'dark'")
    try:
        # Until colours have faded in, which takes longer where the machine is busy.
        visited.wait_for_function("!document.getAnimations().some(each => each instanceof CSSTransition)")
        check_with_axe(visited, runOnly=["color-contrast", "link-in-text-block"])
    finally:
        visited.evaluate("theme => document.documentElement.dataset.theme = theme", as_it_was)


def check_with_axe(page: Page, **options) -> None:
    options["resultTypes"] = ["violations"]  # to list what is right takes as long as to look
    # Sphinx calls its bibliography a list, and its entries, rightly, bibliography entries.
    found = Axe().run(page, context={"exclude": [".citation-list"]}, options=options).response["violations"]
    serious = {
        violation["id"]: [node["html"][:150] for node in violation["nodes"]][:3]
        for violation in found
        if violation["impact"] in ("serious", "critical")
    }
    assert serious == {}


def test_pages_are_described_to_search_engines_each_in_its_own_words():
    descriptions = [
        tag["content"]
        for name in PAGES
        for tag in BeautifulSoup((HTML / name).read_text(), "html.parser").select("meta[name=description]")
    ]
    assert len(descriptions) > 20
    assert len(set(descriptions)) == len(descriptions)
    assert all(40 < len(description) <= 202 for description in descriptions)


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


@pytest.mark.parametrize("visited", WITH_SLIDERS, indirect=True)
def test_a_slider_follows_keyboard_and_mouse_and_leaves_the_others_alone(visited):
    page = visited
    page.troubles.clear()
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


@pytest.mark.parametrize("name", WITH_SLIDERS)
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


@pytest.mark.parametrize("visited", WITH_SLIDERS, indirect=True)
def test_a_slider_is_found_early_opens_on_its_last_image_and_is_as_wide_as_the_page(visited):
    page = visited
    before = """first => [...document.querySelectorAll('article table')].filter(
        table => table.compareDocumentPosition(first) & Node.DOCUMENT_POSITION_FOLLOWING).length"""
    assert page.locator(SLIDER).first.evaluate(before) < 3
    visit(page, page.url)
    for slider in page.locator(SLIDER).all():
        assert slider.input_value() == slider.get_attribute("max")
        figure = slider.locator("xpath=ancestor::figure[1]")
        column = figure.locator("xpath=ancestor::section[1]/p[1]").bounding_box()["width"]
        assert figure.locator("img:visible").bounding_box()["width"] > 0.97 * column


@pytest.mark.parametrize("name", WITH_SLIDERS)
def test_a_slider_plays_from_the_start_when_told_to_and_stops_when_told_to(page, address, name):
    visit(page, f"{address}/{name}")
    page.clock.install()
    page.clock.pause_at(datetime.now() + timedelta(minutes=1))  # however slow the machine is, time passes as told here
    slider, button = page.locator(SLIDER).first, page.locator("figure figcaption button").first
    last = slider.get_attribute("max")
    if int(last) < 2:
        pytest.skip("the quick book has fewer epochs to show")
    before = shown(slider)
    button.click()
    assert slider.input_value() == "0"
    assert shown(slider) != before
    page.clock.run_for(1000)
    assert slider.input_value() == "1"
    button.click()
    assert button.text_content() == "Play"
    page.clock.run_for(5000)
    assert slider.input_value() == "1"
    button.click()
    page.clock.run_for(1000 * int(last))
    assert slider.input_value() == last
    assert button.text_content() == "Play"


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
