"""Models behind the live figures, trained and written by a chapter's own cell.

Each ``write_...`` function trains or takes the models of one live figure and writes its payload and its
still picture through :mod:`ssae.payloads`. The pictures a reader without scripts sees are drawn from the same
models that answer in the page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ssae.corruption import CorruptionSettings, PartialCorruption
from ssae.datasets import load_category
from ssae.experiment import Run, thresholds
from ssae.export import export_onnx
from ssae.manifolds import Circle, Ellipse, HarmonicSignals, Manifold, SineCurve
from ssae.mlp import MLPAutoencoder
from ssae.models import portable
from ssae.objectives import (
    Contractive,
    Denoising,
    Masked,
    Objective,
    Reconstruction,
    ReconstructionContractive,
)
from ssae.payloads import LIVE_DIRECTORY, write_payload
from ssae.plotting import HEAT, PALETTE
from ssae.receipts import METRICS
from ssae.scoring import box_filter, difference_map
from ssae.signals import WindowCorruption
from ssae.training import FitSettings, fit, smoke


@dataclass(frozen=True)
class Scene:
    """One manifold of the projection playground.

    Parameters
    ----------
    title : str
        What the reader sees.
    manifold : Manifold
        A curve in the plane.
    extent : float
        The drawing shows ``[-extent, extent]`` in both directions.
    start : (float, float)
        Where the movable point starts.
    closed : bool
        Whether the curve returns to its first point.
    """

    title: str
    manifold: Manifold
    extent: float = 2.0
    start: tuple[float, float] = (1.1, 1.05)
    closed: bool = True


#: The manifolds of the projection playground.
SCENES: dict[str, Scene] = {
    "circle": Scene("Circle", Circle(), extent=1.6, start=(0.95, 0.85)),
    "ellipse": Scene("Ellipse", Ellipse(), extent=1.9, start=(0.9, 1.15)),
    "sine": Scene(
        "Sine", SineCurve(amplitude=0.7, frequency=2.0, extent=2.0), start=(0.15, -0.55), closed=False
    ),
}

#: The autoencoders of the projection playground. Every value is the book's own choice.
PLAYGROUND_OBJECTIVES: dict[str, Objective] = {
    "ae": Reconstruction(),
    "cae": Contractive(weight=0.02, probes=1),
    "rcae": ReconstructionContractive(weight=0.02),
    "dae": Denoising(sigma=0.2),
    # A sample of the plane has two values, and partial corruption moves one of them. It may not hide it:
    # what is left could not tell where the sample came from.
    "masked": Masked(WindowCorruption(length=(1, 1), opacity=(0.0, 0.4), fills=("constant",)), weight=0.5),
}


def train_playground(
    manifold: Manifold, objectives: Mapping[str, Objective], settings: FitSettings, code: int = 8
) -> dict[str, MLPAutoencoder]:
    """Train one small autoencoder of the plane for each objective, all from the same initial weights.

    Unless told otherwise, the code is wider than the data, so that nothing but the objective keeps a model
    from copying its input.

    Parameters
    ----------
    manifold : Manifold
        A curve in the plane.
    objectives : mapping of str to Objective
    settings : FitSettings
    code : int
        Length of the code.

    Returns
    -------
    dict of str to MLPAutoencoder
    """
    pool = manifold.sample(4096, torch.Generator().manual_seed(settings.seed)).float()

    def draw(generator: torch.Generator) -> Tensor:
        return pool[torch.randint(len(pool), (128,), generator=generator)]

    models = {}
    for name, objective in objectives.items():
        start = torch.Generator().manual_seed(settings.seed)
        models[name] = MLPAutoencoder(2, code=code, hidden=(32,), activation="tanh", generator=start).float()
        fit(models[name], draw, objective, settings, progress=False)
    return models


def write_playground(
    settings: FitSettings | None = None,
    directory: Path | str = LIVE_DIRECTORY,
    name: str = "projection-playground",
    objectives: Mapping[str, Objective] = PLAYGROUND_OBJECTIVES,
    scenes: Mapping[str, Scene] = SCENES,
    models: Mapping[str, Mapping[str, nn.Module]] | None = None,
) -> dict[str, Mapping[str, nn.Module]]:
    """Write the payloads and the still picture of the projection playground.

    Parameters
    ----------
    settings : FitSettings, optional
        How to train each model; by default 600 steps, 60 where ``SSAE_SMOKE=1``.
    directory : path
        Where to write.
    name : str
        Name of the payload.
    objectives : mapping of str to Objective
        What to train; without any, the figure shows the exact projection alone.
    scenes : mapping of str to Scene
        The manifolds; the figure opens with the first.
    models : mapping of str to mapping of str to Module, optional
        Perceptrons ``(B, 2)`` to the same shape by manifold and name, instead of those trained here.

    Returns
    -------
    dict
        The models, by manifold and name.
    """
    settings = settings or FitSettings(steps=smoke(600, 60), learning_rate=1e-2, precision="float32")
    first = next(iter(scenes))
    names = {key: name if key == first else f"{name}-{key}" for key in scenes}
    shown: dict[str, Mapping[str, nn.Module]] = {}
    for key, scene in scenes.items():
        shown[key] = models[key] if models else train_playground(scene.manifold, objectives, settings)
        write_payload(
            names[key],
            figure="projection-playground",
            settings={
                "manifold": key,
                "manifolds": {other: scenes[other].title for other in scenes},
                "extent": scene.extent,
                "start": scene.start,
                "closed": scene.closed,
            },
            arrays={
                "curve": curve_points(scene),
                "samples": scene.manifold.sample(150, torch.Generator().manual_seed(1)),
            },
            models=shown[key],
            parts={other: names[other] for other in scenes if other != key},
            directory=directory,
        )
    _draw_playground(scenes[first], shown[first], Path(directory) / f"{name}.png")
    return shown


def curve_points(scene: Scene, count: int = 600) -> Tensor:
    """Vertices ``(count, 2)`` of a polygon along the curve of ``scene``; the page projects onto it."""
    if scene.closed:
        parameters = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    else:
        # A graph goes on beyond what is drawn, and so does the projection onto it.
        parameters = torch.linspace(-1.6 * scene.extent, 1.6 * scene.extent, count, dtype=torch.float64)
    return scene.manifold.embed(parameters[:, None])


#: Colours of the maps, the same in the still picture and in ``web/src/live.css``.
COLOURS = {
    "exact": PALETTE["ink"],
    "ae": PALETTE["accent"],
    "pca": PALETTE["second"],
    "bottleneck": PALETTE["third"],
    "wide": PALETTE["accent"],
    "sparse": PALETTE["anomaly"],
    "cae": PALETTE["second"],
    "rcae": PALETTE["normal"],
    "dae": PALETTE["projection"],
    "masked": PALETTE["anomaly"],
}


@torch.no_grad()
def _draw_playground(scene: Scene, models: Mapping[str, nn.Module], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(4.6, 4.6), dpi=110)
    curve = curve_points(scene)
    start = torch.tensor([scene.start], dtype=torch.float64)
    ends = {"exact": scene.manifold.project(start)}
    ends |= {name: model(start.to(next(model.parameters()))).double() for name, model in models.items()}
    axes.plot(*torch.cat([curve, curve[:1]]).T, color=PALETTE["ink"], linewidth=2)
    for name, end in ends.items():
        axes.annotate(
            "",
            (float(end[0, 0]), float(end[0, 1])),
            scene.start,
            arrowprops={"arrowstyle": "-|>", "color": COLOURS[name], "lw": 2},
        )
    axes.plot(*start.T, "o", color=PALETTE["ink"], markersize=9)
    axes.set(xlim=(-scene.extent, scene.extent), ylim=(-scene.extent, scene.extent), aspect="equal")
    axes.set_axis_off()
    _save_still(figure, path)


def save_strip(images: Tensor, file: Path | IO[bytes], kind: Literal["png", "jpeg"] = "png") -> None:
    """Write images ``(N, 3, S, S)`` in [0, 1] one below the other into one picture: what the page reads."""
    strip = (255 * images.permute(0, 2, 3, 1).flatten(0, 1)).round().clamp(0, 255).byte().cpu().numpy()
    options = {"quality": 85, "subsampling": 0} if kind == "jpeg" else {}
    Image.fromarray(strip).save(file, format=kind, optimize=True, **options)


#: Sharp enough for a picture that a figure replaces, and small enough for a page of 100 kB.
STILL_DPI = 144


def _save_still(figure: Figure, path: Path) -> None:
    # A 64-colour palette: a drawing loses nothing by it, and a page gains a hundred kilobytes.
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=STILL_DPI, facecolor="white", bbox_inches="tight", pad_inches=0.05
    )
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


#: The manifold of the signal-repair figure.
SIGNALS = HarmonicSignals(dim=1)
#: The autoencoders of the signal-repair figure: what the reader sees, and the objective. Every value is the
#: book's own choice.
REPAIR_OBJECTIVES: dict[str, tuple[str, Objective]] = {
    "masked": ("Masked, λ = 0.5", Masked(WindowCorruption(), weight=0.5)),
    "masked-low": ("Masked, λ = 0.1", Masked(WindowCorruption(), weight=0.1)),
    "masked-high": ("Masked, λ = 0.9", Masked(WindowCorruption(), weight=0.9)),
    "noise": ("Masked, λ = 0.5, noise 0.2 kept", Masked(WindowCorruption(), weight=0.5, noise=0.2)),
    "dae": ("Denoising, σ = 0.2", Denoising(sigma=0.2)),
    "ae": ("Plain autoencoder", Reconstruction()),
}


def write_signal_repair(
    settings: FitSettings | None = None, directory: Path | str = LIVE_DIRECTORY
) -> dict[str, MLPAutoencoder]:
    """Train every model of the signal-repair figure and write its payloads and its still picture.

    Parameters
    ----------
    settings : FitSettings, optional
        How to train each model; by default 1500 steps, 60 where ``SSAE_SMOKE=1``.
    directory : path
        Where to write.

    Returns
    -------
    dict of str to MLPAutoencoder
    """
    settings = settings or FitSettings(steps=smoke(1500, 60), learning_rate=3e-3, precision="float32")
    pool = SIGNALS.sample(4096, torch.Generator().manual_seed(settings.seed)).float()

    def draw(generator: torch.Generator) -> Tensor:
        return pool[torch.randint(len(pool), (128,), generator=generator)]

    first = "masked"
    names = {key: "signal-repair" if key == first else f"signal-repair-{key}" for key in REPAIR_OBJECTIVES}
    models = {}
    for key, (_, objective) in REPAIR_OBJECTIVES.items():
        start = torch.Generator().manual_seed(settings.seed)
        models[key] = MLPAutoencoder(SIGNALS.length, code=32, hidden=(64,), generator=start).float()
        fit(models[key], draw, objective, settings, progress=False)
        write_payload(
            names[key],
            figure="signal-repair",
            settings={
                "model": key,
                "models": {other: title for other, (title, _) in REPAIR_OBJECTIVES.items()},
                "shape": {
                    "length": SIGNALS.length,
                    "amplitudes": SIGNALS.amplitudes,
                    "harmonics": SIGNALS.harmonics,
                },
            },
            models={key: models[key]},
            parts={other: names[other] for other in REPAIR_OBJECTIVES if other != key},
            directory=directory,
        )
    _draw_signal_repair(models[first], Path(directory) / "signal-repair.png")
    return models


@torch.no_grad()
def _draw_signal_repair(model: nn.Module, path: Path) -> None:
    source = SIGNALS.embed(torch.tensor([[0.6]], dtype=torch.float64))[0]
    seen = source.clone()
    seen[19:31] = -0.9
    output = model(seen[None].float())[0]
    figure, axes = plt.subplots(figsize=(6.4, 3.4), dpi=110)
    axes.axvspan(18.5, 30.5, color=PALETTE["anomaly"], alpha=0.13)
    axes.plot(source, color=PALETTE["normal"], linewidth=5, alpha=0.35, label="source")
    axes.plot(seen, ".", color=PALETTE["anomaly"], label="input")
    axes.plot(output, color=PALETTE["projection"], linewidth=2.5, label="model")
    axes.set(xlabel="sample", ylabel="value")
    axes.legend(loc="lower right")
    _save_still(figure, path)


def write_paint_a_defect(
    runs: Mapping[str, Run], count: int = 4, directory: Path | str = LIVE_DIRECTORY
) -> dict[str, float]:
    """Write the payloads and the still picture of the figure in which the reader paints on a texture.

    Parameters
    ----------
    runs : mapping of str to Run
        Trained runs by category; the first is the one the figure opens with.
    count : int
        Number of normal test images the reader can paint on.
    directory : path
        Where to write.

    Returns
    -------
    dict of str to float
        Largest difference between ONNX and torch, by category.
    """
    directory = Path(directory)
    first = next(iter(runs))
    names = {key: "paint-a-defect" if key == first else f"paint-a-defect-{key}" for key in runs}
    gaps = {}
    for key, run in runs.items():
        category = load_category(run.data, key, run.settings.resolution)
        images = category.test_images()[~category.labels][:count]
        gaps[key] = export_onnx(portable(run.applied), images[:2], directory / f"{names[key]}.onnx")
        save_strip(images, directory / f"{names[key]}.images.png")
        image_limit, pixel_limit = thresholds(run)
        scoring = run.settings.scoring
        write_payload(
            names[key],
            figure="paint-a-defect",
            settings={
                "texture": key,
                "textures": {other: other.capitalize() for other in runs},
                "model": key,
                "side": run.settings.resolution,
                "root": scoring.root,
                "kernel": scoring.kernel,
                "passes": scoring.passes,
                "top_share": scoring.top_share,
                "limit": pixel_limit,
                "image_limit": image_limit,
            },
            files={"onnx": f"{names[key]}.onnx", "images": f"{names[key]}.images.png"},
            parts={other: names[other] for other in runs if other != key},
            directory=directory,
        )
    _draw_paint_a_defect(runs[first], first, directory / "paint-a-defect.png")
    return gaps


def _draw_paint_a_defect(run: Run, key: str, path: Path) -> None:
    category = load_category(run.data, key, run.settings.resolution)
    image = category.test_images()[~category.labels][:1].clone()
    side = image.shape[-1]
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    along = (row - column) / side
    painted = (along.abs() < 0.015) & ((row + column - side).abs() < 0.4 * side)
    image[:, :, painted] = 0.1
    figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.8), dpi=110)
    heat = run.heat_maps(image)[0]
    _, limit = thresholds(run)
    for axis, shown, title in (
        (axes[0], image[0].permute(1, 2, 0), "painted"),
        (axes[1], run.reconstruct(image)[0].clamp(0, 1).permute(1, 2, 0), "repaired by the network"),
    ):
        axis.imshow(shown)
        axis.set_title(title)
    axes[2].imshow((heat / (6 * limit)).sqrt(), vmin=0, vmax=1, cmap=HEAT)
    axes[2].contour(heat, levels=[limit], colors=[PALETTE["second"]], linewidths=1.2)
    axes[2].set_title("what it changed")
    for axis in axes:
        axis.set_axis_off()
    _save_still(figure, path)


def write_score_explorer(
    run: Run, good: int = 2, defective: int = 7, side: int = 64, directory: Path | str = LIVE_DIRECTORY
) -> Path:
    """Write the payload and the still picture of the figure with a threshold over many heat maps.

    Maps and images are averaged down to ``side`` pixels; a mask keeps pixels it covers by half.

    Parameters
    ----------
    run : Run
        A trained run on a category with masks.
    good, defective : int
        Number of normal and defective test images; the defective ones are spread over all kinds.
    side : int
        Height and width of the maps.
    directory : path
        Where to write.

    Returns
    -------
    Path
        The payload.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    category = load_category(run.data, run.settings.category, run.settings.resolution)
    wrong = category.labels.nonzero().flatten()
    spread = torch.linspace(0, len(wrong) - 1, min(defective, len(wrong))).round().long()
    chosen = torch.cat([(~category.labels).nonzero().flatten()[:good], wrong[spread]])
    images = category.test_images()[chosen]
    masks = category.test_masks()[chosen].float()
    maps = difference_map(images, run.reconstruct(images))
    largest, strips = explorer_strips(images, maps, masks, side)
    files = {role: f"score-explorer.{role}.png" for role in strips}
    for role, strip in strips.items():
        Image.fromarray(strip).save(directory / files[role], optimize=True)
    kinds = [path.parent.name for path in category.test_paths]
    titles = [kinds[i] for i in chosen.tolist()]
    maps, truth = F.adaptive_avg_pool2d(maps, side), F.adaptive_avg_pool2d(masks, side) >= 0.5
    _draw_score_explorer(maps, truth, directory / "score-explorer.png")
    return write_payload(
        "score-explorer",
        figure="score-explorer",
        settings=explorer_settings(largest, titles, run.settings.scoring.passes, side),
        files=files,
        directory=directory,
    )


