"""Names that a user gives: an unknown one is refused in one sentence that says which was meant."""

import difflib
import json
from collections.abc import Collection
from typing import Any


def require_known(what: str, value: Any, known: Collection[str]) -> None:
    """ValueError unless ``value`` is one of the ``known`` names of ``what``."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{what} must be one of {', '.join(sorted(known))}, got {quoted(value)}{did_you_mean(value, known)}"
        )


def did_you_mean(value: Any, known: Collection[str]) -> str:
    """``"; did you mean 06-stress-test?"`` where a known name resembles ``value``, and nothing elsewhere."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(value.lower(), by_lower, n=1) if isinstance(value, str) else []
    return f"; did you mean {by_lower[found[0]]}?" if found else ""


def quoted(value: Any) -> str:
    """A value as messages show it, on one line: text in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def damaged(path: object, error: Exception) -> str:
    """What is said of a file of the project that cannot be read."""
    return (
        f"{path} is damaged ({in_a_line(error)}); where it is under version control, "
        f"`git checkout -- {path}` brings it back"
    )


def in_a_line(error: Exception) -> str:
    """An error's kind, as tracebacks name it, and the first line of what it says."""
    kind, said = type(error), str(error).strip().partition("\n")[0]
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    return f"{name}: {said}" if said else name
