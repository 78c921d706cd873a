"""JupyterLab itself, in a real browser: explorers appear, answer the keyboard, and train when told to."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import CHROMIUM, ROOT
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")]

TOKEN = "of-this-test"
PATIENCE = 120
"""Seconds: a busy machine starts a server and a kernel slowly."""
IMAGE = ".jp-OutputArea .widget-html-content img"

expect.set_options(timeout=1000 * PATIENCE)


def race_alone() -> nbformat.NotebookNode:
    """The race of the stress test's page, without what comes before it there."""
    notebook = nbformat.read(ROOT / "notebooks" / "06-stress-test.ipynb", as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    study = "from types import SimpleNamespace\nstress = SimpleNamespace(experiment=experiments.find('06-stress-test'))"
    notebook.cells = [cells["06-01"], nbformat.v4.new_code_cell(study), cells["06-11c"]]
    return notebook


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the notebooks that are opened."""
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copy(ROOT / "notebooks" / "01-idea.ipynb", folder)
    nbformat.write(race_alone(), folder / "race.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(folder, tmp_path_factory):
    """The address of a JupyterLab that shares neither settings nor port with any other."""
    home = tmp_path_factory.mktemp("jupyter")
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = [
        *("--no-browser", "--allow-root", "--expose-app-in-browser"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"),
        f"--IdentityProvider.token={TOKEN}",
    ]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env={**os.environ, **{name: str(home / place) for name, place in places.items()}},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(address, server, home / "log")
        yield address
    finally:
        server.terminate()  # ends its kernels, too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address: str, server: subprocess.Popen, log) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()}")


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(1000 * PATIENCE)
    yield context.new_page()
    context.close()


KERNEL_ANSWERS = """(path) => {
    const panel = globalThis.jupyterapp?.shell.currentWidget;
    const kernel = panel?.sessionContext?.session?.kernel;
    return panel?.context?.path === path && kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""
"""What is run before that is lost."""


def run_all(page: Page, lab: str, notebook: str) -> None:
    """Open the notebook and run all its cells, as the menu does, until there is an image in a widget."""
    page.goto(f"{lab}/lab/workspaces/{notebook}/tree/{notebook}.ipynb?token={TOKEN}")
    page.wait_for_function(KERNEL_ANSWERS, arg=f"{notebook}.ipynb")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(page.locator(IMAGE)).to_be_visible()


def test_an_explorer_follows_the_keyboard(page, lab):
    run_all(page, lab, "01-idea")
    seen = [shown(page)]
    for label, keys in (("taps", ("Space", "ArrowDown", "Enter")), ("batch", ("ArrowUp",))):
        page.get_by_label(label, exact=True).focus()
        for key in keys:
            page.keyboard.press(key)
        seen.append(next_image(page, seen[-1]))
    assert len(set(seen)) == 3
    assert_accessible(page)


def test_a_race_trains_while_one_watches_and_stops_when_told(page, lab):
    run_all(page, lab, "race")
    start, stop = button(page, "Start"), button(page, "Stop")
    expect(stop).to_be_disabled()
    assert_accessible(page)
    for label in ("ConvolutionalSGD", "ConvolutionalSGDv2 (uniform)"):
        page.get_by_label(label, exact=True).uncheck()
    page.get_by_label("epochs", exact=True).fill("100")
    start.click()
    expect(start).to_be_disabled()
    seen = shown(page)
    for _ in range(3):
        seen = next_image(page, seen)
    stop.click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(start).to_be_enabled()
    expect(page.locator(IMAGE)).to_have_attribute("alt", re.compile("digits, batch 8, 15 % label noise"))


def shown(page: Page) -> str:
    """The image in the widget."""
    return page.locator(IMAGE).get_attribute("src")


def next_image(page: Page, seen: str) -> str:
    """Wait for another one."""
    page.wait_for_function("([image, seen]) => document.querySelector(image)?.src !== seen", arg=[IMAGE, seen])
    return shown(page)


def button(page: Page, name: str):
    return page.locator("button.jupyter-button", has_text=name)


def assert_accessible(page: Page) -> None:
    """Of the widgets; the rest is JupyterLab's."""
    found = Axe().run(page, context={"include": [".jp-OutputArea .widget-vbox"]}).response["violations"]
    assert [violation["id"] for violation in found if violation["impact"] in ("serious", "critical")] == []
