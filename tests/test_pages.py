"""The pages carry what they show and no more: style sheets, icons, scripts, images, and their weight."""

from __future__ import annotations

import gzip
import os
import re
import urllib.request
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pydata_sphinx_theme
import pytest
from fontTools.ttLib import TTFont
from PIL import Image
from ssae_book import lean, lighthouse, steady
from test_book import PAGES, documents, soup

# Style sheets


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        (".used{a:b}", ".used{a:b}"),
        (".unused{a:b}", ""),
        (".used .unused{a:b}", ""),
        ("p, .unused, .used > a{a:b}", "p,.used > a{a:b}"),
        ("p:not(.unused){a:b}", "p:not(.unused){a:b}"),
        (":is(.unused, .used) p{a:b}", ":is(.unused, .used) p{a:b}"),
        ("a[href$='.unused']{a:b}", "a[href$='.unused']{a:b}"),
        (".made-by-script{a:b}", ".made-by-script{a:b}"),
        (r".used\:2{a:b}", ""),
        ("/* .used{} */ p{content:'}.unused{'}", "p{content:'}.unused{'}"),
        ("@media print{.unused{a:b}.used{a:b}}", "@media print{.used{a:b}}"),
        ("@media print{.unused{a:b}}", ""),
        (
            "@font-face{src:url(x)} @keyframes k{from{a:b}to{a:c}}",
            "@font-face{src:url(x)}\n@keyframes k{from{a:b}to{a:c}}",
        ),
        ("@import 'x.css';p{a:b}", "@import 'x.css';\np{a:b}"),
    ],
)
def test_rules_that_nothing_can_use_are_left_out(css: str, kept: str) -> None:
    assert lean.purge(css, {"used", "href"}, ("made-by-",)) == kept


def test_one_sheet_has_what_the_others_import_and_name(tmp_path: Path) -> None:
    (tmp_path / "styles").mkdir()
    (tmp_path / "basic.css").write_text("p{background:url(dot.png)}")
    (tmp_path / "styles" / "theme.css").write_text(
        '@charset "UTF-8";@import url("../basic.css");'
        "a{b:url('../vendor/f.woff2?x#y')}i{b:url(data:image/png;base64,AA)}"
    )
    assert lean.gathered(tmp_path, "styles/theme.css").splitlines() == [
        'p{background:url("dot.png")}',
        'a{b:url("vendor/f.woff2?x#y")}',
        "i{b:url(data:image/png;base64,AA)}",
    ]


def test_icon_font_has_the_icons_that_are_named(tmp_path: Path) -> None:
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
    folder = tmp_path / "vendor" / "fontawesome" / "webfonts"
    folder.mkdir(parents=True)
    for name in ("fa-solid-900.ttf", "fa-solid-900.woff2"):
        (folder / name).symlink_to(theme / "vendor" / "fontawesome" / "webfonts" / name)
    (tmp_path / "styles").symlink_to(theme / "styles")
    source = 'url("vendor/fontawesome/webfonts/fa-solid-900{0}") format("{1}")'
    face = f"src:{source.format('.woff2', 'woff2')},{source.format('.ttf', 'truetype')}"
    css = lean.icon_font(f'@font-face{{{face}}}a{{content:"\\f107"}}b{{content:"\uf05a"}}', tmp_path)
    assert '{src:url("icons.woff") format("woff")}' in css
    assert set(TTFont(tmp_path / "icons.woff").getBestCmap()) == {0xF107, 0xF05A}
    assert (tmp_path / "icons.woff").stat().st_size < 5_000


# Pages


def test_a_page_is_lightened_once() -> None:
    style = '<link href="../_static/{}" rel="stylesheet" />'
    search = '<script src="../_static/searchtools.js"></script><script src="../searchindex.js"></script>'
    page = (
        f"<head>{style.format('a.css?digest=1')}\n{style.format('b.css')}"
        '<link rel="preload" as="script" href="../_static/x.js" />'
        '<script src="../_static/documentation_options.js?v=1"></script>'
        '<script src="../_static/x.js"></script><script defer="defer" src="../_static/y.js"></script>'
        f'<script>let z;</script><script type="module" src="../_static/live/page.js"></script>{search}</head>'
    )
    once = lean.lighten(page, "pages.css?v=2")
    assert once == (
        '<head>\n    <link rel="stylesheet" type="text/css" href="../_static/pages.css?v=2" />'
        '<link rel="preload" as="script" href="../_static/x.js" />'
        '<script src="../_static/documentation_options.js?v=1"></script>'
        '<script defer src="../_static/x.js"></script>'
        '<script defer="defer" src="../_static/y.js"></script><script>let z;</script>'
        '<script type="module" src="../_static/live/page.js"></script></head>'
    )
    assert lean.lighten(once, "pages.css?v=2") == once
    assert "pages.css?v=3" in lean.lighten(once, "pages.css?v=3")
    searching = page.replace("</head>", '</head><div id="search-results"></div>')
    assert search in lean.lighten(searching, "pages.css")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_compressed_images_have_the_same_pixels(tmp_path: Path, mode: str) -> None:
    ramp = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], axis=-1)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(ramp))  # also what is invisible keeps its colour
    image.save(tmp_path / "a.png")
    assert lean.compress(tmp_path) == {"a"}
    with Image.open(tmp_path / "a.webp") as small, Image.open(tmp_path / "a.png") as large:
        assert np.array_equal(small.convert("RGBA"), large.convert("RGBA"))


