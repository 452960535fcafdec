"""Sliders in a notebook, one frame of them in the pages; the figures that take networks of one's own."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from ipywidgets import Dropdown, FloatSlider

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


def test_a_page_shows_the_frame_of_the_first_values(controls, monkeypatch) -> None:
    drawn = []
    monkeypatch.setenv("SSAE_BOOK_PAGES", "1")
    widgets.sliders(lambda x, kind: drawn.append((x, kind)), **controls)
    assert drawn == [(0.25, "b")]


def test_a_notebook_draws_again_when_a_slider_moves(controls, monkeypatch) -> None:
    drawn = []
    monkeypatch.delenv("SSAE_BOOK_PAGES", raising=False)
    widgets.sliders(lambda x, kind: drawn.append((x, kind)), **controls)
    controls["x"].value = 0.5
    assert drawn == [(0.25, "b"), (0.5, "b")]


def test_every_figure_becomes_one_module() -> None:
    for figure in (
        "projection-playground",
        "signal-repair",
        "blind-spot",
        "corruption-bench",
        "paint-a-defect",
    ):
        module = widgets.linked_module(figure)
        assert not re.search(r"^import ", module, re.MULTILINE), figure
        assert len(re.findall("^export ", module, re.MULTILINE)) == 1, figure


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
