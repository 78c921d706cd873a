"""Which runs fit into the budget: the same number of trials for each method, then paired seeds of the best."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from convopt import optim
from convopt.lab import arithmetic, data, networks, training
from convopt.lab.experiments import (
    ADAMW,
    COSINE,
    FILTER,
    SGD,
    WIENER_ADAMW,
    WIENER_ALONE,
    Recipe,
    averaged,
    with_options,
)
from convopt.lab.runs import Choice, Run
from convopt.lab.trainer import Trainer, make_model

SGD_RATES, ADAM_RATES = (0.001, 0.005, 0.02, 0.1), (0.0001, 0.0005, 0.002, 0.01)
"""Learning rates that every method on the base of either is tried with."""

HORIZONS = (1 / 3, 1)
"""Shares of the longest training that every method is tried with: how long to train is tuned as the rate is."""

LONGEST = (30, 20, 12, 8, 5, 3)
"""Numbers of epochs, of which the first that fits the budget is the longest training."""

SEEDS = 10
"""That the best of each method are compared on; the budget may end before."""

TUNING_SEED = 1000
"""The seed that settings are chosen on; it is none of those that are compared."""

TUNED, ALL = 0.55, 0.9
"""Shares of the budget after which no run is begun, of the search and of the comparison."""

FEWEST_ROWS = 256
"""Training rows that a plan keeps, however slow the network is."""


@dataclass(frozen=True)
class Method:
    """Something to try.

    Attributes:
        recipe: but for the learning rate.
        rates: learning rates to try.
        ours: whether it is of this project; the others are baselines.
        code: how it is made in the reader's own loop, with ``{lr}`` for the rate.
    """

    recipe: Recipe
    rates: tuple[float, ...]
    ours: bool
    code: str

    def trials(self) -> Iterator[tuple[Recipe, float]]:
        """Each learning rate with each share of the longest training."""
        for lr, share in itertools.product(self.rates, HORIZONS):
            yield with_options(self.recipe, lr=lr), share


_GROUPS = "groups, found = convopt.spatial_param_groups(model, x)  # x: one batch of inputs\n"
_COSINE = "schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)  # step it after each batch\n"
_ADAMW = "optimizer = torch.optim.AdamW(model.parameters(), lr={lr:g})\n"
_SGD = "optimizer = torch.optim.SGD(model.parameters(), lr={lr:g}, momentum=0.9)\n"
_AVERAGING = "averaging = convopt.WeightAveraging(optimizer, model)  # evaluate in `with averaging.averaged():`\n"

_EVERYWHERE = {
    "SGD": Method(SGD, SGD_RATES, False, _SGD),
    "AdamW": Method(ADAMW, ADAM_RATES, False, _ADAMW),
    "AdamW, cosine": Method(replace(ADAMW, schedule=COSINE), ADAM_RATES, False, _ADAMW + _COSINE),
    "SGD + WeightAveraging": Method(averaged(SGD), SGD_RATES, True, _SGD + _AVERAGING),
    "AdamW + WeightAveraging": Method(averaged(ADAMW), ADAM_RATES, True, _ADAMW + _AVERAGING),
}
_DEFAULT = dict(FILTER.options)  # whose code the answer prints
_ON_GRIDS = {
    "WienerSGD": Method(
        with_options(WIENER_ALONE, **_DEFAULT),
        SGD_RATES,
        True,
        _GROUPS + "optimizer = convopt.WienerSGD(groups, lr={lr:g}, momentum=0.9)\n",
    ),
    "WienerAdamW": Method(
        with_options(WIENER_ADAMW, snr_annealing=False, **_DEFAULT),
        ADAM_RATES,
        True,
        _GROUPS + "optimizer = convopt.WienerAdamW(groups, lr={lr:g})\n",
    ),
    "AdamW + WienerFilter, cosine": Method(
        replace(ADAMW, schedule=COSINE, filter=FILTER),
        ADAM_RATES,
        True,
        _GROUPS
        + "optimizer = torch.optim.AdamW(groups, lr={lr:g})\nwiener = convopt.WienerFilter(optimizer)\n"
        + _COSINE,
    ),
}


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        dataset: its full name.
        network: the name of the network, or the reader's own function.
        methods: by label.
        n_train, n_test: rows that are trained on and reported.
        batch_size: rows per step.
        longest: epochs of the longest training.
        seconds: what everything is estimated to take, one run after the other.
        fingerprint: what tells the reader's own data and network from others under their names.
    """

    dataset: str
    network: str
    methods: dict[str, Method]
    n_train: int
    n_test: int
    batch_size: int
    longest: int
    seconds: float
    fingerprint: str

    def __str__(self) -> str:
        trials = len(SGD_RATES) * len(HORIZONS)
        return (
            f"{self.network}, {self.n_train} training rows, batches of {self.batch_size}, at most {self.longest} "
            f"epochs. {len(self.methods)} methods with {trials} trials each, then the best of each on up to {SEEDS} "
            f"paired seeds: about {self.seconds / 60:.1f} minutes of one core."
        )

    def run(self, recipe: Recipe, share: float, seed: int) -> Run:
        """One run: ``share`` of the longest training."""
        return Run(
            dataset=self.dataset,
            n_train=self.n_train,
            n_test=self.n_test,
            batch_size=self.batch_size,
            label_noise=0.0,
            epochs=max(1, round(share * self.longest)),
            model=Choice.of(self.network),
            seed=seed,
            data=self.fingerprint,
            **vars(recipe),
        )

    def search(self) -> dict[Run, str]:
        """The trials, and the method of each, in turns: every method has as many when the budget ends."""
        trials = {label: list(method.trials()) for label, method in self.methods.items()}
        in_turns = itertools.chain.from_iterable(
            [(label, trial) for label, trial in zip(trials, of_turn, strict=True)]
            for of_turn in zip(*trials.values(), strict=True)
        )
        return {self.run(recipe, share, TUNING_SEED): label for label, (recipe, share) in in_turns}


