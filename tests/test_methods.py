"""The parts of a method combine freely, and each does what its name says."""

import itertools
from dataclasses import replace

import pytest
import torch

from convopt.lab import experiments, methods, training
from convopt.lab.runs import Choice, Run
from convopt.lab.trainer import Trainer

RUN = experiments.STRESS.run(experiments.SGD, "digits", 1, 0)


def rates(schedule: Choice, epochs: int, steps_per_epoch: int = 10, lr: float = 0.01) -> list[float]:
    """Of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)
    made = methods.SCHEDULES[schedule.name](optimizer, epochs, steps_per_epoch, **dict(schedule.options))
    seen = []
    for _ in range(epochs * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.after_step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_a_constant_schedule_changes_nothing():
    assert set(rates(Choice.of("constant"), 3)) == {0.01}


def test_a_cosine_falls_from_the_learning_rate_to_zero():
    seen = rates(Choice.of("cosine"), 3)
    assert seen[0] == 0.01
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["cosine", "warm-up, stable, decay"])
def test_with_a_horizon_a_schedule_ends_there_and_stays_at_zero(name):
    seen = rates(Choice.of(name, horizon=2), 5)
    assert seen[:20] == rates(Choice.of(name), 2)[:20]
    assert seen[20:] == pytest.approx([0.0] * 31, abs=1e-9)
    assert min(seen[:19]) > 1e-5


@pytest.mark.parametrize("horizon", [0, -1, float("inf")])
def test_a_horizon_that_is_no_positive_number_is_refused(horizon):
    with pytest.raises(ValueError, match="horizon must be a positive number of epochs"):
        rates(Choice.of("cosine", horizon=horizon), 2)


def test_warm_up_stable_decay_rises_stays_and_falls():
    seen = rates(Choice.of("warm-up, stable, decay"), 10)
    assert seen[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert seen[5:80] == pytest.approx([0.01] * 75)
    assert seen[80:] == pytest.approx([0.01 * left / 20 for left in range(20, -1, -1)])


def test_one_cycle_rises_and_falls():
    seen = rates(Choice.of("one cycle"), 2)
    assert max(seen) == pytest.approx(0.01, rel=0.1)
    assert seen[0] < max(seen) > seen[-1]


def test_on_a_plateau_of_the_validation_accuracy_the_rate_falls():
    plateau = replace(RUN, schedule=Choice.of("plateau"), epochs=6)
    frozen = training.train(replace(plateau, optimizer=Choice.of("SGD", lr=0.0)))
    assert len(set(frozen.curves["validation_accuracy"])) == 1
    assert training.train(plateau).final > frozen.final
    trainer = Trainer(plateau)
    for _ in range(5):
        trainer.end_epoch(0.5)
    assert trainer.optimizers[""].param_groups[0]["lr"] == pytest.approx(0.001)


def test_averaged_weights_are_what_is_evaluated():
    averaged = replace(RUN, averaging=Choice.of("EMA", decay=0.999999), epochs=2)
    records = [training.train(run) for run in (replace(RUN, epochs=2), averaged)]
    assert records[0].curves["train_loss"] == records[1].curves["train_loss"]
    # An average that hardly forgets its start has hardly learnt.
    assert records[1].final < records[0].final


@pytest.mark.parametrize(("lr", "is_averaged"), [(0.1, True), (0.0001, False)])
def test_weight_averaging_is_evaluated_where_it_helps_and_changes_nothing_in_training(lr, is_averaged):
    plain = replace(RUN, optimizer=Choice.of("SGD", lr=lr), epochs=3, label_noise=0.3)
    without, averaged = (
        training.train(run) for run in (plain, replace(plain, averaging=Choice.of("WeightAveraging", share=0.2)))
    )
    assert averaged.curves["train_loss"] == without.curves["train_loss"]
    assert averaged.curves["average_in_place"][-1] == is_averaged
    assert (averaged.curves["test_loss"][-1] == without.curves["test_loss"][-1]) == (not is_averaged)


PARTS = {"filter": "WienerFilter", "annealing": "SNRAnnealing", "schedule": "cosine"}

IN_FLOAT32 = {"Muon": {"precision": "float32"}}
"""Options of optimizers whose products are in bfloat16 otherwise, which many CPUs are slow at."""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Muon"])
def test_filter_annealing_schedule_loss_and_average_combine_around_any_optimizer(optimizer):
    run = replace(
        RUN,
        optimizer=Choice.of(optimizer, lr=0.01 if optimizer == "SGD" else 0.001, **IN_FLOAT32.get(optimizer, {})),
        n_train=320,
        epochs=2,
        loss=Choice.of("label smoothing", amount=0.1),
        averaging=Choice.of("EMA", decay=0.9),
    )
    courses = []
    for taken in itertools.product((False, True), repeat=3):
        parts = {part: Choice.of(name) for (part, name), is_taken in zip(PARTS.items(), taken, strict=True) if is_taken}
        record = training.train(replace(run, **parts))
        assert record.status == "finished"
        assert record.curves["train_loss"][1] < record.curves["train_loss"][0]
        courses.append(tuple(record.curves["train_loss"]))
        assert Run.from_json(record.run.to_json()) == record.run
    # Within 80 steps the annealing has not begun: it waits for 200.
    assert len(set(courses)) == len(courses) / 2


def test_several_optimizers_have_a_schedule_and_an_annealing_each():
    parts = {"schedule": Choice.of("cosine"), "annealing": Choice.of("SNRAnnealing per layer")}
    trainer = Trainer(replace(RUN, **parts))
    trainer.train_epoch(next(trainer.epochs()))
    assert set(trainer.optimizers) == set(trainer.annealing) == {"hidden1", "hidden2", "output"}
    for optimizer in trainer.optimizers.values():
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_muon_and_its_adamw_are_annealed_by_one_agreement():
    trainer = Trainer(
        replace(RUN, optimizer=Choice.of("Muon", lr=0.01, precision="float32"), annealing=Choice.of("SNRAnnealing"))
    )
    trainer.train_epoch(next(trainer.epochs()))
    (annealing,) = trainer.annealing.values()
    assert sum(previous.numel() for previous in annealing.state_dict()["previous"]) == sum(
        p.numel() for p in trainer.model.parameters()
    )


@pytest.mark.parametrize("optimizer", ["SGD", "Muon", "SAM"])
def test_a_fixed_kernel_smooths_what_any_optimizer_steps_by(optimizer):
    """The first layer's update has less of the high frequencies, the other layers' are the same."""
    options = {"SAM": {"rho": 0.05}, **IN_FLOAT32}.get(optimizer, {})
    run = replace(RUN, optimizer=Choice.of(optimizer, lr=0.01, **options))
    updates = []
    for each in (run, replace(run, filter=Choice.of("fixed kernel", kernel="binomial", size=5))):
        trainer = Trainer(each)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train_epoch(next(trainer.epochs())[:1])
        updates.append([p.detach() - old for p, old in zip(trainer.model.parameters(), before, strict=True)])
    raw, smoothed = (update[0].view(-1, 8, 8) for update in updates)
    assert smoothed.diff(dim=2).norm() < 0.8 * raw.diff(dim=2).norm()
    assert all(map(torch.equal, updates[0][1:], updates[1][1:]))


def test_shifted_inputs_are_moved_in_training_and_nowhere_else():
    image = torch.zeros(200, 1, 8, 8)
    image[:, :, 4, 4] = 1
    moved = methods.inputs.shift((8, 8), pixels=2).in_training(image, torch.Generator().manual_seed(0))
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert moved.sum() == 200
    assert {*rows.tolist()} == {*columns.tolist()} == {2, 3, 4, 5, 6}
    mirrored = methods.inputs.shift((8, 8), pixels=0, flip=True).in_training(image, torch.Generator().manual_seed(0))
    seen = [m.equal(i.flip(-1)) for m, i in zip(mirrored, image, strict=True)]
    assert 0.3 < sum(seen) / len(seen) < 0.7, "about half"
    assert all(m.equal(i) for m, i, is_mirrored in zip(mirrored, image, seen, strict=True) if not is_mirrored)
    trainer = Trainer(replace(RUN, inputs=Choice.of("shift", pixels=2)))
    assert trainer.dataset.test.x.equal(Trainer(RUN).dataset.test.x)
    assert trainer.train_epoch(next(trainer.epochs())) != Trainer(RUN).train_epoch(next(Trainer(RUN).epochs()))


@pytest.mark.parametrize("size", [5, 15])  # the digits are 8x8: a longer kernel is made as long as they are
def test_blurred_inputs_are_blurred_in_training_and_in_tests(size):
    trainer, sharp = Trainer(replace(RUN, inputs=Choice.of("blur", size=size))), Trainer(RUN)
    for blurred, before in ((trainer.split, sharp.split), (trainer.dataset.test, sharp.dataset.test)):
        assert blurred.x.diff(dim=3).norm() < 0.8 * before.x.diff(dim=3).norm()


def test_what_is_done_to_a_grid_needs_one():
    table = experiments.STRESS_CLEAN.run(experiments.SGD, "breast-cancer", 1, 0)
    with pytest.raises(ValueError, match="inputs must be None for breast-cancer, which has no grid, got 'blur'"):
        Trainer(replace(table, inputs=Choice.of("blur", size=5)))


def test_a_filter_needs_parameters_that_see_a_grid():
    table = experiments.STRESS_CLEAN.run(experiments.SGD, "breast-cancer", 1, 0)
    with pytest.raises(ValueError, match="WienerFilter needs parameters that see a grid; those of SimpleNet see none"):
        Trainer(replace(table, filter=Choice.of("WienerFilter")))


@pytest.mark.parametrize(
    ("part", "known"),
    [
        ("optimizer", "AdEMAMix"),
        ("schedule", "constant, cosine"),
        ("annealing", "Pflug test"),
        ("filter", "WienerFilter"),
        ("loss", "generalised cross-entropy"),
        ("averaging", "EMA, WeightAveraging"),
        ("inputs", "blur, shift"),
    ],
)
def test_an_unknown_part_is_refused_with_those_that_are_known(part, known):
    with pytest.raises(ValueError, match=rf"{part} must be one of .*{known}.*, got \"halved\""):
        Trainer(replace(RUN, **{part: Choice.of("halved")}))


def test_a_schedule_without_options_is_its_name_in_a_record():
    """As in the first published records."""
    assert replace(RUN, schedule=Choice.of("cosine")).to_json()["schedule"] == "cosine"
    with_horizon = replace(RUN, schedule=Choice.of("cosine", horizon=3))
    assert with_horizon.to_json()["schedule"] == {"name": "cosine", "options": {"horizon": 3}}
    assert Run.from_json(with_horizon.to_json()) == with_horizon