def test_an_image_is_compressed_again_when_it_is_newer(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), "red").save(tmp_path / "a.png")
    lean.compress(tmp_path)
    before = (tmp_path / "a.webp").stat().st_mtime_ns
    lean.compress(tmp_path)
    assert (tmp_path / "a.webp").stat().st_mtime_ns == before
    Image.new("RGB", (50, 50), "blue").save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", ns=(before + 10**9, before + 10**9))
    lean.compress(tmp_path)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)


# The built book


@cache
def weight(path: Path) -> int:
    """Bytes of a file on its way: texts compressed."""
    content = path.read_bytes()
    return len(gzip.compress(content, 6)) if path.suffix in lighthouse.COMPRESSED else len(content)


def loaded(html: Path, page: str) -> dict[str, int]:
    """What a page asks for before the reader scrolls, with its weight; MathJax's fonts apart."""
    document = soup(html / f"{page}.html")
    base = (html / page).parent
    addresses = [element["src"] for element in document.find_all("script", src=True)]
    addresses += [element["href"] for element in document.find_all("link", rel=["stylesheet", "icon"])]
    addresses += [element["src"] for element in document.find_all("img") if element.get("loading") != "lazy"]
    paths = {
        (base / unquote(urlsplit(address).path)).resolve() for address in addresses if ":" not in address
    }
    sheet = html / "_static" / lean.SHEET
    paths |= {html / f"{page}.html", sheet.with_name(lean.ICONS)}
    return {
        str(path.relative_to(html.resolve())): weight(path) for path in sorted({p.resolve() for p in paths})
    }


@pytest.mark.parametrize("page", documents())
def test_page_is_light(html: Path, page: str) -> None:
    parts = loaded(html, page)
    images = {name: size for name, size in parts.items() if name.startswith("_images/")}
    formulas = {name: size for name, size in parts.items() if "/mathjax/" in name}
    rest = sum(parts.values()) - sum(images.values()) - sum(formulas.values())
    # Without images and formulas: 93 kB, more for long texts and previews of live figures; MathJax: 264 kB.
    assert rest < 200_000, parts
    assert sum(images.values()) < 500_000, images
    assert sum(parts.values()) < 900_000, parts


@pytest.mark.parametrize("page", PAGES)
def test_page_asks_for_what_it_uses(html: Path, page: str) -> None:
    document = soup(html / f"{page}.html")
    assert [
        urlsplit(link["href"]).path.split("/")[-1] for link in document.find_all("link", rel="stylesheet")
    ] == [lean.SHEET]
    scripts = " ".join(script["src"] for script in document.find_all("script", src=True))
    assert ("searchindex.js" in scripts) == (page == "search")
    assert ("tex-chtml.js" in scripts) == bool(document.select(".math"))


def test_the_style_sheet_styles_what_the_pages_have(html: Path) -> None:
    css = (html / "_static" / lean.SHEET).read_text(encoding="utf8")
    for selector in (".bd-sidebar-primary", ".admonition", ".highlight .k", "div.proof", ".lf-start", ".btn"):
        assert selector in css
    for address in re.findall(r'url\("([^"]+)"\)', css):
        if not address.startswith("data:"):
            assert (html / "_static" / urlsplit(address).path).is_file(), address
    assert ".fa-igloo" not in css


@pytest.mark.slow
@pytest.mark.browser
def test_all_formulas_are_set(html: Path, browser, serve) -> None:
    page = browser.new_page()
    page.goto(f"{serve(html)}/03_contractive.html", wait_until="load")
    page.evaluate("() => MathJax.startup.promise")
    assert page.locator(".math").count() > 100
    assert page.locator(".math:not(:has(mjx-container))").count() == 0
    assert page.locator("mjx-merror").count() == 0
    page.close()


# A page that stands still


def test_light_or_dark_is_chosen_before_anything_is_drawn() -> None:
    theirs = 'document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";'
    decided = steady.decide(theirs)
    assert "prefers-color-scheme: dark" in decided
    assert theirs not in decided
    assert steady.decide(decided) == decided


