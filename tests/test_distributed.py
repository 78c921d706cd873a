"""With DistributedDataParallel every rank anneals and filters alike, as one process would on the joined batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convopt import SNRAnnealing, WienerSGD

STEPS = 30


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 30, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(STEPS)
    ]


def train(kind: str, model: nn.Module, rank: int, ranks: int) -> tuple[list[torch.Tensor], float]:
    """The parameters after training on a share of each batch, and the annealing's factor."""
    params = list(model.parameters())
    if kind == "WienerSGD":
        groups = [{"params": params[:1], "grid": (6, 5)}, {"params": params[1:]}]
        optimizer = WienerSGD(groups, lr=0.05, warmup=5, every=1, annealing_ema=0.9)
    else:
        optimizer = torch.optim.SGD(params, lr=0.05, momentum=0.9)
        annealing = SNRAnnealing(optimizer, warmup=5, ema=0.9)
    for x, y in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.chunk(ranks)[rank]), y.chunk(ranks)[rank]).backward()
        optimizer.step()
    factor = optimizer.snr().factor if kind == "WienerSGD" else annealing.factor()
    return [p.detach() for p in params], factor


def rank_process(rank: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        torch.save(train(kind, DistributedDataParallel(new_model()), rank, 2), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["WienerSGD", "SNRAnnealing"])
def test_two_ranks_are_one_process_on_the_joined_batch(kind, tmp_path):
    torch.multiprocessing.spawn(rank_process, (kind, str(tmp_path)), nprocs=2)
    (first, factor), (second, other_factor) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert factor == other_factor < 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    alone, factor_alone = train(kind, new_model(), 0, 1)
    assert factor == pytest.approx(factor_alone, rel=1e-3)
    for a, b in zip(first, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
