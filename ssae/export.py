"""Models outside Python: payloads of the live figures, and runs as ONNX files for use elsewhere.

:func:`export_run` writes a trained run with everything from the photograph to the verdict in one graph; it is
explained in chapter 14. The rest is what a chapter's own cell hands to its page.

A payload is one JSON file, ``<name>.json``, with a still picture ``<name>.png`` beside it and, for a
convolutional model, an ONNX file. Its keys:

- ``format`` (``"ssae-live"``) and ``version``, so that a page built with other code refuses it instead of
  drawing nonsense;
- ``figure``: the live figure it is for, a module of that name in ``web/src``;
- ``settings``: plain values;
- ``arrays``: named float32 arrays, each ``{"shape": [...], "data": <base64, little endian>}``;
- ``models``: named multilayer perceptrons, each a list of layers ``{"weight", "bias", "activation"}``;
- ``files``: further files beside it, by role; ``parts``: further payloads, fetched only when the reader
  asks for them.

:func:`mlp_forward` is the arithmetic of ``web/src/mlp.js`` in NumPy. Every exported perceptron is run
through it and compared with torch before it is written, so a payload that exists is a payload that agrees.
Explained in the back matter of the book.
"""

from __future__ import annotations

import base64
import copy
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ssae.experiment import Run, calibrate
from ssae.schema import checked, parse_json
from ssae.scoring import ScoringSettings, heat_map, image_scores

FORMAT = "ssae-live"
VERSION = 1
#: Where the book's build looks for payloads, seen from the directory a chapter runs in.
LIVE_DIRECTORY = Path("_generated") / "live"

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
}


@dataclass(frozen=True)
class _Packed:
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True)
class _Layer:
    weight: _Packed
    bias: _Packed
    activation: Literal["identity", "relu", "tanh", "silu", "sigmoid"]


@dataclass(frozen=True)
class _Payload:
    format: Literal["ssae-live"]
    version: Literal[1]
    figure: str
    settings: dict[str, Any]
    arrays: dict[str, _Packed]
    models: dict[str, list[_Layer]]
    files: dict[str, str]
    parts: dict[str, str]


