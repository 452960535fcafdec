"""The book on paper: every page of it, nothing cut, links that lead on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader
from ssae_book import pdf, repository
from test_book import documents

PAGES = ["intro", "06_masked_objective"]


@pytest.fixture(scope="module")
def printed(html: Path, browser, tmp_path_factory: pytest.TempPathFactory) -> PdfReader:
    out = tmp_path_factory.mktemp("pdf") / "book.pdf"
    # The fixture's playwright is running already, and a process can run one only.
    pdf.print_book(html, out, PAGES, browser)
    assert not list(out.parent.glob("*.partial"))
    return PdfReader(out)


def test_all_pages_are_printed_in_their_order():
    assert pdf.pages() == documents()


@pytest.mark.slow
@pytest.mark.browser
def test_pages_are_whole(printed: PdfReader, html: Path) -> None:
    titles = [entry.title for entry in printed.outline]
    assert titles == ["Repair it, and see what changed", "Partial corruption and the masked objective"]
    text = "\n".join(sheet.extract_text() for sheet in printed.pages)
    assert "Who it is for" in text
    # A solution is folded on the screen.
    assert "Not in general" in text
    # Code that the page folds stays out.
    assert "Hide code cell source" not in text
    width = 210 / 25.4 * 72
    assert all(abs(float(sheet.mediabox.width) - width) < 1 for sheet in printed.pages)
    assert all(sheet.extract_text().strip() or len(sheet.images) for sheet in printed.pages), "a blank sheet"


@pytest.mark.slow
@pytest.mark.browser
def test_every_figure_is_printed(printed: PdfReader, html: Path) -> None:
    expected = 0
    for name in PAGES:
        soup = BeautifulSoup((html / f"{name}.html").read_text(encoding="utf8"), "html.parser")
        expected += len(
            {image["src"] for image in soup.select(".bd-article img") if ".svg" not in image["src"]}
        )
    there = sum(len(sheet.images) for sheet in printed.pages)
    assert there >= expected > 3


@pytest.mark.slow
@pytest.mark.browser
def test_links_lead_to_the_published_book(printed: PdfReader) -> None:
    links = {
        note["/A"]["/URI"]
        for sheet in printed.pages
        for note in (reference.get_object() for reference in sheet.get("/Annots", []))
        if "/URI" in note.get("/A", {})
    }
    assert f"{repository.pages_url()}10_textures.html" in links
    assert not [link for link in links if link.startswith(("file:", "http://127"))]


@pytest.mark.slow
@pytest.mark.browser
def test_what_would_be_cut_is_an_error(html: Path, browser, tmp_path: Path) -> None:
    copy = tmp_path / "html"
    copy.mkdir()
    (copy / "_static").symlink_to(html / "_static")
    shutil.copytree(html / "_images", copy / "_images")
    page = (html / "intro.html").read_text(encoding="utf8")
    wide = '<article class="bd-article"><table style="min-width: 1500px"><tr><td>too wide</td></tr></table>'
    assert '<article class="bd-article">' in page
    (copy / "intro.html").write_text(page.replace('<article class="bd-article">', wide), encoding="utf8")
    with pytest.raises(pdf.PrintError, match='intro: table "too wide" is cut at the right edge'):
        pdf.print_book(copy, tmp_path / "book.pdf", ["intro"], browser)
    with pytest.raises(pdf.PrintError, match=r"06_masked_objective.html is missing; build the book first"):
        pdf.print_book(copy, tmp_path / "book.pdf", ["06_masked_objective"], browser)
    assert not (tmp_path / "book.pdf").exists()
