"""Write the ``.ipynb`` beside each chapter: the same cells, no outputs, readable outside the book.

``python -m ssae_book.notebooks`` writes what has changed; with ``--check`` it writes nothing and fails if a
notebook is missing, left over or out of step. Directives and roles are turned into plain Markdown, because
Colab and Jupyter do not know them. The first cell prepares Colab; in a clone it puts the
package of the clone first.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import yaml
from pybtex.database import parse_file
from pybtex.richtext import Text
from sphinx.config import Config
from sphinx.directives.code import LiteralIncludeReader

from . import repository

BOOK = repository.ROOT / "book"

SETUP = """\
# On Colab: fetch the book and install its package.
import os
import subprocess
import sys
from importlib.metadata import version
from types import ModuleType

if "google.colab" in sys.modules:
    if not os.path.isdir("/content/ssae-book"):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{url}", "/content/ssae-book"], check=True)
    # Naming what is installed keeps pip from replacing it.
    keep = [f"{{name}}=={{version(name)}}" for name in ("torch", "torchvision", "numpy")]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "/content/ssae-book", *keep]
    subprocess.run(install, check=True)
    # The package beside its receipts and weights, which pip does not install.
    sys.path.insert(0, "/content/ssae-book")
    os.chdir("/content/ssae-book/book")
elif os.path.isfile("../ssae/__init__.py"):
    sys.path.insert(0, os.path.abspath(".."))  # the same in a clone
# In the rendered book `glue` puts a number into the text; here, where the text has its name, it prints it.
sys.modules["myst_nb"] = ModuleType("myst_nb")
sys.modules["myst_nb"].glue = lambda name, value, **_: print(f"{{name}}: {{getattr(value, 'data', value)}}")
"""

ENVIRONMENTS = {
    "prf:assumption": "Assumption",
    "prf:algorithm": "Algorithm",
    "prf:corollary": "Corollary",
    "prf:definition": "Definition",
    "prf:example": "Example",
    "prf:lemma": "Lemma",
    "prf:observation": "Observation",
    "prf:proof": "Proof",
    "prf:property": "Property",
    "prf:proposition": "Proposition",
    "prf:remark": "Remark",
    "prf:theorem": "Theorem",
    "exercise": "Exercise",
    "note": "Note",
    "tip": "Tip",
    "hint": "Hint",
    "important": "Important",
    "warning": "Warning",
    "caution": "Caution",
    "seealso": "See also",
    "admonition": "",
    "card": "",
    "dropdown": "",
    "tab-item": "",
    "margin": "",
    "sidebar": "",
}
CONTAINERS = {"grid", "grid-item", "grid-item-card", "tab-set", "div", "container"}
OPENING = re.compile(r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}\s*(?P<argument>.*)$")
OPTION = re.compile(r"^:(?P<key>[\w-]+):\s*(?P<value>.*)$")
ROLE = re.compile(r"\{(?P<name>[\w:-]+)\}`(?P<text>[^`]+)`")
EQUATION_LABEL = re.compile(r"\$\$\s*\(([\w:.-]+)\)\s*$")
LABEL = re.compile(r"^\([\w:.-]+\)=\s*$")
PAGE_LINK = re.compile(r"\]\((?!\w+:)([\w/-]+)\.md(?=[)#])")


def plain(text: str, page: str = "") -> str:
    """Markdown without directives, roles and the book's own TeX macros, from the MyST of one cell."""
    markdown = "\n".join(_blocks(expand_macros(text).splitlines(), page))
    markdown = PAGE_LINK.sub(lambda match: f"]({_neighbour(match[1])}", markdown)
    return re.sub(r"\n{3,}", "\n\n", markdown).strip()


def expand_macros(text: str) -> str:
    r"""Write out the TeX macros of ``_config.yml``, such as ``\norm{x}``, which other readers do not know."""
    for name, meaning in macros().items():
        template, arguments = meaning if isinstance(meaning, list) else (meaning, 0)
        pattern = re.compile(rf"\\{name}(?![A-Za-z])")
        while match := pattern.search(text):
            written, end = template, match.end()
            for number in range(1, arguments + 1):
                stop = _closing_brace(text, end)
                written, end = written.replace(f"#{number}", text[end + 1 : stop]), stop + 1
            text = text[: match.start()] + written + text[end:]
    return text


def _closing_brace(text: str, start: int) -> int:
    if text[start : start + 1] != "{":
        raise ValueError(
            f"a TeX macro of the book needs its argument in braces: {text[start - 20 : start + 20]!r}"
        )
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0) * (text[position - 1] != "\\")
        if depth == 0:
            return position
    raise ValueError(f"unbalanced braces after {text[start : start + 40]!r}")


@functools.cache
def macros() -> dict[str, str | list]:
    """The TeX macros that the pages know."""
    config = yaml.safe_load((repository.ROOT / "_config.yml").read_text(encoding="utf8"))
    return config["sphinx"]["config"]["mathjax3_config"]["tex"]["macros"]


