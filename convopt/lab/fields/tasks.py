"""Tasks whose parameters are fields: noisy, linear measurements of an image or a volume, to be reconstructed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

HELD_OUT = 512
"""Measurements that choose rates and steps, at least: a quarter as many as train, of textures as pixels."""


class Measurements(NamedTuple):
    """Each a weighted sum of a field's values, with noise.

    Attributes:
        places: which values, as indices into the flattened field, ``(n, k)``.
        weights: of them, ``(n, k)``.
        values: what was measured, ``(n,)``.
    """

    places: Tensor
    weights: Tensor
    values: Tensor

    def only(self, which: Tensor | slice) -> "Measurements":
        """Some of them."""
        return Measurements(*(each[which] for each in self))

    def as_matrix(self, size: int) -> Tensor:
        """Their rows, ``(n, size)``, for flattened fields of so many values."""
        return torch.zeros(len(self.values), size).scatter_add_(1, self.places, self.weights)


class Problem(Protocol):
    """Fields to be found, and what is known of them. Each run has fields of its own, ``(runs, size)``."""

    @property
    def shape(self) -> Sequence[int]:
        """How many fields there are, then their grid."""

    @property
    def count(self) -> int:
        """How many training measurements there are."""

    @property
    def batch(self) -> int:
        """How many of them are in a batch."""

    def gradients(self, fields: Tensor, which: Tensor) -> Tensor:
        """Of the loss of some training measurements, ``(runs, size)``."""

    def errors(self, fields: Tensor) -> Tensor:
        """Of the held-out measurements, ``(runs,)``; less is better."""

    def scores(self, fields: Tensor) -> Tensor:
        """What nobody knows who looks for the fields, ``(runs,)``; more is better."""


def gradients_in_parts(loss: Callable[[Tensor], Tensor], fields: Tensor, together: int) -> Tensor:
    """Of losses, ``(runs,)``, by fields ``(runs, size)``, so many runs together: all would take too much memory."""
    fields = fields.detach().requires_grad_()
    for some in fields.split(together):
        loss(some).sum().backward()
    assert fields.grad is not None
    return fields.grad


@dataclass(frozen=True)
class Task:
    """A field that is seen through weighted sums.

    Attributes:
        truth: the field, in [0, 1]; for the score alone.
        train: measurements.
        held_out: further measurements.
        batch: training measurements in a batch.
    """

    truth: Tensor
    train: Measurements
    held_out: Measurements
    batch: int

    @property
    def shape(self) -> Sequence[int]:
        """One field, on its grid."""
        return 1, *self.truth.shape

    @property
    def count(self) -> int:
        """How many training measurements there are."""
        return len(self.train.values)

    def gradients(self, fields: Tensor, which: Tensor) -> Tensor:
        """Of half the mean squared error of some training measurements, by fields ``(runs, size)``."""
        measured = self.train.only(which)
        rows = measured.as_matrix(fields.shape[1])
        return (fields @ rows.T - measured.values) @ rows / len(which)

    def errors(self, fields: Tensor) -> Tensor:
        """Mean squares of the held-out measurements' errors, ``(runs,)``."""
        return (fields @ self._rows.T - self.held_out.values).square().mean(1)

    def scores(self, fields: Tensor) -> Tensor:
        """The PSNR in dB, ``(runs,)``."""
        return -10 * (fields - self.truth.flatten()).square().mean(1).log10()

    @cached_property
    def _rows(self) -> Tensor:
        return self.held_out.as_matrix(self.truth.numel())


def scattered_samples(noise: float, seed: int, side: int = 64, share: float = 0.5) -> Task:
    """Noisy samples of a photograph at random places, ``share`` as many as it has pixels."""
    truth, generator = photograph(seed, side), Generator().manual_seed(1000 + seed)
    training = int(share * truth.numel())
    places = torch.rand(training + _held_out(training), 1, 2, generator=generator) * (side - 1)
    return _task(truth, *interpolated(places, truth.shape), training, noise, 64, generator)


def tomography(noise: float, seed: int, side: int = 64, share: float = 0.5) -> Task:
    """A photograph seen along random rays of a parallel beam, ``share`` as many as it has pixels."""
    truth, generator = photograph(seed, side), Generator().manual_seed(1000 + seed)
    training = int(share * truth.numel())
    rays = training + _held_out(training)
    angle = math.pi * torch.rand(rays, 1, 1, generator=generator)
    along = torch.cat([angle.cos(), angle.sin()], 2)
    offset = 1.2 * side * (torch.rand(rays, 1, 1, generator=generator) - 0.5)
    return _task(
        truth, *_rays(along, offset * along.flip(2) * torch.tensor([-1, 1]), side), training, noise, 64, generator
    )


