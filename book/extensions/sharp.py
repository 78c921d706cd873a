"""Figures as wide as they are meant: their files have more pixels to the inch than the page."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx

from convopt.lab.figures.style import DPI


def complete(app: Sphinx, _: str, __: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Say of each figure of a notebook how wide it is: without that, a browser shows each of its pixels.

    It may become narrower, and then lower, too: the size that MyST has from the notebook would stay as it is.
    """
    if doctree is None:
        return
    files = {name: Path(app.srcdir, path) for path, name in app.builder.images.items()}

    def with_width(found: re.Match[str]) -> str:
        with Image.open(files[found[2]]) as image:
            dpi, _ = image.info["dpi"]
            width = image.width * DPI / dpi
            return f'srcset="{found[1]} {image.width}w" sizes="{width:.0f}px" src="{found[1]}"'

    context["body"] = re.sub(r'src="([^"]*_images/([^"/]+\.png))"( style="width: [^"]*")?', with_width, context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """When the page is written."""
    app.connect("html-page-context", complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