def make_plan(name: str, network: str, budget: float, workers: int) -> Plan:
    """What fits into ``budget`` seconds on so many workers, by the time that a few steps take here."""
    dataset = data.load(name)
    n_train = len(dataset.train)
    batch_size = 16 if n_train < 4000 else 32
    probe = Plan(
        dataset=name,
        network=network,
        methods=dict(_EVERYWHERE),
        n_train=n_train,
        n_test=min(len(dataset.test), 5000),
        batch_size=min(batch_size, n_train),
        longest=1,
        seconds=0.0,
        fingerprint=data.fingerprint(name) + networks.fingerprint(network, dataset.shape, dataset.outputs),
    )
    if _has_grids(probe, dataset):
        probe = replace(probe, methods={**_EVERYWHERE, **_ON_GRIDS})
    steps, evaluation = _times(probe, dataset)
    for longest in LONGEST:
        seconds = _seconds(steps, evaluation, n_train, probe.batch_size, longest)
        if seconds <= ALL * budget * workers:
            return replace(probe, longest=longest, seconds=seconds)
    # Fewer rows, then fewer seeds: the comparison ends with the budget.
    share = ALL * budget * workers / seconds
    fewer = max(min(FEWEST_ROWS, n_train), round(share * n_train))
    return replace(probe, n_train=fewer, longest=longest, seconds=min(seconds, ALL * budget * workers))


def _has_grids(plan: Plan, dataset: data.Dataset) -> bool:
    run = plan.run(WIENER_ALONE, 1, TUNING_SEED)
    with torch.random.fork_rng(devices=[]):
        groups, _ = optim.spatial_param_groups(make_model(run, dataset), dataset.train.x[:2])
    return any(group["grid"] is not None for group in groups)


def _times(plan: Plan, dataset: data.Dataset) -> tuple[dict[str, float], float]:
    """Seconds per step of each method, and of judging the network once per epoch."""
    steps = {}
    with arithmetic.threads(1):
        for label, method in plan.methods.items():
            trainer = Trainer(plan.run(with_options(method.recipe, lr=method.rates[0]), 1, TUNING_SEED), dataset)
            batches = next(trainer.epochs())[:24]
            trainer.train_epoch(batches[:4])
            start = time.perf_counter()
            trainer.train_epoch(batches[4:] or batches)
            steps[label] = (time.perf_counter() - start) / len(batches[4:] or batches)
        start = time.perf_counter()
        for split in (dataset.test.first(plan.n_test), dataset.validation):
            training.evaluate(trainer.model, split, dataset)
        evaluation = time.perf_counter() - start
    return steps, evaluation


def _seconds(steps: dict[str, float], evaluation: float, n_train: int, batch_size: int, longest: int) -> float:
    """Of the whole plan: the trials of both horizons, and all seeds at the longest."""
    epochs = longest * (len(SGD_RATES) * sum(HORIZONS) + SEEDS)
    return sum(epochs * (step * (n_train // batch_size) + evaluation) for step in steps.values())
