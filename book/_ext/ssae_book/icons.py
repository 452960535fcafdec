"""Write the theme's icons into the pages, in place of the script that would draw them.

The theme draws two dozen icons with a script of 1.5 MB that holds two thousand. After the build each icon's
path is taken from that script and put where the icon stands; the script is then asked for by no page.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LOGGER = logging.getLogger(__name__)
SCRIPT = "_static/scripts/fontawesome.js"
ICON = re.compile(
    r'<(?P<tag>i|span)(?P<before>[^>]*?) class="(?P<classes>[^"]*\bfa-(?!lg\b)[\w-]+[^"]*)"(?P<after>[^>]*)>'
    r"\s*</(?P=tag)>"
)
REQUEST = re.compile(r"\s*<(?:script|link)[^>]*fontawesome\.js[^>]*>(?:</script>)?")
STYLES = {"fas": "solid", "fa-solid": "solid", "far": "regular", "fa-regular": "regular", "fab": "brands"}
STYLES["fa-brands"] = "brands"
SIZES = re.compile(r"fa-(?:lg|sm|xs|xl|2x|fw|solid|regular|brands)$")


@functools.cache
def shape(library: str, name: str, style: str) -> tuple[int, int, str] | None:
    """Width, height and path of an icon, from the text of the theme's script; None if it has no such icon."""
    numbers, drawing = r"\[(\d+),(\d+),\[", r'\],"[0-9a-f]+","([^"]+)"\]'
    named = rf'[{{,]"?{re.escape(name)}"?:{numbers}[^\]]*{drawing}'
    alias = rf'{numbers}[^\]]*"{re.escape(name)}"[^\]]*{drawing}'
    found = re.findall(named, library) or re.findall(alias, library)
    if not found:
        return None
    # The script lists brands, then regular, then solid icons; a name may be in both of the last two.
    width, height, path = found[-1] if style == "solid" else found[0]
    return int(width), int(height), path


def inline(page: str, library: str, unknown: set[str]) -> str:
    """``page`` with icons as inline SVG and without the script; names without a shape join ``unknown``."""

    def draw(match: re.Match[str]) -> str:
        classes = match["classes"].split()
        name = next((c for c in classes if c.startswith("fa-") and not SIZES.match(c)), "")
        style = next((STYLES[c] for c in classes if c in STYLES), "solid")
        found = shape(library, name.removeprefix("fa-"), style)
        if found is None:
            unknown.add(name)
            return match[0]
        width, height, path = found
        kept = " ".join(c for c in classes if c not in STYLES)
        return (
            f'<svg{match["before"]} class="svg-inline--fa {kept}"{match["after"]} aria-hidden="true" '
            f'viewBox="0 0 {width} {height}"><path fill="currentColor" d="{path}"/></svg>'
        )

    return REQUEST.sub("", ICON.sub(draw, page))


def _inline_all(app: Sphinx, error: Exception | None) -> None:
    script = Path(app.outdir) / SCRIPT
    if error is not None or app.builder.format != "html" or not script.exists():
        return
    library = script.read_text(encoding="utf8")
    unknown: set[str] = set()
    for path in Path(app.outdir).rglob("*.html"):
        page = path.read_text(encoding="utf8")
        if REQUEST.search(page):
            path.write_text(inline(page, library, unknown), encoding="utf8")
    if unknown:
        LOGGER.warning("the theme has no icons named %s", sorted(unknown), type="ssae", subtype="icons")


def setup(app: Sphinx) -> None:
    """Register with Sphinx, before the front page is copied."""
    app.connect("build-finished", _inline_all, priority=400)
