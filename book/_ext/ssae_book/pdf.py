"""Print the built book as one PDF: ``python -m ssae_book.pdf``, or ``make pdf``.

Every page of the table of contents goes through a headless Chromium, in its order and with its solutions
opened; a formula, figure or table that would be cut at the edge of the paper is an error. Links between
pages lead to the published book.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import yaml
from pypdf import PdfWriter
from sphinx_external_toc.parsing import parse_toc_yaml

from . import repository
from .browsers import NoBrowserError, browser_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

ROOT = repository.ROOT
MARGIN = {"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
# Width of an A4 page between those margins, in CSS pixels of 1/96 inch.
WIDTH = round((210 - 32) / 25.4 * 96)

PREPARE = """async () => {
  for (const image of document.images) image.loading = "eager";
  for (const details of document.querySelectorAll("details:not(.above-input)")) details.open = true;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {
    throw new Error(`image ${image.src} cannot be shown`);
  })));
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
}"""

# What sticks out of the text on the right, shown by its beginning.
CUT = """(width) => [...document.querySelectorAll(
    ".bd-article mjx-container, .bd-article img, .bd-article svg, .bd-article table, .bd-article pre")]
  .filter((element) => element.getClientRects().length && !element.closest("mjx-assistive-mml"))
  .filter((element) => element.getBoundingClientRect().right > width + 1)
  .map((element) => [element.tagName.toLowerCase(), (element.alt || element.textContent).trim().slice(0, 60)])
  .map(([tag, text]) => `${tag} "${text}"`)"""

FOOTER = (
    '<div style="width: 100%; font-size: 7pt; color: #666; text-align: center;">'
    '<span class="title"></span> &nbsp;·&nbsp; <span class="pageNumber"></span></div>'
)


class PrintError(RuntimeError):
    """The book cannot be printed; the message says why."""


def pages() -> list[str]:
    """Names of the pages in the order of the table of contents."""
    site = parse_toc_yaml(ROOT / "_toc.yml")

    def below(name: str) -> list[str]:
        return [name, *(inner for child in site[name].child_files() for inner in below(child))]

    return below(site.root.docname)


def print_book(
    html: Path, out: Path, names: Sequence[str] | None = None, browser: Browser | None = None
) -> int:
    """Print pages of the built book into one file and return its number of sheets.

    Parameters
    ----------
    html
        The built book.
    out
        PDF file to write.
    names
        Pages; by default all of the table of contents.
    browser
        A Chromium driven by playwright; by default one is started.

    Raises
    ------
    PrintError
        If a page is missing, an image cannot be shown, or something is cut at the edge.
    NoBrowserError
        If there is none and none is given.
    """
    from playwright.sync_api import Error, sync_playwright

    if browser is None:
        with sync_playwright() as playwright:
            started = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
            return print_book(html, out, names, started)
    published = repository.pages_url()
    writer = PdfWriter()
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
    # The pages lie here; their links are to lead to the published ones.
    context.route("**/*", lambda route: answer(route, html, published))
    for name in names or pages():
        if not (html / f"{name}.html").is_file():
            raise PrintError(f"{html / name}.html is missing; build the book first: make book")
        page = context.new_page()
        page.emulate_media(media="print")
        try:
            page.goto(f"{published}{name}.html", wait_until="load")
            page.evaluate(PREPARE)
            complaints += [f"{name}: {what} is cut at the right edge" for what in page.evaluate(CUT, WIDTH)]
            sheets = page.pdf(
                format="A4",
                margin=MARGIN,
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                tagged=True,
            )
        except Error as error:
            raise PrintError(f"{name}: {error.message}") from error
        first = len(writer.pages)
        writer.append(io.BytesIO(sheets), import_outline=False)
        writer.add_outline_item(title=page.title().split(" — ")[0], page_number=first)
        page.close()
    context.close()
    if complaints:
        raise PrintError("\n".join(complaints))
    title = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8"))["title"]
    writer.add_metadata({"/Title": title})
    writer.compress_identical_objects()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    writer.write(partial)
    partial.replace(out)
    return len(writer.pages)


def answer(route: Route, html: Path, published: str) -> None:
    """Answer a browser's request for a published page with the file below ``html``."""
    url = route.request.url
    path = html / urlsplit(url.removeprefix(published)).path
    if url.startswith(published) and path.is_file():
        route.fulfill(path=path)
    else:
        route.fulfill(status=404)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit code is 1 if the book cannot be printed whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--html", type=Path, default=ROOT / "_build" / "html", help="the built book")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "book.pdf", help="file to write")
    parser.add_argument("names", metavar="PAGE", nargs="*", help="pages (default: the whole book)")
    options = parser.parse_args(arguments)
    try:
        count = print_book(options.html, options.out, options.names)
    except (PrintError, NoBrowserError) as error:
        print(f"pdf: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {count} sheets, {options.out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
