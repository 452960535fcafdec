"""Execute a chapter again when anything it runs on has changed, and only then.

jupyter-cache knows a chapter by its code cells alone: after an edit of the imported package it still serves
the old outputs. Here every chapter gets a digest over its own code, the modules of ``ssae`` it reaches by
imports (directly or through other modules), the lock file, the data it may read and the environment
variables it obeys. A chapter whose digest has changed loses its cached execution and is read again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .repository import ROOT

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

# Folders and variables count for a chapter as soon as its code, or a module it reaches, names them; a folder
# as a path, since its name is a common word too.
FOLDERS = ("results", "weights", "web", "benchmarks")
VARIABLES = ("SSAE_SMOKE",)
# Nearly every chapter reaches the module that knows where data sets lie. Only its own code, by the variable
# or by the function that reads it, makes a chapter one that shows the data.
DATA_VARIABLES = {"SSAE_MVTEC_ROOT": "mvtec_root"}
CODE_CELL = re.compile(r"^(`{3,})\{code-cell\}[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)


def code_of(chapter: Path) -> str:
    """The code cells of a MyST notebook as one string, without their cell metadata and magics."""
    cells = []
    for match in CODE_CELL.finditer(chapter.read_text(encoding="utf8")):
        lines = match.group(2).splitlines()
        while lines and (lines[0].startswith(":") or not lines[0].strip()):
            lines.pop(0)
        if lines and lines[0].strip() == "---":
            lines = lines[lines.index("---", 1) + 1 :]
        cells.append("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))
    return "\n".join(cells)


@functools.cache
def imported_modules(code: str, package: str = "ssae") -> frozenset[str]:
    """Names of the modules of ``package`` that ``code`` imports; ``"__init__"`` for the package itself."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                if head == package:
                    names.add(rest or "__init__")
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:  # inside the flat package: `from . import x`, `from .x import y`
                names.update([module] if module else [alias.name for alias in node.names])
            elif module == package:
                names.update(alias.name for alias in node.names)
            elif module.startswith(package + "."):
                names.add(module.split(".", 1)[1])
    return frozenset(names)


def reached_files(code: str, package_folder: Path) -> list[Path]:
    """Files of the package that ``code`` reaches by imports, sorted; relative imports are followed."""
    reached: dict[str, Path] = {}
    todo = set(imported_modules(code))
    if todo:
        todo.add("__init__")
    while todo:
        name = todo.pop()
        path = package_folder / f"{name.replace('.', '/')}.py"
        if name in reached or not path.exists():
            continue
        reached[name] = path
        todo |= imported_modules(path.read_text(encoding="utf8"))
    return sorted(reached.values())


def digest(chapter: Path, root: Path = ROOT) -> str:
    """SHA-256 over everything the outputs of ``chapter`` depend on (hex)."""
    code = code_of(chapter)
    files = reached_files(code, root / "ssae")
    texts = [code] + [path.read_text(encoding="utf8") for path in files]
    named = "\n".join(texts)

    total = hashlib.sha256(f"python {sys.version_info[:2]}".encode())
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    inputs: list[Path] = [root / "requirements.lock"]
    for folder in FOLDERS:
        if re.search(rf"""["'/]{folder}["'/]""", named):
            inputs += files_under(root / folder)
    for path in inputs:
        if path.exists():
            total.update(f"{path.relative_to(root).as_posix()}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    obeyed = [variable for variable in VARIABLES if variable in named]
    obeyed += [variable for variable, reader in DATA_VARIABLES.items() if variable in code or reader in code]
    for variable in obeyed:
        value = os.environ.get(variable, "")
        total.update(f"{variable}={value}\0".encode())
        if value and Path(value).is_dir():
            total.update(_listing(Path(value)).encode())
    return total.hexdigest()


def files_under(folder: Path) -> list[Path]:
    skipped = {"node_modules", "__pycache__"}
    return sorted(p for p in folder.rglob("*") if p.is_file() and not skipped & set(p.parts))


def _listing(folder: Path) -> str:
    """Names and sizes two levels down: enough to notice another data set, cheap on thousands of images."""
    entries: Iterable[Path] = [*folder.glob("*"), *folder.glob("*/*")]
    return "\n".join(
        sorted(f"{p.relative_to(folder)} {p.stat().st_size if p.is_file() else ''}" for p in entries)
    )


def _drop_stale(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> list[str]:
    """Forget the cached executions of chapters whose digest has changed, and have them read again."""
    if app.config.nb_execution_mode != "cache":
        return []
    from jupyter_cache import get_cache

    store = Path(app.outdir).parent / "digests.json"
    try:
        known = json.loads(store.read_text(encoding="utf8"))
    except (OSError, ValueError):
        known = {}
    pages = {name: Path(env.doc2path(name)).read_text(encoding="utf8") for name in sorted(env.found_docs)}
    now = {name: digest(Path(env.doc2path(name))) for name, text in pages.items() if "{code-cell}" in text}
    live = any("{live-figure}" in text for text in pages.values())
    if live and not (Path(app.srcdir) / "_generated" / "live").is_dir():
        known = {}  # what cells wrote beside their outputs is gone, and only running them brings it back
    stale = [name for name, value in now.items() if known.get(name) != value]
    if stale:
        cache = get_cache(
            app.config.nb_execution_cache_path or str(Path(app.outdir).parent / ".jupyter_cache")
        )
        paths = {str(Path(env.doc2path(name)).resolve()) for name in stale}
        for record in cache.list_cache_records():
            if str(Path(record.uri).resolve()) in paths:
                cache.remove_cache(record.pk)
    # Written before the chapters run: one that fails is not cached, so it is executed again in any case.
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(now, indent=1), encoding="utf8")
    # Which pages to read again is another question: a build that fails later forgets those it has read.
    read = getattr(env, "ssae_digests", {})
    env.ssae_digests = now  # type: ignore[attr-defined]  # pickled with the pages, once all have been read
    return [name for name, value in now.items() if name in stale or read.get(name) != value]


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("env-get-outdated", _drop_stale)
