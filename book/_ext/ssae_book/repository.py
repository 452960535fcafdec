"""Where the project lives: read from ``pyproject.toml``, overridden in CI by ``GITHUB_REPOSITORY``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
BRANCH = "main"


def repository_url() -> str:
    """Address of the repository, without a trailing slash.

    ``GITHUB_REPOSITORY`` (``owner/name``, set by GitHub's own CI) wins, so that a fork's pages and
    notebooks lead to the fork.
    """
    slug = os.environ.get("GITHUB_REPOSITORY", "").strip("/")
    if slug:
        return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com').rstrip('/')}/{slug}"
    return str(_project()["urls"]["Repository"]).rstrip("/")


def pages_url() -> str:
    """Address the pages are published at: GitHub Pages of the repository."""
    owner, name = repository_url().split("/")[-2:]
    return f"https://{owner.lower()}.github.io/{name}/"


def version() -> str:
    """Version of the package, read without importing it."""
    namespace: dict[str, str] = {}
    for line in (ROOT / "ssae" / "__init__.py").read_text(encoding="utf8").splitlines():
        if line.startswith("__version__"):
            exec(line, namespace)
    return namespace["__version__"]


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
