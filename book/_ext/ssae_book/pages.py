"""Addresses, meta data and cross-links of the pages."""

from __future__ import annotations

import html
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from docutils import nodes
from PIL import Image
from sphinx import addnodes

from . import repository

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

CHAPTER_MENTION = re.compile(r"\b[Cc]hapter (\d{1,2})\b")


def _configure(app: Sphinx, config: Config) -> None:
    options = config.html_theme_options
    options["repository_url"] = repository.repository_url()
    options["repository_branch"] = repository.BRANCH
    options["path_to_docs"] = "book"
    options["logo"] = {"text": config.html_title, "alt_text": ""}  # the title beside it says it all
    config.html_logo = "_static/logo.svg"
    config.html_favicon = "_static/favicon.svg"
    config.html_context.setdefault("default_mode", "auto")
    config.html_additional_pages = {"404": "404.html"}
    config.templates_path = [*config.templates_path, "_templates"]
    options["use_repository_button"] = True
    options["use_issues_button"] = True
    options["use_edit_page_button"] = True
    config.html_baseurl = os.environ.get("SSAE_BASEURL", repository.pages_url())
    config.version = config.release = repository.version()


def _describe(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Description and Open Graph tags, from the page's own first paragraph."""
    if page == "404":  # a server shows it at any depth, so its links need a fixed start
        context["metatags"] = f'<base href="{app.config.html_baseurl}">' + context.get("metatags", "")
    if doctree is None:
        return
    title = html.escape(re.sub(r"<[^>]+>", "", context.get("title", "")), quote=True)
    description = html.escape(_first_paragraph(doctree), quote=True)
    base = app.config.html_baseurl.rstrip("/")
    tags = {
        "og:title": title,
        "og:type": "website" if page == app.config.root_doc else "article",
        "og:url": f"{base}/{page}.html",
        "og:site_name": html.escape(app.config.html_title, quote=True),
        "og:image": _first_picture(app, doctree, base),
    }
    lines = [f'<meta property="{name}" content="{value}">' for name, value in tags.items() if value]
    if description:
        lines.append(f'<meta name="description" content="{description}">')
        lines.append(f'<meta property="og:description" content="{description}">')
    context["metatags"] = context.get("metatags", "") + "\n" + "\n".join(lines)


def _first_picture(app: Sphinx, doctree: nodes.document, base: str) -> str:
    for image in doctree.findall(nodes.image):
        name = app.builder.images.get(image["uri"])
        if name and not name.endswith(".svg"):
            return f"{base}/_images/{quote(name)}"
    return ""


def _size_images(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Give every raster image its size, so that the text does not jump while images load.

    A figure's file says how many of its pixels make an inch; at two pixels for each of the screen's it is
    drawn at half its pixel size. All images but the first of a page load when they come into view.
    """
    body = context.get("body")
    if not body:
        return
    sources = {name: Path(app.srcdir) / source for source, name in app.builder.images.items()}
    first = True

    def sized(match: re.Match[str]) -> str:
        nonlocal first
        tag, name = match.group(0), match.group("name")
        added = "" if first else ' loading="lazy"'
        first = False
        # Notebook figures come with a fixed style that would distort them in a narrow column.
        styled = re.search(r' style="width: (\d+)px; height: (\d+)px;"', tag)
        source = sources.get(unquote(name))
        if styled:
            tag = tag.replace(styled[0], "")
            added += f' width="{styled[1]}" height="{styled[2]}"'
        elif source and source.suffix in {".png", ".jpg", ".webp"} and not re.search("width|height", tag):
            with Image.open(source) as image:
                scale = 96 / (image.info.get("dpi", (96, 96))[0] or 96)
                width, height = (max(1, round(side * scale)) for side in image.size)
            added += f' width="{width}" height="{height}"'
        return f"{tag[:4]}{added}{tag[4:]}"

    context["body"] = re.sub(r'<img(?= )[^>]*?src="[^"]*_images/(?P<name>[^"]+)"[^>]*>', sized, body)


def _name_chapter(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Say above a chapter's title which it is: its text names the others by their numbers."""
    if not re.match(r"\d\d_", page) or not context.get("body"):
        return
    part = next(
        (
            toctree["caption"]
            for toctree in app.env.get_doctree(app.config.root_doc).findall(addnodes.toctree)
            if page in toctree["includefiles"] and toctree.get("caption")
        ),
        "",
    )
    place = f"Chapter {int(page[:2])}" + (f" · {html.escape(part)}" if part else "")
    context["body"] = context["body"].replace("<h1>", f'<p class="chapter-place">{place}</p>\n<h1>', 1)


def _first_paragraph(doctree: nodes.document, limit: int = 200) -> str:
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 40:
            return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + "…"
    return ""


def _link_chapters(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn "chapter 4" in a docstring into a link, where that chapter exists."""
    found = {int(doc[:2]): doc for doc in app.env.found_docs if doc[:2].isdigit()}

    def link(match: re.Match[str]) -> str:
        doc = found.get(int(match.group(1)))
        return f":doc:`{match.group(0)} </{doc}>`" if doc else match.group(0)

    lines[:] = [CHAPTER_MENTION.sub(link, line) for line in lines]


def rewrite(app: Sphinx, error: Exception | None, change: Callable[[str], str]) -> None:
    """Pass every built page through ``change`` once the build has ended well; one that stays as it is is not
    written.
    """
    if error is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        before = path.read_text(encoding="utf8")
        after = change(before)
        if after != before:
            path.write_text(after, encoding="utf8")


def _front_page(app: Sphinx, error: Exception | None) -> None:
    """Make ``index.html`` the introduction itself, not a page that forwards to it, and write a sitemap."""
    if error is None and app.builder.name == "html":
        out = Path(app.outdir)
        shutil.copyfile(out / f"{app.config.root_doc}.html", out / "index.html")
        base = app.config.html_baseurl.rstrip("/")
        places = "".join(f"<url><loc>{base}/{page}.html</loc></url>\n" for page in sorted(app.env.found_docs))
        space = "http://www.sitemaps.org/schemas/sitemap/0.9"
        (out / "sitemap.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="{space}">\n{places}</urlset>\n',
            encoding="utf8",
        )


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("config-inited", _configure, priority=100)
    app.connect("html-page-context", _describe, priority=600)
    app.connect("html-page-context", _size_images, priority=600)
    app.connect("html-page-context", _name_chapter, priority=600)
    app.connect("autodoc-process-docstring", _link_chapters)
    app.connect("build-finished", _front_page, priority=900)  # a copy, when the page is complete