def _neighbour(page: str) -> str:
    """Where a link to another page of the book leads from a notebook."""
    if (BOOK / f"{page}.md").exists() and "{code-cell}" in (BOOK / f"{page}.md").read_text(encoding="utf8"):
        return f"{page}.ipynb"
    return f"{repository.pages_url()}{page}.html"


def _blocks(lines: list[str], page: str) -> list[str]:
    out: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        opening = OPENING.match(line)
        if opening:
            fence = opening["fence"]
            end = position + 1
            while end < len(lines) and not re.match(
                rf"^{re.escape(fence[0])}{{{len(fence)},}}\s*$", lines[end]
            ):
                end += 1
            out += [
                "",
                *_directive(opening["name"], opening["argument"].strip(), lines[position + 1 : end], page),
                "",
            ]
            position = end + 1
        elif re.match(r"^(`{3,}|~{3,})", line):  # a plain code block: nothing inside is ours
            fence = re.match(r"^(`{3,}|~{3,})", line)[0]  # type: ignore[index]
            out.append(line)
            position += 1
            while position < len(lines) and not lines[position].startswith(fence):
                out.append(lines[position])
                position += 1
            out += lines[position : position + 1]
            position += 1
        else:
            if not LABEL.match(line) and not line.startswith("%"):
                line = EQUATION_LABEL.sub(lambda match: rf"\tag{{{_number(match[1])}}} $$", line)
                out.append(ROLE.sub(lambda match: _role(match["name"], match["text"]), line))
            position += 1
    return out


def _directive(name: str, argument: str, body: list[str], page: str) -> list[str]:
    options, body = _options(body)
    if name == "literalinclude":
        return ["```python", *_included(argument, options), "```"]
    if name == "math":
        tag = [rf"\tag{{{_number(options['label'])}}}"] if "label" in options else []
        return ["$$", *body, *tag, "$$"]
    if name in {"figure", "image"}:
        caption = _blocks(body, page)
        return [f"![{options.get('alt', '')}]({argument})", "", *caption]
    if name in {"code", "code-block"}:
        return [f"```{argument}", *body, "```"]
    if name in CONTAINERS:
        return _blocks(body, page)
    if name == "solution":
        return ["<details><summary>Solution</summary>", "", *_blocks(body, page), "", "</details>"]
    if name in ENVIRONMENTS:
        head = ENVIRONMENTS[name] or argument
        title = f" ({argument})" if argument and ENVIRONMENTS[name] else ""
        if name == "prf:proof":
            title = ""
        head = ROLE.sub(lambda match: _role(match["name"], match["text"]), f"**{head}{title}.**")
        quoted = [f"> {line}".rstrip() for line in _blocks(body, page)]
        while quoted and quoted[0] == ">":
            quoted.pop(0)
        while quoted and quoted[-1] == ">":
            quoted.pop()
        return [f"> {head}", ">", *quoted] if quoted else [f"> {head}"]
    if name in {"bibliography", "tableofcontents", "toctree", "exercise-end", "solution-end"}:
        return []
    if name in {"exercise-start", "solution-start"}:  # what follows may be code cells: no box around it
        return [f"**{name.split('-')[0].title()}.**"]
    if name == "live-figure":
        address = f"{repository.pages_url()}{page}.html#{options['name']}"
        here = "" if page == "intro" else " A cell below opens it, answered by this kernel."
        return [f"*(A live figure of the book: [{page}]({address}).{here})*", "", *_blocks(body, page)]
    return [f"*(This part lives in the book: [{page}]({repository.pages_url()}{page}.html).)*"]


