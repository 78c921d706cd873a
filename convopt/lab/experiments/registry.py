"""All experiments, page by page."""

import itertools
from operator import attrgetter

from convopt.lab.experiments import (
    adversarial,
    baselines,
    batch_size,
    beyond_mnist,
    controls,
    factorial,
    kernel_evolution,
    standard,
    stress_test,
    tuned_filters,
    wiener,
)
from convopt.lab.experiments.arms import Experiment
from convopt.lab.experiments.search import Search
from convopt.lab.names import require_known
from convopt.lab.runs import Run

_CATALOGUE = (
    wiener,
    standard,
    stress_test,
    batch_size,
    kernel_evolution,
    controls,
    adversarial,
    baselines,
    factorial,
    beyond_mnist,
    tuned_filters,
)
"""The modules of a page stand together."""

PAGES: dict[str, tuple[Experiment, ...]] = {
    page: tuple(experiment for module in modules for experiment in module.EXPERIMENTS)
    for page, modules in itertools.groupby(_CATALOGUE, attrgetter("PAGE"))
}
"""The experiments of each page, by the stem of its notebook."""

EXPERIMENTS = {experiment.name: experiment for of_page in PAGES.values() for experiment in of_page}
"""All experiments by name."""

SEARCHES: dict[str, Search] = {
    name: search
    for page in (wiener, batch_size, baselines, factorial, beyond_mnist, tuned_filters)
    for name, search in page.SEARCHES.items()
}
"""The trials of those experiments that choose settings, by the experiment's name."""


def page_of(name: str) -> str:
    """The page that tells of the experiment called ``name``, or ``name`` where there is none."""
    return next((page for page, told in PAGES.items() if any(each.name == name for each in told)), name)


def find(name: str) -> Experiment:
    """The experiment called ``name``; ValueError lists the known ones."""
    require_known("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


def on_page(name: str) -> list[Experiment]:
    """All experiments of the page called ``name``, or the experiment called so; ValueError lists the known ones."""
    require_known("experiment", name, {*EXPERIMENTS, *PAGES})
    return [found for found in EXPERIMENTS.values() if name in (page_of(found.name), found.name)]


def tuning_runs() -> frozenset[Run]:
    """The published runs of searches that no comparison has, too."""
    searches, others = (
        {run for each in EXPERIMENTS.values() if each.is_search is is_search for run in each.runs()}
        for is_search in (True, False)
    )
    return frozenset(searches - others)


def published_runs() -> list[Run]:
    """Every run of the published experiments, once."""
    published = (experiment for experiment in EXPERIMENTS.values() if experiment.published)
    return list(dict.fromkeys(run for experiment in published for run in experiment.runs()))
