"""Payloads of the live figures: round trips, refusals, and JavaScript beside torch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import node_path
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from ssae.experiment import ExperimentSettings, Run
from ssae.export import export_onnx, export_run
from ssae.live import (
    PLAYGROUND_OBJECTIVES,
    REPAIR_OBJECTIVES,
    SCENES,
    SIGNALS,
    write_playground,
    write_signal_repair,
)
from ssae.mlp import MLPAutoencoder
from ssae.models import ModelSettings, Tiled, build
from ssae.payloads import (
    decode_array,
    encode_array,
    mlp_forward,
    mlp_layers,
    read_payload,
    write_payload,
)
from ssae.scoring import Calibration, ScoringSettings
from ssae.training import FitSettings

WEB = Path(__file__).parents[1] / "web"
NODE = node_path()
needs_node = pytest.mark.skipif(NODE is None, reason="no Node on this machine")


@given(arrays(np.float32, array_shapes(max_dims=3), elements=st.floats(-1e6, 1e6, width=32)))
@settings(max_examples=50, deadline=None)
def test_arrays_come_back_as_they_were(values: np.ndarray) -> None:
    again = decode_array(json.loads(json.dumps(encode_array(values))))
    assert again.shape == values.shape
    np.testing.assert_array_equal(again, values)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        encode_array([1.0, float("nan")])


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_layers_give_what_the_model_gives(activation: str) -> None:
    start = torch.Generator().manual_seed(0)
    model = MLPAutoencoder(5, code=3, hidden=(7,), activation=activation, generator=start)
    points = torch.randn(100, 5, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(mlp_forward(mlp_layers(model), points), model(points).detach(), atol=1e-5)


def test_a_model_the_page_cannot_run_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="layer '1' is a LayerNorm"):
        mlp_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_a_forward_pass_in_another_order_is_noticed() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(x)

    with pytest.raises(ValueError, match="differ from the model"):
        mlp_layers(Residual())


def test_a_payload_of_another_version_is_refused(tmp_path: Path) -> None:
    path = write_payload("x", figure="f", directory=tmp_path)
    assert read_payload(path)["figure"] == "f"
    path.write_text(path.read_text().replace('"version":1', '"version":7'))
    with pytest.raises(ValueError, match="version 7; run the chapter"):
        read_payload(path)


def test_onnx_refuses_a_model_in_training_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.eval"):
        export_onnx(nn.Conv2d(1, 1, 1).train(), torch.rand(1, 1, 8, 8), tmp_path / "x.onnx")


def tiny_run(scoring: ScoringSettings | None = None) -> Run:
    """An untrained run of a very small model."""
    model = ModelSettings(
        channels=(4,), dilations=(1,), sdc_filters=4, sdc_layers=1, sdc_kernel=3, unshuffle=2
    )
    wanted = ExperimentSettings("part", resolution=48, model=model, scoring=scoring or ScoringSettings())
    calibration = Calibration((0.1, 0.2), (0.1, 0.2))
    return Run(wanted.build_model().eval(), wanted, "", torch.device("cpu"), calibration=calibration)


@pytest.mark.slow
def test_an_export_that_disagrees_leaves_the_one_before(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the one before")
    for write in (
        lambda: export_onnx(nn.Conv2d(1, 1, 1).eval(), torch.rand(2, 1, 8, 8), path, tolerance=-1.0),
        lambda: export_run(tiny_run(), path, tolerance=-1.0),
    ):
        with pytest.raises(ValueError, match="differ by"):
            write()
        assert path.read_bytes() == b"the one before"
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_onnx_of_the_lite_model_fits_the_page(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = build("lite").eval()
    gap = export_onnx(model, torch.rand(2, 3, 128, 128), tmp_path / "lite.onnx")
    assert gap < 1e-4
    whole = tmp_path / "lite.onnx"
    assert whole.stat().st_size < 2.5e6
    # Nine tiles are nine copies of the graph, and of nothing else.
    tiled = tmp_path / "tiled.onnx"
    assert export_onnx(Tiled(model, 64).eval(), torch.rand(2, 3, 128, 128), tiled) < 1e-4
    assert tiled.stat().st_size < whole.stat().st_size + 250_000
    for path in (whole, tiled):
        assert b"models.py" not in path.read_bytes(), "what stood on the stack, with paths of this machine"


@pytest.mark.slow
def test_onnx_keeps_the_batch_free(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    settings = ModelSettings(channels=(4,), dilations=(1, 2), sdc_filters=2, sdc_layers=1, sdc_kernel=3)
    model = build(settings).eval()
    for name, exported in (("whole", model), ("tiled", Tiled(model, 8).eval())):
        path = tmp_path / f"{name}.onnx"
        export_onnx(exported, torch.rand(2, 3, 16, 16), path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for count in (1, 5):
            images = torch.rand(count, 3, 16, 16)
            (there,) = session.run(None, {"images": images.numpy()})
            np.testing.assert_allclose(there, exported(images).detach(), atol=1e-5)


@needs_node
def test_the_modules_pass_their_own_tests() -> None:
    outcome = subprocess.run([NODE, "--test"], cwd=WEB, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout[-4000:] + outcome.stderr[-2000:]


def answers(payload: Path, model: str, inputs: torch.Tensor, tmp_path: Path) -> np.ndarray:
    """What the page's JavaScript makes of ``inputs``."""
    (tmp_path / "inputs.json").write_text(json.dumps(inputs.flatten().tolist()))
    command = [NODE, "parity.js", str(payload), model, str(tmp_path / "inputs.json")]
    outcome = subprocess.run(command, cwd=WEB, capture_output=True, text=True, check=True)
    return np.array(json.loads(outcome.stdout)).reshape(inputs.shape)


@needs_node
@pytest.mark.slow
def test_javascript_agrees_with_torch_in_the_playground(tmp_path: Path) -> None:
    models = write_playground(FitSettings(steps=20, learning_rate=1e-2), tmp_path)
    points = 2 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    for scene in SCENES:
        payload = tmp_path / f"projection-playground{'' if scene == 'circle' else '-' + scene}.json"
        for name in PLAYGROUND_OBJECTIVES:
            there = answers(payload, name, points, tmp_path)
            np.testing.assert_allclose(there, models[scene][name](points).detach(), atol=1e-4)


@needs_node
@pytest.mark.slow
def test_javascript_agrees_with_torch_in_signal_repair(tmp_path: Path) -> None:
    models = write_signal_repair(FitSettings(steps=20), tmp_path)
    signals = torch.randn(100, SIGNALS.length, generator=torch.Generator().manual_seed(0))
    for name in REPAIR_OBJECTIVES:
        payload = tmp_path / f"signal-repair{'' if name == 'masked' else '-' + name}.json"
        np.testing.assert_allclose(
            answers(payload, name, signals, tmp_path), models[name](signals).detach(), atol=1e-4
        )


@pytest.mark.slow
def test_an_export_leaves_nothing_behind_that_later_heat_maps_would_meet(tmp_path: Path) -> None:
    # A filter that no other test uses, so that the export is the first to ask for it.
    run = tiny_run(ScoringSettings(kernel=9, passes=4))
    export_run(run, tmp_path / "run.onnx")
    heat = run.heat_maps(torch.rand(2, 3, 48, 48))
    assert type(heat) is torch.Tensor
    assert bool(heat.numpy().min() >= 0)
