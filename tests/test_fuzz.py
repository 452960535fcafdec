"""Random damage to everything that is read: each reader gives a result or its own named error, nothing else.

A short run is part of the suite. ``SSAE_FUZZ_MINUTES=10 pytest tests/test_fuzz.py`` searches for that long,
with fresh examples every time.
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from safetensors.torch import save
from test_receipts import receipt as any_receipt
from torch import nn

from ssae import metrics
from ssae.datasets import DataError, check, load_category, load_images, load_masks
from ssae.experiment import ExperimentSettings, RunError, load_run, load_weights
from ssae.metrics import MetricInputError
from ssae.models import ModelSettings
from ssae.payloads import read_payload, write_payload
from ssae.receipts import provenance_table, read_receipts, results_table
from ssae.training import (
    CheckpointError,
    FitSettings,
    TrainingState,
    read_checkpoint,
    read_log,
    write_checkpoint,
)

MINUTES = float(os.environ.get("SSAE_FUZZ_MINUTES", "0"))
TARGETS: list[str] = []


def fuzz(examples: int) -> Callable[[Callable], Callable]:
    """Run a property a number of times, or again and again for its share of the long mode's time."""

    def decorate(test: Callable) -> Callable:
        TARGETS.append(test.__name__)
        options = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        return options(test)

    return decorate


@pytest.fixture(autouse=True)
def again(request: pytest.FixtureRequest) -> None:
    """The long mode: more runs of the same test before the one that pytest makes."""
    end = time.monotonic() + 60 * MINUTES / len(TARGETS)
    wanted = inspect.signature(request.function).parameters
    arguments = {name: request.getfixturevalue(name) for name in wanted}
    while time.monotonic() < end:
        request.function(**arguments)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


# Strategies


