"""On several ranks every optimizer is what one process would be on the joined batch, or says that it cannot be."""

import contextlib

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from convopt import (
    ConvolutionalSGD,
    ConvolutionalSGDv2,
    LaplacianSmoothingSGD,
    LocalLossConvSGD,
    SNRAnnealing,
    WienerAdamW,
    WienerSGD,
)

STEPS = 200
ANNEALING = {"warmup": 5, "power": 1.0}


class AnnealedAdamW(torch.optim.AdamW):
    def __init__(self, params, sample=None, **options):
        super().__init__(params, **options)
        self.annealing = SNRAnnealing(self, ema=0.9, sample=sample, **ANNEALING)


OPTIMIZERS = {
    "ConvolutionalSGD": lambda groups: ConvolutionalSGD(groups, lr=0.02, kernel_lr=0.05),
    "LocalLossConvSGD": lambda groups: LocalLossConvSGD(groups, lr=0.02, local_lr=0.1),
    "ConvolutionalSGDv2": lambda groups: ConvolutionalSGDv2(groups, lr=0.02, kernel_size=3, kernel_lr=0.5),
    "LaplacianSmoothingSGD": lambda groups: LaplacianSmoothingSGD(groups, lr=0.02),
    "WienerSGD": lambda groups: WienerSGD(groups, lr=0.02, snr_annealing=True, annealing_ema=0.9, **ANNEALING),
    "WienerSGD, halves": lambda groups: WienerSGD(
        groups, lr=0.02, snr_annealing=True, annealing_ema=0.9, second_estimate="half batches", **ANNEALING
    ),
    "WienerAdamW": lambda groups: WienerAdamW(groups, lr=0.002, snr_annealing=True, annealing_ema=0.9, **ANNEALING),
    "SNRAnnealing": lambda groups: AnnealedAdamW(groups, lr=0.002),
}


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def new_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    params = list(model.parameters())
    return OPTIMIZERS[name]([{"params": params[:1], "grid": (6, 5)}, {"params": params[1:]}])


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Eight samples, of which two ranks get four each, and four ranks two."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS, 8, 30, generator=generator, dtype=torch.float64)
    teacher = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    return [(x, (x @ teacher).argmax(1)) for x in images]


def average(loss: torch.Tensor, ranks: int) -> torch.Tensor:
    """The mean over the ranks, as the docstring of ConvolutionalSGD asks for."""
    mean = loss.detach() / ranks
    if ranks > 1:
        dist.all_reduce(mean)
    return mean


