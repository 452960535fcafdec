"""Serve everything a page needs from the book itself: no content network, no font server, no tracker."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

MATHJAX = "mathjax/tex-chtml.js"
MATHJAX_PACKAGE = "sphinx-mathjax-offline"  # used for the files it carries, not as an extension
# What the pages load of it: the TeX reader and HTML writer, the extensions it may ask for, the fonts.
MATHJAX_PARTS = re.compile(
    r"static/mathjax/(tex-chtml\.js|input/tex/extensions/.*\.js|output/chtml/fonts/.*\.woff)$"
)

# A page's formulas, a few at a time: set all at once, they keep a phone from scrolling for seconds.
TYPESET = """
window.MathJax.startup = {
  async pageReady() {
    const waiting = [...document.querySelectorAll(".math, .output_area")];
    while (waiting.length) {
      await MathJax.typesetPromise(waiting.splice(0, 8));
      await new Promise((resume) => setTimeout(resume));
    }
  },
};"""
FORMULA = re.compile(r'class="(?:[^"]* )?math[ "]')


def _configure(app: Sphinx, config: Config) -> None:
    config.mathjax_path = MATHJAX
    # Without a kernel a widget cannot answer; its manager would come from a content network.
    config.nb_ipywidgets_js = {}
    # Jupyter Book adds every script under _static to every page: modules of live figures must not be.
    config.html_css_files = ["book.css"]
    config.html_js_files = []


def _copy_mathjax(app: Sphinx) -> None:
    if app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static"
    for entry in files(MATHJAX_PACKAGE) or []:
        name = entry.as_posix()
        if MATHJAX_PARTS.search(name):
            path = target / name.split("static/", 1)[1]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(entry.locate(), path)


def _drop_foreign_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Remove what extensions add with a foreign address (require.js for widgets), and all of thebe.

    Thebe runs cells through a public server; Jupyter Book adds its loader to every page, used or not.
    """

    def unwanted(asset: Any) -> bool:
        name = str(getattr(asset, "filename", asset) or "")
        inline = str(getattr(asset, "attributes", {}).get("body", ""))
        return "://" in name or "thebe" in name or "thebe" in inline.lower()

    for kind in ("script_files", "css_files"):
        if kind in context:
            context[kind][:] = [asset for asset in context[kind] if not unwanted(asset)]


def _set_formulas(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Have MathJax set the formulas bit by bit, and leave it out of pages that have none.

    Sphinx counts the formulas of the pages below a page as its own.
    """
    scripts = context.get("script_files")
    if scripts is None:
        return
    formulas = FORMULA.search(context.get("body") or "")
    kept = []
    for script in scripts:
        body = getattr(script, "attributes", {}).get("body", "")
        if not (MATHJAX in str(script.filename or "") or body.startswith("window.MathJax")):
            kept.append(script)
        elif formulas and body:
            kept.append(type(script)(None, priority=script.priority, body=f"{body};{TYPESET}"))
        elif formulas:
            kept.append(script)
    scripts[:] = kept


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("config-inited", _configure, priority=700)
    app.connect("builder-inited", _copy_mathjax)
    app.connect("html-page-context", _drop_foreign_scripts, priority=990)
    app.connect("html-page-context", _set_formulas, priority=991)
