"""Methods of training: optimizers, filters, annealings, schedules, losses and averages, which combine freely.

One registry for each kind of part. A part is listed where it is defined, in one of the modules here.
"""

from convopt.lab.methods import baselines, controls, inputs, ours, related
from convopt.lab.methods.method import (
    ANNEALINGS,
    AVERAGINGS,
    FILTERS,
    INPUTS,
    LOSSES,
    OPTIMIZERS,
    Arrangement,
    Batch,
    Method,
    Optimizers,
    Setup,
    Wrapper,
    named,
)
from convopt.lab.methods.ours import OURS
from convopt.lab.methods.schedules import SCHEDULES, Schedule

__all__ = [
    "ANNEALINGS",
    "AVERAGINGS",
    "FILTERS",
    "INPUTS",
    "LOSSES",
    "OPTIMIZERS",
    "OURS",
    "SCHEDULES",
    "Arrangement",
    "Batch",
    "Method",
    "Optimizers",
    "Schedule",
    "Setup",
    "Wrapper",
    "baselines",
    "controls",
    "inputs",
    "named",
    "ours",
    "related",
]
