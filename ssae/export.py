"""Models outside Python, as ONNX files that are compared with torch before they are kept.

:func:`export_run` writes a trained run with everything from the photograph to the verdict in one graph; it is
explained in chapter 14. :func:`export_onnx` writes a model alone, for the live figures of the book.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssae.experiment import Run, calibrate
from ssae.models import portable
from ssae.scoring import ScoringSettings, heat_map, image_scores


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
    free = {0: torch.export.Dim("batch", min=1, max=64)}
    return _write(model, path, "images", ["reconstruction"], [example], free, tolerance)


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
    places = torch.arange(before, dtype=torch.float32) + 0.5
    centres = (torch.arange(after, dtype=torch.float32) + 0.5) * (before / after)
    # The reduction, or 1 if the axis grows; a tensor, since an `if` would be decided while it is traced.
    reach = (2 * centres[:1]).clamp(min=1)
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
    image_limit, pixel_limit, _ = calibrate(run).thresholds(rate)
    side = run.settings.resolution
    inspector = Inspector(portable(run.applied), run.settings.scoring, side, image_limit).eval()
    generator = torch.Generator().manual_seed(0)

    def photographs(*shape: int) -> Tensor:
        return torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)

    examples = [
        photographs(2, 2 * side + 3, side + 5),
        photographs(2, side, side),
        photographs(1, 3 * side + 1, 2 * side - 7),
        photographs(1, max(16, side // 2), side + 5),  # enlarged along one axis
    ]
    free = {
        0: torch.export.Dim("batch", min=1, max=1024),
        1: torch.export.Dim("height", min=16, max=2**14),
        2: torch.export.Dim("width", min=16, max=2**14),
    }
    metadata = {
        "threshold": repr(image_limit),
        "pixel_threshold": repr(pixel_limit),
        "resolution": str(side),
        "settings": json.dumps(run.settings.to_json()),
    }
    outputs = ["heat_map", "score", "anomalous"]
    return _write(inspector, path, "photographs", outputs, examples, free, tolerance, metadata)


def _write(
    module: nn.Module,
    path: Path | str,
    takes: str,
    gives: list[str],
    examples: Sequence[Tensor],
    free: dict[int, Any],
    tolerance: float,
    metadata: dict[str, str] | None = None,
) -> float:
    """Write a module of one input as ONNX, once onnxruntime has put out what torch does for the examples.

    The first example is traced; the axes in ``free`` may have other sizes. The largest difference of numbers,
    ``nan`` where onnxruntime is not installed.

    Raises
    ------
    ValueError
        If one is greater than ``tolerance``; a file that was there before stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        program = torch.onnx.export(
            module,
            (examples[0],),
            dynamo=True,
            input_names=[takes],
            output_names=gives,
            dynamic_shapes=(free,),
            external_data=False,
            verbose=False,
        )
    except RuntimeError as error:
        if not type(error).__module__.startswith("torch.onnx"):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: this torch cannot write the network as ONNX ({reason})") from error
    if program is None:
        raise ValueError("torch.onnx.export gave no program for this model")
    program.optimize()
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # Every node carries the stack that made it: longer than the weights, and with paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata or {})
    partial = path.with_name(f"{path.name}.partial")
    try:
        program.save(str(partial), external_data=False)
        gap = _gap(partial, module, takes, examples)
        if gap > tolerance:
            raise ValueError(f"{path}: ONNX and torch differ by {gap:.2g}, more than {tolerance:g}")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return gap


@torch.no_grad()
def _gap(path: Path, module: nn.Module, takes: str, examples: Sequence[Tensor]) -> float:
    try:
        import onnxruntime
    except ImportError:
        return math.nan
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class of their own that is public
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path.with_suffix('')}: this onnxruntime cannot read what was written ({reason}); "
            "pip install --upgrade onnxruntime"
        ) from error
    gaps = []
    for example in examples:
        here = module(example)
        here = (here,) if isinstance(here, Tensor) else here
        there = session.run(None, {takes: example.numpy()})
        # What is no number is as far off as can be; a comparison with it would always pass.
        gaps += [
            float(np.nan_to_num(np.abs(a.numpy() - np.asarray(b)), nan=np.inf).max())
            for a, b in zip(here, there, strict=True)
            if a.is_floating_point()
        ]
    return max(gaps)
