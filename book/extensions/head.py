"""The head of each page: what search engines and links from elsewhere show of it, and no scripts that nothing uses."""

import os
import re
from html import escape, unescape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

IMAGE = "_static/finding.png"
"""What a link to the book is shown with, below the book's address."""

LONGEST = 200
"""Characters of a description; search engines cut off more."""


def site(repository: str) -> str:
    """Where GitHub publishes the book of a repository on GitHub; "" for others."""
    found = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", repository.rstrip("/"))
    return f"https://{found[1].lower()}.github.io/{found[2]}/" if found else ""


def summary(doctree: nodes.document) -> str:
    """The first paragraph, cut off between words."""
    text = " ".join(next(doctree.findall(nodes.paragraph)).astext().split())
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"


def complete(app: Sphinx, pagename: str, _: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Describe a page; leave out sphinx-thebe, whose settings jupyter-book writes twice, which is an error."""
    context["script_files"] = [script for script in context["script_files"] if not _is_thebe(script)]
    if doctree is None or next(doctree.findall(nodes.paragraph), None) is None:
        return
    description, title = summary(doctree), context["title"]
    tags = {"og:type": "article", "og:title": unescape(re.sub("<.*?>", "", title)), "og:description": description}
    if address := site(os.environ.get("REPOSITORY", "")):
        tags |= {"og:url": f"{address}{pagename}.html", "og:image": address + IMAGE}
    lines = [f'<meta name="description" content="{escape(description)}" />']
    lines += [f'<meta property="{name}" content="{escape(value)}" />' for name, value in tags.items()]
    context["metatags"] = "\n".join([context.get("metatags", ""), *lines])


def _is_thebe(script: Any) -> bool:
    return "thebe" in f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', {})}".lower()


def setup(app: Sphinx) -> dict[str, bool]:
    """After all that add scripts."""
    app.connect("html-page-context", complete, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