def emission_volume(noise: float, seed: int, side: int = 16, share: float = 0.5) -> Task:
    """A volume of ellipsoids seen along rays in random directions, ``share`` as many as it has voxels."""
    generator = Generator().manual_seed(1000 + seed)
    truth = ellipsoids(side, generator)
    training = int(share * truth.numel())
    rays = training + _held_out(training)
    along = torch.nn.functional.normalize(torch.randn(rays, 1, 3, generator=generator), dim=2)
    offset = side * (torch.rand(rays, 1, 3, generator=generator) - 0.5)
    offset -= (offset * along).sum(2, keepdim=True) * along
    return _task(truth, *_rays(along, offset, side), training, noise, 64, generator)


def texture(samples: float, seed: int, side: int = 64) -> Task:
    """A texture from so many samples of each pixel, with noise as large as the value, as in Monte-Carlo rendering."""
    truth, generator = photograph(seed, side), Generator().manual_seed(1000 + seed)
    training = int(samples) * truth.numel()
    every = torch.arange(truth.numel()).repeat(int(samples))
    others = torch.randint(truth.numel(), (truth.numel() // 4,), generator=generator)
    places = torch.cat([every, others])[:, None]
    values = truth.flatten()[places[:, 0]]
    values = values * (1 + torch.randn(len(values), generator=generator))
    return _split(truth, Measurements(places, torch.ones(len(places), 1), values), training, 256)


TASKS: dict[str, tuple[Callable[[float, int], Task], tuple[float, ...]]] = {
    "tomography": (tomography, (0.02, 0.1, 0.5)),
    "scattered samples": (scattered_samples, (0.1, 0.3, 1.0)),
    "emission volume": (emission_volume, (0.02, 0.1, 0.5)),
    "texture": (texture, (1, 4, 16)),
}
"""By name, each with its noise: a share of the measurements' standard deviation; of textures, samples per pixel."""


@lru_cache(maxsize=1)
def _scenes() -> tuple[Tensor, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(torch.tensor(image).float().mean(2) / 255 for image in load_sample_images().images)


def photograph(seed: int, side: int) -> Tensor:
    """A part of a photograph of scikit-learn's, grey, ``(side, side)``. Seeds below 20 have others; they overlap."""
    scene = _scenes()[seed % 2]
    size = (256, 384)[seed // 10 % 2]
    row, column = divmod(seed // 2 % 5, 3)
    top, left = (scene.shape[0] - size) * row, (scene.shape[1] - size) * column // 2
    part = scene[top : top + size, left : left + size]
    return torch.nn.functional.interpolate(part[None, None], (side, side), mode="area")[0, 0]


def ellipsoids(side: int, generator: Generator) -> Tensor:
    """Eight ellipsoids of random places, axes and brightness, with edges a voxel wide: ``(side, side, side)``."""
    line = torch.linspace(-1, 1, side)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), 3)
    volume = torch.zeros(side, side, side)
    for _ in range(8):
        centre = 1.2 * (torch.rand(3, generator=generator) - 0.5)
        radii = 0.15 + 0.5 * torch.rand(3, generator=generator)
        brightness = 0.2 + 0.6 * torch.rand(1, generator=generator)
        axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
        distance = ((points - centre) @ axes / radii).norm(dim=3)
        volume += brightness * torch.sigmoid((1 - distance) * side / 2)
    return volume / volume.max()


def interpolated(positions: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Indices and weights by which a field is interpolated linearly along each axis, zero outside.

    Args:
        positions: ``(n, points, axes)``, in elements.
        shape: of the field.

    Returns:
        Both ``(n, points * 2 ** axes)``.
    """
    first, places, weights = positions.floor(), [], []
    for corner in range(2 ** len(shape)):
        index, weight = torch.zeros(positions.shape[:2], dtype=torch.int64), torch.ones(positions.shape[:2])
        for axis, length in enumerate(shape):
            at = first[..., axis] + (corner >> axis & 1)
            weight = weight * (1 - (positions[..., axis] - at).abs()) * ((at >= 0) & (at < length))
            index = index * length + at.clamp(0, length - 1).long()
        places.append(index)
        weights.append(weight)
    return torch.cat(places, 1), torch.cat(weights, 1)


def _rays(along: Tensor, offset: Tensor, side: int) -> tuple[Tensor, Tensor]:
    reach = side * math.sqrt(along.shape[2]) / 2
    steps = torch.arange(-reach, reach)[None, :, None]
    places, weights = interpolated((side - 1) / 2 + offset + steps * along, [side] * along.shape[2])
    return places, weights / side


def _held_out(training: int) -> int:
    return max(HELD_OUT, training // 4)


def _task(
    truth: Tensor, places: Tensor, weights: Tensor, training: int, noise: float, batch: int, generator: Generator
) -> Task:
    values = (truth.flatten()[places] * weights).sum(1)
    values = values + noise * values.std() * torch.randn(len(values), generator=generator)
    return _split(truth, Measurements(places, weights, values), training, batch)


def _split(truth: Tensor, measured: Measurements, training: int, batch: int) -> Task:
    return Task(truth, measured.only(slice(training)), measured.only(slice(training, None)), batch)
