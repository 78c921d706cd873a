"""What a training run is: a frozen configuration whose canonical JSON's hash is its identity."""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Choice:
    """Something chosen by name, a model or an optimizer, with its options as sorted pairs."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, name: str, **options: Any) -> "Choice":
        """``Choice.of("SGD", lr=0.01)``; lists become tuples so that a choice stays hashable."""
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {name!r}")
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        return cls(name, tuple(sorted(frozen.items())))


CONSTANT = Choice("constant")
"""A learning rate that stays as it is."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        dataset: a name or path that ``data.load`` knows.
        n_train: the first n inputs of the training split are trained on.
        n_test: the first n inputs of the test split are reported.
        batch_size: the last incomplete batch of an epoch is dropped.
        label_noise: share of training labels that are wrong, 0 to 1.
        epochs: passes over the training images.
        model: a name that ``networks.make`` knows, and its options.
        optimizer: a name of ``methods.OPTIMIZERS`` and its options.
        seed: of initial weights, batches, label noise and the order of pixels, one stream each. Runs of one seed are
            paired.
        pixels: "natural"; "permuted", in one random order for all images; or "blurred" by a binomial kernel of 3x3.
        schedule: of the learning rate, a name of ``methods.SCHEDULES`` and its options.
        annealing: a name of ``methods.ANNEALINGS`` and its options; None for none.
        loss: what is minimised, a name of ``methods.LOSSES`` and its options; None for the task's own.
        averaging: of the weights over steps, a name of ``methods.AVERAGINGS`` and its options; the average is then what
            is evaluated; None for none.
        gradient_noise: power of white noise added to every gradient, as a multiple of its own power.
        adversary: who changes the images before each step, see ``adversaries.Adversary``; None for nobody.
        data: what tells the reader's own file, and own network, from what was under its name before; see the functions
            ``fingerprint``.
        filter: of gradients, around the optimizer, a name of ``methods.FILTERS`` and its options; None for none.
        inputs: what is done to inputs, a name of ``methods.INPUTS`` and its options; None for nothing.
    """

    dataset: str
    n_train: int
    n_test: int
    batch_size: int
    label_noise: float
    epochs: int
    model: Choice
    optimizer: Choice
    seed: int
    pixels: str = "natural"
    schedule: Choice = CONSTANT
    annealing: Choice | None = None
    loss: Choice | None = None
    averaging: Choice | None = None
    gradient_noise: float = 0.0
    adversary: Choice | None = None
    data: str = ""
    filter: Choice | None = None
    inputs: Choice | None = None

    def __post_init__(self) -> None:
        for name in ("label_noise", "gradient_noise"):  # 0 and 0.0 are equal, and so are their runs' identities
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers. A field with a default is there only if it differs.

        So a run keeps its identity when runs learn something new.
        """
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        told = {field.name: told[field.name] for field in fields(self) if told[field.name] != field.default}
        return {
            name: _choice_to_json(name, value) if isinstance(value, Choice) else value for name, value in told.items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Run":
        """The inverse of ``to_json``. KeyError or TypeError where ``data`` is no run."""
        choices = {
            key: Choice.of(value["name"], **value["options"]) for key, value in data.items() if isinstance(value, dict)
        }
        if isinstance(data.get("schedule"), str):
            choices["schedule"] = Choice.of(data["schedule"])
        return cls(**{**data, **choices})

    def stream(self, purpose: str) -> int:
        """The seed of the random stream for ``purpose``, independent of those for other purposes."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def _choice_to_json(field: str, choice: Choice) -> str | dict[str, Any]:
    """A schedule without options is its name: when the first records were published, schedules had none."""
    if field == "schedule" and not choice.options:
        return choice.name
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in choice.options}
    return {"name": choice.name, "options": options}
