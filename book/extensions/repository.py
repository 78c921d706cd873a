"""Links the book to its repository: REPOSITORY in the environment is its address; without it, there is no link."""

import os

from sphinx.application import Sphinx
from sphinx.config import Config


def link(app: Sphinx, config: Config) -> None:
    """Give the pages a button and ``{{ repository }}``."""
    address = os.environ.get("REPOSITORY", "").rstrip("/")
    config.myst_substitutions = {"repository": f"[this repository]({address})" if address else "this repository"}
    if address:
        config.html_theme_options |= {"repository_url": address, "use_repository_button": True}


def setup(app: Sphinx) -> dict[str, bool]:
    """Before MyST and the theme read their options."""
    app.connect("config-inited", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
