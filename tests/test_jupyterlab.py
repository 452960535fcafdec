"""The widgets in JupyterLab itself: its keys, its style sheets, a kernel that answers.

JupyterLab is no part of the environment. Put it beside it, as CONTRIBUTING.md says, and this runs.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import torch

from ssae.live import SCENES
from ssae.mlp import MLPAutoencoder

jupyterlab = pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.alone]

CELLS = [
    """import torch
from ipywidgets import FloatSlider
from ssae import widgets
from ssae.mlp import MLPAutoencoder
model = MLPAutoencoder(2, code=8, hidden=(32,), generator=torch.Generator().manual_seed(0)).float()
widgets.playground({"ae": model})""",
    """import matplotlib.pyplot as plt
widgets.sliders(lambda x: plt.figure(figsize=(1 + x, 1)), x=FloatSlider(value=0.5, max=1, step=0.1))""",
    """with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(0)
print("forgotten")""",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab on a free port of this machine, with the notebook of ``CELLS``; gives its address."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "widgets.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Installed with `pip install --target`, JupyterLab has its files beside its modules.
    share = Path(jupyterlab.__file__).parents[1] / "share" / "jupyter"
    places = {"JUPYTERLAB_DIR": str(share / "lab")} if share.is_dir() else {}
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, **places, "HOME": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api").close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def wait_for_text(element, pattern: str) -> None:
    element.page.wait_for_function(
        "([element, pattern]) => new RegExp(pattern).test(element.textContent)",
        arg=[element.element_handle(), pattern],
    )


def test_a_notebook_answers_keys_and_pointer(browser, lab: str) -> None:
    model = MLPAutoencoder(2, code=8, hidden=(32,), generator=torch.Generator().manual_seed(0)).float()
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(90_000)
    page.goto(f"{lab}/lab/tree/widgets.ipynb?reset")
    notebook = page.locator(".jp-Notebook")
    cells = notebook.locator(".jp-CodeCell")
    cells.first.wait_for()
    page.wait_for_function("document.body.innerText.includes('Idle')")
    for cell in range(2):
        cells.nth(cell).locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
    figure = page.locator("[data-live-figure]")
    shown = {name: figure.locator(f"[data-readout={name}]") for name in ("position", "moved-ae")}
    wait_for_text(shown["moved-ae"], "^[0-9]")

    def moved() -> tuple[float, float]:
        """How far the model moves the point: what the figure says, and what torch says."""
        text = shown["position"].inner_text().replace("−", "-")
        point = torch.tensor([[float(value) for value in text.split(",")]])
        return float(shown["moved-ae"].inner_text()), float((model(point) - point).detach().norm())

    here, there = moved()
    assert here == pytest.approx(there, abs=0.02)
    assert shown["position"].inner_text() == "{}, {}".format(*SCENES["circle"].start)

    # Keys that mean something else in a notebook: the next cell, a new cell, delete the cell.
    handle = figure.locator(".pp-handle")
    handle.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "b", "d", "d"):
        page.keyboard.press(key)
    wait_for_text(shown["position"], "^0.92, 0.79$")
    assert cells.count() == len(CELLS)
    assert handle.evaluate("handle => handle === document.activeElement")

    box = figure.locator(".pp-plot").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    wait_for_text(shown["position"], "^−0.80")
    here, there = moved()
    assert here == pytest.approx(there, abs=0.02)

    # The style sheets of JupyterLab leave the read-outs side by side.
    tops = figure.locator(".lf-readouts > div").evaluate_all("rows => rows.map((row) => row.offsetTop)")
    assert len({*tops}) == 1

    slider = cells.nth(1).locator(".noUi-handle")
    picture = cells.nth(1).locator("img")
    picture.wait_for()
    before = picture.get_attribute("src")
    slider.press("ArrowRight")
    page.wait_for_function(
        "([picture, before]) => picture.src !== before", arg=[picture.element_handle(), before]
    )

    # A model that changes in the notebook answers at once.
    cells.nth(2).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    wait_for_text(cells.nth(2).locator(".jp-Cell-outputWrapper"), "forgotten")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0)
    before = shown["moved-ae"].inner_text()
    handle.press("ArrowLeft")
    wait_for_text(shown["moved-ae"], f"^(?!{re.escape(before)}$)")
    here, there = moved()
    assert here == pytest.approx(there, abs=0.02)
    page.close()
