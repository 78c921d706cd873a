import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

# As in the processes that train what is recorded: runs of one process then need no other. It must be there before
# anything imports NumPy, and to import it from convopt would.
os.environ |= runpy.run_path(str(ROOT / "convopt" / "lab" / "portable.py"))["PORTABLE"]

import torch  # noqa: E402

from convopt.lab.printing import chromium  # noqa: E402

CHROMIUM = chromium()

# Test set-up only: where a development machine keeps MNIST beside the checkout.
_BESIDE = ROOT.parent / "shared" / "data"
if "CONVOPT_DATA" not in os.environ and (_BESIDE / "MNIST").is_dir():
    os.environ["CONVOPT_DATA"] = str(_BESIDE)

# Of the processes that tests start; as many tests as there are cores run at a time.
os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("convopt", deadline=None, max_examples=40)
settings.load_profile("convopt")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """What a test draws is the same whichever tests ran before it, in this process or another."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder that holds MNIST/raw; tests that need it are skipped where it is absent."""
    from convopt.lab import data

    folder = data.data_folder()
    if not data.is_at_hand("mnist"):
        pytest.skip(f"MNIST is not under {folder}; set CONVOPT_DATA to test with it")
    return folder


@pytest.fixture
def checkout(tmp_path) -> Callable[[str], str]:
    """Runs a command line in a fresh clone, uncommitted changes included, whose .venv is this one; what it printed.

    Where the clone is stands in the attribute ``folder``. CalledProcessError has the output of what fails.
    """
    folder = tmp_path / "checkout"
    known = "git ls-files -z --cached --others --exclude-standard"
    names = subprocess.run(known.split(), cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    bin_folder = folder / ".venv" / "bin"
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),  # the package is installed from elsewhere
        "PRE_COMMIT_HOME": str(tmp_path / "pre-commit"),
        "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache"),  # what it knows of torch takes a minute to find out
    }

    def run(command: str) -> str:
        bash = ["bash", "-euo", "pipefail", "-c", command]
        ran = {"cwd": folder, "env": environment, "check": True, "text": True, "timeout": 600}
        return subprocess.run(bash, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **ran).stdout

    run("git init --quiet && git add . && git -c user.name=test -c user.email=test@localhost commit --quiet -m all")
    (folder / ".venv").symlink_to(sys.prefix)
    run.folder = folder
    return run


@pytest.fixture(scope="module")
def browser():
    """Chromium, which finds no other machine; tests that need it are skipped where ``CHROMIUM`` is None."""
    from playwright.sync_api import sync_playwright

    # Not by a route of Playwright's, through which every request would take the way over Python.
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", offline])
        yield browser
        browser.close()
