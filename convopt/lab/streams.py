"""Standard streams that are closed, or that nobody reads."""

import os
import select
import sys


def replace_closed() -> None:
    """Let standard streams that were closed lead nowhere: no file opened later, a record say, may take their place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the end


def silence_broken() -> bool:
    """Let streams that nobody reads lead nowhere, for what Python flushes at its exit. Whether there were any."""
    broken = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _is_broken(stream.fileno())]
    silence(broken)
    return bool(broken)


def silence(numbers: list[int]) -> None:
    """Let the files with these numbers lead nowhere."""
    for number in numbers:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _is_broken(number: int) -> bool:
    """Whether the file with this number is a pipe that nobody reads."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
