"""The built pages: all there, whole, self-contained, and made from what they say they are made from."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import jupytext
import pytest
import yaml
from bs4 import BeautifulSoup
from ssae_book import freshness, notebooks, repository

ROOT = Path(__file__).resolve().parents[1]

CHAPTERS = [path.stem for path in notebooks.chapters()]


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")


def documents() -> list[str]:
    """Names of all pages of the table of contents."""
    names: list[str] = []

    def collect(node: object) -> None:
        if isinstance(node, dict):
            names.extend(str(node[key]) for key in ("root", "file") if key in node)
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8")))
    return names


PAGES = [*documents(), "index", "genindex", "search", "404"]


# The table of contents


def test_every_chapter_is_in_the_table_of_contents():
    assert set(CHAPTERS) <= set(documents())


def test_every_module_has_a_page():
    modules = {path.stem for path in (ROOT / "ssae").glob("[a-z]*.py")}
    assert modules == {path.stem for path in (ROOT / "book" / "api").glob("*.md")}
    assert {f"api/{module}" for module in modules} <= set(documents())


# The notebooks beside the chapters


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_notebook_is_in_step_with_its_chapter(chapter):
    source = ROOT / "book" / f"{chapter}.md"
    beside = source.with_suffix(".ipynb")
    assert beside.exists(), "run: make notebooks"
    assert beside.read_text(encoding="utf8") == notebooks.convert(source), "run: make notebooks"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_notebook_has_the_chapters_code_after_one_cell_of_preparation(chapter):
    source = jupytext.read(ROOT / "book" / f"{chapter}.md", fmt="md:myst")
    notebook = json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "google.colab" in cells[0]
    assert cells[1:] == [cell.source for cell in source.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_notebook_has_no_directives_left(chapter):
    notebook = json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf8"))
    text = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    assert not re.search(r"^[`:]{3,}\{", text, re.MULTILINE)
    assert not re.search(r"\{(?:cite|ref|numref|eq|prf:ref|doc|math|glue)[:\w]*\}`", text)


# What comes with a Colab, with the package's own dependencies, and what the first cell provides.
AT_HAND = {"torch", "torchvision", "numpy", "scipy", "sklearn", "skimage", "matplotlib", "PIL", "safetensors"}
AT_HAND |= {"tqdm", "ipywidgets", "anywidget", "IPython", "ssae", "myst_nb"}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_notebook_imports_nothing_that_a_colab_lacks(chapter):
    notebook = json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= AT_HAND | sys.stdlib_module_names


def test_preparation_does_next_to_nothing_outside_colab(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "myst_nb", None)
    code = notebooks.SETUP.format(url="https://example.invalid/x")
    before = os.getcwd(), list(sys.path)
    exec(code, {})  # would fail at once if it tried to clone
    assert (os.getcwd(), sys.path) == before
    exec("from myst_nb import glue\nglue('answer', 42, display=False)", {})
    assert capsys.readouterr().out == "answer: 42\n"


@pytest.mark.slow
def test_on_colab_the_package_lies_beside_its_receipts(tmp_path):
    """Colab's packages lie far from the checkout. Its first cell clones and installs: both pretended here."""
    installed, content = tmp_path / "dist-packages", tmp_path / "content"
    shutil.copytree(ROOT / "ssae", installed / "ssae")
    checkout = content / "ssae-book"
    checkout.mkdir(parents=True)
    for name in ("ssae", "results", "weights", "book", "benchmarks", "web"):
        (checkout / name).symlink_to(ROOT / name)
    setup = notebooks.SETUP.format(url="https://example.invalid/x").replace("/content", str(content))
    notebook = json.loads((ROOT / "book" / "12_mvtec.ipynb").read_text(encoding="utf8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    reading = next(cell for cell in cells[1:] if "read_receipts" in cell)
    script = tmp_path / "notebook.py"
    script.write_text(
        f"import subprocess, sys\nsys.path.insert(0, {str(installed)!r})\n"
        "sys.modules['google.colab'] = object()\nsubprocess.run = lambda *_, **__: None\n"
        f"{setup}\n{reading}\n"
        f"assert receipts and ssae.__file__.startswith({str(content)!r})\n"
        "from myst_nb import glue\nglue('found', len(receipts))\n"
    )
    done = subprocess.run([sys.executable, "-I", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^found: \d+$", done.stdout, re.MULTILINE)


def test_a_fork_leads_to_itself(monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/their-fork")
    assert repository.repository_url() == "https://github.com/someone/their-fork"
    assert repository.pages_url() == "https://someone.github.io/their-fork/"
    monkeypatch.delenv("GITHUB_REPOSITORY")
    assert repository.repository_url() in (ROOT / "pyproject.toml").read_text(encoding="utf8")


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("(label)=\n# Title", "# Title"),
        ("```{prf:theorem} Name\n:label: t\nBody $x$.\n```", "> **Theorem (Name).**\n>\n> Body $x$."),
        (":::{note}\nMind.\n:::", "> **Note.**\n>\n> Mind."),
        ("```{math}\nx = y\n```", "$$\nx = y\n$$"),
        ("{math}`x` and {func}`~ssae.metrics.au_pro`", "$x$ and `ssae.metrics.au_pro`"),
        ("```python\n(kept)=\n```", "```python\n(kept)=\n```"),
        (
            "````{exercise}\n```{note}\nDeep.\n```\n````",
            "> **Exercise.**\n>\n> > **Note.**\n> >\n> > Deep.",
        ),
        ("```{image} a.png\n:alt: An a\n```", "![An a](a.png)"),
    ],
)
def test_directives_become_markdown(myst, markdown):
    assert notebooks.plain(myst) == markdown


def test_literalinclude_shows_the_code():
    shown = notebooks.plain("```{literalinclude} ../ssae/plotting.py\n:pyobject: use_style\n```")
    assert shown.startswith("```python\ndef use_style() -> None:")
    with pytest.raises(ValueError, match="no_such_function"):
        notebooks.plain("```{literalinclude} ../ssae/plotting.py\n:pyobject: no_such_function\n```")
    part = "```{literalinclude} ../ssae/__init__.py\n:start-at: __version__\n:end-at: __version__\n```"
    assert len(notebooks.plain(part).splitlines()) == 3


# The cache of executed chapters


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    """A project with the real extension, one chapter and three modules, of which the chapter reaches two."""
    (tmp_path / "ssae").mkdir()
    (tmp_path / "ssae" / "__init__.py").write_text('__version__ = "0"\n')
    (tmp_path / "ssae" / "inner.py").write_text("VALUE = 1\n")
    (tmp_path / "ssae" / "outer.py").write_text(
        "from . import inner\n\ndef value():\n    return inner.VALUE\n"
    )
    (tmp_path / "ssae" / "other.py").write_text("UNUSED = 1\n")
    (tmp_path / "book").mkdir()
    shutil.copytree(ROOT / "book" / "_templates", tmp_path / "book" / "_templates")
    shutil.copytree(
        ROOT / "book" / "_ext" / "ssae_book",
        tmp_path / "book" / "_ext" / "ssae_book",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "book" / "_static").mkdir()
    (tmp_path / "book" / "_static" / "book.css").touch()
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("logo.svg", "favicon.svg"):
        shutil.copy(ROOT / "book" / "_static" / name, tmp_path / "book" / "_static" / name)
    (tmp_path / "_config.yml").write_text(
        "title: t\nonly_build_toc_files: true\nexecute: {execute_notebooks: cache}\n"
        "sphinx: {local_extensions: {ssae_book: book/_ext}}\n"
    )
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    write_chapter(
        tmp_path, "import uuid\nfrom ssae import outer\nprint(f'value={outer.value()} run={uuid.uuid4()}')"
    )
    return tmp_path


def write_chapter(project: Path, code: str) -> None:
    front = "---\njupytext: {text_representation: {extension: .md, format_name: myst}}\n"
    front += "kernelspec: {display_name: Python 3, language: python, name: python3}\n---\n"
    (project / "book" / "intro.md").write_text(
        f"{front}# A chapter\n\n```{{code-cell}} ipython3\n{code}\n```\n"
    )


def build(project: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jupyter_book.cli.main", "build", "book", "--config", "_config.yml"]
    command += ["--toc", str(project / "_toc.yml"), "--path-output", ".", "-W", "--keep-going"]
    entry = shutil.which("jupyter-book", path=str(Path(sys.executable).parent))
    if entry:
        command[:3] = [entry]
    environment = {**os.environ, "PYTHONPATH": str(project), "JUPYTER_PREFER_ENV_PATH": "1"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def output(project: Path) -> re.Match[str]:
    page = (project / "_build" / "html" / "intro.html").read_text(encoding="utf8")
    found = re.search(r"value=(?P<value>\d+) run=(?P<run>[0-9a-f-]{36})\n", page)
    assert found is not None
    return found


@pytest.mark.slow
def test_a_chapter_runs_again_when_its_modules_change_and_only_then(small_book):
    first_build = build(small_book)
    assert first_build.returncode == 0, first_build.stdout + first_build.stderr
    first = output(small_book)
    assert first["value"] == "1"

    (small_book / "ssae" / "other.py").write_text("UNUSED = 2\n")
    assert build(small_book).returncode == 0
    assert output(small_book)["run"] == first["run"], "nothing it uses has changed"

    (small_book / "ssae" / "inner.py").write_text("VALUE = 2\n")
    assert build(small_book).returncode == 0
    assert output(small_book)["value"] == "2", "the edit of an imported module must show"


@pytest.mark.slow
def test_a_chapter_that_raises_fails_the_build(small_book):
    write_chapter(small_book, "raise RuntimeError('on purpose')")
    failed = build(small_book)
    assert failed.returncode != 0
    assert "intro failed after" in failed.stderr
    assert "RuntimeError: on purpose" in failed.stderr


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (lambda root: (root / "ssae" / "inner.py").write_text("VALUE = 3\n"), True),
        (lambda root: (root / "ssae" / "other.py").write_text("UNUSED = 3\n"), False),
        (lambda root: (root / "requirements.lock").write_text("torch==0\n"), True),
        (lambda root: (root / "README.md").write_text("text\n"), False),
        (lambda root: write_chapter(root, "from ssae import outer\nprint(outer.value() + 1)"), True),
    ],
)
def test_digest_of_a_chapter(small_book, change, matters):
    chapter = small_book / "book" / "intro.md"
    before = freshness.digest(chapter, small_book)
    change(small_book)
    assert (freshness.digest(chapter, small_book) != before) == matters


def test_digest_covers_named_folders_and_variables(small_book, monkeypatch):
    chapter = small_book / "book" / "intro.md"
    write_chapter(small_book, "import os\nprint(os.listdir('../results'), os.environ.get('SSAE_MVTEC_ROOT'))")
    seen = {freshness.digest(chapter, small_book)}
    (small_book / "results").mkdir()
    (small_book / "results" / "a.json").write_text("1")
    seen.add(freshness.digest(chapter, small_book))
    (small_book / "results" / "a.json").write_text("2")
    seen.add(freshness.digest(chapter, small_book))
    monkeypatch.setenv("SSAE_MVTEC_ROOT", str(small_book / "results"))
    seen.add(freshness.digest(chapter, small_book))
    assert len(seen) == 4


def test_digest_of_a_chapter_that_shows_no_data_is_the_same_with_and_without_them(small_book, monkeypatch):
    (small_book / "ssae" / "inner.py").write_text("import os\nROOT = os.environ.get('SSAE_MVTEC_ROOT')\n")
    chapter = small_book / "book" / "intro.md"
    without = freshness.digest(chapter, small_book)
    monkeypatch.setenv("SSAE_MVTEC_ROOT", str(small_book))
    assert freshness.digest(chapter, small_book) == without


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_code_of_every_chapter_is_read(chapter):
    path = ROOT / "book" / f"{chapter}.md"
    cells = jupytext.read(path, fmt="md:myst").cells
    code = freshness.code_of(path)
    for cell in cells:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
            assert "\n".join(lines).strip() in code


# The pages


@pytest.mark.parametrize("page", PAGES)
def test_page_is_there_and_whole(html, page):
    document = soup(html / f"{page}.html")
    assert document.find("h1") is not None
    assert document.html["lang"] == "en"
    assert document.find("title").text.strip()
    shown = document.find("article") or document
    text = shown.get_text()
    assert "Traceback (most recent call last)" not in text
    assert "IPython.core.display" not in text, "an object stands where its value should"
    assert "FutureWarning" not in text
    assert "DeprecationWarning" not in text


@pytest.mark.parametrize("page", PAGES)
def test_page_requests_nothing_from_elsewhere(html, page):
    document = soup(html / f"{page}.html")
    for tag, attribute in (
        ("script", "src"),
        ("img", "src"),
        ("iframe", "src"),
        ("source", "src"),
        ("video", "src"),
        ("audio", "src"),
        ("embed", "src"),
        ("object", "data"),
    ):
        for element in document.find_all(tag):
            address = element.get(attribute) or ""
            assert not urlsplit(address).netloc, f"<{tag}> loads {address}"
    for element in document.find_all("link"):
        if {"stylesheet", "preload", "modulepreload", "preconnect", "icon"} & set(element.get("rel") or []):
            assert not urlsplit(element["href"]).netloc, f"<link> loads {element['href']}"
    inline = "\n".join(script.text for script in document.find_all("script") if not script.get("src"))
    inline += "\n".join(style.text for style in document.find_all("style"))
    for host in ("cdn", "unpkg", "googleapis", "jsdelivr", "cloudflare"):
        assert host not in inline.lower()


def test_scripts_and_styles_request_nothing_from_elsewhere(html):
    for path in (html / "_static").rglob("*.css"):
        css = path.read_text(encoding="utf8", errors="replace")
        assert not re.search(r"""(?:url\(\s*['"]?|@import\s+['"])(?:https?:)?//""", css), path


def test_formulas_are_set_by_the_books_own_mathjax(html):
    script = html / "_static" / "mathjax" / "tex-chtml.js"
    assert script.stat().st_size > 500_000
    assert len(list((script.parent / "output" / "chtml" / "fonts").rglob("*.woff"))) >= 20
    with_math = [page for page in documents() if soup(html / f"{page}.html").find(class_="math")]
    for page in with_math:
        sources = [s["src"] for s in soup(html / f"{page}.html").find_all("script", src=True)]
        assert any("_static/mathjax/tex-chtml.js" in source for source in sources), page


@pytest.mark.parametrize("page", PAGES)
def test_every_image_has_an_alternative_text_of_its_own(html, page):
    images = soup(html / f"{page}.html").select("article img")
    texts = []
    for image in images:
        assert image.get("alt") is not None, image.get("src")
        alt = image["alt"].strip()
        assert alt, f"{image.get('src')} has no alternative text"
        assert not re.fullmatch(r"_?images/.*|.*\.(png|svg|jpg)", alt), (
            f"a file name is no description: {alt}"
        )
        texts.append(alt)
    assert len(texts) == len(set(texts)), "two images share one description"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_resolve(html, page):
    here = f"{page}.html"
    wrong = []
    for element in soup(html / here).find_all(["a", "link"], href=True):
        address = element["href"]
        if urlsplit(address).scheme or urlsplit(address).netloc:
            continue
        target, anchor = urldefrag(urljoin(here, address))
        target = unquote(target.split("?")[0]) or here
        path = html / target
        if not path.exists() or (anchor and path.suffix == ".html" and unquote(anchor) not in anchors(path)):
            wrong.append(address)
    assert not wrong


@cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(element["id"] for element in soup(path).find_all(id=True))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_launch_button_opens_the_notebook(html, chapter):
    buttons = [a["href"] for a in soup(html / f"{chapter}.html").find_all("a", href=re.compile("colab"))]
    slug = "/".join(repository.repository_url().split("/")[-2:])
    assert f"https://colab.research.google.com/github/{slug}/blob/main/book/{chapter}.ipynb" in buttons


@pytest.mark.parametrize("page", documents())
def test_page_describes_itself(html, page):
    document = soup(html / f"{page}.html")
    assert document.find("meta", property="og:title")["content"]
    assert document.find("link", rel="canonical")["href"].endswith(f"/{page}.html")


@pytest.mark.slow
@pytest.mark.browser
def test_pages_in_a_browser(html, browser, serve):
    """No failed or foreign request, no error in the console, nothing wider than the window."""
    address = serve(html)
    complaints: list[str] = []
    context = browser.new_context()
    for page in documents():
        tab = context.new_page()

        def complain(text: str, page: str = page) -> None:
            complaints.append(f"{page}: {text}")

        tab.on("pageerror", lambda error, complain=complain: complain(str(error)))
        tab.on("console", lambda m, complain=complain: complain(m.text) if m.type == "error" else None)
        tab.on("requestfailed", lambda r, complain=complain: complain(f"could not load {r.url}"))
        tab.on(
            "request", lambda r, complain=complain: foreign(r.url, address) and complain(f"requests {r.url}")
        )
        tab.set_viewport_size({"width": 390, "height": 900})
        tab.goto(f"{address}/{page}.html", wait_until="load")
        for width in (390, 820, 1440):
            tab.set_viewport_size({"width": width, "height": 900})
            root = "document.documentElement"
            overflow = tab.evaluate(f"{root}.scrollWidth - {root}.clientWidth")
            if overflow > 0:
                complain(f"{overflow} px too wide at {width} px")
        tab.close()
    context.close()
    assert not complaints, "\n".join(complaints)


@pytest.mark.slow
@pytest.mark.alone
def test_an_unchanged_rebuild_executes_nothing_and_is_quick(html):
    known = json.loads((ROOT / "_build" / "digests.json").read_text(encoding="utf8"))
    if known != {name: freshness.digest(ROOT / "book" / f"{name}.md") for name in known}:
        # Built from something else; or else the build itself changes what it is built from, and never rests.
        subprocess.run(["make", "book"], cwd=ROOT, capture_output=True, check=True)
    start = time.perf_counter()
    again = subprocess.run(["make", "book"], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    said = again.stdout + again.stderr
    assert again.returncode == 0, said
    assert "executing" not in said.lower()
    # Under twenty seconds on two quiet cores; a busy machine is given time.
    assert seconds < 60


def foreign(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))
