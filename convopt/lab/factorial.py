"""What the factorial of page 15 says: its cells, the questions that pairs of them answer, and what its search chose."""

from collections.abc import Iterator
from statistics import fmean

import pandas as pd

from convopt.lab.correctness import Pair, accuracies, compare
from convopt.lab.experiments.factorial import (
    ANNEALED_AROUND,
    BASES,
    CELLS,
    COMPARED_WITH,
    CONDITIONS,
    DEFAULT,
    ELSEWHERE,
    GRADIENTS,
    INPUTS,
    NAMES,
    STEPS,
    chosen_settings,
)
from convopt.lab.records import Record, finished
from convopt.lab.report import Table, by_seed, measured
from convopt.lab.stats import Interval
from convopt.lab.study import Results

STRESS_TEST = "15 % label noise"
"""The condition of the whole factorial, beside those of the few combinations."""

GRADIENTS_PER_STEP = {"SAM": 2}
"""Backward passes of a step, where it takes more than one."""


def cells(results: Results) -> dict[tuple[str, str, str], Interval]:
    """The accuracy of each cell with records, by optimizer, gradient and step."""
    found = accuracies(results.arms)
    return {names: found[label] for label, names in NAMES.items() if label in found}


def questions() -> list[Pair]:
    """What is asked of each optimizer: all comparisons of the page, which are corrected together."""
    return [pair for base in BASES for pair in _questions(base) if {pair.treatment, pair.control} <= CELLS.keys()]


def _questions(base: str) -> Iterator[Pair]:
    def pair(question: str, treatment: tuple[str, str], control: tuple[str, str]) -> Pair:
        return Pair(question, *(", ".join((base, *names)) for names in (treatment, control)))

    for gradient in ("fixed kernel", "Wiener filter"):
        yield pair(f"{base}, cosine: does a filter help?", (gradient, "cosine"), ("raw gradient", "cosine"))
    yield pair(
        f"{base}, cosine: is a learned gain better than a fixed one?",
        ("Wiener filter", "cosine"),
        ("fixed kernel", "cosine"),
    )
    yield pair(f"{base}, cosine: does the package's filter help?", (DEFAULT, "cosine"), ("raw gradient", "cosine"))
    yield pair(
        f"{base}, raw gradient: does annealing help a constant rate?",
        ("raw gradient", "SNRAnnealing"),
        ("raw gradient", "constant"),
    )
    for gradient in GRADIENTS:
        yield pair(f"{base}, {gradient}: annealing or a cosine?", (gradient, "SNRAnnealing"), (gradient, "cosine"))
    for step in ("warm-up, stable, decay", "averaged weights"):
        yield pair(f"{base}, raw gradient: this or a cosine?", ("raw gradient", step), ("raw gradient", "cosine"))
    for inputs in INPUTS:
        yield pair(f"{base}, cosine: gradient or inputs?", ("fixed kernel", "cosine"), (inputs, "cosine"))


def questions_at_other_steps() -> list[Pair]:
    """Whether a filter helps where the step is not a cosine, for each optimizer; corrected together."""
    return [
        Pair(f"{base}, {step}: does a filter help?", f"{base}, {gradient}, {step}", f"{base}, raw gradient, {step}")
        for base in BASES
        for step in STEPS
        if step != "cosine"
        for gradient in ("fixed kernel", "Wiener filter")
    ]


def questions_elsewhere() -> list[Pair]:
    """What is asked of the few combinations under other conditions, which are corrected together."""
    control = ELSEWHERE[0]
    return [
        Pair(f"{condition}: does it help?", ", ".join((*names, condition)), ", ".join((*control, condition)))
        for condition in CONDITIONS
        for names in ELSEWHERE[1:]
    ]


def questions_of_related() -> list[Pair]:
    """What is asked of the methods of others, which are corrected together."""
    questions = {"raw gradient": "Is it more than a cosine?", "Wiener filter": "Is it more than the Wiener filter?"}
    return [
        *(Pair(questions[gradient], *pair) for gradient, pairs in COMPARED_WITH.items() for pair in pairs.items()),
        *(Pair("Does annealing help?", f"{label} + SNRAnnealing", label) for label in ANNEALED_AROUND),
    ]


def gains(results: Results, elsewhere: Results) -> dict[tuple[str, str], Interval]:
    """What each of the few combinations adds to the first of them, in points, by its name and the condition.

    Args:
        results: those of the stress test, with its 15 % label noise.
        elsewhere: those under other conditions.
    """
    control, *treatments = ELSEWHERE
    names = {each: each[1] if each[1] != control[1] else each[2] for each in treatments}
    by_noise = list(CONDITIONS)
    by_noise.insert(1, STRESS_TEST)
    found = {}
    for condition in by_noise:
        of_it, more = (results, ()) if condition == STRESS_TEST else (elsewhere, (condition,))
        for treatment, name in names.items():
            comparison = compare(of_it, Pair("", ", ".join((*treatment, *more)), ", ".join((*control, *more))))
            if comparison is not None:
                found[name, condition] = comparison.interval
    return found


def gains_of_related(results: Results) -> dict[tuple[str, str], Interval]:
    """What each method of others adds to the optimizer that it builds on, with a cosine, in points.

    By the gradient of that optimizer and by the method.
    """
    pairs = {
        (gradient, name): Pair("", name, control)
        for gradient, of_one in COMPARED_WITH.items()
        for name, control in of_one.items()
    }
    compared = {place: compare(results, pair) for place, pair in pairs.items()}
    return {place: comparison.interval for place, comparison in compared.items() if comparison is not None}


def chosen_table(results: Results, name: str) -> Table:
    """Of each arm the settings that the search chose, what they cost, and the accuracies that result."""
    found, rows = accuracies(results.arms), []
    for label, arm in results.arms.items():
        if label not in found:
            continue
        settings = chosen_settings(label)
        extra = [f"{option} {value:g}" for option, value in settings.items() if option not in ("lr", "epochs")]
        run = arm[0].run
        passes = settings["epochs"] * GRADIENTS_PER_STEP.get(run.optimizer.name, 1)
        rows.append(
            {
                **dict(zip(("optimizer", "gradient", "step"), NAMES[label], strict=True)),
                "learning rate": settings["lr"],
                "epochs": str(settings["epochs"]),
                "further": ", ".join(extra),
                "gradients per image": str(passes),
                "confirmation acc. (%)": found[label],
                "final acc. (%)": Interval(fmean(by_seed(arm, "final").values()), None, None),
            }
        )
    return Table(pd.DataFrame(rows), name, index=3)


def chosen_by_noisy_labels(search: Results) -> pd.DataFrame:
    """What becomes of each cell's choice where the validation labels are as noisy as the training's.

    Returns:
        A row per cell with label noise: ``same choice``, whether the same trial is best; ``loss``, by how many points
        the clean validation accuracy of the trial that noisy labels choose is below that of the best one.
    """
    rows = []
    for label, trials in search.arms.items():
        done: list[Record] = finished(trials)
        if any(measured(record, "noisy_validation") is None for record in done):  # without label noise
            continue
        best, noisy = (
            max(done, key=lambda record, m=measure: measured(record, m))
            for measure in ("validation", "noisy_validation")
        )
        lost = measured(best, "validation") - measured(noisy, "validation")
        rows.append({"cell": label, "same choice": best.run == noisy.run, "loss": lost})
    return pd.DataFrame(rows).set_index("cell")