def _options(body: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split the options of a directive, written as ``:key: value`` lines or a YAML block, from its body."""
    options: dict[str, str] = {}
    rest = list(body)
    if rest and rest[0].strip() == "---" and "---" in rest[1:]:
        end = rest.index("---", 1)
        loaded = yaml.safe_load("\n".join(rest[1:end])) or {}
        return {key: str(value) for key, value in loaded.items()}, rest[end + 1 :]
    while rest and (match := OPTION.match(rest[0])):
        options[match["key"]] = match["value"]
        rest.pop(0)
    return options, rest


def _included(argument: str, options: dict[str, str]) -> list[str]:
    """Lines that a ``literalinclude`` shows: Sphinx's own reader, so that it is what the page shows."""
    chosen: dict[str, Any] = {key: value for key, value in options.items() if key != "dedent"}
    if "dedent" in options:
        chosen["dedent"] = int(options["dedent"]) if options["dedent"] else None
    reader = LiteralIncludeReader(str((BOOK / argument).resolve()), chosen, Config())
    return reader.read()[0].rstrip("\n").split("\n")


def _role(name: str, text: str) -> str:
    explicit = re.match(r"^(?P<shown>.*?)\s*<(?P<target>[^<>]+)>$", text)
    shown, target = (explicit["shown"], explicit["target"]) if explicit else ("", text)
    if name == "math":
        return f"${text}$"
    if name.startswith("cite"):
        names = "; ".join(references().get(key.strip(), key.strip()) for key in text.split(","))
        return names if name.startswith("cite:t") else f"({names})"
    if name in {"numref", "ref", "prf:ref", "doc", "eq"}:
        named = shown if shown and "%s" not in shown and "{number}" not in shown else ""
        return named or labels().get(target.strip("/"), target.strip("/"))
    if name.startswith("py:") or name in {"func", "class", "meth", "mod", "attr"}:
        return f"`{(shown or text).lstrip('~')}`"
    if name.startswith("glue"):  # a number, which the cells print under this name
        return f"`{text}`"
    return shown or text


@functools.cache
def labels() -> dict[str, str]:
    """What a reference to a label reads as outside the book: a title, a kind of environment, a number."""
    names: dict[str, str] = {}
    for chapter in sorted(BOOK.glob("*.md")):
        lines = chapter.read_text(encoding="utf8").splitlines()
        equation = 0
        for position, line in enumerate(lines):
            following = lines[position + 1] if position + 1 < len(lines) else ""
            heading = re.match(r"^#+ (.*)$", line)
            opening = OPENING.match(line)
            if heading and line.startswith("# "):
                names.setdefault(chapter.stem, heading[1])
            if (label := re.match(r"^\(([\w:.-]+)\)=\s*$", line)) and following.startswith("#"):
                names[label[1]] = following.lstrip("# ")
            elif opening:
                options, _ = _options(lines[position + 1 :])
                key = options.get("label") or options.get("name")
                kind = ENVIRONMENTS.get(opening["name"], "")
                title = opening["argument"].strip()
                if key and kind:
                    names[key] = f"the {kind.lower()}" + (f" “{title}”" if title else "")
                elif key and opening["name"] in {"figure", "image"}:
                    names[key] = "the figure"
                elif key and opening["name"] == "math":
                    equation += 1
                    names[key] = f"equation ({equation})"
            elif label := EQUATION_LABEL.search(line):
                equation += 1
                names[label[1]] = f"equation ({equation})"
            elif label := re.match(r"^\s+name: ([\w:.-]+)\s*$", line):
                names[label[1]] = "the figure"
    return names


def _number(label: str) -> str:
    return re.sub(r"\D", "", labels().get(label, "")) or label


@functools.cache
def references() -> dict[str, str]:
    """Author and year of every entry of the bibliography."""
    short: dict[str, str] = {}
    for key, entry in parse_file(str(BOOK / "references.bib")).entries.items():
        people = [_untex(" ".join(p.last_names)) for p in entry.persons.get("author", [])]
        who = (
            people[0]
            if len(people) == 1
            else " and ".join(people)
            if len(people) == 2
            else f"{people[0]} et al."
        )
        short[key] = f"{who}, {entry.fields.get('year', '')}".rstrip(", ")
    return short


def _untex(text: str) -> str:
    return Text.from_latex(text).render_as("text")


def convert(chapter: Path) -> str:
    """The notebook of a chapter, as the text of its ``.ipynb``."""
    source = jupytext.read(chapter, fmt="md:myst")
    cells = [_code_cell(SETUP.format(url=repository.repository_url()), {"tags": ["hide-input"]})]
    for cell in source.cells:
        if cell.cell_type == "code":
            metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
            cells.append(_code_cell(cell.source, metadata))
        else:
            text = plain(cell.source, chapter.stem)
            if text:
                cells.append({"cell_type": "markdown", "metadata": {}, "source": _lines(text)})
    for number, entry in enumerate(cells):
        entry["id"] = f"cell-{number:03d}"
    notebook = {
        "cells": [dict(sorted(cell.items())) for cell in cells],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _code_cell(source: str, metadata: dict) -> dict:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": _lines(source),
    }


def _lines(text: str) -> list[str]:
    return text.rstrip("\n").splitlines(keepends=True)


def chapters(folder: Path = BOOK) -> list[Path]:
    """The chapters that run code, sorted by name."""
    return [path for path in sorted(folder.glob("*.md")) if "{code-cell}" in path.read_text(encoding="utf8")]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ssae_book.notebooks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail if a notebook is out of step"
    )
    only_check = parser.parse_args(arguments).check

    wanted = {chapter.with_suffix(".ipynb"): convert(chapter) for chapter in chapters()}
    wrong = [
        path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf8") != text
    ]
    left_over = [path for path in BOOK.glob("*.ipynb") if path not in wanted]
    if only_check:
        for path in wrong + left_over:
            print(
                f"{path.relative_to(repository.ROOT)}: out of step with its chapter; run: make notebooks",
                file=sys.stderr,
            )
        return 1 if wrong or left_over else 0
    for path in wrong:
        path.write_text(wanted[path], encoding="utf8")
        print(f"wrote {path.relative_to(repository.ROOT)}")
    for path in left_over:
        path.unlink()
        print(f"removed {path.relative_to(repository.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
