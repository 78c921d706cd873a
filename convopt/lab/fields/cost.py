"""What a step of FieldAdam takes."""

import statistics
import time

import torch

from convopt import FieldAdam
from convopt.lab import arithmetic

BLOCK = 10
"""Steps that are timed together: one in so many fits a law anew."""


def step_seconds(side: int = 256, rounds: int = 20) -> dict[str, float]:
    """Median seconds of a step on a field of ``(side, side)``, one thread, Adam and FieldAdam in turn."""
    fields = {name: torch.zeros(side, side, requires_grad=True) for name in ("Adam", "FieldAdam")}
    optimizers = {
        "Adam": torch.optim.Adam([fields["Adam"]], lr=1e-3),
        "FieldAdam": FieldAdam([fields["FieldAdam"]], lr=1e-3, grid=(side, side), batches=100),
    }
    for field in fields.values():
        field.grad = torch.randn(side, side)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    with arithmetic.threads(1):
        for _ in range(rounds):
            for name, optimizer in optimizers.items():
                start = time.perf_counter()
                for _ in range(BLOCK):
                    optimizer.step()
                times[name].append((time.perf_counter() - start) / BLOCK)
    return {name: statistics.median(of_one) for name, of_one in times.items()}
