"""Training on shards, for ``torchrun``: ``sharded.py FOLDER MODE...`` leaves what was learnt in the folder.

Modes: "save" trains parameters of ``fully_shard`` and saves a checkpoint halfway, "resume" goes on from that of two
ranks, "tensor" trains in tensor parallel.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from test_distributed import STEPS, batches, new_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from convopt import SNRAnnealing, WeightAveraging, WienerAdamW, WienerFilter, WienerSGD

HALF = STEPS // 2
ANNEALING = {"warmup": 5, "power": 1.0}


def wiener(cls: type, lr: float):
    return lambda groups: (cls(groups, lr=lr, snr_annealing=True, annealing_ema=0.9, **ANNEALING), None)


def attached(cls: type, base: type, lr: float, **options: Any):
    def make(groups):
        optimizer = base(groups, lr=lr)
        return optimizer, cls(optimizer, **options)

    return make


AdamW, SGD = torch.optim.AdamW, torch.optim.SGD
TRAININGS = {
    "WienerSGD": wiener(WienerSGD, 0.02),
    "WienerAdamW": wiener(WienerAdamW, 0.002),
    "SNRAnnealing(AdamW)": attached(SNRAnnealing, AdamW, 0.002, ema=0.9, **ANNEALING),
    "SNRAnnealing(AdamW), sampled": attached(SNRAnnealing, AdamW, 0.002, ema=0.9, sample=60, **ANNEALING),
    "WienerFilter(SGD)": attached(WienerFilter, SGD, 0.02),
    "WeightAveraging(SGD)": attached(WeightAveraging, SGD, 0.5),
}
"""Of param groups, an optimizer and what is attached to it."""


class Training:
    def __init__(self, name: str, shard: Callable[[nn.Module], Any] = lambda model: None):
        self.model: nn.Module = new_model()
        shard(self.model)
        first, *others = self.model.parameters()
        self.optimizer, self.attached = TRAININGS[name]([{"params": [first], "grid": (6, 5)}, {"params": others}])

    def run(self, steps: slice, rank: int = 0, ranks: int = 1) -> None:
        for x, y in batches()[steps]:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x.chunk(ranks)[rank]), y.chunk(ranks)[rank])
            loss.backward()
            self.optimizer.step()

    def saved(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        more = {} if self.attached is None else {"attached": self.attached}
        return {"model": model, "optimizer": optimizer, **more}

    def load(self, folder: Path) -> None:
        saved = self.saved()
        dcp.load(saved, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])

    def learnt(self) -> dict[str, torch.Tensor]:
        """The parameters, and what was learnt of the gradients."""
        learnt = {name: whole(p) for name, p in self.model.named_parameters()}
        if hasattr(self.optimizer, "snr"):
            snr = self.optimizer.snr()
            learnt |= {"agreement": torch.tensor([snr.rho, snr.factor]), "gain": snr.parameters["0"].gain}
        if isinstance(self.attached, SNRAnnealing):
            learnt["agreement"] = torch.tensor([self.attached.rho(), self.attached.factor()])
        if isinstance(self.attached, WienerFilter):
            learnt["gain"] = self.attached.coherence()["0"].gain
        if isinstance(self.attached, WeightAveraging):
            learnt["slope"] = torch.tensor(self.attached.slope())
            learnt |= {f"mean {i}": whole(each) for i, each in enumerate(self.attached.state_dict()["averages"])}
            with self.attached.averaged() as is_averaged:
                learnt |= {f"average {name}": whole(p) for name, p in self.model.named_parameters() if is_averaged}
        return learnt


def whole(p: torch.Tensor) -> torch.Tensor:
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()


def in_tensor_parallel(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def main(folder: Path, *modes: str) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for mode in modes:
        learnt = learn(folder, mode)
        if dist.get_rank() == 0:
            torch.save(learnt, folder / f"{mode}-{dist.get_world_size()}.pt")
    dist.destroy_process_group()


def learn(folder: Path, mode: str) -> dict[str, dict[str, torch.Tensor]]:
    """What each training has learnt."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    share = (0, 1) if mode == "tensor" else (rank, ranks)
    learnt = {}
    for name in TRAININGS:
        if mode == "tensor" and "sampled" in name:
            continue  # refused, see test_distributed.py
        training = Training(name, in_tensor_parallel if mode == "tensor" else fully_shard)
        if mode == "resume":
            training.load(folder / "2" / name)
        else:
            training.run(slice(HALF), *share)
        if mode == "save":
            dcp.save(training.saved(), checkpoint_id=folder / str(ranks) / name)
        training.run(slice(HALF, None), *share)
        learnt[name] = training.learnt()
    return learnt


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
