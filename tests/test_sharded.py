"""On parameters that fully_shard spreads over ranks, every optimizer that takes them is what one process would be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from sharded import TRAININGS, Training

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


def torchrun(ranks: int, folder: Path, *modes: str) -> None:
    """Train in so many processes, which write what they have learnt."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(HERE / "sharded.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    subprocess.run([sys.executable, *command, str(folder), *modes], check=True, env=environment)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, testrun_uid) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    """In each way to train the same 200 steps, what each training has learnt.

    It takes minutes: the first of pytest's workers trains, the others wait and read.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"sharded-{testrun_uid}"
    ways = {
        "2 ranks": "save-2",
        "tensor parallel": "tensor-2",
        "4 ranks": "save-4",
        "saved on 2 ranks and resumed on 4": "resume-4",
    }
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "resume-4.pt").exists():
            torchrun(2, folder, "save", "tensor")
            torchrun(4, folder, "save", "resume")
    return {way: torch.load(folder / f"{name}.pt") for way, name in ways.items()}


@pytest.fixture(scope="module", params=TRAININGS)
def alone(request) -> tuple[str, dict[str, torch.Tensor]]:
    """The name of a training, and what it learns in one process."""
    training = Training(request.param)
    training.run(slice(None))
    return request.param, training.learnt()


@pytest.mark.parametrize("way", ["2 ranks", "4 ranks", "saved on 2 ranks and resumed on 4", "tensor parallel"])
def test_it_is_one_process_on_the_joined_batch(way, alone, learnt):
    name, expected = alone
    if way == "tensor parallel" and "sampled" in name:
        pytest.skip("refused, see test_distributed.py")
    assert learnt[way][name].keys() == expected.keys()
    for key, value in learnt[way][name].items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: key + text)


def test_something_was_learnt(learnt):
    for name in ("WienerSGD", "WienerAdamW", "SNRAnnealing(AdamW)", "SNRAnnealing(AdamW), sampled"):
        assert 0 < learnt["4 ranks"][name]["agreement"][1] < 0.9
    for name in ("WienerSGD", "WienerAdamW", "WienerFilter(SGD)"):
        gain = learnt["4 ranks"][name]["gain"]
        assert gain.max() > 1.2 * gain.min()
    assert any(key.startswith("average") for key in learnt["4 ranks"]["WeightAveraging(SGD)"])
