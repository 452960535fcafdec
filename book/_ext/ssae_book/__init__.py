"""The book's one local Sphinx extension: what the pages need beyond Jupyter Book.

It derives every address of the project from ``pyproject.toml`` (:mod:`.repository`), keeps executed chapters
in step with the package they import (:mod:`.freshness`) and executes them side by side (:mod:`.execution`),
serves everything from the book itself (:mod:`.offline`, :mod:`.icons`), leaves out what no reader needs
(:mod:`.lean`), mends what screen readers stumble over (:mod:`.accessible`), keeps pages in place while they
load (:mod:`.steady`), gives each page its meta data and the API its links to the chapters (:mod:`.pages`),
and records how the build was made (:mod:`.provenance`).
Programs of their own write the notebooks beside the chapters (:mod:`.notebooks`), print the book
(:mod:`.pdf`) and judge it as a visitor's browser does (:mod:`.lighthouse`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, object]:
    """Register the parts of the extension."""
    from . import accessible, execution, freshness, icons, lean, offline, pages, provenance, steady

    # Pages have no kernel: `ssae.widgets.sliders` draws one frame there instead of controls that do nothing.
    os.environ["SSAE_BOOK_PAGES"] = "1"
    accessible.setup(app)
    freshness.setup(app)
    execution.setup(app)
    icons.setup(app)
    lean.setup(app)
    offline.setup(app)
    pages.setup(app)
    provenance.setup(app)
    steady.setup(app)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