def encode_array(values: ArrayLike | Tensor) -> dict[str, Any]:
    """Pack an array as float32, little endian, base64.

    Raises
    ------
    ValueError
        If a value is not finite: a browser would draw it as nothing at all.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.ascontiguousarray(values, dtype="<f4")
    if not np.isfinite(array).all():
        raise ValueError("array for a live figure has values that are not finite; did the training diverge?")
    return {"shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode("ascii")}


def decode_array(record: Mapping[str, Any]) -> NDArray[np.float32]:
    """Unpack what :func:`encode_array` packed.

    Raises
    ------
    ValueError
        If the record is malformed, its data do not fill its shape, or a value is not finite.
    """
    packed = checked(_Packed, record, "array")
    flat = np.frombuffer(base64.b64decode(packed.data, validate=True), dtype="<f4")
    if min(packed.shape, default=0) < 0 or math.prod(packed.shape) != flat.size:
        raise ValueError(f"array of shape {packed.shape} does not hold {flat.size} numbers")
    if not np.isfinite(flat).all():
        raise ValueError("array has values that are not finite")
    return flat.reshape(packed.shape).astype(np.float32)


def mlp_layers(model: nn.Module) -> list[dict[str, Any]]:
    """Describe a multilayer perceptron, layer by layer.

    Parameters
    ----------
    model
        Any module whose leaves, in the order they were registered, are ``nn.Linear`` and activations (ReLU,
        Tanh, SiLU, Sigmoid, Identity), and whose forward pass runs through them in that order.

    Returns
    -------
    list of dict
        ``{"weight": (out, in), "bias": (out,), "activation": name}`` with packed arrays.

    Raises
    ------
    TypeError
        If the model holds any other kind of layer.
    ValueError
        If the description does not give what the model gives.
    """
    layers: list[dict[str, Any]] = []
    for name, leaf in _leaves(model):
        if isinstance(leaf, nn.Linear):
            bias = torch.zeros(leaf.out_features) if leaf.bias is None else leaf.bias
            layers.append(
                {
                    "weight": encode_array(leaf.weight),
                    "bias": encode_array(bias),
                    "activation": "identity",
                }
            )
        elif type(leaf) in _ACTIVATIONS and layers:
            if layers[-1]["activation"] != "identity":
                raise TypeError(f"layer {name!r}: two activations in a row cannot be exported")
            layers[-1]["activation"] = _ACTIVATIONS[type(leaf)]
        else:
            known = ", ".join(kind.__name__ for kind in _ACTIVATIONS)
            raise TypeError(
                f"layer {name!r} is a {type(leaf).__name__}; only Linear, "
                f"followed by {known}, can be exported"
            )
    _check_agreement(model, layers)
    return layers


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            yield name, module


def mlp_forward(layers: list[dict[str, Any]], inputs: ArrayLike) -> NDArray[np.float64]:
    """Run packed layers on a batch ``(B, in)``; the same arithmetic as ``web/src/mlp.js``."""
    x = np.asarray(inputs, dtype=np.float64)
    for layer in layers:
        x = x @ decode_array(layer["weight"]).T.astype(np.float64) + decode_array(layer["bias"])
        x = _activate(x, layer["activation"])
    return x


def _activate(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    if name == "identity":
        return x
    if name == "relu":
        return np.maximum(x, 0.0)
    if name == "tanh":
        return np.tanh(x)
    sigmoid = 0.5 * (1.0 + np.tanh(0.5 * x))
    return sigmoid if name == "sigmoid" else x * sigmoid


@torch.no_grad()
def _check_agreement(model: nn.Module, layers: list[dict[str, Any]], tolerance: float = 1e-4) -> None:
    if not layers:
        raise TypeError("the model has no linear layer to export")
    width = layers[0]["weight"]["shape"][1]
    parameter = next(model.parameters())
    probe = torch.randn(100, width, generator=torch.Generator().manual_seed(0))
    there = model(probe.to(parameter.device, parameter.dtype)).double().cpu().numpy()
    gap = float(np.abs(there - mlp_forward(layers, probe.numpy())).max())
    if gap > tolerance:
        raise ValueError(
            f"the exported layers differ from the model by {gap:.2g} (allowed {tolerance:g}): its "
            "forward pass is not its linear layers and activations in the order they were registered"
        )


def write_payload(
    name: str,
    *,
    figure: str,
    settings: Mapping[str, Any] | None = None,
    arrays: Mapping[str, ArrayLike | Tensor] | None = None,
    models: Mapping[str, nn.Module] | None = None,
    files: Mapping[str, str] | None = None,
    parts: Mapping[str, str] | None = None,
    directory: Path | str = LIVE_DIRECTORY,
) -> Path:
    """Write ``<directory>/<name>.json`` for a live figure.

    Parameters
    ----------
    name
        Name of the payload, as the ``live-figure`` directive asks for it.
    figure
        Name of the live figure, the stem of its module in ``web/src``.
    settings
        Plain values the figure reads.
    arrays
        Float arrays the figure reads.
    models
        Multilayer perceptrons that answer in the page, see :func:`mlp_layers`.
    files
        Further files in ``directory`` by role, for instance ``{"onnx": "weave.onnx"}``.
    parts
        Further payloads in ``directory`` by key, fetched when the reader asks for them.
    directory
        Where to write; made if missing.

    Returns
    -------
    Path
        The file written.
    """
    payload = {
        "format": FORMAT,
        "version": VERSION,
        "figure": figure,
        "settings": dict(settings or {}),
        "arrays": {key: encode_array(values) for key, values in (arrays or {}).items()},
        "models": {key: mlp_layers(model) for key, model in (models or {}).items()},
        "files": dict(files or {}),
        "parts": dict(parts or {}),
    }
    path = Path(directory) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(payload, separators=(",", ":"), allow_nan=False), encoding="utf-8")
    return path


def read_payload(path: Path | str) -> dict[str, Any]:
    """Read a payload and check all of it: keys, types, shapes, and that layers fit each other.

    Raises
    ------
    ValueError
        If the file is not a whole payload of this version; names the file and the place in it.
    """
    payload = parse_json(Path(path).read_bytes(), str(path))
    if not isinstance(payload, dict):
        raise ValueError(f"{path}: expected a {FORMAT} payload, found no object")
    if payload.get("format") != FORMAT or payload.get("version") != VERSION:
        raise ValueError(
            f"{path}: expected a {FORMAT} payload of version {VERSION}, found {payload.get('format')!r} "
            f"version {payload.get('version')!r}; run the chapter that writes it again"
        )
    checked(_Payload, payload, str(path))
    for name, record in payload["arrays"].items():
        _decoded(record, f"{path}: array {name!a}")
    for name, layers in payload["models"].items():
        _check_layers(layers, f"{path}: model {name!a}")
    for name in (*payload["files"].values(), *payload["parts"].values()):
        # The page fetches these from the payload's own folder, and from nowhere else.
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{path}: {name!a} is no plain file name")
    return payload


def _decoded(record: Mapping[str, Any], where: str) -> NDArray[np.float32]:
    try:
        return decode_array(record)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_layers(layers: list[dict[str, Any]], where: str) -> None:
    width = None
    for index, layer in enumerate(layers):
        weight = _decoded(layer["weight"], f"{where}, layer {index}")
        bias = _decoded(layer["bias"], f"{where}, layer {index}")
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or width not in (None, weight.shape[1]):
            raise ValueError(f"{where}: layer {index} of shape {weight.shape} does not fit the one before it")
        width = weight.shape[0]
    if width is None:
        raise ValueError(f"{where}: it has no layer")


def export_onnx(model: nn.Module, example: Tensor, path: Path | str, tolerance: float = 1e-4) -> float:
    """Write a convolutional model as ONNX for the page and say how far the two differ.

    Parameters
    ----------
    model
        Model in evaluation mode, ``(B, C, H, W)`` to the same shape. Batch norms are folded into their
        convolutions.
    example
        One batch; its spatial size becomes the size of the exported graph, the batch axis stays free.
    path
        Where to write.
    tolerance
        Largest difference allowed between onnxruntime and torch, where onnxruntime is installed.

    Returns
    -------
    float
        Largest absolute difference on ``example``; ``nan`` where onnxruntime is not installed.

    Raises
    ------
    ValueError
        If the model is in training mode or the two differ by more than ``tolerance``; nothing is left behind
        then, and a file that was there before stays.
    """
    if model.training:
        raise ValueError("call model.eval() first: in training mode batch norm would depend on the batch")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["reconstruction"],
        dynamic_shapes=({0: batch},),
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ValueError("torch.onnx.export gave no program for this model")
    with torch.no_grad():
        here = model(example)
    return _save_checked(program, path, [({"images": example}, [here])], tolerance)


# A run for use elsewhere


class Inspector(nn.Module):
    """From photographs to verdicts in one graph: resize, reconstruct, compare, filter, score, decide.

    Parameters
    ----------
    model
        ``(B, 3, R, R)`` in [0, 1] to the same shape.
    scoring
        How the difference becomes a heat map and a score.
    resolution
        R, the side of the images the model was trained on.
    threshold
        Score above which a photograph is anomalous.
    """

    def __init__(self, model: nn.Module, scoring: ScoringSettings, resolution: int, threshold: float) -> None:
        super().__init__()
        self.model, self.scoring = model, scoring
        self.resolution, self.threshold = resolution, threshold

    def forward(self, photographs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Photographs ``(B, H, W, 3)``, uint8 and of any size, to heat maps ``(B, R, R)``, scores ``(B,)``
        and whether each score is above the threshold, ``(B,)`` bool.
        """
        pixels = photographs.permute(0, 3, 1, 2).float()
        # One axis after the other, in 8 bits after each, as Pillow resizes what the model was trained on.
        down, across = (lanczos(side, self.resolution).to(pixels) for side in pixels.shape[2:])
        pixels = (pixels @ across.T).clamp(0, 255).round()
        pixels = (down @ pixels).clamp(0, 255).round()
        images = pixels / 255
        heat = heat_map(images, self.model(images), self.scoring)
        scores = image_scores(heat, self.scoring)
        return heat, scores, scores > self.threshold


