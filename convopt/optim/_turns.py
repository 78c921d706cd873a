"""At which steps gradients are compared with an earlier one, and at which they are remembered for that."""

from typing import NamedTuple


class Turn(NamedTuple):
    """What a step does with second estimates of its gradients.

    Attributes:
        compares: whether gradients are compared with them.
        remembers: whether gradients are kept as those of the next comparison.
        every: how many steps a comparison stands for.
        halves: whether second estimates are gradients of a half of the batch.
        following: the count of the next step.
    """

    compares: bool
    remembers: bool
    every: int
    halves: bool
    following: int

    @property
    def learns(self) -> bool:
        """Whether it does anything."""
        return self.compares or self.remembers


def turn_of(count: int, every: int, resting: bool, halves: bool = False) -> Turn:
    """The turn of the step number ``count`` of every ``every``: the first compares, the last remembers.

    A ``resting`` step, whose learning rate is 0, does nothing and does not count.
    """
    if resting:
        return Turn(False, False, every, halves, count)
    return Turn(count == 0, count == every - 1 and not halves, every, halves, (count + 1) % every)
