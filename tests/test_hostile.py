"""Files that mean harm: weights, checkpoints, settings, receipts, payloads are believed only once checked."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from safetensors.torch import load, save
from test_receipts import receipt as any_receipt
from torch import Tensor, nn

from ssae.experiment import ExperimentSettings, RunError, load_weights
from ssae.models import ModelSettings
from ssae.objectives import Reconstruction
from ssae.payloads import read_payload, write_payload
from ssae.receipts import provenance_table, read_receipts, results_table
from ssae.training import CheckpointError, FitSettings, TrainingState, fit, read_checkpoint, write_checkpoint

TINY = ModelSettings(channels=(4,), dilations=(1,), sdc_filters=2, sdc_layers=1, sdc_kernel=3)
SETTINGS = ExperimentSettings("part", model=TINY)


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str = "F32", shape: tuple[int, ...] = (1,), end: int = 4) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


MALFORMED = {
    "nothing": b"",
    "text": b"<html>not found</html>",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    "zip": b"PK\x03\x04" + bytes(100),
    "header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "header longer than memory": struct.pack("<Q", 2**63) + b"{}",
    "header is no JSON": raw_safetensors(b"{" * 10),
    "header is a list": raw_safetensors([]),
    "header nested deeply": raw_safetensors(b"[" * 50_000),
    "huge shape": raw_safetensors(tensor(shape=(2**40, 2**40)), bytes(4)),
    "shape that overflows": raw_safetensors(tensor(shape=(2**62, 2**62, 2**62)), bytes(4)),
    "negative shape": raw_safetensors(tensor(shape=(-1,)), bytes(4)),
    "shape and data differ": raw_safetensors(tensor(shape=(7,)), bytes(4)),
    "data beyond the end": raw_safetensors(tensor(shape=(100,), end=400), bytes(4)),
    "data begin nowhere": raw_safetensors(
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, bytes(12)
    ),
    "unknown type": raw_safetensors(tensor("OBJECT"), bytes(4)),
    "tensors overlap": raw_safetensors(
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "xy"}, bytes(4)
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_weights_and_checkpoints_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(RunError, match=r"x\.safetensors does not hold this run's weights"):
        load_weights(SETTINGS, path)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_checkpoint(path)


# Weights


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.pop(name)


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def act(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name])

    return act


WEIGHTS = {
    "missing": (without("to_image.bias"), "to_image.bias is missing"),
    "extra": (lambda tensors: tensors.update({"\x1b[31m": torch.zeros(1)}), r"'\\x1b\[31m' is unknown here"),
    "shape": (
        replaced("to_image.bias", lambda t: t.repeat(2)),
        r"to_image.bias is float32 \(6,\), and float32 \(3,\)",
    ),
    "type": (replaced("to_image.bias", lambda t: t.long()), r"to_image.bias is int64 \(3,\)"),
    "not finite": (
        replaced("to_image.bias", lambda t: t * torch.nan),
        "to_image.bias has values that are not",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_model_are_named(tmp_path: Path, name: str) -> None:
    harm, message = WEIGHTS[name]
    tensors = dict(SETTINGS.build_model().state_dict())
    harm(tensors)
    (tmp_path / "x").write_bytes(save(tensors))
    with pytest.raises(RunError, match=message) as error:
        load_weights(SETTINGS, tmp_path / "x")
    assert str(error.value).isprintable()


def test_half_precision_serves_and_absurd_settings_cost_no_memory(tmp_path: Path) -> None:
    tensors = SETTINGS.build_model().state_dict()
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    (tmp_path / "x").write_bytes(save(half))
    assert load_weights(SETTINGS, tmp_path / "x").model.to_image.bias.dtype == torch.float32
    huge = ExperimentSettings("part", model=ModelSettings(channels=(2**20,), dilations=(1,), sdc_layers=1))
    with pytest.raises(RunError, match="float32"):
        load_weights(huge, tmp_path / "x")


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(resolution="big"), "settings.resolution: expected a whole number, found 'big'"),
        (lambda v: v.update(unknown=1), "settings has an unknown key 'unknown'"),
        (lambda v: v.pop("category"), "settings lacks 'category'"),
        (
            lambda v: v["fit"].update(learning_rate=None),
            "settings.fit.learning_rate: expected a finite number",
        ),
        (lambda v: v["fit"].update(precision="int4"), "settings.fit.precision: expected 'auto' or"),
        (
            lambda v: v["corruption"].update(side=[0.1]),
            "settings.corruption.side: expected 2 values, found 1",
        ),
        (lambda v: v["scoring"].update(kernel=4), "settings.scoring: kernel must be odd"),
        (
            lambda v: v["model"].update(channels=["x"]),
            r"settings.model.channels\[0\]: expected a whole number",
        ),
        (lambda v: v.update(model=[]), r"settings.model: expected an object, found \[\]"),
    ],
)
def test_settings_that_do_not_fit_are_named(change: Callable[[dict], object], message: str) -> None:
    values = SETTINGS.to_json()
    assert ExperimentSettings.from_json(copy.deepcopy(values)) == SETTINGS
    change(values)
    with pytest.raises(RunError, match=message):
        ExperimentSettings.from_json(values)


# Checkpoints


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))


def checkpoint(tmp_path: Path, settings: FitSettings, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A checkpoint whose checksum is right and whose content is changed: made by somebody who knows how."""
    state = TrainingState(model(), settings)
    loss = state.model(torch.ones(2, 4)).sum()
    loss.backward()
    for optimiser in state.optimisers:
        optimiser.step()
    snapshot = state.copy()._replace(step=1)
    change(snapshot.tensors)
    path = tmp_path / "checkpoints" / "step-000000001.safetensors"
    write_checkpoint(path, snapshot, settings)
    return path