def lanczos(before: int, after: int) -> Tensor:
    """Matrix ``(after, before)`` that resizes one axis by Lanczos interpolation, three lobes wide.

    The filter grows with the reduction, so nothing aliases; for equal sizes it is the identity.
    """
    scale = before / after
    reach = scale if after <= before else 1.0
    places = torch.arange(before, dtype=torch.float32) + 0.5
    centres = (torch.arange(after, dtype=torch.float32) + 0.5) * scale
    distance = (places[None, :] - centres[:, None]) / reach
    angle = math.pi * torch.where(distance == 0, 1.0, distance)
    lobes = torch.where(distance == 0, 1.0, 3 * torch.sin(angle) * torch.sin(angle / 3) / angle.square())
    weights = torch.where(distance.abs() < 3, lobes, 0.0)
    return weights / weights.sum(1, keepdim=True)


def export_run(run: Run, path: Path | str, rate: float = 0.0, tolerance: float = 1e-4) -> float:
    """Write a run as one ONNX file that takes photographs of any size and gives verdicts.

    Input ``photographs`` ``(B, H, W, 3)`` uint8, RGB; outputs ``heat_map`` ``(B, R, R)``, ``score`` ``(B,)``,
    ``anomalous`` ``(B,)``. Both thresholds, the resolution and the settings lie in the file's metadata.

    Parameters
    ----------
    run
        See :func:`ssae.experiment.load_run`.
    path
        File to write.
    rate
        Share of the held-out images that may lie above the thresholds.
    tolerance
        Largest difference of heat maps and scores allowed between onnxruntime and torch, where onnxruntime is
        installed.

    Returns
    -------
    float
        Largest such difference; ``nan`` where onnxruntime is not installed.

    Raises
    ------
    ImportError
        If onnxscript is not installed, which torch writes ONNX with.
    ValueError
        If the two differ by more than ``tolerance``; nothing is left behind then, and a file that was there
        before stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image_limit, pixel_limit, _ = calibrate(run).thresholds(rate)
    model = copy.deepcopy(run.model).float().cpu().to(memory_format=torch.contiguous_format).eval()
    side = run.settings.resolution
    inspector = Inspector(model, run.settings.scoring, side, image_limit).eval()
    generator = torch.Generator().manual_seed(0)

    def photographs(*shape: int) -> Tensor:
        return torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)

    program = torch.onnx.export(
        inspector,
        (photographs(2, 2 * side + 3, side + 5),),
        dynamo=True,
        input_names=["photographs"],
        output_names=["heat_map", "score", "anomalous"],
        dynamic_shapes=(
            {
                0: torch.export.Dim("batch", min=1, max=1024),
                1: torch.export.Dim("height", min=16, max=2**14),
                2: torch.export.Dim("width", min=16, max=2**14),
            },
        ),
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ValueError("torch.onnx.export gave no program for this model")
    program.optimize()
    program.model.metadata_props.update(
        {
            "threshold": repr(image_limit),
            "pixel_threshold": repr(pixel_limit),
            "resolution": str(side),
            "settings": json.dumps(run.settings.to_json()),
        }
    )
    examples = []
    for batch in (photographs(2, side, side), photographs(1, 3 * side + 1, 2 * side - 7)):
        with torch.no_grad():
            heat, scores, _ = inspector(batch)
        examples.append(({"photographs": batch}, [heat, scores]))
    return _save_checked(program, path, examples, tolerance)


def _save_checked(
    program: torch.onnx.ONNXProgram,
    path: Path,
    examples: Sequence[tuple[dict[str, Tensor], Sequence[Tensor]]],
    tolerance: float,
) -> float:
    """Write an ONNX program once onnxruntime gives what torch gave for some inputs: the first outputs, in
    order. The largest difference, ``nan`` where onnxruntime is not installed.

    Raises
    ------
    ValueError
        If they differ by more than ``tolerance``; a file that was there before stays as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        program.save(str(partial), external_data=False)
        gap = _gap(partial, examples)
        if gap > tolerance:
            raise ValueError(f"{path}: ONNX and torch differ by {gap:.2g}, more than {tolerance:g}")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return gap


def _gap(path: Path, examples: Sequence[tuple[dict[str, Tensor], Sequence[Tensor]]]) -> float:
    try:
        import onnxruntime
    except ImportError:
        return math.nan
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return max(
        float(np.abs(here.numpy() - np.asarray(there)).max())
        for inputs, expected in examples
        for here, there in zip(
            expected, session.run(None, {name: value.numpy() for name, value in inputs.items()}), strict=False
        )
    )
