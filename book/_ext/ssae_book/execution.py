"""Execute several chapters at a time, before Sphinx reads the first of them.

MyST-NB executes a chapter when Sphinx comes to it, one after the other, and most chapters train networks too
small for more than one processor core. Here every chapter that is missing from the cache is executed first,
as many at a time as there are cores, each with its share of the threads; MyST-NB then finds all of them in
the cache. A chapter that fails ends the build with its traceback; those that succeeded stay in the cache.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

# A chapter that trains holds about one GiB.
AT_A_TIME = 4
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _execute(notebook: NotebookNode, folder: str, timeout: int) -> tuple[NotebookNode, float, str | None]:
    """Run in a process of its own: the executed notebook, the seconds it took, what failed and where."""
    from jupyter_cache.executors.utils import single_nb_execution

    result = single_nb_execution(notebook, cwd=folder, timeout=timeout, allow_errors=False)
    return result.nb, result.time, result.err and COLOURS.sub("", str(result.err))


def _execute_missing(app: Sphinx, env: BuildEnvironment, *_: set) -> list[str]:
    """Execute the chapters the cache does not hold, and put them there."""
    if app.config.nb_execution_mode != "cache":
        return []
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from myst_nb.core.read import create_nb_reader
    from sphinx.errors import ExtensionError
    from sphinx.util import logging

    logger = logging.getLogger(__name__)
    settings: Any = env.mystnb_config
    cache = get_cache(settings.execution_cache_path)
    missing: dict[str, tuple[Path, NotebookNode]] = {}
    # The later chapters train images and take longest: begun first, they do not run alone at the end.
    for name in sorted(env.found_docs, reverse=True):
        path = Path(env.doc2path(name))
        text = path.read_text(encoding="utf8")
        reader = create_nb_reader(str(path), env.myst_config, settings, text)
        if reader is None:
            continue
        notebook = reader.read(text)
        if not any(cell.cell_type == "code" for cell in notebook.cells):
            continue
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            missing[name] = path, notebook
    if not missing:
        return []

    workers = min(AT_A_TIME, len(missing), os.cpu_count() or 1)
    logger.info("executing %d chapters, %d at a time", len(missing), workers)
    failures = []
    with (
        _threads((os.cpu_count() or 1) // workers),
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        running = {
            pool.submit(_execute, notebook, str(path.parent), settings.execution_timeout): name
            for name, (path, notebook) in missing.items()
        }
        for done in as_completed(running):
            name = running[done]
            executed, seconds, error = done.result()
            if error is not None:
                failures.append(f"{name} failed after {seconds:.0f} s. {error}")
                continue
            logger.info("executed %s in %.0f s", name, seconds)
            cache.cache_notebook_bundle(
                CacheBundleIn(executed, str(missing[name][0]), data={"execution_seconds": seconds}),
                check_validity=False,
                overwrite=True,
            )
    if failures:
        raise ExtensionError("\n".join(failures))
    return []


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let the kernels started here use so many threads each."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    # After `freshness` has dropped what is out of date.
    app.connect("env-get-outdated", _execute_missing, priority=900)
