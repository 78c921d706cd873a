"""What the safety tests run over: every optimizer of ours, and what is attached, around three of torch's optimizers."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import convopt
from convopt import FieldAdam, SNRAnnealing, WeightAveraging, WienerFilter

OURS = [
    cls
    for cls in (getattr(convopt, name) for name in convopt.optim.__all__)
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
]
TORCHS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
    "AdamW": lambda groups, lr: torch.optim.AdamW(groups, lr=lr),
    "RMSprop": lambda groups, lr: torch.optim.RMSprop(groups, lr=lr),
}
LEARN_NOTHING = tuple(cls for cls in OURS if not any(hasattr(cls, name) for name in ("kernels", "snr", "learnt")))
"""Of all others :meth:`Subject.learnt` tells something once they are trained."""
WIENER_OPTIONS = {"snr_annealing": True, "warmup": 5, "annealing_ema": 0.9, "every": 2}


class Subject(NamedTuple):
    """An optimizer and what is attached to it.

    Attributes:
        optimizer: that steps.
        attached: SNRAnnealing, WienerFilter or WeightAveraging; None for an optimizer of ours.
    """

    optimizer: torch.optim.Optimizer
    attached: Any = None

    def learnt(self) -> list[torch.Tensor]:
        """Kernels, coherences, laws, agreements and factors, in some order; of those that learn nothing none."""
        if isinstance(self.attached, SNRAnnealing):
            return [torch.tensor([self.attached.rho(), self.attached.factor()])]
        if isinstance(self.attached, WienerFilter):
            return [each.coherence.float() for each in self.attached.coherence().values()]
        if isinstance(self.attached, WeightAveraging):
            return [torch.tensor([self.attached.slope()]), *self.attached.state_dict()["averages"]]
        if hasattr(self.optimizer, "snr"):
            snr = self.optimizer.snr()
            return [torch.tensor([snr.rho, snr.factor]), *[each.coherence.float() for each in snr.parameters.values()]]
        if isinstance(self.optimizer, FieldAdam):
            return [each for learnt in self.optimizer.learnt().values() for each in (*learnt.law, learnt.gain)]
        if isinstance(self.optimizer, LEARN_NOTHING):
            return []
        return list(self.optimizer.kernels().values())

    def saved(self) -> dict[str, Any]:
        """A checkpoint."""
        attached = {} if self.attached is None else {"attached": self.attached.state_dict()}
        return copy.deepcopy({"optimizer": self.optimizer.state_dict(), **attached})

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.attached is not None:
            self.attached.load_state_dict(saved["attached"])


def _ours(cls: type) -> Callable[..., Subject]:
    options = WIENER_OPTIONS if hasattr(cls, "snr") else {}
    return lambda groups, lr=0.01: Subject(cls(groups, lr=lr, **options))


def _annealed(name: str) -> Callable[..., Subject]:
    def make(groups, lr=0.01):
        optimizer = TORCHS[name](groups, lr)
        return Subject(optimizer, SNRAnnealing(optimizer, warmup=5, ema=0.9))

    return make


def _filtered(name: str) -> Callable[..., Subject]:
    def make(groups, lr=0.01):
        optimizer = TORCHS[name](groups, lr)
        return Subject(optimizer, WienerFilter(optimizer, every=2))

    return make


def _averaged(name: str) -> Callable[..., Subject]:
    def make(groups, lr=0.01):
        optimizer = TORCHS[name](groups, lr)
        return Subject(optimizer, WeightAveraging(optimizer, every=2))

    return make


SUBJECTS: dict[str, Callable[..., Subject]] = {
    **{cls.__name__: _ours(cls) for cls in OURS},
    **{f"SNRAnnealing around {name}": _annealed(name) for name in TORCHS},
    **{f"WienerFilter around {name}": _filtered(name) for name in TORCHS},
    **{f"WeightAveraging around {name}": _averaged(name) for name in TORCHS},
}
"""By name, made from param groups and a learning rate."""

for_each_subject = pytest.mark.parametrize("make", SUBJECTS.values(), ids=SUBJECTS.keys())
for_each_attachment = pytest.mark.parametrize(
    "make", [SUBJECTS[name] for name in SUBJECTS if "around" in name], ids=[n for n in SUBJECTS if "around" in n]
)
for_each_of_ours = pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)


def new_params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A weight over images of 8 x 6, an image's kernels, and a bias."""
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = (12, 48), (4, 3, 8, 6), (9,)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype))
        for shape in shapes
    ]


def groups_of(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The first two on their grid, the others without one."""
    return [{"params": params[:2], "grid": (8, 6)}, {"params": params[2:]}]


def gradients(steps: int, seed: int = 1, scale: float = 1.0, dtype=torch.float32) -> list[list[torch.Tensor]]:
    """A signal, in noise."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shapes = [p.shape for p in new_params()]
    make = dict(generator=generator, dtype=torch.float32, device="cpu")
    signal = [torch.randn(shape[:1], **make).view(-1, *[1] * (len(shape) - 1)).expand(shape) for shape in shapes]
    return [
        [scale * (s + torch.randn(shape, **make)).to(dtype) for s, shape in zip(signal, shapes, strict=True)]
        for _ in range(steps)
    ]


def train(subject: Subject, params: Iterable[nn.Parameter], grads: list[list[torch.Tensor]]) -> None:
    """One step for each list of gradients; ours are told a loss."""
    takes_loss = subject.attached is None
    for count, of_step in enumerate(grads):
        for p, grad in zip(params, of_step, strict=True):
            p.grad = None if grad is None else torch.empty_like(p).copy_(grad)
        subject.optimizer.step(**({"loss": float(-count % 3)} if takes_loss else {}))


def assert_same(params: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> None:
    """Bit for bit."""
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
