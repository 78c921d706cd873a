"""Full waveform inversion: ``python -m convopt.lab.fields.waveform FILE.json`` measures it.

The task is to find how fast waves travel underground. Sources, called shots, and receivers are at the surface. What is
recorded is not linear in the velocity. Waves are by deepwave (Richardson, MIT licence), the extra ``waveform``.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from convopt.lab.fields import regret
from convopt.lab.fields.methods import METHODS
from convopt.lab.fields.tasks import gradients_in_parts

SHAPE = (32, 48)
SPACING = 12.5
"""Of the grid, in metres: 400 deep and 600 wide."""

INTERVAL, SAMPLES = 0.004, 125
"""Of the records, in seconds: they last half a second."""

FREQUENCY = 8.0
"""Of the shots' Ricker wavelet, in hertz."""

UNIT = 500.0
"""Metres per second in a field's 1. A field is a difference from the start."""

START = (1500.0, 2200.0)
"""The velocity at the surface and at the bottom, in metres per second, linear in between."""

FASTEST = 2 * START[1] / 1.01
"""The velocity that no model exceeds, in metres per second."""

SHOTS = 16
HELD_OUT = range(1, SHOTS, 4)

TOGETHER = 32
"""Fields whose waves are computed together: more would take too much memory."""


@dataclass(frozen=True)
class Inversion:
    """A velocity model that is seen through the records of shots.

    Attributes:
        truth: the velocity less that at the start, :data:`SHAPE`, in :data:`UNIT`; for the score alone.
        records: of all shots, with noise, ``(shots, receivers, samples)``.
        scale: the standard deviation of what the start leaves unexplained, without noise.
        batch: shots in a batch.
    """

    truth: Tensor
    records: Tensor
    scale: float
    batch: int = 2

    @property
    def shape(self) -> Sequence[int]:
        """One field, on its grid."""
        return 1, *SHAPE

    @property
    def count(self) -> int:
        """How many shots are trained on."""
        return SHOTS - len(HELD_OUT)

    def gradients(self, fields: Tensor, which: Tensor) -> Tensor:
        """Of :meth:`loss`, by fields ``(runs, size)``."""
        return gradients_in_parts(lambda some: self.loss(some, which), fields, TOGETHER)

    def loss(self, fields: Tensor, which: Tensor) -> Tensor:
        """Half the mean squared error of some training shots, ``(runs,)``."""
        training = torch.tensor([shot for shot in range(SHOTS) if shot not in HELD_OUT])
        return self._squares(fields, training[which]) / 2

    @torch.no_grad()
    def errors(self, fields: Tensor) -> Tensor:
        """Mean squares of the held-out shots' errors, ``(runs,)``, in squares of the scale."""
        return torch.cat([self._squares(some, torch.tensor(HELD_OUT)) for some in fields.split(TOGETHER)])

    def scores(self, fields: Tensor) -> Tensor:
        """How much smaller than at the start the mean squared error of the velocity is, in dB, ``(runs,)``."""
        truth = self.truth.flatten()
        return -10 * ((fields - truth).square().mean(1) / truth.square().mean()).log10()

    def _squares(self, fields: Tensor, shots: Tensor) -> Tensor:
        errors = (recorded(fields.view(-1, *SHAPE), shots) - self.records[shots]) / self.scale
        return errors.square().mean((1, 2, 3))


def inversion(noise: float, seed: int) -> Inversion:
    """Records of one velocity model, with white noise of ``noise`` times what the start leaves unexplained."""
    generator = Generator().manual_seed(1000 + seed)
    truth = layers_and_lenses(generator)
    with torch.no_grad():
        start, records = recorded(torch.stack([torch.zeros(SHAPE), truth]), torch.arange(SHOTS))
    scale = (records - start).std()
    return Inversion(truth, records + noise * scale * torch.randn(records.shape, generator=generator), scale.item())


def layers_and_lenses(generator: Generator) -> Tensor:
    """Three inclined layers and two ellipses, faster or slower than the start: :data:`SHAPE`, in :data:`UNIT`."""
    depth, along = torch.meshgrid(*(torch.arange(float(length)) for length in SHAPE), indexing="ij")

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(1, generator=generator)

    field = torch.zeros(SHAPE)
    for _ in range(3):
        below = depth - uniform(6, 28) - uniform(-0.15, 0.15) * (along - SHAPE[1] / 2)
        field += uniform(-0.15, 0.15) * torch.sigmoid(2 * below)
    for _ in range(2):
        down = (depth - uniform(6, 26)) / uniform(3, 7)
        across = (along - uniform(8, 40)) / uniform(3, 7)
        field += uniform(-0.25, 0.25) * torch.sigmoid(6 * (1 - down.square() - across.square()))
    return field


def recorded(fields: Tensor, shots: Tensor) -> Tensor:
    """What receivers at the surface record of ``shots``: ``(fields, shots, receivers, samples)``, differentiable."""
    import deepwave

    count, (depth, width) = len(fields) * len(shots), SHAPE
    # At rates far too high a field may leave all bounds; faster waves would need a shorter inner time step.
    velocity = (torch.linspace(*START, depth)[:, None] + UNIT * fields).clamp(-FASTEST, FASTEST)
    places = torch.linspace(2, width - 3, SHOTS).round().long()[shots].repeat(len(fields))
    receivers = torch.stack([torch.ones(width, dtype=torch.int64), torch.arange(width)], 1)
    wavelet = deepwave.wavelets.ricker(FREQUENCY, SAMPLES, INTERVAL, 1 / FREQUENCY)
    outputs = deepwave.scalar(
        velocity.repeat_interleave(len(shots), 0),
        SPACING,
        INTERVAL,
        source_amplitudes=wavelet.expand(count, 1, -1),
        source_locations=torch.stack([torch.ones_like(places), places], 1)[:, None],
        receiver_locations=receivers.expand(count, -1, -1),
        pml_width=8,
        pml_freq=FREQUENCY,
        max_vel=1.01 * FASTEST,  # else the inner time step would follow the fields
    )
    return outputs[-1].unflatten(0, (len(fields), len(shots)))


NAMES = (
    *("SGD", "Adam", "Adam, cosine", "FieldAdam"),
    *(f"width {width}, power 1" for width in (1, 3, 10, 30, 100)),
    *(f"total variation {weight:g}" for weight in (3e-5, 1e-4, 3e-4)),
)
"""Of the methods, those that are tried: waves take long."""

STUDY = regret.Study(
    tasks={"waveform inversion": (inversion, (0.1, 0.5))},
    methods={name: METHODS[name] for name in NAMES},
    seeds=range(3),
    steps=200,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
)


if __name__ == "__main__":
    regret.measure(Path(sys.argv[1]), STUDY, sys.argv[2:])
