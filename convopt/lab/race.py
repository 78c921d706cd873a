"""A race of optimizers that the reader sets up, starts and stops in JupyterLab."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import ipywidgets

from convopt.lab import arithmetic, data, figures, training
from convopt.lab.experiments import Recipe, Setting
from convopt.lab.records import Record
from convopt.lab.runs import Run

SECONDS_PER_FRAME = 0.5
"""Drawing takes as long as an epoch on the digits: the figure follows at this distance."""


def in_turns(runs: dict[str, Run]) -> Iterator[dict[str, Record]]:
    """Train runs side by side, an epoch each in turn; all their records so far, after each epoch of each.

    One that diverges has no further turn.
    """
    courses = {label: training.train_by_epoch(run) for label, run in runs.items()}
    records: dict[str, Record] = {}
    while courses:
        for label, course in list(courses.items()):
            record = next(course, None)
            if record is None:
                del courses[label]
            else:
                records = {**records, label: record}
                yield records


class Race(ipywidgets.VBox):
    """Controls, a start and a stop button, a progress bar, and curves that grow with every epoch.

    Nothing is trained before the start button is clicked. The training has a thread of its own, so that the buttons
    answer: a stop takes effect when the epoch at hand is over, and what was trained until then stays in the figure.
    What goes wrong is told below the buttons. No record is kept.

    Args:
        recipes: what may race, by label; all of them do unless the reader chooses.
        setting: the model and how many images; the controls begin with its epochs, label noise and batch size.
    """

    def __init__(self, recipes: dict[str, Recipe], setting: Setting):
        self._recipes, self._setting = recipes, setting
        at_hand = [
            name
            for name, entry in data.ENTRIES.items()
            if entry.description.task == "classification" and data.is_at_hand(name)
        ]
        look = {"style": {"description_width": "11em"}, "layout": {"width": "32em"}}
        self.dataset = ipywidgets.Dropdown(description="data", options=at_hand, value="digits", **look)
        self.optimizers = {
            label: ipywidgets.Checkbox(value=True, description=label, indent=False, layout={"width": "auto"})
            for label in recipes
        }
        self.label_noise = ipywidgets.BoundedFloatText(
            setting.label_noise, min=0, max=0.9, step=0.05, description="label noise", **look
        )
        self.batch_size = ipywidgets.BoundedIntText(
            setting.batch_size, min=1, max=1024, description="batch size", **look
        )
        self.epochs = ipywidgets.BoundedIntText(setting.epochs, min=1, max=100, description="epochs", **look)
        self.start = ipywidgets.Button(description="Start", icon="play")
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = ipywidgets.IntProgress(description="progress", min=0, max=1)
        self.status = ipywidgets.Label()
        self.image = ipywidgets.HTML()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.start.on_click(self._start)
        self.stop.on_click(self._stop)
        self._draw({}, list(recipes), "not started")
        super().__init__(
            [
                ipywidgets.HBox(list(self.optimizers.values()), layout={"flex_flow": "row wrap"}),
                *(self.dataset, self.label_noise, self.batch_size, self.epochs),
                ipywidgets.HBox([self.start, self.stop, self.progress]),
                self.status,
                self.image,
            ]
        )

    def wait(self, seconds: float) -> None:
        """Until nothing trains. TimeoutError if that takes longer."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"the race goes on after {seconds} seconds")

    def _start(self, _: ipywidgets.Button) -> None:
        if self.start.disabled:  # a second click before the first took effect in the browser
            return
        chosen = [label for label, box in self.optimizers.items() if box.value]
        if not chosen:
            self.status.value = "Choose an optimizer."
            return
        setting = replace(self._setting, label_noise=self.label_noise.value, batch_size=self.batch_size.value)
        runs = {
            label: setting.run(self._recipes[label], self.dataset.value, self.epochs.value, seed=0) for label in chosen
        }
        self.start.disabled, self.stop.disabled = True, False
        self.status.value = "Training."
        self.progress.value, self.progress.max = 0, len(runs) * self.epochs.value
        self._stopping.clear()
        self._thread = threading.Thread(target=self._train, args=[runs], daemon=True)
        self._thread.start()

    def _stop(self, _: ipywidgets.Button) -> None:
        self._stopping.set()
        self.status.value = "Stopping after this epoch."

    def _train(self, runs: dict[str, Run]) -> None:
        run = next(iter(runs.values()))
        title = f"{run.dataset}, batch {run.batch_size}, {100 * run.label_noise:g} % label noise"
        records: dict[str, Record] = {}
        drawn = time.monotonic()
        try:
            with arithmetic.threads(1):
                for records in in_turns(runs):
                    self.progress.value += 1
                    if time.monotonic() > drawn + SECONDS_PER_FRAME:
                        self._draw(records, list(runs), title)
                        drawn = time.monotonic()
                    if self._stopping.is_set():
                        break
            self._draw(records, list(runs), title)
            diverged = [label for label, record in records.items() if record.status == "diverged"]
            outcome = "Stopped." if self._stopping.is_set() else "Finished."
            self.status.value = " ".join([outcome, *(f"{label} diverged." for label in diverged)])
        except Exception as error:  # in this thread nobody else would tell it
            self.status.value = f"{type(error).__name__}: {error}"
        finally:
            self.start.disabled, self.stop.disabled = False, True

    def _draw(self, records: dict[str, Record], labels: list[str], title: str) -> None:
        arms = {label: [records[label]] if label in records else [] for label in labels}
        figure = figures.race(arms, title)
        self.image.value = figures.to_html(figure, "test accuracy and training loss by epoch; " + title).data
