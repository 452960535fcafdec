"""Keep a page where it is while it loads: nothing that is drawn once moves or changes its colour afterwards.

The theme's first script leaves the choice between light and dark to one that comes after the first drawing.
Until then neither set of colours holds, borders are missing and the logo stands there twice. Here the first
script decides. What else keeps a page steady is the width of the scroll bar in ``_static/book.css``, the
images' sizes (:mod:`.pages`) and the room for live figures in ``live.css``.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from .pages import rewrite

if TYPE_CHECKING:
    from sphinx.application import Sphinx

UNDECIDED = re.compile(
    r'document\.documentElement\.dataset\.theme = localStorage\.getItem\("theme"\) \|\| "auto";'
)
# As the theme's own script does it later. What it stored is stale if the system has changed over since.
DECIDED = """document.documentElement.dataset.theme =
      ["light", "dark"].find((mode) => mode === document.documentElement.dataset.mode) ??
      (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");"""


def decide(page: str) -> str:
    """``page`` with light or dark chosen before anything is drawn."""
    return UNDECIDED.sub(lambda _: DECIDED, page)


def setup(app: Sphinx) -> None:
    """Register with Sphinx, before the front page is copied."""
    app.connect("build-finished", partial(rewrite, change=decide), priority=420)
