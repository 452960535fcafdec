"""Leave out of the pages what no reader needs: what is loaded is what is shown.

The theme and its extensions bring a dozen style sheets, most of whose rules are for other books, an icon font
of fourteen hundred icons, and the search index on every page. After the build

* the style sheets become one, with the rules that any page or script can use;
* the icon font keeps the icons that these rules draw;
* the search index is loaded by the page that searches, and scripts no longer hold up the drawing of a page;
* images are stored as WebP without loss, pixel for pixel what the chapters drew.

Sphinx's own files stay where they are, so an incremental build may come by again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fontTools import subset
from PIL import Image

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SHEET = "pages.css"
ICONS = "icons.woff"
ICON_FONT = "vendor/fontawesome/webfonts/fa-solid-900"
STYLE = re.compile(
    r'\s*<link(?=[^>]*rel="stylesheet")[^>]*href="(?P<up>(?:\.\./)*)_static/(?P<name>[^"?]+)[^>]*>'
)
SEARCH = re.compile(
    r'\s*<script src="[^"]*(?:_static/searchtools|_static/language_data|/?searchindex)\.js[^"]*"></script>'
)
# Inline scripts use what this one defines; the others act when the page is there.
BLOCKING = re.compile(
    r'<script (?!defer|async|type="module")(?=[^>]*src="(?!(?:\.\./)*_static/documentation_options))'
)
IMAGE = re.compile(r'(<img[^>]*? src="(?:\.\./)*)_images/([^"/]+)\.png"')

# Style sheets


def rules(css: str) -> Iterator[tuple[str, str | None]]:
    """The top-level rules of a style sheet, comments left out: what stands before the block, and the block.

    A statement without a block, like ``@import``, has ``None`` for it.
    """
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    start = opened = depth = 0
    for found in re.finditer(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]""", css, re.DOTALL):
        mark = found[0]
        if mark == "{":
            opened = opened if depth else found.start()
            depth += 1
        elif mark == "}":
            depth -= 1
            if depth == 0:
                yield css[start:opened].strip(), css[opened + 1 : found.start()].strip()
                start = found.end()
        elif mark == ";" and depth == 0:
            yield css[start : found.start()].strip(), None
            start = found.end()


def purge(css: str, words: Collection[str], prefixes: tuple[str, ...] = ()) -> str:
    """``css`` without the rules that need a class which is none of ``words``.

    Parameters
    ----------
    css
        A style sheet.
    words
        All words of all pages and scripts.
    prefixes
        Beginnings of class names that scripts put together.
    """

    def possible(selector: str) -> bool:
        # Inside :not() a class may be missing; inside :is() and :where() one of several is enough.
        plain = re.sub(r":(?:not|is|where|has)\((?:[^()]|\([^()]*\))*\)", "", selector)
        plain = re.sub(r"\[[^\]]*\]", "", plain)
        names = (
            name.replace("\\", "") for name in re.findall(r"\.(-?(?:[_a-zA-Z]|\\.)(?:[\w-]|\\.)*)", plain)
        )
        return all(name in words or name.startswith(prefixes) for name in names)

    kept = []
    for prelude, block in rules(css):
        if block is None:
            kept.append(f"{prelude};")
        elif re.match(r"@(media|supports|layer|container)\b", prelude):
            inner = purge(block, words, prefixes)
            if inner:
                kept.append(f"{prelude}{{{inner}}}")
        elif prelude.startswith("@"):
            kept.append(f"{prelude}{{{block}}}")
        else:
            selectors = [part for part in _split(prelude) if possible(part)]
            if selectors and block:
                kept.append(f"{','.join(selectors)}{{{block}}}")
    return "\n".join(kept)


def _split(selectors: str) -> list[str]:
    """The selectors of a list, at its own commas and not at those in parentheses or brackets."""
    parts, depth = [""], 0
    for letter in selectors:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def gathered(static: Path, name: str) -> str:
    """A style sheet with what it imports, and with addresses that are relative to ``static``."""
    folder = (static / name).parent

    def moved(match: re.Match[str]) -> str:
        address = match["address"]
        if re.match(r"[a-z]+:|#|/", address):
            return match[0]
        path, mark, rest = re.match(r"([^?#]*)([?#]?)(.*)", address).groups()  # type: ignore[union-attr]
        return f'url("{_below(static, folder / path)}{mark}{rest}")'

    css = (static / name).read_text(encoding="utf8")
    parts = []
    for prelude, block in rules(css):
        imported = re.fullmatch(r"""@import\s+(?:url\()?\s*["']?([^"')\s]+)["']?\s*\)?""", prelude)
        if imported and block is None:
            parts.append(gathered(static, _below(static, folder / imported[1])))
        elif prelude != '@charset "UTF-8"':
            text = f"{prelude};" if block is None else f"{prelude}{{{block}}}"
            parts.append(re.sub(r"""url\((?P<quote>["']?)(?P<address>[^"')]+)(?P=quote)\)""", moved, text))
    return "\n".join(parts)