def explorer_strips(
    images: Tensor, maps: Tensor, masks: Tensor, side: int = 64
) -> tuple[float, dict[str, NDArray[np.uint8]]]:
    """What the score explorer reads of images ``(N, 3, S, S)``, maps ``(N, S, S)`` and masks ``(N, S, S)``.

    Returns
    -------
    tuple
        The largest value of the maps; and two strips of pictures, one below the other, each
        ``(N * side, side, 3)``: ``maps`` with the root of a map, as a share of the largest, in red and the
        mask in green; ``images``.

    Raises
    ------
    ValueError
        If, at ``side`` pixels, no pixel is mostly defective, or none is mostly normal.
    """
    images, maps, masks = images.cpu(), maps.cpu(), masks.cpu()
    maps = F.adaptive_avg_pool2d(maps.float(), side)
    truth = F.adaptive_avg_pool2d(masks.float(), side) >= 0.5
    if truth.all() or not truth.any():
        what = "defective" if not truth.any() else "normal"
        raise ValueError(
            f"at {side} x {side} pixels no pixel is mostly {what}: choose images with larger defects, or "
            "larger normal places"
        )
    largest = float(maps.max())
    channels = torch.stack([(maps / largest).sqrt(), truth.float(), torch.zeros_like(maps)], dim=-1)
    small = F.adaptive_avg_pool2d(images.float(), side).permute(0, 2, 3, 1)
    pixels = {"maps": channels, "images": small}
    return largest, {
        role: (255 * values.flatten(0, 1)).round().byte().numpy() for role, values in pixels.items()
    }


