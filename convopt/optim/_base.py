"""The one step that all optimizers here make: refuse, observe, find directions, find the factor, update."""

import copy
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from convopt.optim._checks import (
    check_gradients,
    check_learning_rate,
    grad_of,
    is_distributed,
    named_params,
    params_with_grad,
)
from convopt.optim._plain import in_plain_mode
from convopt.optim._scalars import Scalar
from convopt.optim._shards import local
from convopt.optim._updates import SGDLaw, UpdateLaw, step_size
from convopt.theory._shifts import goes_in_pieces
from convopt.theory.smoothing import at_least_float32


class Part(NamedTuple):
    """A param group and its parameters that have a gradient, with their states."""

    group: dict[str, Any]
    params: list[Tensor]
    states: list[dict[str, Any]]


class Pieces(NamedTuple):
    """A large parameter's direction, some rows after the other, so that each stays in the core's cache.

    Attributes:
        shape: as which the parameter, its gradient and its buffers are seen.
        parts: which rows, and the direction there.
    """

    shape: tuple[int, ...]
    parts: Iterable[tuple[slice, Tensor]]


Direction: TypeAlias = Tensor | Pieces


class SmoothingOptimizer(Optimizer, ABC):
    """An optimizer whose parameters follow directions that are made of gradients, by an update law.

    Options are read from ``param_groups`` at each step. What belongs to one parameter is kept in ``state[p]``, what
    belongs to a group in the group, so that both survive ``state_dict``, pickle and deepcopy.
    """

    _law: ClassVar[UpdateLaw] = SGDLaw()
    _shared_options: ClassVar[tuple[str, ...]] = ()
    """Options that must be the same in all param groups."""
    _fixed_options: ClassVar[tuple[str, ...]] = ()
    """Options that cannot change once a group is made."""
    _exact_state: ClassVar[tuple[str, ...]] = ()
    """State that keeps its precision, whatever that of its parameter."""
    _elementwise: ClassVar[bool] = True
    """Whether the update looks at each element by itself, so that a parameter can pass through it in pieces."""
    _takes_shards: ClassVar[bool] = False
    """Whether parameters may be DTensors, of which a rank makes the directions of its own part."""

    def __init__(self, params: Any, options: dict[str, Any]):
        self._option_names = tuple(name for name in options if name != "lr")
        self._is_made = False
        self._checked: list[tuple[dict[str, Any], list[Any]]] = []
        super().__init__(params, options)
        self._is_made = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint or pickle. What it does not bring stays as it is. ValueError before anything changes.

        torch's load_state_dict ends here, with the state on the parameters' devices and in their precision.
        """
        for group, own in zip(state["param_groups"], getattr(self, "param_groups", []), strict=False):
            for name, value in own.items():
                group.setdefault(name, value)
        self._check_groups(state["param_groups"])
        for group in state["param_groups"]:
            self._check_group_state(group)
            for name, p in named_params(group):
                self._check_state(group, name, p, state["state"].get(p, {}))
        super().__setstate__(state)
        self._option_names = tuple(name for name in self.defaults if name not in ("lr", "differentiable"))
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    # Earlier versions of torch.optim.SGD kept None for a momentum of 0.
                    self.state[p] = {name: each for name, each in self.state[p].items() if each is not None}
                    self._law.adopt(p, self.state[p])
        self._checked, self._is_made = self._options_of(self.param_groups), True
        self._complete_groups()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not name are the defaults. ValueError names an option that is invalid."""
        if self._is_made and self.param_groups:
            for name in self._shared_options:
                param_group.setdefault(name, self.param_groups[0][name])
        self._check_groups([*self.param_groups, {**self.defaults, **param_group}])
        super().add_param_group(param_group)
        try:
            self._check_params(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        self._checked += self._options_of(self.param_groups[-1:])
        self._complete_groups()

    def _options_of(self, groups: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[Any]]]:
        """Param groups and the values of their options, by which a later change is noticed."""
        return [(group, [*map(group.get, self._option_names)]) for group in groups]

    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Update the parameters from their ``grad``, which stays as it is.

        Args:
            closure: called once, before anything else, with gradients enabled. It may only compute the loss of
                the batch whose gradients are in place, or do zero_grad, backward and return the loss; it may
                return a tensor or a float. With GradScaler it must not do backward, whose gradients nobody would
                unscale: pass ``loss``.
            loss: the loss of this batch if it is at hand already, a tensor or a float. It replaces the closure
                and saves its forward pass.

        Returns:
            What the closure returned, or ``loss``.

        Raises:
            ValueError: both ``closure`` and ``loss`` were given, or an option in ``param_groups`` is invalid.
            TypeError: the loss is not one number.
            RuntimeError: a gradient is sparse or complex, or a parameter is sharded so that it cannot
                be smoothed. Nothing has been updated then.
        """
        if closure is not None and loss is not None:
            raise ValueError("closure and loss were both given, expected one of them")
        self._check_loss(closure, loss)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._make_step(_as_scalar(loss))
        return loss

    @in_plain_mode
    def _make_step(self, loss: Tensor | float | None) -> None:
        self._init_group()
        parts = self._parts()
        observed = self._observe(parts, loss)
        directions = [self._directions(part, observed) for part in parts]
        factor = self._factor()
        for part, of_part in zip(parts, directions, strict=True):
            self._update(_local(part), of_part, step_size(part.group["lr"], factor, part.params[0].device))

    def _init_group(self) -> None:
        """Refuse what cannot be done, in all groups; then make the state that is missing.

        torch.compile runs a method of this name instead of tracing it.
        """
        self._check_changed_options()
        parts = self._parts()
        for part in parts:
            check_gradients(part.params, self._takes_shards)
        self._refuse(parts)
        for part in parts:
            self._init_states(part)

    def _init_states(self, part: Part) -> None:
        """Make the state that is missing."""
        new = self._law.init(part.group, part.params, part.states)
        for p, state in zip(part.params, part.states, strict=True):
            new = self._init_state(part.group, p, state) or new
        if new:
            self.state.update(zip(part.params, part.states, strict=True))

    def _parts(self) -> list[Part]:
        """What this step is about; states that do not exist yet are empty, and not in ``self.state``."""
        parts = []
        for group in self.param_groups:
            params = params_with_grad(group)
            if params:
                parts.append(Part(group, params, [self.state.get(p) or {} for p in params]))
        return parts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint, as in torch, or one of the base optimizer.

        ValueError, before anything changes, for options and state that this optimizer has no use for.
        """
        super().load_state_dict(state_dict)
        restore_exact_state(self, state_dict, self._exact_state)

    @abstractmethod
    def _directions(self, part: Part, observed: Any) -> Sequence[Direction]:
        """What each of the part's parameters is to follow; gradients and what they lie in stay as they are."""

    def _observe(self, parts: list[Part], loss: Tensor | float | None) -> Any:
        """Learn from all gradients and the loss; what ``_directions`` is to be told of it."""
        return loss

    def _factor(self) -> Scalar | None:
        """What learning rates are multiplied by; None for nothing."""
        return None

    def _update(self, part: Part, directions: Sequence[Direction], lr: float | Tensor) -> None:
        """Move the part's parameters along their directions."""
        group, params, states = part
        whole = [i for i, direction in enumerate(directions) if isinstance(direction, Tensor)]
        if whole:
            followed = [_in_dtype(d, p.dtype) for p, d in zip(params, directions, strict=True) if isinstance(d, Tensor)]
            if len(whole) < len(params):
                params, states = [params[i] for i in whole], [states[i] for i in whole]
            self._law.update(group, params, followed, states, lr)
            if len(whole) == len(part.params):
                return
        for p, state, direction in zip(part.params, part.states, directions, strict=True):
            if isinstance(direction, Pieces):
                seen = p.view(direction.shape)
                buffers = {name: state[name].view(direction.shape) for name in self._law.buffers if name in state}
                for place, piece in direction.parts:
                    buffers_there = {name: buffer[place] for name, buffer in buffers.items()}
                    self._law.update(group, [seen[place]], [piece.to(p.dtype)], [buffers_there], lr)

    def _smoothed(
        self,
        part: Part,
        smooth: Callable[[list[Tensor]], list[Tensor]],
        smooth_pieces: Callable[[Tensor], Iterable[tuple[slice, Tensor]]],
    ) -> Sequence[Direction]:
        """Smoothed gradients: of large parameters flattened, piece by piece, of all others whole."""
        gradients, large = [grad_of(p) for p in part.params], self._go_in_pieces(part)
        whole = iter(smooth([gradient for gradient, is_large in zip(gradients, large, strict=True) if not is_large]))
        return [
            Pieces((-1,), smooth_pieces(gradient.view(-1))) if is_large else next(whole)
            for gradient, is_large in zip(gradients, large, strict=True)
        ]

    def _go_in_pieces(self, part: Part) -> list[bool]:
        """Which parameters are so large, and lie so, that going through them piece by piece pays."""
        return [
            self._elementwise
            and goes_in_pieces(p)
            and goes_in_pieces(grad_of(p))
            and goes_in_pieces(state.get("momentum_buffer", p))
            for p, state in zip(part.params, part.states, strict=True)
        ]

    def _check_loss(self, closure: Callable[[], Any] | None, loss: Any) -> None:
        """Raise an error for a closure or loss that cannot be used, before the closure is called."""

    def _refuse(self, parts: list[Part]) -> None:
        """Raise an error for a step that cannot be made."""

    def _check_options(self, options: dict[str, Any]) -> None:
        """Raise ValueError for an option that is out of range."""
        self._law.check(options)

    def _check_params(self, group: dict[str, Any]) -> None:
        """Raise ValueError for parameters that do not fit the options of their group."""

    def _check_groups(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            self._check_options(group)
            for name in self._shared_options:
                if group[name] != groups[0][name]:
                    raise ValueError(
                        f"{name} must be the same in all param groups, got {groups[0][name]!r} and {group[name]!r}"
                    )

    def _check_changed_options(self) -> None:
        """Check the options that were changed in ``param_groups`` since the last step."""
        for group in self.param_groups:
            check_learning_rate(group["lr"])
        now = self._options_of(self.param_groups)
        if len(now) == len(self._checked) and all(
            group is known and all(map(operator.is_, values, before))
            for (group, values), (known, before) in zip(now, self._checked, strict=True)
        ):
            return
        changed = [
            (group, name, value)
            for group, before in self._checked
            for name, value in zip(self._option_names, before, strict=True)
            if group[name] is not value
        ]
        for group, name, value in changed:
            if name in self._fixed_options:
                raise ValueError(
                    f"{name} cannot change once a param group is made, got {group[name]!r} where it was {value!r}: add "
                    "a new group"
                )
        self._check_groups(self.param_groups)
        for group in self.param_groups:
            self._check_params(group)
        self._checked = now
        for group, name, _ in changed:
            self._option_changed(group, name)

    def _option_changed(self, group: dict[str, Any], name: str) -> None:
        """Have an option of a group take effect that was changed since the last step."""

    def _check_group_state(self, group: dict[str, Any]) -> None:
        """ValueError for what a checkpoint says that a group's parameters share, if it has the wrong shape."""
        for name, value in self._initial_group_state(group).items():
            kept = group.get(name)
            if isinstance(value, Tensor) and isinstance(kept, Tensor) and kept.shape != value.shape:
                raise ValueError(
                    f"{name} of the checkpoint must have shape {tuple(value.shape)}, got {tuple(kept.shape)}"
                )

    def _check_state(self, group: dict[str, Any], name: str, p: Tensor, state: dict[str, Any]) -> None:
        """ValueError for state of a checkpoint that the parameter cannot have."""
        expected = {**dict.fromkeys(self._law.buffers, tuple(p.shape)), **self._law.counters, **self._shapes(group, p)}
        for key, value in state.items():
            if key not in expected:
                raise ValueError(
                    f"the checkpoint holds {key} of parameter {name}, for which {type(self).__name__} has no use: it "
                    "is of another optimizer"
                )
            if isinstance(value, Tensor) and expected[key] not in (None, tuple(value.shape)):
                raise ValueError(
                    f"{key} of parameter {name} must have shape {expected[key]}, got {tuple(value.shape)}: the "
                    "checkpoint is of another network or of other options"
                )

    def _complete_groups(self) -> None:
        """Give the groups what they share or what their parameters share, where it is missing."""
        for group in self.param_groups:
            for name, value in self._initial_group_state(group).items():
                group.setdefault(name, value)

    def _initial_group_state(self, group: dict[str, Any]) -> dict[str, Any]:
        """What all parameters of a group share, to be kept in the group."""
        return {}

    def _init_state(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> bool:
        """Make the parameter's own state where it is missing; whether it was."""
        return False

    def _shapes(self, group: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...] | None]:
        """The state that a parameter may have beside the law's buffers, and its shapes; None for any."""
        return {}


def _local(part: Part) -> Part:
    """What this rank holds of the parameters and their states."""
    if not any(map(is_distributed, part.params)):
        return part
    states = [{name: local(each) for name, each in state.items()} for state in part.states]
    return Part(part.group, [local(p) for p in part.params], states)


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _as_scalar(loss: Any) -> Tensor | float | None:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return at_least_float32(loss.detach().reshape(())).clone()
    if loss is None:
        return None
    if isinstance(loss, Real):
        return float(loss)
    raise TypeError(f"loss must be one number, a tensor or a float, got {loss!r}")


def restore_exact_state(optimizer: Optimizer, state_dict: dict[str, Any], names: Iterable[str]) -> None:
    """After ``load_state_dict``, which casts to the parameters' dtype: the state called ``names`` as it was saved."""
    saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for saved_id, p in zip(saved_ids, params, strict=True):
        saved = state_dict["state"].get(saved_id, {})
        for name in names:
            if name in saved:
                optimizer.state[p][name] = copy.deepcopy(saved[name]).to(p.device)
