"""One category end to end: train a run, evaluate it, apply it to images, and leave a receipt for every
number.

A run is a folder. ``config.json`` says what was asked, ``log.csv`` and ``checkpoints/`` what happened,
``weights.safetensors`` and ``receipt.json`` what came out. Explained in chapters 10 and 12.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from ssae import metrics, textures
from ssae.corruption import CorruptionSettings, PartialCorruption, procedural_textures
from ssae.datasets import Category, DataError, data_sha256, image_files, load_category, load_images
from ssae.models import ModelSettings, SDCAutoencoder, build
from ssae.objectives import Masked
from ssae.plotting import overlay
from ssae.receipts import (
    RunError,
    code_commit,
    dataset_name,
    device_name,
    now,
    read_json,
    split_note,
    versions,
    write_json,
)
from ssae.scoring import IMAGE_SCORES, ScoringSettings, heat_map, image_scores, threshold
from ssae.training import (
    Draw,
    FitSettings,
    default_device,
    fit,
    step_seed,
    write_atomically,
)

# Which transformations turn a normal image into another normal image. A category that is not named keeps its
# orientation: a wrong symmetry hides defects (a flipped metal nut is one), a missing one only costs a little
# variety.
SYMMETRIES = {
    **dict.fromkeys(("bottle", "carpet", "hazelnut", "leather", "tile"), "all"),
    **dict.fromkeys(("metal_nut", "screw"), "rotations"),
    **dict.fromkeys(("grid", "wood"), "flips"),
    **dict.fromkeys(("grass", "gravel"), "all"),
}

# Categories that look alike everywhere: a model may learn them from crops, and sees four times as many in the
# same time.
TEXTURES = frozenset(("carpet", "grid", "leather", "tile", "wood", "brick", "grass", "gravel", "weave"))

# Held-out normal images set the threshold and choose settings; they are never trained on.
HOLD_OUT = 0.05


@dataclass(frozen=True)
class ExperimentSettings:
    """Everything that decides what a run becomes, written to ``config.json``.

    The defaults serve every category; they were chosen on synthetic defects over held-out normal training
    images.

    Parameters
    ----------
    category
        Name of the category.
    preset
        Model, see ``ssae.models.PRESETS``; ``model`` takes its place if given.
    resolution
        Height and width in pixels to which images are resized.
    batch_size
        Images a step.
    weight
        Lambda of the masked objective, in [0, 1]: the share of the repair term.
    noise
        Standard deviation of the noise that is added and kept in the target (paper B), 0 for none.
    symmetry
        See :func:`random_symmetry`.
    shift
        Greatest random shift in training, as a share of the side.
    crop
        Side of random training crops in pixels, None to train on whole images. For textures: the model is
        fully convolutional, so it is applied to whole images all the same.
    fit, corruption, scoring
        Settings of training, corruption and scoring.
    model
        Shape of the network where it is none of the presets.
    """

    category: str
    preset: str = "lite"
    resolution: int = 128
    batch_size: int = 8
    weight: float = 0.2
    noise: float = 0.0
    symmetry: str = "none"
    shift: float = 0.02
    crop: int | None = None
    fit: FitSettings = field(default_factory=lambda: FitSettings(steps=4000, learning_rate=1e-2, ema=0.999))
    corruption: CorruptionSettings = field(default_factory=CorruptionSettings)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    model: ModelSettings | None = None

    @classmethod
    def for_category(cls, category: str, resolution: int = 128, **changes: Any) -> ExperimentSettings:
        """Default settings, with the category's symmetry and crops, and a filter that fits the resolution."""
        settings = cls(
            category,
            resolution=resolution,
            symmetry=SYMMETRIES.get(category, "none"),
            crop=resolution // 2 if category in TEXTURES else None,
            scoring=ScoringSettings.for_resolution(resolution),
        )
        return replace(settings, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, read back by :meth:`from_json`."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ExperimentSettings:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        RunError
            If a name is unknown or a value does not fit.
        """

        def settings(kind: type, entries: dict[str, Any]) -> Any:
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()})

        try:
            values = dict(values)
            model = values.pop("model")
            return cls(
                fit=settings(FitSettings, values.pop("fit")),
                corruption=settings(CorruptionSettings, values.pop("corruption")),
                scoring=settings(ScoringSettings, values.pop("scoring")),
                model=None if model is None else settings(ModelSettings, model),
                **values,
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise RunError(
                f"the settings do not fit this version of ssae ({error}); train the run anew"
            ) from error

    def build_model(self) -> SDCAutoencoder:
        """The untrained model, its weights drawn from the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.fit.seed)
            return build(self.preset if self.model is None else self.model)


