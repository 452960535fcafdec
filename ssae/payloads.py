"""Payloads of the live figures: what a chapter's own cell hands to its page.

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
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ssae.schema import checked, parse_json

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
    if not gap <= tolerance:
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
