import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Test set-up only: where a development machine keeps MNIST beside the checkout.
_BESIDE = ROOT.parent / "shared" / "data"
if "CONVOPT_DATA" not in os.environ and (_BESIDE / "MNIST").is_dir():
    os.environ["CONVOPT_DATA"] = str(_BESIDE)

settings.register_profile("convopt", deadline=None, max_examples=40)
settings.load_profile("convopt")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder that holds MNIST/raw; tests that need it are skipped where it is absent."""
    from convopt.lab import data

    folder = data.data_folder()
    if not data.is_at_hand("mnist"):
        pytest.skip(f"MNIST is not under {folder}; set CONVOPT_DATA to test with it")
    return folder


@pytest.fixture(scope="module")
def browser():
    """Chromium; tests that need it are skipped where ``CHROMIUM`` is None."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