CHECKPOINTS = {
    "weight missing": (without("model.0.bias"), "model.0.bias is missing"),
    "weight too many": (lambda t: t.update({"model.9.bias": torch.zeros(3)}), "'model.9.bias' is unknown"),
    "other shape": (replaced("model.0.bias", lambda t: t[:2]), r"model.0.bias is float32 \(2,\)"),
    "other type": (replaced("model.0.bias", lambda t: t.double()), r"model.0.bias is float64 \(3,\)"),
    "empty": (lambda t: t.clear(), "model.0.bias is missing"),
    "moment missing": (without("optimiser.0.exp_avg"), "optimiser.0.exp_avg is missing"),
    "moment of no parameter": (
        lambda t: t.update({"optimiser.99.exp_avg": torch.zeros(3)}),
        "'optimiser.99.exp_avg' is unknown",
    ),
    "no number": (
        lambda t: t.update({"optimiser.x.exp_avg": torch.zeros(3)}),
        "'optimiser.x.exp_avg' is unknown",
    ),
    "step of another shape": (
        replaced("optimiser.0.step", lambda t: t.repeat(3)),
        "optimiser.0.step is float32",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_something_else_is_refused_before_anything_is_loaded(
    tmp_path: Path, name: str
) -> None:
    change, message = CHECKPOINTS[name]
    settings = FitSettings(steps=3)
    path = checkpoint(tmp_path, settings, change)
    net = model()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=message) as error:
        fit(
            net,
            lambda g: torch.randn(2, 4, generator=g),
            Reconstruction(),
            settings,
            tmp_path,
            progress=False,
        )
    assert str(path) in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "header is not valid JSON"),
        ("[" * 100_000, "header is not valid JSON"),
        ("[]", "expected an object"),
        ("{}", "lacks 'step'"),
        ('{"step": "1", "seconds": 0, "settings": {"steps": 3}}', "header.step: expected a whole number"),
        ('{"step": -1, "seconds": 0, "settings": {"steps": 3}}', "must not be negative"),
        ('{"step": 1, "seconds": NaN, "settings": {"steps": 3}}', "NaN is no JSON value"),
        ('{"step": 1, "seconds": 0, "settings": {}}', "exactly one of steps and minutes"),
        ('{"step": 1, "seconds": 0, "settings": {"steps": 3}, "more": 1}', "unknown key 'more'"),
    ],
    ids=range(9),
)
def test_a_malformed_header_is_named(tmp_path: Path, header: str, message: str) -> None:
    from ssae.training import _digest

    tensors = load(checkpoint(tmp_path, FitSettings(steps=3), lambda t: None).read_bytes())
    (tmp_path / "x").write_bytes(save(tensors, {"state": header, "sha256": _digest(tensors, header)}))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("metadata", [None, {}, {"state": "{}"}, {"state": "{}", "sha256": "0", "more": "x"}])
def test_weights_are_no_checkpoint(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    (tmp_path / "x").write_bytes(save({"a": torch.zeros(2)}, metadata))
    with pytest.raises(CheckpointError, match="is no checkpoint of this version"):
        read_checkpoint(tmp_path / "x")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_a_checkpoint_that_was_read_is_not_kept_mapped(tmp_path: Path) -> None:
    """Windows would not let it be deleted then."""
    path = checkpoint(tmp_path, FitSettings(steps=3), lambda t: None)
    tensors, _ = read_checkpoint(path)
    assert tensors
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_every_byte_of_a_checkpoint_is_under_its_checksum(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, FitSettings(steps=3), lambda t: None)
    whole = path.read_bytes()
    good_tensors, good_header = read_checkpoint(path)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x01]) + whole[position + 1 :])
        try:
            tensors, header = read_checkpoint(path)
        except CheckpointError:
            continue
        # A space that pads the header may change; nothing that is read may.
        assert header == good_header
        assert tensors.keys() == good_tensors.keys()
        assert all(torch.equal(tensors[key], good_tensors[key]) for key in tensors)


