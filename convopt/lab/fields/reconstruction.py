"""Fields reconstructed by several methods side by side, stopped by held-out measurements."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from convopt import FieldAdam
from convopt.lab.fields.methods import ANNEALED, METHODS, RATES
from convopt.lab.fields.tasks import Problem
from convopt.optim.fields import Learnt

STEPS, EVERY = 1000, 25
"""Steps of a run, and after how many it is looked at."""


class Outcome(NamedTuple):
    """What the held-out measurements chose for one seed.

    Attributes:
        score: in dB, or the task's own unit.
        rate: the learning rate.
        step: after which it was stopped.
        error: of the held-out measurements there.
    """

    score: float
    rate: float
    step: int
    error: float


Outcomes = Mapping[str, Sequence[Outcome]]
"""By method, of each seed."""


def reconstruct(
    tasks: Sequence[Problem],
    names: Sequence[str],
    seeds: Sequence[int],
    steps: int = STEPS,
    rates: Sequence[float] = RATES,
) -> dict[str, list[Outcome]]:
    """Run each of :data:`METHODS` named at each rate on one task of several seeds, from zero, on the same batches.

    Returns:
        By method, for each seed the outcome at the rate and step of the smallest held-out error.
    """
    runs = [(name, rate) for name in names for rate in rates]
    errors, scores = [], []
    for step, courses in enumerate(_courses(tasks, runs, seeds, steps), 1):
        if step % EVERY == 0:
            now = _by_seed([fields for fields, _ in courses], len(tasks))
            errors.append(torch.stack([task.errors(each) for task, each in zip(tasks, now, strict=True)]))
            scores.append(torch.stack([task.scores(each) for task, each in zip(tasks, now, strict=True)]))
    return {
        name: [
            _chosen(errors, scores, seed, [i for i, run in enumerate(runs) if run[0] == name], rates)
            for seed in range(len(tasks))
        ]
        for name in names
    }


class Reconstruction(NamedTuple):
    """A field where it was stopped.

    Attributes:
        field: its values, or those of all fields where a task has several.
        learnt: what FieldAdam has learnt about it; None of other methods.
    """

    field: Tensor
    learnt: Learnt | None


def reconstruct_again(
    task: Problem, chosen: Mapping[str, Outcome], seed: int, steps: int = STEPS
) -> dict[str, Reconstruction]:
    """What each method makes of a task of one seed at the rate and the step, of so many, that were chosen for it."""
    runs = [(name, outcome.rate) for name, outcome in chosen.items()]
    last, found = max(outcome.step for outcome in chosen.values()), {}
    for step, courses in enumerate(_courses([task], runs, [seed], steps), 1):
        for (name, outcome), (fields, optimizer) in zip(chosen.items(), courses, strict=True):
            if step == outcome.step:
                learnt = optimizer.learnt()["0"] if isinstance(optimizer, FieldAdam) else None
                found[name] = Reconstruction(fields.detach().squeeze(0).clone(), learnt)
        if step == last:
            break
    return {name: found[name] for name in chosen}


def _courses(
    tasks: Sequence[Problem], runs: Sequence[tuple[str, float]], seeds: Sequence[int], steps: int
) -> Iterator[list[tuple[Tensor, Optimizer]]]:
    """After each step the fields of each run, a method and its rate, seed after seed; and their optimizer."""
    of_one_seed, *grid = tasks[0].shape
    batches = tasks[0].count // tasks[0].batch
    fields = [torch.zeros(len(tasks) * of_one_seed, *grid, requires_grad=True) for _ in runs]
    optimizers = [
        METHODS[name](field, rate, grid, batches, steps) for (name, rate), field in zip(runs, fields, strict=True)
    ]
    for step, chosen in enumerate(_batches(tasks, seeds, steps)):
        now = _by_seed(fields, len(tasks))
        of_task = [task.gradients(each, which) for task, each, which in zip(tasks, now, chosen, strict=True)]
        for field, gradient in zip(fields, torch.stack(of_task).unbind(1), strict=True):
            field.grad = gradient.reshape(field.shape)
        for (name, rate), optimizer in zip(runs, optimizers, strict=True):
            if name in ANNEALED:
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
        yield list(zip(fields, optimizers, strict=True))


def _by_seed(fields: Sequence[Tensor], seeds: int) -> Tensor:
    """The fields of several runs, ``(seeds, runs, size)``."""
    return torch.stack([each.detach().reshape(seeds, -1) for each in fields], 1)


def _batches(tasks: Sequence[Problem], seeds: Sequence[int], steps: int) -> Iterator[list[Tensor]]:
    """For each step the training measurements of each task's batch, drawn without replacement within an epoch."""
    generators = [Generator().manual_seed(7 + seed) for seed in seeds]
    size, count = tasks[0].batch, tasks[0].count
    for step in range(steps):
        at = step % (count // size)
        if at == 0:
            orders = [torch.randperm(count, generator=generator) for generator in generators]
        yield [order[at * size : (at + 1) * size] for order in orders]


def _chosen(
    errors: Sequence[Tensor], scores: Sequence[Tensor], seed: int, runs: Sequence[int], rates: Sequence[float]
) -> Outcome:
    held_out = torch.stack([each[seed, list(runs)] for each in errors]).nan_to_num(math.inf, math.inf)
    step, rate = divmod(int(held_out.argmin()), len(runs))
    chosen = seed, runs[rate]
    return Outcome(scores[step][chosen].item(), rates[rate], (step + 1) * EVERY, errors[step][chosen].item())
