"""Images changed against a network, by at most so much per pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convopt.lab.runs import Choice

STEPS = {"FGSM": 1, "PGD": 10}
"""Gradient steps of each adversary by name."""


class Adversary:
    """Changes images so that a network's loss grows, within ``epsilon`` of each pixel and the range of the data.

    "FGSM" takes one step of ``epsilon`` along the gradient's sign (Goodfellow et al., arXiv:1412.6572). "PGD" starts at
    random within ``epsilon`` and takes ten steps of a quarter of it (Madry et al., arXiv:1706.06083).

    Args:
        choice: "FGSM" or "PGD" with ``epsilon``, where 1 is from black to white. ValueError for another name.
        images: whose least and largest value are black and white, after normalisation.
        seed: of the random starts.
    """

    def __init__(self, choice: Choice, images: Tensor, seed: int):
        if choice.name not in STEPS:
            raise ValueError(f"adversary must be one of {', '.join(STEPS)}, got {choice.name!r}")
        self.steps = STEPS[choice.name]
        self.black, self.white = images.min().item(), images.max().item()
        self.epsilon = dict(choice.options)["epsilon"] * (self.white - self.black)
        self._generator = torch.Generator().manual_seed(seed)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The changed images, shaped as ``x``. Gradients of the parameters stay as they are."""
        attacked = x
        if self.steps > 1:
            attacked = self._clip(x + self.epsilon * (2 * torch.rand(x.shape, generator=self._generator) - 1), x)
        stride = self.epsilon if self.steps == 1 else self.epsilon / 4
        for _ in range(self.steps):
            attacked = attacked.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(attacked), y), attacked)
            attacked = self._clip(attacked.detach() + stride * gradient.sign(), x)
        return attacked

    def _clip(self, attacked: Tensor, x: Tensor) -> Tensor:
        return torch.clamp(attacked, x - self.epsilon, x + self.epsilon).clamp_(self.black, self.white)
