"""Adversarial attacks that transfer: ``python -m convopt.lab.fields.transfer FILE.json`` measures it.

The task is to change images a little, so that networks misclassify them that nobody can look into. One attacks networks
of one's own instead, and hopes that the changes transfer. Each image's change is a field. Smoothing its gradient makes
changes transfer better, see Dong et al., Evading Defenses to Transferable Adversarial Examples by Translation-Invariant
Attacks, CVPR 2019. There somebody chooses the width.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from convopt.lab import data
from convopt.lab.fields import regret
from convopt.lab.fields.methods import METHODS
from convopt.lab.fields.tasks import gradients_in_parts
from convopt.lab.runs import Choice, Run
from convopt.lab.trainer import Trainer

DATASET = "fashion-mnist"

IMAGES = 50

ATTACKED, CHOOSING, OTHERS = 4, 2, 4
"""Networks whose gradients are followed; whose errors choose rates and steps; whose errors are the score."""

TOGETHER = 10
"""Runs whose images pass a network together: more would take too much memory."""


@dataclass(frozen=True)
class Attack:
    """Changes of images, and networks to be misled.

    A change is ``epsilon * tanh(field)``, and the changed image keeps within the range of the data.

    Attributes:
        images: ``(n, 1, H, W)``.
        labels: ``(n,)``.
        attacked: networks of one's own; a batch is one of them.
        choosing: further networks of one's own.
        others: networks that nobody can look into.
        epsilon: the largest change of a pixel, in the units of the images.
        ends: the values of black and white.
    """

    images: Tensor
    labels: Tensor
    attacked: Sequence[nn.Module]
    choosing: Sequence[nn.Module]
    others: Sequence[nn.Module]
    epsilon: float
    ends: tuple[float, float]
    batch: int = 1

    @property
    def shape(self) -> Sequence[int]:
        """A field for each image, on its grid."""
        return len(self.images), *self.images.shape[2:]

    @property
    def count(self) -> int:
        """How many networks are attacked."""
        return len(self.attacked)

    def gradients(self, fields: Tensor, which: Tensor) -> Tensor:
        """Of :meth:`loss`, by fields ``(runs, size)``."""
        return gradients_in_parts(lambda some: self.loss(some, which), fields, TOGETHER)

    def loss(self, fields: Tensor, which: Tensor) -> Tensor:
        """Less the cross-entropy of some attacked networks, summed over the images, for each pixel, ``(runs,)``."""
        outputs = self._outputs(fields, [self.attacked[network] for network in which])
        right = outputs.log_softmax(3)[..., range(len(self.labels)), self.labels]
        return right.mean(0).sum(1) / math.prod(self.images.shape[1:])

    @torch.no_grad()
    def errors(self, fields: Tensor) -> Tensor:
        """The mean probability that the choosing networks give the right classes, ``(runs,)``."""
        right = [
            self._outputs(some, self.choosing).softmax(3)[..., range(len(self.labels)), self.labels]
            for some in fields.split(TOGETHER)
        ]
        return torch.cat(right, 1).mean((0, 2))

    @torch.no_grad()
    def scores(self, fields: Tensor) -> Tensor:
        """Of 100 changed images, how many the other networks misclassify, ``(runs,)``."""
        wrong = [self._outputs(some, self.others).argmax(3) != self.labels for some in fields.split(TOGETHER)]
        return 100 * torch.cat(wrong, 1).float().mean((0, 2))

    def _outputs(self, fields: Tensor, networks: Sequence[nn.Module]) -> Tensor:
        """Of changed images, ``(networks, runs, images, classes)``."""
        changed = self.images + self.epsilon * fields.view(len(fields), *self.images.shape).tanh()
        inputs = changed.clamp(*self.ends).flatten(0, 1)
        return torch.stack([network(inputs) for network in networks]).unflatten(1, changed.shape[:2])


def attack(epsilon: float, seed: int) -> Attack:
    """On test images, with networks trained for them; ``epsilon`` as a share of black to white.

    Networks differ in their initial weights and the order of the training images.
    """
    dataset, networks = data.load(DATASET), _networks(seed)
    chosen = torch.randperm(len(dataset.test), generator=Generator().manual_seed(1000 + seed))[:IMAGES]
    images = dataset.test[chosen]
    ends = dataset.train.x.min().item(), dataset.train.x.max().item()
    return Attack(
        *(images.x, images.y, networks[:ATTACKED], networks[ATTACKED:-OTHERS], networks[-OTHERS:]),
        epsilon=epsilon * (ends[1] - ends[0]),
        ends=ends,
    )


@cache
def _networks(seed: int) -> list[nn.Module]:
    """The attacked ones, those that choose, and the others."""
    count = ATTACKED + CHOOSING + OTHERS
    return [_trained(seed * count + which) for which in range(count)]


def _trained(seed: int) -> nn.Module:
    trainer = Trainer(
        Run(
            dataset=DATASET,
            n_train=5000,
            n_test=1000,
            batch_size=32,
            label_noise=0.0,
            epochs=3,
            model=Choice.of("ConvNet"),
            optimizer=Choice.of("AdamW", lr=0.003),
            seed=seed,
        )
    )
    for batches in trainer.epochs():
        trainer.train_epoch(batches)
    return trainer.model.requires_grad_(False).eval()


NAMES = (
    *("SGD", "Adam", "Adam, cosine", "FieldAdam"),
    *(f"width {width}, power {power}" for power in (1, 2) for width in (1, 3, 10, 30)),
    *(f"total variation {weight:g}" for weight in (1e-7, 1e-6, 1e-5)),
)
"""Of the methods, those that are tried."""

STUDY = regret.Study(
    tasks={"transfer attack": (attack, (0.05, 0.1))},
    methods={name: METHODS[name] for name in NAMES},
    seeds=range(10),
    steps=100,
    rates=(3e-2, 1e-1, 3e-1, 1.0),
    dataset=DATASET,
)


if __name__ == "__main__":
    regret.measure(Path(sys.argv[1]), STUDY, sys.argv[2:])
