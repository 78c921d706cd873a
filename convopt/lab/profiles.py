"""Ways to execute the notebooks, by name."""

from typing import Any

PROFILES: dict[str, dict[str, Any]] = {
    "published": {},
    "quick": {"dataset": "digits", "seeds": 2, "epochs": 2, "seconds": 0.1, "budget_minutes": 0.25},
}
"""Parameters that a profile sets where a notebook has them. With ``convopt notebooks``, "quick" also trains into a new
store."""