@st.composite
def damaged(draw: st.DrawFn, wholes: Iterable[bytes]) -> bytes:
    """A good file with stretches of it replaced, doubled, removed or cut off."""
    content = draw(st.sampled_from(list(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 1, 2, 4, 8, 64, 10**9]))
        rest = content[start + length :]
        piece = draw(
            st.binary(max_size=8)
            | st.sampled_from([b"\xff" * 4, bytes(8), content[:20], content[start:][:64]])
        )
        content = content[:start] + piece + rest
    return content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn, whole: Any) -> Any:
    """A good JSON value with some of its parts replaced, renamed, removed or added."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        parent, at = value, value
        while isinstance(at, (dict, list)) and at and (at is value or draw(st.booleans())):
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw(st.sampled_from(keys))
            parent, at = at, at[key]
        if parent is at or not parent:
            return draw(JSON)
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                parent[key] = draw(JSON)
            case "remove":
                del parent[key]
            case _ if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = draw(JSON)
            case _:
                parent.append(draw(JSON))
    return value


def encoded(format: str, mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, format=format, **options)
    return buffer.getvalue()


IMAGES = {
    ".png": encoded("PNG"),
    ".PNG": encoded("PNG", "P"),
    ".jpg": encoded("JPEG"),
    ".jpeg": encoded("JPEG", progressive=True),
    ".bmp": encoded("BMP"),
    ".tif": encoded("TIFF"),
    ".tiff": encoded("TIFF", compression="tiff_lzw"),
    ".webp": encoded("WEBP"),
}

TINY = ModelSettings(channels=(4,), dilations=(1,), sdc_filters=2, sdc_layers=1, sdc_kernel=3)
SETTINGS = ExperimentSettings("part", model=TINY, resolution=16)
WEIGHTS = save(SETTINGS.build_model().state_dict())


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))


# Targets


@fuzz(60)
@given(content=damaged(IMAGES.values()), ending=st.sampled_from(sorted(IMAGES)))
def test_images(place: Path, content: bytes, ending: str) -> None:
    path = place / f"x{ending}"
    path.write_bytes(content)
    with suppress(DataError):
        images = load_images([path], 16)
        assert images.shape == (1, 3, 16, 16)
        assert images.isfinite().all()
        assert images.min() >= 0
        assert images.max() <= 1
    with suppress(DataError):
        assert load_masks([path], 16).any()


@fuzz(20)
@given(
    data=st.data(),
    names=st.lists(
        st.tuples(
            st.sampled_from(
                ["train/good", "train", "test/good", "test/dent", "ground_truth/dent", "", "test/é"]
            ),
            st.sampled_from(["0", "1", "0_mask", "ä", "a\u0308", " ", "\x1b[m", "a'b", "-", "0.mask"]),
            st.sampled_from([*IMAGES, ".txt", ""]),
        ),
        max_size=8,
    ),
)
def test_folders(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, names: list) -> None:
    root = tmp_path_factory.mktemp("folders")
    for folder, name, ending in names:
        path = root / "part" / folder / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = data.draw(st.sampled_from(["good", "damaged", "folder", "link"]))
        whole = IMAGES.get(ending, b"text")
        if os.path.lexists(path):
            continue
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(data.draw(st.sampled_from([path.name, "..", "nowhere"])))
        else:
            path.write_bytes(whole if kind == "good" else data.draw(damaged([whole])))
    problems = check(root)
    assert all(str(problem).isprintable() for problem in problems)
    errors = {problem.kind for problem in problems if problem.severity == "error"}
    try:
        part = load_category(root, "part", 16)
        part.train_images(), part.test_images(), part.test_masks()
    except DataError as error:
        refused = {problem.kind for problem in error.problems}
    else:
        refused = set()
    # What loading refuses, the check has named. It compares pixels where loading compares bytes.
    assert refused <= errors | {"missing", "train_in_test", "both_labels"}


@fuzz(100)
@given(data=st.data())
def test_checkpoints(place: Path, data: st.DataObject) -> None:
    state = TrainingState(small_model(), FitSettings(steps=3))
    state.model(torch.ones(2, 4)).sum().backward()
    for optimiser in state.optimisers:
        optimiser.step()
    write_checkpoint(place / "whole", state.copy(), state.settings)
    whole = (place / "whole").read_bytes()
    (place / "x").write_bytes(data.draw(damaged([whole, WEIGHTS])))
    with suppress(CheckpointError):
        tensors, header = read_checkpoint(place / "x")
        state.load(place / "x", tensors, header)


@fuzz(60)
@given(content=damaged([WEIGHTS]))
def test_weights(place: Path, content: bytes) -> None:
    (place / "x").write_bytes(content)
    with suppress(RunError):
        run = load_weights(SETTINGS, place / "x", device=torch.device("cpu"))
        assert all(value.isfinite().all() for value in run.model.state_dict().values())


@fuzz(100)
@given(value=altered({"settings": SETTINGS.to_json(), "data": "x", "root": "x", "held_out": ["a.png"]}))
def test_configs(place: Path, value: Any) -> None:
    (place / "config.json").write_text(json.dumps(value))
    (place / "weights.safetensors").write_bytes(WEIGHTS)
    with suppress(RunError):
        load_run(place, torch.device("cpu"))


@fuzz(60)
@given(content=damaged([json.dumps({"settings": SETTINGS.to_json(), "data": "x"}).encode()]))
def test_config_files(place: Path, content: bytes) -> None:
    (place / "config.json").write_bytes(content)
    (place / "weights.safetensors").write_bytes(WEIGHTS)
    with suppress(RunError):
        load_run(place, torch.device("cpu"))


RECEIPT: dict[str, Any] = any_receipt()


@fuzz(100)
@given(value=altered(RECEIPT))
def test_receipts(place: Path, value: Any) -> None:
    (place / "lite-128-seed0.json").write_text(json.dumps(value))
    with suppress(RunError):
        receipts = read_receipts(place)
        for table in (results_table(receipts), provenance_table(receipts)):
            assert "<" not in table.replace("\\<", "")


def whole_payload(folder: Path) -> Any:
    arrays_ = {"curve": np.zeros((3, 2))}
    path = write_payload("whole", figure="f", arrays=arrays_, models={"m": small_model()}, directory=folder)
    return json.loads(path.read_text())


@fuzz(100)
@given(data=st.data())
def test_payloads(place: Path, data: st.DataObject) -> None:
    whole = whole_payload(place)
    (place / "x.json").write_text(json.dumps(data.draw(altered(whole))))
    with suppress(ValueError):
        assert read_payload(place / "x.json")["format"] == "ssae-live"


@fuzz(60)
@given(data=st.data())
def test_payload_files(place: Path, data: st.DataObject) -> None:
    whole = json.dumps(whole_payload(place)).encode()
    (place / "x.json").write_bytes(data.draw(damaged([whole])))
    with suppress(ValueError):
        read_payload(place / "x.json")


@fuzz(100)
@given(
    rows=st.lists(
        st.lists(st.text(max_size=6) | st.sampled_from(["1", "0.5", "nan", '"']), max_size=6), max_size=4
    )
)
def test_logs(place: Path, rows: list[list[str]]) -> None:
    text = "step,seconds,loss,learning_rate\n" + "\n".join(",".join(row) for row in rows)
    (place / "log.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(CheckpointError):
        read_log(place / "log.csv")


ANY_ARRAY = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4).flatmap(
    lambda shape: arrays(
        st.sampled_from([np.float64, np.float32, np.float16, np.bool_, np.int64, np.uint8, np.complex64]),
        shape,
    )
)
MAPS = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))


@fuzz(100)
@given(scores=ANY_ARRAY, truth=ANY_ARRAY, limit=st.floats())
def test_metrics_of_anything(scores: np.ndarray, truth: np.ndarray, limit: float) -> None:
    for name in ("pixel_auroc", "pixel_ap", "image_auroc", "image_ap"):
        with suppress(MetricInputError):
            assert 0 <= getattr(metrics, name)(scores, truth) <= 1
    for maps, masks in (
        (scores, truth),
        (torch.from_numpy(scores), truth),
        (scores, torch.from_numpy(truth)),
    ):
        with suppress(ValueError):  # MetricInputError, or the limit
            assert 0 <= metrics.au_pro(maps, masks, limit) <= 1 + 1e-12


@fuzz(100)
@given(data=st.data(), shape=MAPS, limit=st.floats(1e-6, 1))
def test_metrics_of_maps(data: st.DataObject, shape: tuple[int, int, int], limit: float) -> None:
    values = data.draw(st.sampled_from([st.floats(width=32), st.sampled_from([0.0, -0.0, 1e-45, 3e38, 1.0])]))
    scores = data.draw(arrays(np.float32, shape, elements=values))
    truth = data.draw(arrays(np.bool_, shape))
    with suppress(MetricInputError):
        pixels = metrics.rank_pixels(scores, truth)
        for value in (pixels.auroc(), pixels.average_precision(), pixels.au_pro(limit)):
            assert 0 <= value <= 1 + 1e-12