def explorer_settings(largest: float, titles: Sequence[str], passes: int, side: int = 64) -> dict[str, Any]:
    """Settings of the score explorer: see :func:`explorer_strips`."""
    return {
        "side": side,
        "largest": largest,
        "titles": list(titles),
        "kernel": 3,
        "passes": passes,
        "limit": 0.3,
    }


def _draw_score_explorer(maps: Tensor, truth: Tensor, path: Path) -> None:
    figure, axes = plt.subplots(2, 4, figsize=(6.4, 3.3), dpi=80)
    for axis, heat, mask in zip(axes.flat, box_filter(maps, 3, 3), truth, strict=False):
        axis.imshow(heat.sqrt(), cmap=HEAT)
        if mask.any():
            axis.contour(mask.float(), levels=[0.5], colors=["white"], linewidths=1)
        axis.set_axis_off()
    _save_still(figure, path)


class SideBySide(nn.Module):
    """Several models as one, whose output channels follow each other: one file, one call for all."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, len(models) * C, H, W)``."""
        return torch.cat([model(images) for model in self.models], dim=1)


@dataclass(frozen=True)
class BlindSpot:
    """What the blind-spot figure shows: two networks and a hole that grows in the middle of an image.

    Parameters
    ----------
    models : dict of str to (str, Module)
        Title and network, ``(B, 3, S, S)`` to the same shape, by the keys ``"plain"`` and ``"dilated"``.
    fields : dict of str to (int, int)
        First and last pixel, along one axis, that the four pixels in the middle depend on.
    sources, inputs, fills : Tensor
        Normal images as they should come out, as the networks are shown them, and what the hole may be filled
        with, each ``(N, 3, S, S)`` in [0, 1].
    variance : float
        Variance of one pixel from image to image: the error of the best single colour.
    count : int
        How many of the images the reader can choose from; all of them enter the mean curves.

    Notes
    -----
    Explained in chapter 8.
    """

    models: dict[str, tuple[str, nn.Module]]
    fields: dict[str, tuple[int, int]]
    sources: Tensor
    inputs: Tensor
    fills: Tensor
    variance: float
    count: int = 4

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.sources.shape[-1]

    def network(self) -> SideBySide:
        """All networks as one, in evaluation mode, on the CPU."""
        return portable(SideBySide(model for _, model in self.models.values()))

    def holed(self, hole: int) -> Tensor:
        """The inputs with their middle covered, ``(N, 3, S, S)``; ``hole`` is even."""
        first = (self.side - hole) // 2
        images = self.inputs.clone()
        within = slice(first, first + hole)
        images[:, :, within, within] = self.fills[:, :, within, within]
        return images

    @torch.no_grad()
    def errors(self, hole: int) -> dict[str, float]:
        """Squared error of the four by four pixels in the middle over the variance, for each network."""
        middle = slice(self.side // 2 - 2, self.side // 2 + 2)
        outputs = self.network()(self.holed(hole)).chunk(len(self.models), dim=1)
        return {
            name: float((output - self.sources)[:, :, middle, middle].square().mean()) / self.variance
            for name, output in zip(self.models, outputs, strict=True)
        }

    def settings(self) -> dict[str, Any]:
        """Plain values of the payload."""
        return {
            "side": self.side,
            "start": 5 * self.side // 8 // 2 * 2,
            "most": self.side - 4,
            "count": self.count,
            "variance": self.variance,
            "models": {name: title for name, (title, _) in self.models.items()},
            "fields": {name: list(field) for name, field in self.fields.items()},
        }

    def arrays(self) -> dict[str, list[float]]:
        """Mean error at the centre by side of the hole."""
        sides = range(0, self.side - 3, 4)
        errors = [self.errors(side) for side in sides]
        curves = {name: [error[name] for error in errors] for name in self.models}
        return {"sides": [float(side) for side in sides], **curves}

    def images(self) -> Tensor:
        """Inputs, sources and fills to choose from, ``(3 * count, 3, S, S)``."""
        return torch.cat([part[: self.count] for part in (self.inputs, self.sources, self.fills)])


def write_blind_spot(figure: BlindSpot, directory: Path | str = LIVE_DIRECTORY) -> float:
    """Write the payload and the still picture of the figure in which a defect outgrows what a network sees.

    Parameters
    ----------
    figure : BlindSpot
        Networks and images.
    directory : path
        Where to write.

    Returns
    -------
    float
        Largest difference between ONNX and torch.
    """
    directory = Path(directory)
    gap = export_onnx(figure.network(), figure.inputs[:2], directory / "blind-spot.onnx")
    save_strip(figure.images(), directory / "blind-spot.images.png")
    write_payload(
        "blind-spot",
        figure="blind-spot",
        settings=figure.settings(),
        arrays=figure.arrays(),
        files={"onnx": "blind-spot.onnx", "images": "blind-spot.images.png"},
        directory=directory,
    )
    _draw_blind_spot(figure, directory / "blind-spot.png")
    return gap


@torch.no_grad()
def _draw_blind_spot(figure: BlindSpot, path: Path) -> None:
    hole = figure.settings()["start"]
    image = figure.holed(hole)[:1]
    outputs = figure.network()(image).chunk(len(figure.models), dim=1)
    titles = [title for title, _ in figure.models.values()]
    shown = {"with a defect": image} | dict(zip(titles, outputs, strict=True))
    drawing, axes = plt.subplots(1, len(shown), figsize=(7.6, 2.8), dpi=110)
    for axis, (title, picture) in zip(axes, shown.items(), strict=True):
        axis.imshow(picture[0].clamp(0, 1).permute(1, 2, 0))
        axis.set_title(title)
        axis.set_axis_off()
    _save_still(drawing, path)


@dataclass(frozen=True)
class CorruptionBench:
    """What the corruption bench shows: images, foreign textures, and networks that may repair the damage.

    Parameters
    ----------
    images, textures : Tensor
        Normal images and foreign textures, ``(N, 3, S, S)`` and ``(T, 3, S, S)`` in [0, 1].
    models : dict of str to (str, Module)
        Title and network, ``(B, 3, S, S)`` to the same shape, by any key.
    corruption : CorruptionSettings
        Where the dials start; of its ranges, the upper end.
    seed : int
        Which random numbers the figure opens with.

    Notes
    -----
    Explained in chapter 9.
    """

    images: Tensor
    textures: Tensor
    models: dict[str, tuple[str, nn.Module]]
    corruption: CorruptionSettings = field(default_factory=CorruptionSettings)
    seed: int = 1

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.images.shape[-1]

    def settings(self) -> dict[str, Any]:
        """Plain values of the payload."""
        dials = self.corruption
        return {
            "side": self.side,
            "count": len(self.images),
            "elastic": list(dials.elastic),
            "upright": dials.upright,
            "dials": {
                "side": dials.side[1],
                "elongation": dials.elongation,
                "warp": dials.warp,
                "fade": dials.fade,
            },
            "models": {key: title for key, (title, _) in self.models.items()},
            "seed": self.seed,
        }

    def pictures(self) -> Tensor:
        """Images and textures, ``(N + T, 3, S, S)``."""
        return torch.cat([self.images, self.textures])


def write_corruption_bench(
    bench: CorruptionBench, directory: Path | str = LIVE_DIRECTORY, onnx: bool = True
) -> dict[str, float]:
    """Write the payloads and the still picture of the figure with the dials of the corruption.

    Parameters
    ----------
    bench : CorruptionBench
        Images and networks.
    directory : path
        Where to write.
    onnx : bool
        Whether to write the networks; without them the figure still corrupts.

    Returns
    -------
    dict of str to float
        Largest difference between ONNX and torch, by network.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    gaps = {}
    for key, (_, model) in bench.models.items() if onnx else ():
        name = f"corruption-bench-{key}"
        gaps[key] = export_onnx(portable(model), bench.images[:2], directory / f"{name}.onnx")
        write_payload(name, figure="corruption-bench", files={"onnx": f"{name}.onnx"}, directory=directory)
    save_strip(bench.pictures(), directory / "corruption-bench.images.jpg", kind="jpeg")
    write_payload(
        "corruption-bench",
        figure="corruption-bench",
        settings=bench.settings() | {"models": {key: bench.models[key][0] for key in gaps}},
        files={"images": "corruption-bench.images.jpg"},
        parts={key: f"corruption-bench-{key}" for key in gaps},
        directory=directory,
    )
    _draw_corruption_bench(bench, directory / "corruption-bench.png")
    return gaps


def _draw_corruption_bench(bench: CorruptionBench, path: Path) -> None:
    generator = torch.Generator().manual_seed(bench.seed)
    dials = replace(
        bench.corruption, blobs=(1, 1), side=(0.4, 0.4), fills=(0.0, 0.0, 1.0, 0.0), clean_share=0.0
    )
    corrupted, mask = PartialCorruption(dials, bench.textures)(bench.images, generator)
    figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.8), dpi=110)
    shown = {"normal": bench.images[0], "corrupted": corrupted[0], "mask": mask[0].expand(3, -1, -1)}
    for axis, (title, picture) in zip(axes, shown.items(), strict=True):
        axis.imshow(picture.permute(1, 2, 0))
        axis.set_title(title)
        axis.set_axis_off()
    _save_still(figure, path)


#: Runs by the title of their set: pairs of a change and a receipt, as of :func:`ssae.sweep.read_sweep`.
Choices: TypeAlias = Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]


def chooser_settings(choices: Choices, metric: str = "pixel_auroc") -> dict[str, Any]:
    """Settings of the figure in which the reader chooses among settings by their drawn defects.

    Parameters
    ----------
    choices
        Sets of runs, each of one category; the changes of a set keep their order, its seeds are its several
        receipts of one change.
    metric : str
        What the figure starts with, a key of ``ssae.receipts.METRICS``.

    Raises
    ------
    ValueError
        If there is no set, or one holds fewer than two changes.
    """
    sets = []
    for title, runs in choices.items():
        changes = list(dict.fromkeys(change for change, _ in runs))
        if len(changes) < 2:
            raise ValueError(f"{title}: nothing to choose among")
        of = {change: [receipt for other, receipt in runs if other == change] for change in changes}
        sets.append(
            {
                "title": title,
                "changes": changes,
                **{
                    ground: {
                        name: [[round(r[ground][name], 5) for r in of[change]] for change in changes]
                        for name in METRICS
                    }
                    for ground in ("validation", "metrics")
                },
            }
        )
    if not sets:
        raise ValueError("no runs to choose among")
    return {"sets": sets, "metrics": METRICS, "start": {"set": 0, "metric": metric}}


def write_setting_chooser(choices: Choices, directory: Path | str = LIVE_DIRECTORY) -> Path:
    """Write the payload and the still picture of the figure in which the reader chooses among settings; see
    :func:`chooser_settings`.
    """
    settings = chooser_settings(choices)
    path = write_payload("setting-chooser", figure="setting-chooser", settings=settings, directory=directory)
    _draw_setting_chooser(settings, path.with_suffix(".png"))
    return path


def _draw_setting_chooser(settings: dict[str, Any], path: Path) -> None:
    first, metric = settings["sets"][0], settings["start"]["metric"]
    figure, axis = plt.subplots(figsize=(6.4, 0.8 + 0.28 * len(first["changes"])), dpi=110)
    for row, values in enumerate(first["validation"][metric]):
        axis.plot(values, [row] * len(values), "o", color=PALETTE["projection"])
    axis.set_yticks(range(len(first["changes"])), first["changes"])
    axis.invert_yaxis()
    axis.set(xlabel=f"{METRICS[metric]} on drawn defects", title=first["title"])
    _save_still(figure, path)
