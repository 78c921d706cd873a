"""Hugging Face's Trainer trains, schedules, saves and resumes the optimizers as a plain loop would."""

from pathlib import Path

import pytest
import torch
from digits import (
    BATCH,
    OPTIMIZERS,
    Network,
    X,
    Y,
    accuracy,
    annealing_of,
    assert_close,
    assert_same,
    for_each_optimizer,
    plain_loop,
)
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from convopt import SNRAnnealing

SAMPLES = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]


class Classifier(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        self.network = Network(seed)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(self.network(x), labels)}


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


class SaveAnnealing(TrainerCallback):
    """Puts the annealing's state into the Trainer's checkpoints, and takes it from there."""

    def __init__(self, annealing: SNRAnnealing):
        self.annealing = annealing

    def on_save(self, args, state, control, **_) -> None:
        torch.save(self.annealing.state_dict(), path_of(args, state))

    def on_train_begin(self, args, state, control, **_) -> None:
        if state.global_step:
            self.annealing.load_state_dict(torch.load(path_of(args, state)))


def path_of(args, state) -> Path:
    return Path(args.output_dir, f"checkpoint-{state.global_step}", "annealing.pt")


def new_trainer(name: str, epochs: int, folder: Path, accumulate: int = 1, seed: int = 0, **options) -> Trainer:
    model = Classifier(seed)
    optimizer = OPTIMIZERS[name](model.network)
    annealing = annealing_of(name, optimizer)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0,
        **{
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
            **options,
        },
    )
    callbacks = [SaveAnnealing(annealing)] if annealing else []
    return InOrder(model, arguments, train_dataset=SAMPLES, optimizers=(optimizer, None), callbacks=callbacks)


@for_each_optimizer
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_a_plain_loop_does(name, accumulate, tmp_path):
    trainer = new_trainer(name, 3 * accumulate, tmp_path, accumulate)
    trainer.train()
    assert accuracy(trainer.model.network) > 0.8
    assert_close(trainer.model.network, plain_loop(name, 3 * accumulate, accumulate))


@pytest.mark.slow
@for_each_optimizer
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_training_resumed_from_its_checkpoint_is_training_that_never_stopped(name, schedule, tmp_path):
    options = {"save_strategy": "epoch", "lr_scheduler_type": schedule, "warmup_steps": 4}
    whole = new_trainer(name, 2, tmp_path, **options)
    whole.train()
    resumed = new_trainer(name, 2, tmp_path, seed=1, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-36"))
    assert_same(whole.model, resumed.model)
    assert accuracy(resumed.model.network) > 0.7