def train(
    settings: ExperimentSettings,
    data: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    device: torch.device | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train one category into ``run_dir`` and return the receipt.

    The same call again resumes an interrupted run, and returns the receipt of a finished one without
    training.

    Parameters
    ----------
    settings
        What to train.
    data
        Root of a data set in the MVTec AD layout that holds ``settings.category``.
    run_dir
        Folder of the run, made if it is missing.
    device
        Where to train; the GPU if there is one.

    Raises
    ------
    DataError
        If the images cannot be used.
    RunError
        If ``run_dir`` holds a run with other settings.
    """
    run_dir = Path(run_dir)
    config = run_dir / "config.json"
    wanted = {"settings": settings.to_json(), "data": os.fspath(Path(data).resolve())}
    if config.exists():
        if read_json(config)["settings"] != wanted["settings"]:
            raise RunError(f"{run_dir} holds a run with other settings; choose another folder or remove it")
        if (run_dir / "receipt.json").exists():
            return read_json(run_dir / "receipt.json")
    elif run_dir.exists() and any(run_dir.iterdir()):
        raise RunError(f"{run_dir} is not empty and holds no run; choose another folder")

    device = device or default_device()
    category = load_category(data, settings.category, settings.resolution)
    images = category.train_images()
    kept, _ = hold_out(len(images), settings.fit.seed)
    write_json(config, wanted)

    model = settings.build_model().to(device)
    log = fit(
        model,
        make_draw(images[kept].to(device), settings),
        Masked(make_corruption(settings, device), settings.weight, settings.noise),
        settings.fit,
        run_dir,
        progress,
    )
    write_atomically(run_dir / "weights.safetensors", save(weights_of(model)))
    receipt = {
        **identity(category, settings),
        "metrics": {},
        "data_sha256": data_sha256(category),
        "code_commit": code_commit(),
        "device": device_name(device),
        "versions": versions(),
        "train_images": len(kept),
        "train_steps": log[-1].step,
        "train_seconds": log[-1].seconds,
        "images_per_second": round(log[-1].step * settings.batch_size / log[-1].seconds, 2),
        "final_loss": log[-1].loss,
        "created": now(),
    }
    write_json(run_dir / "receipt.json", receipt)
    return receipt


def evaluate(
    run_dir: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Measure a finished run on the test split, write the metrics into its receipt and return it.

    Raises
    ------
    RunError
        If the run is not finished.
    DataError
        If the test split cannot be used.
    """
    run = load_run(run_dir, device)
    category = load_category(data or run.data, run.settings.category, run.settings.resolution)
    if not category.test_paths:
        raise RunError(f"{category.root} has no test split to evaluate on")
    heat = run.heat_maps(category.test_images())
    receipt = read_json(Path(run_dir) / "receipt.json")
    receipt["metrics"] = measure(heat, category, run.settings.scoring)
    write_json(Path(run_dir) / "receipt.json", receipt)
    return receipt


def validate(run: Run, copies: int = 4) -> dict[str, float]:
    """Measure a run on synthetic defects over its held-out normal images: the ground on which settings are
    chosen.

    The defects are drawn with polygons and lines by :mod:`ssae.textures`, which shares no code with the
    training corruption. No test image is touched.

    Parameters
    ----------
    copies
        How many defective copies to draw of each held-out image.

    Returns
    -------
    dict
        ``image_auroc``, ``pixel_auroc``, ``pixel_ap``, ``au_pro``, each in [0, 1].
    """
    normal = held_out_images(run)
    defective, masks = drawn_defects(normal.repeat(copies, 1, 1, 1), seed=run.settings.fit.seed)
    heat = run.heat_maps(torch.cat([normal, defective]))
    truth = torch.cat([torch.zeros(normal.shape[0], *masks.shape[1:], dtype=torch.bool), masks])
    return {
        "image_auroc": metrics.image_auroc(image_scores(heat, run.settings.scoring), truth.flatten(1).any(1)),
        **pixel_metrics(heat, truth),
    }


def pixel_metrics(heat: Tensor, masks: Tensor) -> dict[str, float]:
    """Pixel AUROC, pixel AP and AU-PRO of heat maps and masks ``(N, H, W)``, from one ranking."""
    pixels = metrics.rank_pixels(heat, masks)
    return {
        "pixel_auroc": pixels.auroc(),
        "pixel_ap": pixels.average_precision(),
        "au_pro": pixels.au_pro(),
    }


# Kinds of drawn defect that make sense on any object, by the texture they were first drawn for.
DRAWN_KINDS = (
    ("brick", "scratch"),
    ("brick", "paint"),
    ("brick", "stain"),
    ("grass", "leaf"),
    ("grass", "wire"),
    ("gravel", "oil"),
)


def drawn_defects(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw one synthetic defect on each image ``(N, 3, H, W)``; returns such images and masks ``(N, H, W)``,
    bool.
    """
    rng = np.random.default_rng(seed)
    size = images.shape[-2:]
    small = F.interpolate(images, size=(textures.SIZE, textures.SIZE), mode="area")
    changes, outlines = [], []
    for index, image in enumerate(small.permute(0, 2, 3, 1).numpy()):
        drawn, mask = textures.draw_defect(*DRAWN_KINDS[index % len(DRAWN_KINDS)], image, rng)
        changes.append(torch.from_numpy(drawn - image).permute(2, 0, 1))
        outlines.append(torch.from_numpy(mask))
    # Only the drawn change is scaled up: the image keeps its own detail.
    change = F.interpolate(torch.stack(changes).float(), size=size, mode="bilinear")
    masks = F.interpolate(torch.stack(outlines).float().unsqueeze(1), size=size, mode="nearest").squeeze(1)
    return (images + change).clamp(0, 1), masks > 0.5


def held_out_images(run: Run) -> Tensor:
    """The normal images ``(N, 3, H, W)`` that the run never trained on."""
    category = load_category(run.data, run.settings.category, run.settings.resolution)
    _, held = hold_out(len(category.train_paths), run.settings.fit.seed)
    return load_images([category.train_paths[i] for i in held.tolist()], run.settings.resolution)


def measure(heat: Tensor, category: Category, scoring: ScoringSettings) -> dict[str, float]:
    """All metrics of the heat maps ``(N, H, W)`` of a category's test split, each in [0, 1]."""
    masks, labels = category.test_masks(), category.labels
    by_rule = {
        f"image_auroc_{rule}": metrics.image_auroc(
            image_scores(heat, replace(scoring, image_score=rule)), labels
        )
        for rule in IMAGE_SCORES
    }
    return {
        "image_auroc": by_rule[f"image_auroc_{scoring.image_score}"],
        **pixel_metrics(heat, masks),
        **by_rule,
    }


@dataclass(frozen=True)
class Run:
    """A trained run, ready to be applied."""

    model: nn.Module
    settings: ExperimentSettings
    data: str
    device: torch.device

    @torch.no_grad()
    def reconstruct(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Images ``(N, 3, H, W)`` in [0, 1] to their reconstructions, on the CPU."""
        return torch.cat([self.model(b.to(self.device)).float().cpu() for b in images.split(batch_size)])

    def heat_maps(self, images: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` in [0, 1] to heat maps ``(N, H, W)`` on the CPU."""
        return heat_map(images, self.reconstruct(images), self.settings.scoring)


def load_run(run_dir: str | os.PathLike[str], device: torch.device | None = None) -> Run:
    """Load a finished run.

    Raises
    ------
    RunError
        If the folder holds no finished run or its files do not fit together.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.json").exists():
        raise RunError(f"{run_dir} holds no run (no config.json); make one with `ssae train`")
    if not (run_dir / "weights.safetensors").exists():
        raise RunError(f"{run_dir} is not finished; the same `ssae train` command goes on with it")
    config = read_json(run_dir / "config.json")
    if not isinstance(config, dict) or "settings" not in config:
        raise RunError(f"{run_dir / 'config.json'} is not the config of a run")
    settings = ExperimentSettings.from_json(config["settings"])
    return load_weights(settings, run_dir / "weights.safetensors", config.get("data", ""), device)


def load_weights(
    settings: ExperimentSettings, path: Path, data: str = "", device: torch.device | None = None
) -> Run:
    """A run from its settings, for instance those of a receipt, and a file of weights.

    Raises
    ------
    RunError
        If the file does not hold weights of such a model.
    """
    device = device or default_device()
    model = settings.build_model()
    try:
        # Committed weights are stored in half precision; loading them into float32 is exact.
        model.load_state_dict(load(Path(path).read_bytes()))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise RunError(f"{path} does not hold this run's weights ({error})") from error
    return Run(model.to(device).eval(), settings, data, device)


def predict(
    run_dir: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    device: torch.device | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Score images and write a heat map overlay for each, and all scores to ``scores.csv``.

    Parameters
    ----------
    paths
        Image files, or folders of them.
    out
        Folder to write to, made if it is missing.

    Returns
    -------
    tuple
        One row (``file``, ``score``, ``threshold``, ``anomalous``) for each image, and one message for each
        image that could not be read; those are passed over.
    """
    run = load_run(run_dir, device)
    limit, pixel_limit = thresholds(run)
    out = Path(out)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    taken: set[str] = set()
    for path in expand(paths):
        try:
            image = load_images([path], run.settings.resolution)
        except DataError as error:
            failures.append(str(error))
            continue
        heat = run.heat_maps(image)
        score = float(image_scores(heat, run.settings.scoring)[0])
        # Files of the same name may come from several folders; none may overwrite another.
        name = unused_name(path.stem, taken)
        write_atomically(
            out / f"{name}_heat.png",
            png(overlay(image[0], heat[0], limits=(pixel_limit / 2, 2 * pixel_limit))),
        )
        rows.append({"file": os.fspath(path), "score": score, "threshold": limit, "anomalous": score > limit})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file", "score", "threshold", "anomalous"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "scores.csv", text.getvalue().encode())
    return rows, failures


def thresholds(run: Run) -> tuple[float, float]:
    """Largest image score and largest pixel score among the normal images that the run held out."""
    heat = run.heat_maps(held_out_images(run))
    return threshold(image_scores(heat, run.settings.scoring), "max"), threshold(heat, "max")


def expand(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files as they are, folders by the images directly in them."""
    found: list[Path] = []
    for path in map(Path, paths):
        found.extend(image_files(path) if path.is_dir() else [path])
    return found


def unused_name(stem: str, taken: set[str]) -> str:
    """``stem``, or ``stem-2``, ``stem-3`` ... if it is taken; the result is taken from then on."""
    name, count = stem, 1
    while name.lower() in taken:
        count += 1
        name = f"{stem}-{count}"
    taken.add(name.lower())
    return name


def png(pixels: np.ndarray) -> bytes:
    """Encode ``(H, W, 3)`` in [0, 1] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_draw(images: Tensor, settings: ExperimentSettings) -> Draw:
    """Draw random batches from images ``(N, C, H, W)``, each turned, mirrored and shifted as the settings
    allow.
    """
    reach = round(settings.shift * settings.resolution)

    def draw(generator: torch.Generator) -> Tensor:
        index = torch.randint(
            len(images), (settings.batch_size,), generator=generator, device=generator.device
        )
        batch = images[index]
        if settings.crop is not None:
            batch = random_crop(batch, settings.crop, generator)
        batch = random_symmetry(batch, settings.symmetry, generator)
        return random_shift(batch, reach, generator).contiguous(memory_format=torch.channels_last)

    return draw


def make_corruption(settings: ExperimentSettings, device: torch.device) -> PartialCorruption:
    """The training corruption of a run, with its own seeded pool of procedural textures."""
    generator = torch.Generator(device).manual_seed(step_seed(settings.fit.seed, 2**32 - 1))
    return PartialCorruption(settings.corruption, procedural_textures(64, settings.resolution, generator))


def random_symmetry(images: Tensor, symmetry: str, generator: torch.Generator) -> Tensor:
    """Turn and mirror each square image ``(B, C, H, W)`` at random.

    ``"none"``; ``"flips"``: both mirrors; ``"rotations"``: quarter turns; ``"all"``: the eight symmetries of
    the square.
    """
    if symmetry not in ("none", "flips", "rotations", "all"):
        raise ValueError(f"symmetry must be none, flips, rotations or all, got {symmetry!r}")

    def coin() -> Tensor:
        return torch.rand((len(images), 1, 1, 1), generator=generator, device=generator.device) < 0.5

    if symmetry in ("flips", "all"):
        images = torch.where(coin(), images.flip(-1), images)
    if symmetry == "flips":
        images = torch.where(coin(), images.flip(-2), images)
    if symmetry in ("rotations", "all"):
        images = torch.where(coin(), images.rot90(1, (-2, -1)), images)
        images = torch.where(coin(), images.rot90(2, (-2, -1)), images)
    return images


def random_shift(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Shift each image ``(B, C, H, W)`` by up to ``reach`` whole pixels each way, repeating its border.

    Whole pixels, because interpolation would blur the very detail that the model has to keep.
    """
    if reach == 0:
        return images
    batch, _, height, width = images.shape
    by = torch.randint(-reach, reach + 1, (2, batch, 1), generator=generator, device=generator.device)
    rows = (torch.arange(height, device=by.device) + by[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=by.device) + by[1]).clamp(0, width - 1)
    return gather_pixels(images, rows, columns)


def random_crop(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random square of ``side`` pixels from each image: ``(B, C, H, W)`` to ``(B, C, side, side)``."""
    batch, _, height, width = images.shape
    device = generator.device
    top = torch.randint(height - side + 1, (batch, 1), generator=generator, device=device)
    left = torch.randint(width - side + 1, (batch, 1), generator=generator, device=device)
    along = torch.arange(side, device=device)
    return gather_pixels(images, top + along, left + along)


def gather_pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows ``(B, h)`` and columns ``(B, w)`` of images ``(B, C, H, W)``: ``(B, C, h, w)``."""
    which = torch.arange(len(images), device=rows.device)
    # Advanced indices around a slice put the sliced channels last.
    return images[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def hold_out(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``count`` normal images at random into indices to train on and indices held out (at least one
    each).

    Raises
    ------
    RunError
        If there are fewer than two images.
    """
    if count < 2:
        raise RunError(f"training needs at least two normal images, found {count}; add more normal images")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(step_seed(seed, 2**32)))
    held = max(1, round(HOLD_OUT * count))
    return order[held:].sort().values, order[:held].sort().values


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state on the CPU, contiguous, as safetensors wants it."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def identity(category: Category, settings: ExperimentSettings) -> dict[str, Any]:
    """The part of a receipt that says what was run."""
    return {
        "dataset": dataset_name(category),
        "category": category.name,
        "split_note": split_note(category),
        "resolution": settings.resolution,
        "preset": settings.preset if settings.model is None else "custom",
        "settings": settings.to_json(),
        "seed": settings.fit.seed,
    }
