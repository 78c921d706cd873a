"""Methods of the literature that filter gradients or set steps by their agreement, as this study's do."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.nn.utils import parameters_to_vector
from torch.optim import Optimizer

from convopt.lab.methods.baselines import from_library
from convopt.lab.methods.controls import mean_factor
from convopt.lab.methods.method import (
    ANNEALINGS,
    FILTERS,
    OPTIMIZERS,
    Batch,
    Method,
    Optimizers,
    Wrapper,
    of_groups,
    step,
    stepping,
    to_each,
)


def _cosine(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    """Of two lists of tensors, each as one vector."""
    return cosine_similarity(parameters_to_vector(a), parameters_to_vector(b), dim=0).item()


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class SGDF(Optimizer):
    """SGD along a gradient that a Wiener filter over time estimates, coordinate by coordinate.

    The filter weighs the average of past gradients and the gradient by their variances.

    Source: Yao et al., Signal processing meets SGD: from momentum to filter (arXiv:2311.02818), algorithm 1, with the
    exponent 1/2 of the gain that its authors' implementation has.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * self._estimate(p, *group["betas"], group["eps"]))

    def _estimate(self, p: nn.Parameter, beta1: float, beta2: float, eps: float) -> Tensor:
        state, g = self.state[p], p.grad
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(p), "variance": torch.zeros_like(p)}
        state["step"] += 1
        t = state["step"]
        state["mean"].lerp_(g, 1 - beta1)
        state["variance"].lerp_((g - state["mean"]).square(), 1 - beta2)
        mean = state["mean"] / (1 - beta1**t)
        of_mean = (1 - beta1) * (1 - beta1 ** (2 * t)) / ((1 + beta1) * (1 - beta2**t)) * state["variance"]
        gain = of_mean / (of_mean + (g - mean).square() + eps)
        return mean + gain.sqrt() * (g - mean)


def _in_agreement(optimizers: Optimizers, batch: Batch) -> float:
    """The batch's loss. Its gradient is the mean of its halves', and marked as wanted where those agree."""
    (optimizer,) = optimizers.values()
    params = list(batch.model.parameters())
    losses, grads = [], []
    for half in batch.halves():
        loss = half.loss()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return losses[-1]
        grads.append(torch.autograd.grad(loss, params))
    for p, one, other in zip(params, *grads, strict=True):
        p.grad = (one + other) / 2
    for group in optimizer.param_groups:
        group["agrees"] = 1 - _cosine(*grads) <= group["threshold"]
    return sum(losses) / 2


def _step_where_halves_agree(optimizers: Optimizers, batch: Batch, loss: float) -> None:
    """One step, in which parameters without a gradient stay where they are: all of them, where the halves disagree."""
    (optimizer,) = optimizers.values()
    if not optimizer.param_groups[0]["agrees"]:
        optimizer.zero_grad()
    step(optimizers, batch, loss)


def _agreement_filtered(groups: Any, threshold: float, **options: Any) -> Optimizer:
    optimizer = torch.optim.SGD(groups, fused=True, **options)
    for group in optimizer.param_groups:
        group["threshold"] = threshold
    return optimizer


OPTIMIZERS |= {
    **{name: Method(from_library("pytorch_optimizer", name)) for name in ("MSVAG", "MARS", "Prodigy", "SOAP")},
    "SGDF": Method(of_groups(SGDF)),
    # Chaubard et al. (arXiv:2412.18052), algorithm 1, with two micro-batches: no step where the cosine distance of
    # their gradients exceeds the threshold
    "gradient agreement filtering": Method(of_groups(_agreement_filtered), _in_agreement, _step_where_halves_agree),
}


class Cautious:
    """Takes out of an optimizer's steps what the gradient points against, and lengthens the rest to make up for it.

    Source: Liang et al., Cautious optimizers (arXiv:2411.16085), algorithm 2. The whole step is masked, decoupled
    weight decay included.
    """

    def __init__(self, optimizer: Optimizer):
        self._before: list[Tensor] = []
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from step to step."""
        return {}

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._before = [p.detach().clone() for p in _params(optimizer)]

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        for p, before in zip(_params(optimizer), self._before, strict=True):
            moved = p - before
            mask = (moved * p.grad < 0).to(p.dtype)
            p.copy_(before + moved * mask / mask.mean().clamp(min=1e-3))


FILTERS["cautious"] = Wrapper(
    lambda optimizers, _: {name: Cautious(stepping(optimizer)) for name, optimizer in optimizers.items()}
)


class Hypergradient:
    """Before each step, multiplies the learning rates by ``1 + beta * cosine`` of the last step and the descent.

    Source: Baydin et al., Online learning rate adaptation with hypergradient descent (arXiv:1703.04782), equation 8.
    The last step is that of any optimizer, as the weights moved.
    """

    def __init__(self, optimizer: Optimizer, beta: float):
        self._beta, self._factor = beta, 1.0
        self._before: list[Tensor] = []
        self._moved: list[Tensor] = []
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def factor(self) -> float:
        """What the rates have been multiplied by so far."""
        return self._factor

    def state_dict(self) -> dict[str, Any]:
        """What is kept from step to step."""
        return {"moved": self._moved, "factor": self._factor}

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        params = _params(optimizer)
        if self._moved:
            change = 1 - self._beta * _cosine([p.grad for p in params], self._moved)
            self._factor *= change
            for group in optimizer.param_groups:
                group["lr"] *= change
        self._before = [p.detach().clone() for p in params]

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        params = _params(optimizer)
        self._moved = [p.detach() - before for p, before in zip(params, self._before, strict=True)]


ANNEALINGS["hypergradient"] = Wrapper(to_each(Hypergradient), mean_factor)
