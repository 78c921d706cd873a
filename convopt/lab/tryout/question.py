"""From one's own data and a budget to an answer: what ``convopt try`` and the notebook 14-your-data share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure

from convopt.lab import cluster, figures
from convopt.lab.data import full_name, load
from convopt.lab.folders import require_writable
from convopt.lab.parameters import check_parameters
from convopt.lab.records import Record, Store
from convopt.lab.report import Table
from convopt.lab.tryout import answer, look
from convopt.lab.tryout.plan import Plan, make_plan
from convopt.lab.tryout.run import carry_out

SHORT = 30
"""Seconds. A budget as short as this is spent in this process: workers would not have started before half of it."""

STARTING = 12
"""Seconds that workers take to start, for the search and again for the comparison."""


@dataclass(frozen=True)
class Answer:
    """What came of a question, in words, as a table, as a figure and as code.

    Attributes:
        seen: lines on the data.
        outcome: what was trained.
    """

    seen: list[str]
    outcome: answer.Outcome

    @property
    def paragraph(self) -> str:
        """Whether anything here helps, and by how much."""
        return answer.paragraph(self.outcome)

    @property
    def table(self) -> Table:
        """A row for each method."""
        return answer.table(self.outcome)

    @property
    def snippet(self) -> str:
        """Python for the reader's own training loop: the recommended method, or else the best baseline."""
        return answer.snippet(self.outcome)

    @property
    def records(self) -> list[Record]:
        """All that was compared, or, where nothing was, the best trials."""
        compared = [record for of_it in self.outcome.compared.values() for record in of_it]
        return compared or list(self.outcome.chosen.values())

    def figure(self) -> Figure:
        """Each method's seeds, mean and interval."""
        return figures.tried(self.outcome)

    def page(self) -> str:
        """All of it as one self-contained page of HTML."""
        drawn = figures.to_html(self.figure(), self.paragraph)
        return answer.page(self.outcome, self.seen, drawn.data)


class Question:
    """Does anything here help on these data? When this is made, all is checked and nothing is trained yet.

    Args:
        data: the name of a data set, or the path of one's own.
        target: of a table, the column to predict; "" for all others.
        model: a network's name or ``package.module:function``; "" takes a small one that fits.
        budget_minutes: what looking, planning and training may take together. Time between them does not count.
        store: folder of records, of which none is trained again; "" keeps them only as long as this object lives.
        jobs: worker processes; 0 takes one per core, or only this process for a budget of half a minute.

    ValueError in one sentence: a value that a parameter must not have, data that cannot be used, or a network that does
    not take them.

    Attributes:
        dataset: what is trained on.
        network: what is trained.
    """

    def __init__(
        self,
        data: str,
        target: str = "",
        model: str = "",
        budget_minutes: float = 10.0,
        store: str = "",
        jobs: int = 0,
    ):
        values = {"data": data, "target": target, "model": model, "budget_minutes": budget_minutes}
        check_parameters(("jobs",), **values, store=store, jobs=jobs)
        self._spent = 0.0
        self._budget = 60 * budget_minutes
        self._jobs = jobs or (1 if self._budget <= SHORT else cluster.available_cores())
        self._name = full_name(data, target or None, called="data")
        if not store:
            self._kept = TemporaryDirectory(prefix="convopt-try-")
        self._store = Store(store or self._kept.name)
        require_writable("store", Path(self._store.folder))
        with self._counted():
            self.dataset = load(self._name)
            self.network = model or look.fitting_network(self.dataset)
            look.require_fit(self.network, self.dataset)

    @cached_property
    def seen(self) -> list[str]:
        """Lines on inputs, targets, classes, and the share of labels that look wrong."""
        with self._counted():
            return look.described(self.dataset)

    @cached_property
    def plan(self) -> Plan:
        """What fits into the rest of the budget, by the time that a few steps take here."""
        left = self._budget - self._spent - (STARTING if self._jobs > 1 else 0)
        with self._counted():
            return make_plan(self._name, self.network, max(1.0, left), self._jobs)

    def answer(self) -> Answer:
        """Train what was planned, until the budget ends. Interrupted, it answers with what it has.

        Raises:
            SweepError: a run raised an error.
            KeyboardInterrupt: before there was anything to answer with.
        """
        seen, planned = self.seen, self.plan
        begun = time.monotonic() - self._spent
        return Answer(seen, carry_out(planned, self._store, self._budget, self._jobs, begun))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """What happens within is paid from the budget."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - start
