"""How many digits of a record's numbers are kept."""

from typing import Any

DIGITS_OF_SECONDS = 3
"""No more can be measured on a machine that does other things, too."""

DIGITS_OF_KERNELS = 9
"""They tell any two numbers in float32 apart."""


def with_digits(nested: Any, digits: int) -> Any:
    """Lists and dicts as they are, the numbers in them rounded to so many significant digits."""
    if isinstance(nested, dict):
        return {name: with_digits(value, digits) for name, value in nested.items()}
    if isinstance(nested, list):
        return [with_digits(value, digits) for value in nested]
    return float(f"{nested:.{digits}g}")
