"""Sliders in a notebook, one frame of them in the pages; the figures that take networks of one's own."""

from __future__ import annotations

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ipywidgets import Dropdown, FloatSlider
from PIL import Image

from ssae import widgets
from ssae.corruption import procedural_textures
from ssae.live import BlindSpot, CorruptionBench
from ssae.models import ModelSettings, build

TINY = ModelSettings(channels=(4,), dilations=(1,), sdc_filters=4, sdc_layers=1, sdc_kernel=3)


def textures(count: int, seed: int) -> torch.Tensor:
    return procedural_textures(count, 16, torch.Generator().manual_seed(seed))


def ask(
    widget: widgets.LiveFigure, model: str, images: torch.Tensor, part: str | None = None
) -> torch.Tensor:
    """What the kernel answers when the page asks ``model`` about ``images``."""
    sent: list = []
    widget.send = lambda content, buffers=(): sent.append((content, list(buffers)))
    question = {"id": "1", "model": model, "part": part, "shape": list(images.shape)}
    widget._answer(widget, question, [images.numpy().astype("<f4").tobytes()])
    message, buffers = sent[0]
    assert message == {"id": "1"}, message
    return torch.from_numpy(np.frombuffer(buffers[0], "<f4").copy())


@pytest.fixture
def controls() -> dict:
    return {"x": FloatSlider(value=0.25), "kind": Dropdown(options=("a", "b"), value="b")}


def drawing(drawn: list):
    """A function for ``widgets.sliders`` that notes with which values it was called."""

    def draw(x: float, kind: str) -> plt.Figure:
        drawn.append((x, kind))
        figure, axis = plt.subplots(figsize=(2, 1))
        axis.barh([0], [x])
        axis.set_xlim(0, 1)
        return figure

    return draw


def test_a_page_shows_the_frame_of_the_first_values(controls, monkeypatch) -> None:
    drawn, shown = [], []
    monkeypatch.setenv("SSAE_BOOK_PAGES", "1")
    monkeypatch.setattr(plt, "show", lambda: shown.extend(plt.get_fignums()))
    assert widgets.sliders(drawing(drawn), **controls) is None
    assert drawn == [(0.25, "b")]
    assert len(shown) == 1
    plt.close("all")


def test_a_notebook_draws_again_when_a_slider_moves(controls, monkeypatch) -> None:
    drawn = []
    monkeypatch.delenv("SSAE_BOOK_PAGES", raising=False)
    box = widgets.sliders(drawing(drawn), **controls)
    assert [child.description for child in box.children[:-1]] == ["x", "kind"]
    picture = box.children[-1]

    def ink() -> int:
        return int((np.asarray(Image.open(io.BytesIO(picture.value)).convert("L")) < 160).sum())

    before = ink()
    controls["x"].value = 0.75
    assert drawn == [(0.25, "b"), (0.75, "b")]
    assert ink() > 1.5 * before
    assert not plt.get_fignums(), "a figure left open is shown again below the cell"


def test_every_figure_becomes_one_module() -> None:
    for figure in (
        "projection-playground",
        "signal-repair",
        "blind-spot",
        "corruption-bench",
        "paint-a-defect",
        "score-explorer",
        "setting-chooser",
    ):
        module = widgets.linked_module(figure)
        assert not re.search(r"^import ", module, re.MULTILINE), figure
        assert len(re.findall("^export ", module, re.MULTILINE)) == 1, figure


def test_a_widget_is_made_in_a_notebook_and_not_in_the_pages(monkeypatch) -> None:
    monkeypatch.delenv("SSAE_BOOK_PAGES", raising=False)
    assert isinstance(widgets.in_notebook(lambda: widgets.playground({})), widgets.LiveFigure)
    monkeypatch.setenv("SSAE_BOOK_PAGES", "1")
    assert widgets.in_notebook(lambda: pytest.fail("nobody sees it")) is None


def test_the_score_explorer_shows_the_maps_it_was_given() -> None:
    maps = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(3, 128, 128, dtype=torch.bool)
    masks[2, 32:64, 32:64] = True
    widget = widgets.score_explorer(torch.rand(3, 3, 128, 128), maps, masks, ["good", "good", "chip"])
    data = base64.b64decode(widget.file_urls["maps"].partition(",")[2])
    strip = np.asarray(Image.open(io.BytesIO(data))).reshape(3, 64, 64, 3)
    settings = widget.payload["settings"]
    there = torch.nn.functional.avg_pool2d(maps, 2).numpy()
    np.testing.assert_allclose(settings["largest"] * (strip[..., 0] / 255) ** 2, there, atol=0.01)
    assert (strip[..., 1] > 127).sum((1, 2)).tolist() == [0, 0, 256]
    assert settings["titles"] == ["good", "good", "chip"]


def test_the_blind_spot_is_answered_by_both_networks() -> None:
    models = {name: (name, build(TINY).eval()) for name in ("plain", "dilated")}
    images = textures(4, 0)
    fields = {"plain": (4, 11), "dilated": (0, 15)}
    widget = widgets.blind_spot(
        BlindSpot(models, fields, images, images, images.flip(0), variance=0.1, count=2)
    )
    answer = ask(widget, "both", images[:1]).reshape(2, 3, 16, 16)
    with torch.no_grad():
        there = torch.cat([model(images[:1]) for _, model in models.values()])
    torch.testing.assert_close(answer, there, atol=1e-5, rtol=0)


def test_the_bench_asks_the_network_that_was_chosen() -> None:
    models = {"one": ("One", build(TINY).eval()), "two": ("Two", build(TINY).eval())}
    widget = widgets.corruption_bench(CorruptionBench(textures(2, 0), textures(2, 1), models))
    assert widget.payload["settings"]["models"] == {"one": "One", "two": "Two"}
    image = textures(1, 2)
    for key, (_, model) in models.items():
        with torch.no_grad():
            there = model(image).flatten()
        torch.testing.assert_close(ask(widget, "model", image, key), there, atol=1e-5, rtol=0)
