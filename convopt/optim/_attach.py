"""What hangs on the steps of an optimizer that knows nothing of it: the filter and the annealing.

All that is attached to one optimizer shares one pair of hooks, so that the order of attaching makes no difference: all
observe the gradients as they are, then gradients are filtered, then learning rates are scaled, then the optimizer's own
update runs, and then everything is put back, whatever the update raised.
"""

import functools
import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from convopt.optim._checks import check_gradients, is_at_rest, params_with_grad
from convopt.optim._plain import in_plain_mode
from convopt.optim._scalars import is_readable

Active: TypeAlias = list[tuple[dict[str, Any], list[Tensor]]]
"""Param groups with those of their parameters that have a gradient."""


class Stage(ABC):
    """Something attached to an optimizer.

    Attributes:
        optimizer: what it is attached to; where a wrapper without step hooks was given, the optimizer within.
    """

    def __init__(self, optimizer: Optimizer):
        self.optimizer = hooked_optimizer(optimizer, type(self).__name__)
        self._attach()

    def detach(self) -> None:
        """Leave the optimizer as it was. Its steps are no longer seen or changed."""
        hooks = Hooks.on(self.optimizer)
        if hooks is not None:
            hooks.remove(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or one out of a pickle, is attached to the optimizer that came with it."""
        self.__dict__.update(state)
        self._attach()

    def _params(self) -> list[Tensor]:
        """All parameters of the optimizer, in the order of its groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _attach(self) -> None:
        hooks = Hooks.on(self.optimizer) or Hooks(self.optimizer)
        hooks.add(self)

    def check(self, active: Active) -> None:  # noqa: B027
        """Raise an error for what cannot work, before a step changes anything."""

    @abstractmethod
    def observe(self, active: Active) -> None:
        """Learn from the gradients as they are."""

    def filter(self, active: Active) -> dict[Tensor, Tensor]:
        """Gradients that the optimizer is to be given in place of its parameters' own."""
        return {}

    def scaled(self, group: dict[str, Any]) -> float | Tensor | None:
        """The learning rate that the group is to have for this step; None if it is to keep its own."""
        return None


class Hooks:
    """The hooks on one optimizer, and what is attached by them."""

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._stages: list[Stage] = []
        self._put_back: list[Callable[[], None]] = []
        self._observed = False
        self._depth: int | None = None
        self._before = optimizer.register_step_pre_hook(self._before_step)
        self._after = optimizer.register_step_post_hook(self._after_step)
        self._own_step = optimizer.__dict__.get("step")
        self._step = self._guarded(optimizer.step)
        optimizer.step = self._step  # type: ignore[method-assign]
        optimizer._convopt_hooks = self  # type: ignore[attr-defined]

    @staticmethod
    def on(optimizer: Optimizer) -> "Hooks | None":
        """Those on the optimizer; None where there are none. Copies of an optimizer have none, as torch has it."""
        return optimizer.__dict__.get("_convopt_hooks")

    def add(self, stage: Stage) -> None:
        """Attach; RuntimeError where one of its kind is attached, or what it does is done by the optimizer itself."""
        try:
            for other in self._stages:
                if type(other) is type(stage):
                    raise RuntimeError(
                        f"this {type(self._optimizer).__name__} has a {type(stage).__name__} already: go on with that "
                        "one, or detach() it first"
                    )
            stage.check([])
        except Exception:
            self._remove_if_empty()
            raise
        self._stages.append(stage)

    def remove(self, stage: Stage) -> None:
        """Detach."""
        self._restore()
        self._stages = [other for other in self._stages if other is not stage]
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        if self._stages:
            return
        self._before.remove()
        self._after.remove()
        self._optimizer.__dict__.pop("_convopt_hooks", None)
        if self._optimizer.__dict__.get("step") is self._step:  # else another wrapper holds it, and it does nothing
            if self._own_step is None:
                del self._optimizer.step
            else:
                self._optimizer.step = self._own_step  # type: ignore[method-assign]

    def _guarded(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The optimizer's step, after which everything is put back even if it raises: torch calls no hook then.

        Inside, the hooks know how deep they are: where a subclass's step calls that of its base class, torch calls the
        hooks of both.
        """

        @functools.wraps(step)
        def guarded(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            self._move_inside()
            self._depth = 0
            try:
                return step(*args, **kwargs)
            finally:
                self._depth = None
                self._restore()

        return types.MethodType(guarded, self._optimizer)

    def _move_inside(self) -> None:
        """Let these hooks run next to the update, so that all others see gradients and rates as they are."""
        if self._stages:
            hooks: Any = self._optimizer._optimizer_step_pre_hooks, self._optimizer._optimizer_step_post_hooks
            hooks[0].move_to_end(self._before.id)
            hooks[1].move_to_end(self._after.id, last=False)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._depth is not None:
            self._depth += 1
            if self._depth > 1:
                return None
        self._restore()
        self._observed = False
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._enter()
            return None

        def then_enter(*closure_args: Any, **closure_kwargs: Any) -> Any:
            self._restore()
            outcome = closure(*closure_args, **closure_kwargs)
            self._enter()
            return outcome

        if len(args) > 1:
            return (args[0], then_enter, *args[2:]), kwargs
        return args, {**kwargs, "closure": then_enter}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._depth is not None:
            self._depth -= 1
            if self._depth:
                return
        self._restore()

    @in_plain_mode
    def _enter(self) -> None:
        """Refuse, observe, filter, scale: the gradients are there, and the update comes next."""
        if getattr(self._optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                f"{type(self._stages[0]).__name__} needs unscaled gradients, but this fused optimizer unscales them "
                "itself: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        if _is_skipped(self._optimizer):
            return
        groups = self._optimizer.param_groups
        active = [(group, params) for group in groups if (params := params_with_grad(group))]
        for _, params in active:
            check_gradients(params, takes_shards=True)
        for stage in self._stages:
            stage.check(active)
        if not self._observed and not all(is_at_rest(group.get("lr", 1.0)) for group in groups):
            for stage in self._stages:
                stage.observe(active)
        self._observed = True
        for stage in self._stages:
            for p, gradient in stage.filter(active).items():
                self._put_back.append(functools.partial(setattr, p, "grad", p.grad))
                p.grad = gradient
        for group in groups:
            for stage in self._stages:
                if (lr := stage.scaled(group)) is not None:
                    self._put_back.append(functools.partial(group.__setitem__, "lr", group["lr"]))
                    group["lr"] = lr

    def _restore(self) -> None:
        while self._put_back:
            self._put_back.pop()()


def _is_skipped(optimizer: Optimizer) -> bool:
    """Whether GradScaler has told a fused optimizer, which skips the step by itself, that a gradient is not finite."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and is_readable(found.device) and bool(found.any())


def hooked_optimizer(optimizer: Any, name: str) -> Optimizer:
    """The optimizer whose steps can be hooked: itself, or within wrappers like accelerate's the one that they wrap.

    TypeError for what is no optimizer, and for optimizers whose steps do not scale with ``lr``.
    """
    inner = optimizer
    while not _has_step_hooks(inner) and isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not _has_step_hooks(inner):
        raise TypeError(
            f"{type(inner).__name__} has no step hooks: attach {name} to the torch.optim.Optimizer that it wraps"
        )
    if isinstance(inner, LBFGS):
        raise TypeError(f"LBFGS takes many gradients in one step: {name} cannot be attached to it")
    return inner


def _has_step_hooks(optimizer: Any) -> bool:
    """Whether torch calls hooks at its steps. A subclass that does not call ``Optimizer.__init__`` has none."""
    return hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(type(optimizer).step, "hooked")
