"""How far each method ends from the best fixed width: ``python -m convopt.lab.fields.regret FILE.json``."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from convopt.lab.fields.methods import ANNEALED, FIXED, METHODS, RATES, Make
from convopt.lab.fields.tasks import TASKS, Task

STEPS, EVERY = 1000, 25
"""Steps of a run, and after how many it is looked at."""

SEEDS = tuple(range(10))


class Outcome(NamedTuple):
    """What the held-out measurements chose for one seed.

    Attributes:
        psnr: against the truth, in dB.
        rate: the learning rate.
        step: after which it was stopped.
    """

    psnr: float
    rate: float
    step: int


def reconstruct(
    tasks: Sequence[Task],
    methods: Mapping[str, Make],
    seeds: Sequence[int],
    steps: int = STEPS,
    rates: Sequence[float] = RATES,
) -> dict[str, list[Outcome]]:
    """Run each method at each rate on one task of several seeds, from zero, on the same batches.

    Returns:
        By method, for each seed the outcome at the rate and step of the smallest held-out error.
    """
    grid, batch = tasks[0].truth.shape, tasks[0].batch
    batches = len(tasks[0].train.values) // batch
    runs = [(name, rate) for name in methods for rate in rates]
    fields = [torch.zeros(len(tasks), *grid, requires_grad=True) for _ in runs]
    optimizers = [
        methods[name](field, rate, grid, batches, steps) for (name, rate), field in zip(runs, fields, strict=True)
    ]
    held_out = [task.held_out.as_matrix(grid.numel()) for task in tasks]
    errors, scores = [], []
    for step, chosen in enumerate(_batches(tasks, seeds, steps), 1):
        now = torch.stack([field.detach().flatten(1) for field in fields], 1)
        for field, gradient in zip(fields, _gradients(now, tasks, chosen).unbind(1), strict=True):
            field.grad = gradient.view(field.shape)
        for (name, rate), optimizer in zip(runs, optimizers, strict=True):
            if name in ANNEALED:
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
            optimizer.step()
        if step % EVERY == 0:
            now = torch.stack([field.detach().flatten(1) for field in fields], 1)
            predicted = [each @ matrix.T for each, matrix in zip(now, held_out, strict=True)]
            errors.append(_mean_squares(predicted, [task.held_out.values for task in tasks]))
            scores.append(-10 * _mean_squares(list(now), [task.truth.flatten() for task in tasks]).log10())
    return {
        name: [
            _chosen(errors, scores, seed, [i for i, run in enumerate(runs) if run[0] == name], rates)
            for seed in range(len(tasks))
        ]
        for name in methods
    }


def _batches(tasks: Sequence[Task], seeds: Sequence[int], steps: int) -> Iterable[list[Tensor]]:
    """For each step the training measurements of each task's batch, drawn without replacement within an epoch."""
    generators = [Generator().manual_seed(7 + seed) for seed in seeds]
    size, count = tasks[0].batch, len(tasks[0].train.values)
    for step in range(steps):
        at = step % (count // size)
        if at == 0:
            orders = [torch.randperm(count, generator=generator) for generator in generators]
        yield [order[at * size : (at + 1) * size] for order in orders]


def _gradients(fields: Tensor, tasks: Sequence[Task], chosen: Sequence[Tensor]) -> Tensor:
    """Of half the mean squared error, by fields ``(seeds, runs, size)``."""
    gradients = torch.empty_like(fields)
    for i, (task, which) in enumerate(zip(tasks, chosen, strict=True)):
        measured = task.train.only(which)
        rows = measured.as_matrix(fields.shape[2])
        gradients[i] = (fields[i] @ rows.T - measured.values) @ rows / len(which)
    return gradients


def _mean_squares(values: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    return torch.stack([(v - t).square().mean(1) for v, t in zip(values, targets, strict=True)])


def _chosen(
    errors: Sequence[Tensor], scores: Sequence[Tensor], seed: int, runs: Sequence[int], rates: Sequence[float]
) -> Outcome:
    held_out = torch.stack([each[seed, list(runs)] for each in errors]).nan_to_num(math.inf, math.inf)
    step, rate = divmod(int(held_out.argmin()), len(runs))
    return Outcome(scores[step][seed, runs[rate]].item(), rates[rate], (step + 1) * EVERY)


def regret(outcomes: Mapping[str, Sequence[Outcome]], method: str = "FieldAdam") -> dict[str, Any]:
    """A method's PSNR against that of the fixed width whose mean over seeds is best, which only the truth can tell."""
    means = {name: sum(each.psnr for each in of_seeds) / len(of_seeds) for name, of_seeds in outcomes.items()}
    best = max(FIXED.keys() & means.keys(), key=means.__getitem__)
    by_seed = [b.psnr - ours.psnr for b, ours in zip(outcomes[best], outcomes[method], strict=True)]
    return {"best": best, "psnr": means, "regret": means[best] - means[method], "regret by seed": by_seed}


def main(file: Path) -> None:
    """Measure all tasks at all levels of noise, and write what was found after each."""
    found = json.loads(file.read_text()) if file.exists() else {}
    for name, (make, levels) in TASKS.items():
        for noise in levels:
            key = f"{name}, {noise}"
            if key not in found:
                outcomes = reconstruct([make(noise, seed) for seed in SEEDS], METHODS, SEEDS)
                found[key] = {**regret(outcomes), "outcomes": outcomes}
                file.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
