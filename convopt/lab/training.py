"""Training one run and recording its course."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from convopt.lab import arithmetic, data, provenance
from convopt.lab.adversaries import STEPS, Adversary
from convopt.lab.predictions import pack, rounded
from convopt.lab.records import Record
from convopt.lab.rounding import DIGITS_OF_KERNELS, DIGITS_OF_SECONDS, with_digits
from convopt.lab.runs import Run
from convopt.lab.tasks import TASKS, outputs_of
from convopt.lab.trainer import Trainer, noisy_targets


def train(run: Run) -> Record:
    """Train ``run`` on one thread and return its record. Nothing outside is changed, global random state included.

    A run whose loss is not finite ends at once; its record has status "diverged" and the epochs it completed.
    """
    with arithmetic.threads(1):
        *_, record = train_by_epoch(run)
    return record


def train_by_epoch(run: Run) -> Iterator[Record]:
    """Train ``run`` as ``train`` does, but on as many threads as torch has; its record as it stands after each epoch.

    Its status is "training" until the last; of a run of no epochs there is one record. A loss that is not finite ends
    the run, with a record of the epochs before.
    """
    arithmetic.settle()
    trainer = Trainer(run)
    dataset = trainer.dataset
    record = Record(
        run=run,
        status="training" if run.epochs else "finished",
        curves={},
        kernels=[_snapshot(trainer)],
        confirmation_accuracy=None,
        provenance=provenance.collect(dataset.checksum),
    )
    if run.epochs == 0:
        yield record
    test, wrong = dataset.test.first(run.n_test), wrong_labels(run, dataset, trainer.split)
    measure = TASKS[dataset.task].measure
    for epoch, batches in enumerate(trainer.epochs(), start=1):
        start = time.perf_counter()
        outcome = trainer.train_epoch(batches)
        if outcome is None:
            yield replace(record, status="diverged")
            return
        trained = time.perf_counter()
        with trainer.judged() as model:
            outputs = outputs_of(model, test.x)
            judged = {f"test_{name}": value for name, value in measures_of(outputs, test, dataset).items()}
            judged |= _judged(trainer, model, wrong) | _robustness(trainer, model, test)
            if epoch == run.epochs:
                record = replace(record, status="finished", **_at_the_end(trainer, model, outputs, test))
        trainer.end_epoch(judged[f"validation_{measure.name}"] * (1 if measure.higher_is_better else -1))
        point = {
            "train_loss": outcome[0],
            "gradient_norm": outcome[1],
            **judged,
            **trainer.curves(),
            "seconds_training": with_digits(trained - start, DIGITS_OF_SECONDS),
            "seconds_evaluation": with_digits(time.perf_counter() - trained, DIGITS_OF_SECONDS),
        }
        record = replace(
            record,
            curves={name: [*record.curves.get(name, []), value] for name, value in point.items()},
            kernels=[*record.kernels, _snapshot(trainer)],
        )
        yield record


def _judged(trainer: Trainer, model: nn.Module, wrong: data.Split) -> dict[str, float]:
    """The epoch's measure on validation inputs, and the share of noisy labels that are memorized."""
    dataset = trainer.dataset
    measure = TASKS[dataset.task].measure.name
    outputs, validation = outputs_of(model, dataset.validation.x), dataset.validation
    told = {f"validation_{measure}": measures_of(outputs, validation, dataset)[measure]}
    if trainer.run.label_noise and dataset.task == "classification":
        noisy = noisy_targets(trainer.run, validation, dataset, "wrong validation labels")
        told["noisy_validation_accuracy"] = measures_of(outputs, noisy, dataset)["accuracy"]
    if len(wrong):
        told["wrong_labels_learnt"] = evaluate(model, wrong, dataset)["accuracy"]
    return told


def _at_the_end(trainer: Trainer, model: nn.Module, test_outputs: Tensor, test: data.Split) -> dict[str, Any]:
    """What is looked at once: each prediction, and the measure on the confirmation inputs, where there are such."""
    dataset, task = trainer.dataset, TASKS[trainer.dataset.task]
    predictions = {"test": pack(rounded(task.predictions(test_outputs, test.y, dataset.target_scale)))}
    confirmation = dataset.confirmation
    if confirmation is None:
        return {"predictions": predictions}
    outputs = outputs_of(model, confirmation.x)
    predictions["confirmation"] = pack(rounded(task.predictions(outputs, confirmation.y, dataset.target_scale)))
    measured = measures_of(outputs, confirmation, dataset)[task.measure.name]
    return {"predictions": predictions, "confirmation_accuracy": measured}


def _robustness(trainer: Trainer, model: nn.Module, split: data.Split) -> dict[str, float]:
    """Accuracy against each adversary, as strong as the run's own; empty for a run without."""
    run, dataset = trainer.run, trainer.dataset
    if run.adversary is None:
        return {}
    accuracies = {}
    for name in STEPS:
        adversary = Adversary(replace(run.adversary, name=name), dataset.train.x, run.stream("adversary of the test"))
        model.eval()
        attacked = data.Split(adversary.attack(model, split.x, split.y), split.y)
        accuracies[f"{name.lower()}_accuracy"] = evaluate(model, attacked, dataset)["accuracy"]
    return accuracies


def wrong_labels(run: Run, dataset: data.Dataset, split: data.Split) -> data.Split:
    """The inputs of the run's training ``split`` whose labels are known to be wrong, with those labels."""
    if dataset.task != "classification":
        return split.first(0)
    clean = dataset.train.y if dataset.clean is None else dataset.clean
    return split[split.y != clean[: run.n_train]]


def evaluate(model: nn.Module, split: data.Split, dataset: data.Dataset) -> dict[str, float]:
    """The ``loss`` and the measures of the data set's task, in evaluation mode."""
    return measures_of(outputs_of(model, split.x), split, dataset)


def measures_of(outputs: Tensor, split: data.Split, dataset: data.Dataset) -> dict[str, float]:
    """The ``loss`` and the measures of the data set's task, of a model's outputs on ``split``."""
    task = TASKS[dataset.task]
    return {"loss": task.loss(outputs, split.y).item(), **task.measures(outputs, split.y, dataset.target_scale)}


def _snapshot(trainer: Trainer) -> dict[str, list]:
    return with_digits({name: kernel.tolist() for name, kernel in trainer.kernels().items()}, DIGITS_OF_KERNELS)