# Payloads of live figures


@pytest.fixture
def payload(tmp_path: Path) -> dict[str, Any]:
    path = write_payload(
        "x",
        figure="f",
        settings={"a": 1},
        arrays={"curve": np.zeros((3, 2))},
        models={"m": model()},
        files={"onnx": "x.onnx"},
        parts={"other": "y"},
        directory=tmp_path,
    )
    assert read_payload(path)
    return json.loads(path.read_text())


PAYLOADS = {
    "list": (lambda p: [p], "found no object"),
    "extra key": (lambda p: {**p, "script": "x"}, "unknown key 'script'"),
    "missing key": (lambda p: {k: v for k, v in p.items() if k != "models"}, "lacks 'models'"),
    "figure": (lambda p: {**p, "figure": 3}, "figure: expected a text"),
    "array is none": (lambda p: {**p, "arrays": {"curve": 3}}, "arrays.curve: expected an object"),
    "shape too large": (
        lambda p: {**p, "arrays": {"curve": {"shape": [2**40], "data": "AAAA"}}},
        "array 'curve'",
    ),
    "negative shape": (
        lambda p: {**p, "arrays": {"curve": {"shape": [-1, -1], "data": "AAAAAA=="}}},
        "does not hold 1 numbers",
    ),
    "no base64": (lambda p: {**p, "arrays": {"curve": {"shape": [1], "data": "<b>"}}}, "array 'curve'"),
    "not finite": (
        lambda p: {**p, "arrays": {"curve": {"shape": [1], "data": "AADAfw=="}}},
        "not finite",
    ),
    "activation": (
        lambda p: {**p, "models": {"m": [{**p["models"]["m"][0], "activation": "eval"}]}},
        "activation: expected 'identity' or",
    ),
    "layers that do not fit": (
        lambda p: {**p, "models": {"m": p["models"]["m"][:1] * 2}},
        "does not fit the one before",
    ),
    "no layer": (lambda p: {**p, "models": {"m": []}}, "has no layer"),
    "file elsewhere": (lambda p: {**p, "files": {"onnx": "../../secret"}}, "is no plain file name"),
    "file on a server": (lambda p: {**p, "files": {"onnx": "//evil/x"}}, "is no plain file name"),
    "part elsewhere": (lambda p: {**p, "parts": {"other": "/etc/passwd"}}, "is no plain file name"),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_is_checked_before_use(tmp_path: Path, payload: dict[str, Any], name: str) -> None:
    change, message = PAYLOADS[name]
    (tmp_path / "x.json").write_text(json.dumps(change(payload)))
    with pytest.raises(ValueError, match=message) as error:
        read_payload(tmp_path / "x.json")
    assert "x.json" in str(error.value)


def test_a_payload_that_is_no_json_is_named(tmp_path: Path) -> None:
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
            read_payload(tmp_path / "x.json")


# Receipts, and names that come from data


def receipt(**changes: Any) -> dict[str, Any]:
    return {**any_receipt(), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "holds no object"),
        (b"{", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (receipt(category=3), "category: expected a text, found 3"),
        (receipt(seed="0"), "seed: expected a whole number"),
        (receipt(metrics=[]), "metrics: expected an object"),
        (receipt(metrics={"au_pro": "1"}), "no valid metrics"),
        (receipt(metrics={"au_pro": 1.0}), "no valid metrics"),
        (receipt(versions={"torch": 2}), "versions.torch: expected a text"),
        (receipt(category="../../escape"), "cannot be the name of a folder"),
        (receipt(category=".."), "cannot be the name of a folder"),
        (receipt(preset="a\\b"), "cannot be the name of a folder"),
        (receipt(dataset=""), "cannot be the name of a folder"),
        (receipt(data_sha256="` <script>"), "is no check sum"),
        (receipt(rescored_commit="` <script>"), "is no check sum"),
    ],
    ids=range(16),
)
def test_a_hostile_receipt_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "lite-128-seed0.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(RunError, match=message) as error:
        read_receipts(tmp_path)
    assert path.name in str(error.value)


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "[a](javascript:alert(1))",
    "![a](x)",
    "`{raw} html`",
    "&lt;b&gt;",
    "a\n\n# b",
    "**bold** $x$",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("table", [results_table, provenance_table])
def test_names_from_data_are_shown_and_not_obeyed(name: str, table: Callable) -> None:
    shown = " ".join(name.split())
    note = f"not the official split: {name}"
    html = (
        MarkdownIt("commonmark")
        .enable("table")
        .render(table([receipt(category=name, device=name, split_note=note)]))
    )
    page = BeautifulSoup(html, "html.parser")
    assert not page.find_all(["script", "img", "a", "b", "strong", "h1"])
    cells = [cell.get_text() for cell in page.find("tbody").find("tr").find_all("td")]
    assert cells[0].startswith(shown)
    assert len(cells) == len(page.find_all("th"))