def test_no_page_leaves_light_or_dark_open(html: Path) -> None:
    """A newer theme may write its first script otherwise."""
    for page in PAGES:
        assert steady.DECIDED in (html / f"{page}.html").read_text(encoding="utf8"), page


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_front_page_stands_still(html: Path, browser, serve, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 1350, "height": 940}, color_scheme=scheme)
    page = context.new_page()
    # The theme's script comes when the page has long been drawn.
    page.route("**/pydata-sphinx-theme.js*", lambda route: (page.wait_for_timeout(1000), route.continue_()))
    page.add_init_script(
        """window.moved = 0;
        new PerformanceObserver(list => list.getEntries().forEach(entry => { window.moved += entry.value; }))
          .observe({type: "layout-shift", buffered: true});"""
    )
    page.goto(f"{serve(html)}/index.html", wait_until="load")
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    # Headless browsers hide the scroll bar, which moved the whole page when it came.
    assert page.evaluate("getComputedStyle(document.documentElement).overflowY") == "scroll"
    assert page.evaluate("window.moved") < 0.005
    context.close()


@pytest.mark.parametrize("page", ["01_manifolds", "12_mvtec", "glossary", "404"])
def test_chapters_say_which_they_are(html: Path, page: str) -> None:
    found = soup(html / f"{page}.html").select(".bd-article .chapter-place")
    assert len(found) == page[:2].isdigit() - (page == "404")
    if found:
        assert found[0].text.startswith(f"Chapter {int(page[:2])} · Part I")


# Lighthouse


def test_pages_are_served_compressed(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("text " * 1000)
    (tmp_path / "a.png").write_bytes(bytes(1000))
    with lighthouse.served(tmp_path) as address:
        request = urllib.request.Request(address + "/", headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert answer.headers["Content-Type"] == "text/html"
            assert gzip.decompress(answer.read()) == b"text " * 1000
        with urllib.request.urlopen(address + "/index.html") as answer:
            assert answer.headers["Content-Encoding"] is None
            assert answer.read() == b"text " * 1000
        request.full_url = address + "/a.png"
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["Content-Encoding"] is None
            assert len(answer.read()) == 1000


def report(**found: float) -> dict:
    """A report of Lighthouse with the scores ``found``, one for the rest, and one slow audit."""
    names = {name: found.get(name.replace("-", "_"), 1.0) for name in lighthouse.FLOORS}
    audits = {"lcp": {"title": "Largest paint", "displayValue": "9 s", "score": 0.2}}
    categories = {name: {"score": score, "auditRefs": []} for name, score in names.items()}
    categories["performance"]["auditRefs"] = [{"id": "lcp", "weight": 25}]
    return {"categories": categories, "audits": audits, "environment": {"benchmarkIndex": 1500.0}}


@pytest.mark.parametrize(
    ("found", "phone", "code"),
    [
        ({}, False, 0),
        ({"performance": 0.89}, False, 1),
        ({"performance": 0.4}, True, 1),  # the desktop's is judged before
        ({"accessibility": 0.99}, False, 1),
        ({"best_practices": 0.95, "seo": 0.95}, False, 0),
    ],
)
def test_a_score_below_its_floor_is_an_error(html, monkeypatch, capsys, found, phone, code) -> None:
    monkeypatch.setattr(lighthouse, "browser_path", lambda: "chromium")
    monkeypatch.setattr(lighthouse, "look", lambda url, phone, browser: report(**found))
    arguments = ["--html", str(html), "index", *(["--phone"] if phone else [])]
    assert lighthouse.main(arguments) == code
    said = capsys.readouterr().out
    assert ("below its floor" in said) == bool(code)
    assert "performance: Largest paint 9 s" in said


def test_a_busy_machine_gets_another_chance(monkeypatch) -> None:
    speeds = iter([0.5, 0.8, 0.7, 1.0])
    monkeypatch.setattr(lighthouse, "look", lambda url, phone, browser: report(performance=next(speeds)))
    assert lighthouse.scores(lighthouse.best_look("", False, ""))["performance"] == 80
    assert lighthouse.scores(lighthouse.best_look("", False, ""))["performance"] == 100


def test_a_phone_is_told_and_not_judged_by_its_speed() -> None:
    scores = lighthouse.scores(report(performance=0.4, seo=0.5))
    assert lighthouse.below(scores, phone=True) == ["seo 50 < 95"]
    assert lighthouse.below(scores, phone=False) == ["performance 40 < 90", "seo 50 < 95"]


def test_a_missing_page_is_an_error(tmp_path: Path, capsys) -> None:
    assert lighthouse.main(["--html", str(tmp_path)]) == 1
    assert "no page index" in capsys.readouterr().err
