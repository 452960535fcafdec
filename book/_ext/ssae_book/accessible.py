"""Mend in the pages what axe-core finds wrong with the theme's and Sphinx's own HTML.

Each mend is one pattern; a page that is mended already is left alone, so an incremental build may come by
again. ``tests/test_accessibility.py`` runs axe-core over the built book.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from .pages import rewrite

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# The sidebar holds the book's title, which would belong to no landmark.
SIDEBAR = re.compile(r'<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar">')
# The arrows that unfold the table of contents have no name.
UNFOLD = re.compile(r'(<a class="[^"]*"[^>]*>(?P<title>[^<]*)</a>\s*<details[^>]*>\s*)<summary>')
# A long signature is a definition list without a term, inside a term.
SIGNATURE = re.compile(r'<dl>\s*(?P<lines>(?:<dd><em class="sig-param">.*?</dd>\s*)+)</dl>', re.DOTALL)
# A table written without a head has an empty one.
EMPTY_HEAD = re.compile(
    r'<thead>\s*<tr[^>]*>\s*(?:<th class="head">(?:\s*<p>\s*</p>)?\s*</th>\s*)+</tr>\s*</thead>'
)

# The corner of a table that names its rows and its columns heads nothing.
CORNER = re.compile(r'<th class="head">(?:\s*<p>\s*</p>)?\s*</th>')

# docutils' roles for a bibliography are deprecated, and forbid the anchors inside.
BIBLIOGRAPHY = re.compile(r'<div role="list" class="citation-list">')
ENTRY = re.compile(r'(<div class="citation" id="[^"]*") role="doc-biblioentry">')


def mend(page: str) -> str:
    """``page`` with the mends applied."""

    def lines(match: re.Match[str]) -> str:
        each = match["lines"].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
        return f'<span class="sig-lines">{each}</span>'

    page = SIDEBAR.sub(lambda found: found[0][:-1] + ' role="region" aria-label="Book">', page)
    page = UNFOLD.sub(lambda found: f'{found[1]}<summary aria-label="Pages of {found["title"]}">', page)
    page = SIGNATURE.sub(lines, page)
    page = BIBLIOGRAPHY.sub('<div class="citation-list">', page)
    page = ENTRY.sub(r"\1>", page)
    page = EMPTY_HEAD.sub("", page)
    return CORNER.sub('<td class="head"></td>', page)


def setup(app: Sphinx) -> None:
    """Register with Sphinx, before the front page is copied."""
    app.connect("build-finished", partial(rewrite, change=mend), priority=410)