def train(name: str, model: nn.Module, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Everything that training on a share of each batch has made: parameters and the optimizer's state."""
    optimizer = new_optimizer(name, model)
    halves = name == "WienerSGD, halves"
    for x, y in batches():
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for part in range(2 if halves else 1):
            # Of one process' halves, each rank has its share: backward averages the gradients of each half.
            share = slice(part, None, 2) if halves else slice(None)
            loss = nn.functional.cross_entropy(model(x[share].chunk(ranks)[rank]), y[share].chunk(ranks)[rank])
            loss.backward()
            if halves and part == 0:
                optimizer.mark_half()
            total += loss.detach()
        if name == "ConvolutionalSGD":
            optimizer.step(loss=average(loss, ranks))
        else:
            optimizer.step()
    return {f"parameter {i}": p.detach() for i, p in enumerate(model.parameters())} | tensors_of(optimizer)


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    saved = optimizer.state_dict()
    named = {f"state {i} {k}": v for i, state in saved["state"].items() for k, v in state.items()}
    named |= {f"group {i} {k}": v for i, group in enumerate(saved["param_groups"]) for k, v in group.items()}
    if isinstance(optimizer, AnnealedAdamW):
        named["annealing"] = optimizer.annealing.state_dict()["statistics"]
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


@contextlib.contextmanager
def process_group(rank: int, ranks: int, rendezvous: str):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def train_all(rank: int, ranks: int, folder: str) -> None:
    with process_group(rank, ranks, f"{folder}/rendezvous"):
        learnt = {name: train(name, DistributedDataParallel(new_model()), rank, ranks) for name in OPTIMIZERS}
        torch.save(learnt, f"{folder}/{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4], ids="{} ranks".format)
def test_all_ranks_are_one_process_on_the_joined_batch(ranks, tmp_path, subtests):
    """One start of the processes for all optimizers: it takes longer than they do."""
    torch.multiprocessing.spawn(train_all, (ranks, str(tmp_path)), nprocs=ranks)
    learnt_by_ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    check_that_something_was_learnt(learnt_by_ranks[0])
    for name in OPTIMIZERS:
        with subtests.test(name):
            first, *others = [learnt[name] for learnt in learnt_by_ranks]
            for other in others:
                assert all(torch.equal(first[key], other[key]) for key in first)
            alone = train(name, new_model(), 0, 1)
            assert first.keys() == alone.keys()
            for key in first:
                torch.testing.assert_close(
                    first[key], alone[key], rtol=1e-3, atol=1e-5, msg=lambda text, key=key: key + text
                )


def check_that_something_was_learnt(learnt: dict[str, dict[str, torch.Tensor]]) -> None:
    """The ranks agree about kernels and factors that have moved."""
    uniform = torch.full((5,), 0.2)
    assert not torch.allclose(learnt["ConvolutionalSGD"]["group 0 kernel"], uniform, atol=1e-2)
    assert not torch.allclose(learnt["LocalLossConvSGD"]["state 0 kernel"], uniform, atol=1e-2)
    start = new_optimizer("ConvolutionalSGDv2", new_model()).param_groups[0]["logits_2d"]
    assert not torch.allclose(learnt["ConvolutionalSGDv2"]["group 0 logits_2d"], start, atol=1e-4)
    for name in ("WienerSGD", "WienerSGD, halves", "WienerAdamW"):
        steps, product, power, _, largest, _ = learnt[name]["group 0 annealing"]
        assert steps > 100
        assert product / power < largest


def refused(call) -> str:
    with pytest.raises(RuntimeError) as error:
        call()
    return str(error.value)


def step_on_shards(model: nn.Module, make) -> list[torch.Tensor]:
    """The local parameters before a step that must be refused."""
    optimizer = make(model.parameters())
    model(torch.randn(4, 32)).sum().backward()
    before = [local(p).clone() for p in model.parameters()]
    message = refused(optimizer.step)
    assert "DTensor" in message
    assert "DistributedDataParallel" in message
    return before


TAKES_SHARDS = ("WienerSGD", "WienerSGD, halves", "WienerAdamW", "SNRAnnealing")
"""Trained on shards in test_sharded.py."""


def check_refusals_of_layouts(ranks: int) -> None:
    """What would part a grid, or cannot be sampled, is refused by name."""
    mesh = init_device_mesh("cpu", (ranks,))
    for axis, make, said in (
        (0, lambda p: WienerSGD([("image", p)], lr=0.1, grid=(8, 32)), "image"),
        (1, lambda p: WienerAdamW([("layer", p)], lr=0.1, grid=(4, 8)), "layer"),
        (1, lambda p: AnnealedAdamW([p], lr=0.1, sample=16), "sample=None"),
    ):
        p = nn.Parameter(distribute_tensor(torch.randn(8, 32), mesh, [Shard(axis)]))
        p.grad = torch.ones_like(p)
        before, optimizer = local(p).clone(), make(p)
        assert said in refused(optimizer.step)
        assert torch.equal(before, local(p))
        assert not optimizer.state
    p.grad = distribute_tensor(torch.ones(8, 32), mesh, [Replicate()])
    assert "redistribute" in refused(WienerSGD([p], lr=0.1).step)


def local(p: torch.Tensor) -> torch.Tensor:
    return (p.to_local() if hasattr(p, "to_local") else p).detach()


def check_refusals(rank: int, ranks: int, folder: str) -> None:
    with process_group(rank, ranks, f"{folder}/rendezvous"):
        check_refusals_of_layouts(ranks)
        for name in OPTIMIZERS:
            for shard in (fully_shard, FullyShardedDataParallel):
                if shard is fully_shard and name in TAKES_SHARDS:
                    continue
                options = {} if shard is fully_shard else {"use_orig_params": True, "device_id": torch.device("cpu")}
                model = shard(nn.Linear(32, 8), **options)
                before = step_on_shards(model, OPTIMIZERS[name])
                assert all(torch.equal(a, local(b)) for a, b in zip(before, model.parameters(), strict=True))
        model = new_model()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = new_optimizer("ConvolutionalSGD", model)
        loss = model(torch.ones(1, 30, dtype=torch.float64)).sum()
        loss.backward()
        for call in (lambda: optimizer.step(lambda: loss), lambda: optimizer.step(loss=loss)):
            assert "step(loss=average)" in refused(call)
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        optimizer.step()
        if rank == 0:  # no rank waits for another
            optimizer.step(loss=loss.item())
            optimizer.step(loss=loss.detach())


@pytest.mark.slow
def test_what_two_ranks_would_get_wrong_is_refused_before_the_first_update(tmp_path):
    torch.multiprocessing.spawn(check_refusals, (2, str(tmp_path)), nprocs=2)