def _below(static: Path, path: Path) -> str:
    return path.resolve().relative_to(static.resolve()).as_posix()


def icon_font(css: str, static: Path) -> str:
    """``css`` with an icon font of the icons it names, which is written beside it."""
    whole = static / f"{ICON_FONT}.ttf"
    points = {int(code, 16) for code in re.findall(r"\\([0-9a-f]{4})\b", css)}
    points |= {ord(letter) for letter in css if "\ue000" <= letter <= "\uf8ff"}
    if not whole.exists() or ICON_FONT not in css:
        return css
    options = subset.Options(flavor="woff", notdef_outline=True, drop_tables=["FFTM"])
    font = subset.load_font(str(whole), options)
    font.recalcTimestamp = False
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=points)
    subsetter.subset(font)
    subset.save_font(font, str(static / ICONS), options)
    source = rf'url\("{re.escape(ICON_FONT)}\.woff2"\)\s*format\(["\']woff2["\']\)'
    css = re.sub(source, f'url("{ICONS}") format("woff")', css)
    return re.sub(rf',\s*url\("{re.escape(ICON_FONT)}\.ttf"\)\s*format\(["\']truetype["\']\)', "", css)


# Pages


def lighten(page: str, sheet: str) -> str:
    """``page`` with one style sheet, which is at the address ``sheet`` below ``_static``."""
    styles = list(STYLE.finditer(page))
    if styles:
        one = f'\n    <link rel="stylesheet" type="text/css" href="{styles[0]["up"]}_static/{sheet}" />'
        place = styles[0].start()
        page = page[:place] + one + STYLE.sub("", page[place:])
    if 'id="search-results"' not in page:
        page = SEARCH.sub("", page)
        page = BLOCKING.sub("<script defer ", page)
    return page


def compress(folder: Path) -> set[str]:
    """Write a WebP beside each PNG that it makes smaller; gives their names, without the ending."""
    smaller = set()
    for path in sorted(folder.glob("*.png")):
        target = path.with_suffix(".webp")
        # A name is a digest or that of a file of the book: the same picture unless the file is newer.
        if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
            with Image.open(path) as image:
                if getattr(image, "is_animated", False):
                    continue
                opaque = image.mode == "RGBA" and image.getextrema()[3] == (255, 255)
                shown = image.convert("RGB") if opaque else image
                shown.save(target, lossless=True, quality=50, method=4, exact=True)
        if target.stat().st_size < path.stat().st_size:
            smaller.add(path.stem)
    return smaller


def _lighten_all(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    static = out / "_static"
    pages = {path: path.read_text(encoding="utf8") for path in sorted(out.rglob("*.html"))}
    pages = {path: text for path, text in pages.items() if STYLE.search(text)}
    smaller = compress(out / "_images") if (out / "_images").is_dir() else set()
    sheets = {name: None for text in pages.values() for name in _sheets(text) if name != SHEET}
    if sheets:
        scripts = {
            name for text in pages.values() for name in re.findall(r'src="[^"]*?(_static/[^"?]+\.js)', text)
        }
        files = [out / name for name in sorted(scripts) if not name.startswith("_static/mathjax")]
        files += sorted((static / "live").glob("*.js"))
        texts = [*pages.values(), *(path.read_text(encoding="utf8") for path in files if path.exists())]
        words = {word for text in texts for word in re.findall(r"[\w-]+", text)}
        prefixes = tuple(sorted(word for word in words if re.fullmatch(r"[a-z][\w-]+-", word)))
        css = purge("\n".join(gathered(static, name) for name in sheets), words, prefixes)
        (static / SHEET).write_text(icon_font(css, static), encoding="utf8")
    digest = (
        hashlib.sha256((static / SHEET).read_bytes()).hexdigest()[:8] if (static / SHEET).exists() else ""
    )
    for path, before in pages.items():
        after = lighten(before, f"{SHEET}?v={digest}")
        after = IMAGE.sub(lambda m: f'{m[1]}_images/{m[2]}.webp"' if m[2] in smaller else m[0], after)
        if after != before:
            path.write_text(after, encoding="utf8")


def _sheets(page: str) -> list[str]:
    return [found["name"] for found in STYLE.finditer(page)]


def setup(app: Sphinx) -> None:
    """Register with Sphinx, after the icons are drawn and before the front page is copied.

    The theme writes the colours of the code at priority 500.
    """
    app.connect("build-finished", _lighten_all, priority=600)
