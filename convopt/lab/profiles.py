"""Ways to execute the notebooks, by name."""

from typing import Any

PROFILES: dict[str, dict[str, Any]] = {
    "published": {},
    "quick": {"dataset": "digits", "seeds": 2, "epochs": 1, "jobs": 1, "seconds": 0.1, "budget_minutes": 0.25},
}
"""Parameters that a profile sets where a notebook has them. With ``convopt notebooks``, "quick" also trains into a new
store. Its runs are shorter than the start of a worker process, so that one process does it all."""
