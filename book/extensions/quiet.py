"""The theme's scripts tell the browser's console what they do. Whoever looks there looks for faults."""

import re
from pathlib import Path

from sphinx.application import Sphinx

_TOLD = re.compile(r"\bconsole\.(log|info|debug)\(")


def silence(app: Sphinx, exception: Exception | None) -> None:
    """Warnings and errors stay. The arguments are evaluated as before, and dropped."""
    if exception is None:
        for path in [*Path(app.outdir, "_static").rglob("*.js"), *Path(app.outdir).glob("search.html")]:
            text = path.read_text(encoding="utf-8")
            silent = _TOLD.sub("void(", text)
            if silent != text:
                path.write_text(silent, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """When all is written."""
    app.connect("build-finished", silence)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
