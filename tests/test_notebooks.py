"""The notebooks beside the chapters, executed as a reader would: each alone, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "book").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) > 10


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_far_from_the_repository(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SSAE_SMOKE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("SSAE_MVTEC_ROOT", raising=False)
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises at the first cell that fails
    ran = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in ran)
    figures = [cell for cell in ran if "widgets.in_notebook(" in cell.source]
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    # That of chapter 12 needs the data set, so the page has none.
    wanted = page.count("{live-figure}") + (path.stem == "12_mvtec")
    assert len(figures) == wanted or path.stem == "intro", "a figure of the page is missing"
    for cell in figures:
        assert any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in cell.outputs)
