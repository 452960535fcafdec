"""One category end to end: train a run, evaluate it, apply it to images, and leave a receipt for every
number.

A run is a folder. ``config.json`` says what was asked, ``log.csv`` and ``checkpoints/`` what happened,
``weights.safetensors`` and ``receipt.json`` what came out. Explained in chapters 10 and 12.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from ssae import metrics, textures
from ssae.corruption import CorruptionSettings, PartialCorruption, procedural_textures
from ssae.datasets import (
    Category,
    category_folder,
    data_sha256,
    load_category,
    load_images,
    load_textures,
    open_category,
    progress_over,
)
from ssae.distributed import on_first, own_device, require_divisible, require_same, world_size
from ssae.files import write_atomically
from ssae.models import ModelSettings, SDCAutoencoder, Tiled, build, folded, preset_settings
from ssae.objectives import Denoising, Masked, Objective, Reconstruction
from ssae.progress import Progress
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
from ssae.schema import SchemaError, checked
from ssae.scoring import IMAGE_SCORES, Calibration, ScoringSettings, heat_map, image_scores
from ssae.training import (
    Draw,
    FitSettings,
    LogRow,
    default_device,
    fit_in_held,
    misfits,
    sole_writer,
    step_seed,
)

LOGGER = logging.getLogger(__name__)

# Which transformations turn a normal image into another normal image. A category that is not named keeps its
# orientation: a wrong symmetry hides defects (a flipped metal nut is one), a missing one only costs a little
# variety. It is the photograph that counts, not the part: a bottle from above is round, but the lamps do not
# turn with it.
SYMMETRIES = {
    **dict.fromkeys(("carpet", "hazelnut", "leather", "tile"), "all"),
    **dict.fromkeys(("metal_nut", "screw"), "rotations"),
    **dict.fromkeys(("grid", "wood"), "flips"),
    **dict.fromkeys(("grass", "gravel"), "all"),
}

# What :func:`random_symmetry` knows.
SYMMETRY_GROUPS = ("none", "flips", "rotations", "all")

# Categories that look alike everywhere: a model may learn them from crops, and sees four times as many in the
# same time.
TEXTURES = frozenset(("carpet", "grid", "leather", "tile", "wood", "brick", "grass", "gravel", "weave"))

# A texture that is bent or moved is the same texture: such fills cannot be seen in it, and asking for their
# repair only teaches to blur.
TEXTURE_CORRUPTION = CorruptionSettings(side=(0.06, 0.4), fills=(0.2, 0.05, 0.45, 0.3))

# Held-out normal images set the threshold and choose settings; they are never trained on.
HOLD_OUT = 0.05

# A folder without test images has no other ground to judge a threshold on, so it gives more of them.
HOLD_OUT_OF_FOLDER = 0.2

# More would promise little more (500: less than one false alarm in 100) and have to be held in memory.
MOST_HELD_OUT = 500


def texture_settings(texture: bool, resolution: int) -> dict[str, Any]:
    """The settings in which a texture, which looks alike everywhere, differs from a part."""
    if texture:
        # A multiple of 16 suits the models of either preset.
        return {"crop": min(resolution, max(16, resolution // 32 * 16)), "corruption": TEXTURE_CORRUPTION}
    return {"crop": None, "corruption": CorruptionSettings()}


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
    objective
        What is minimised: ``"masked"`` is the method; ``"reconstruction"`` (a plain autoencoder) and
        ``"denoising"`` are the baselines it is compared with.
    weight
        Lambda of the masked objective, in [0, 1]: the share of the repair term.
    noise
        Standard deviation of the noise that the masked objective adds and keeps in the target (paper B), 0
        for none; of the noise that the denoising objective adds and takes off again.
    symmetry
        See :func:`random_symmetry`.
    shift
        Greatest random shift in training, as a share of the side.
    crop
        Side of random training crops in pixels, None to train on whole images. For textures: the model is
        applied to whole images in tiles of that side, see :class:`ssae.models.Tiled`.
    fit, corruption, scoring
        Settings of training, corruption and scoring.
    model
        Shape of the network where it is none of the presets.
    """

    category: str
    preset: str = "lite"
    resolution: int = 128
    batch_size: int = 8
    objective: Literal["masked", "reconstruction", "denoising"] = "masked"
    weight: float = 0.2
    noise: float = 0.0
    symmetry: str = "none"
    shift: float = 0.02
    crop: int | None = None
    fit: FitSettings = field(
        default_factory=lambda: FitSettings(steps=8000, learning_rate=0.02, optimiser="muon", ema=0.999)
    )
    corruption: CorruptionSettings = field(default_factory=CorruptionSettings)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    model: ModelSettings | None = None

    @classmethod
    def for_category(cls, category: str, resolution: int = 128, **changes: Any) -> ExperimentSettings:
        """Default settings, with the category's symmetry, the crops and corruption of textures, and a filter
        that fits the resolution.
        """
        settings = cls(
            category,
            resolution=resolution,
            symmetry=SYMMETRIES.get(category, "none"),
            scoring=ScoringSettings.for_resolution(resolution),
            **texture_settings(category in TEXTURES, resolution),
        )
        return replace(settings, **changes)

    def __post_init__(self) -> None:
        if self.objective not in ("masked", "reconstruction", "denoising"):
            raise ValueError(f"objective must be masked, reconstruction or denoising, got {self.objective!r}")
        if self.objective == "denoising" and not self.noise > 0:
            raise ValueError("the denoising objective needs noise above 0 to take off")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {self.weight}")
        _check_symmetry(self.symmetry)
        if not self.noise >= 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")
        stride = self.network.stride
        for name, side in (("resolution", self.resolution), ("crop", self.crop)):
            if side is not None and (side < stride or side % stride):
                near = self.network.nearest_side(side)
                raise ValueError(
                    f"{name} must be a multiple of {stride} for this model, got {side}; try {near}"
                )
        if self.crop is not None and self.crop > self.resolution:
            raise ValueError(f"crop must not exceed the resolution of {self.resolution}, got {self.crop}")

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

        corruption = values.get("corruption")
        if isinstance(corruption, dict) and "upright" not in corruption:
            # Runs that are older than this setting turned every fill, whatever its default is now.
            values = {**values, "corruption": {**corruption, "upright": 0.0}}
        try:
            return checked(cls, values, "settings")
        except SchemaError as error:
            raise RunError(
                f"the settings do not fit this version of ssae ({error}); train the run anew"
            ) from error

    def build_model(self) -> SDCAutoencoder:
        """The untrained model, its weights drawn from the seed."""
        # Weights are drawn on the CPU; by default fork_rng would wake up every GPU of the machine.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(self.fit.seed)
            return build(self.network)

    def tiled(self, model: nn.Module) -> nn.Module:
        """A model as it is applied to whole images: by tiles if it was trained on crops."""
        return model if self.crop is None else Tiled(model, self.crop)

    @property
    def network(self) -> ModelSettings:
        """Shape of the network: ``model``, or else what the preset stands for."""
        return self.model or preset_settings(self.preset)


def train(
    settings: ExperimentSettings,
    data: str | os.PathLike[str] | Category,
    run_dir: str | os.PathLike[str],
    device: torch.device | None = None,
    progress: bool = True,
    watch: bool = False,
    textures: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Train one category into ``run_dir`` and return the receipt.

    The same call again resumes an interrupted run, and returns the receipt of a finished one without
    training. Which images were held out is recorded in ``config.json``, their scores in ``calibration.json``.
    All processes of a process group (:mod:`ssae.distributed`) call this together; only the first reads and
    writes ``run_dir``.

    Parameters
    ----------
    settings
        What to train.
    data
        Root of a data set in the MVTec AD layout that holds ``settings.category``, or the category itself,
        for instance a bare folder from :func:`ssae.datasets.load_folder`.
    run_dir
        Folder of the run, made if it is missing.
    device
        Where to train; the GPU if there is one. Of several processes each takes a GPU of its own.
    progress
        Whether to show a progress bar.
    watch
        Whether to measure drawn defects now and then, see :class:`ssae.progress.Progress`.
    textures
        Folder of foreign textures to fill corrupted places with, see :func:`ssae.datasets.load_textures`; by
        default :func:`ssae.corruption.procedural_textures`.

    Raises
    ------
    DataError
        If the images cannot be used.
    RunError
        If ``run_dir`` holds a run with other settings.
    ProcessError
        If several processes cannot share a batch evenly, or were given different data or settings.
    """
    run_dir = Path(run_dir)
    require_divisible(settings.batch_size)
    # What stands in the way of this run is said before anything is read or made.
    _, receipt = on_first(_begun, run_dir, settings)
    if receipt is not None and textures is None:
        return receipt
    foreign = None if textures is None else load_textures(textures, settings.resolution)
    if isinstance(data, Category):
        category = replace(data, resolution=settings.resolution)
    else:
        category = load_category(data, settings.category, settings.resolution)
    with sole_writer(run_dir):
        on_first(_clear_partial_files, run_dir)
        return _train(settings, category, data, run_dir, device, progress, watch, foreign)


def _train(
    settings: ExperimentSettings,
    category: Category,
    data: str | os.PathLike[str] | Category,
    run_dir: Path,
    device: torch.device | None,
    progress: bool,
    watch: bool,
    foreign: Tensor | None,
) -> dict[str, Any]:
    """:func:`train` in a folder that no other process writes to."""
    config, receipt = on_first(_begun, run_dir, settings)
    foreign_sha256 = "" if foreign is None else _pixels_sha256(foreign)
    if config is not None and config.get("textures_sha256", "") != foreign_sha256:
        raise RunError(f"{run_dir} holds a run with other foreign textures; name the folder it began with")
    if receipt is not None:
        return receipt
    device = own_device(device or default_device())
    kept, held = split(category, settings.fit.seed)
    held_out = [category.train_paths[i].relative_to(category.root).as_posix() for i in held.tolist()]
    require_memory(len(category.train_paths), settings.resolution)
    images = category.train_images()
    images_sha256 = _pixels_sha256(images)
    if config is not None and (
        config.get("held_out", held_out) != held_out
        or config.get("images_sha256", images_sha256) != images_sha256
    ):
        raise RunError(
            f"{category.root}: its images are others than when {run_dir} began; choose a new folder"
        )
    if world_size() > 1:
        same = {"settings": settings.to_json(), "versions": versions(), "foreign textures": foreign_sha256}
        same["training images"] = images_sha256
        # GPUs of another kind draw other numbers from the same seed.
        same["GPUs"] = device_name(device) if device.type == "cuda" else ""
        require_same(same)
    # Written again by a run that goes on: its images may have moved.
    root = category.root.resolve()
    config = {
        "settings": settings.to_json(),
        "data": os.fspath(root if isinstance(data, Category) else Path(data).resolve()),
        "root": os.fspath(root),
        "held_out": held_out,
        "images_sha256": images_sha256,
        **({} if foreign is None else {"textures_sha256": foreign_sha256}),
    }
    on_first(write_json, run_dir / "config.json", config)
    LOGGER.info("settings: %s", json.dumps(settings.to_json()))
    LOGGER.info("%d images to train on, %d held out, on %s", len(kept), len(held), device_name(device))

    report = None
    if watch:
        normal = images[held[: Progress.IMAGES]]
        defective, masks = drawn_defects(normal, seed=settings.fit.seed)
        folder = run_dir / "progress"
        report = Progress(normal, defective, masks, settings.scoring, settings.fit, folder, settings.tiled)
    model, log = learn(settings, images[kept], device, run_dir, progress, report, foreign)

    def finish() -> dict[str, Any]:
        if report is not None:
            report.measure(model, log[-1])
        write_atomically(run_dir / "weights.safetensors", save(weights_of(model)))
        run = Run(model, settings, os.fspath(category.root), device)
        write_json(
            run_dir / "calibration.json",
            asdict(Calibration.of(run.heat_maps(images[held]), settings.scoring)),
        )
        receipt = {
            **identity(category, settings),
            "metrics": {},
            "data_sha256": data_sha256(category),
            **({} if foreign is None else {"textures_sha256": foreign_sha256, "textures": len(foreign)}),
            "code_commit": code_commit(),
            "device": device_name(device),
            **({} if world_size() == 1 else {"processes": world_size()}),
            "versions": versions(),
            "train_images": len(kept),
            "train_steps": log[-1].step,
            "train_seconds": log[-1].seconds,
            "images_per_second": round(log[-1].step * settings.batch_size / log[-1].seconds, 2),
            "final_loss": log[-1].loss if math.isfinite(log[-1].loss) else None,
            "created": now(),
        }
        write_json(run_dir / "receipt.json", receipt)
        return receipt

    return on_first(finish)


def require_memory(count: int, resolution: int) -> None:
    """Refuse to train on so many images of so many pixels a side if they cannot fit into memory.

    Linux grants memory that it does not have, and kills whoever uses it. The limit of a container, which may
    be less than the machine's, is not seen.

    Raises
    ------
    RunError
        If they cannot.
    """
    need = 2 * count * 3 * resolution**2 * 4  # the images, and those to train on once more
    try:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return
    if need > 0.9 * have:
        raise RunError(
            f"{count} images of {resolution} x {resolution} pixels take {need / 1e9:.0f} GB of memory, and "
            f"this machine has {have / 1e9:.0f}; give fewer images or a lower resolution"
        )


def _clear_partial_files(run_dir: Path) -> None:
    """Remove what killed processes had begun to write."""
    for path in run_dir.glob("*.partial"):
        path.unlink(missing_ok=True)


def _begun(
    run_dir: Path, settings: ExperimentSettings
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Config and receipt of the run in a folder, None each if it has none yet.

    Raises
    ------
    RunError
        If the folder holds something else, or a run with other settings.
    """
    if (run_dir / "config.json").exists():
        config = read_config(run_dir)
        # Compared as this version reads them: a setting that is newer than the run had its default then.
        if ExperimentSettings.from_json(config["settings"]).to_json() != settings.to_json():
            raise RunError(f"{run_dir} holds a run with other settings; choose another folder or remove it")
        finished = all((run_dir / name).exists() for name in ("receipt.json", "weights.safetensors"))
        return config, read_json(run_dir / "receipt.json") if finished else None
    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"{run_dir} is a file, and a run is a folder; choose another name")
    if run_dir.exists() and any(path.suffix != ".partial" for path in run_dir.iterdir()):
        raise RunError(f"{run_dir} is not empty and holds no run; choose another folder")
    return None, None


def learn(
    settings: ExperimentSettings,
    images: Tensor,
    device: torch.device,
    run_dir: Path | None = None,
    progress: bool = True,
    report: Callable[[nn.Module, LogRow], None] | None = None,
    textures: Tensor | None = None,
) -> tuple[SDCAutoencoder, list[LogRow]]:
    """Train a new model on normal images ``(N, 3, H, W)``; the model, ready to be applied, and the log.

    ``textures`` ``(T, 3, h, w)`` take the place of procedural ones. Who names a ``run_dir`` holds it, see
    :func:`ssae.training.sole_writer`.
    """
    model = settings.build_model().to(device)
    log = fit_in_held(
        run_dir,
        model,
        make_draw(images.to(device), settings),
        make_objective(settings, device, textures),
        settings.fit,
        progress,
        report,
    )
    return model, log


def evaluate(
    run_dir: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    device: torch.device | None = None,
    category: str | None = None,
) -> dict[str, Any]:
    """Measure a finished run on the test split, write the metrics into its receipt and return it.

    Parameters
    ----------
    data, category
        What to test on, see :func:`ssae.datasets.open_category`; by default the data of the training. What is
        given is named in the receipt as ``tested_on``.

    Raises
    ------
    RunError
        If the run is not finished or there is no test split.
    DataError
        If the test split cannot be used.
    """
    run = load_run(run_dir, device)
    receipt = _read_receipt(Path(run_dir))
    receipt.pop("tested_on", None)
    receipt |= _measured(run, data, category)
    write_json(Path(run_dir) / "receipt.json", receipt)
    return receipt


def _measured(run: Run, data: str | os.PathLike[str] | None, category: str | None) -> dict[str, Any]:
    """What :func:`evaluate` writes into a receipt."""
    if data is None and not run.data:
        raise RunError("this run does not know its data; name a category in the MVTec AD layout: --data")
    where = Path(data or run.data)
    given = data is not None or category is not None
    if category is None and (category_folder(where, run.settings.category) / "train").is_dir():
        category = run.settings.category
    test = open_category(where, category, run.settings.resolution)
    if not test.test_paths:
        raise RunError(
            f"{test.root} has no test images to measure on; name a category in the MVTec AD layout: --data"
        )
    LOGGER.info("testing on %s: %s", test.root, split_note(test))
    heat = run.heat_maps(test.test_images())
    masks = test.test_masks() if test.has_masks else None
    entries: dict[str, Any] = {
        "metrics": measure(heat, masks, test, run.settings.scoring),
        "defects": measure_by_defect(heat, masks, test, run.settings.scoring),
    }
    if given:
        entries["tested_on"] = {
            "dataset": dataset_name(test),
            "category": test.name,
            "split_note": split_note(test),
            "data_sha256": data_sha256(test),
        }
    return entries


def _read_receipt(run_dir: Path) -> dict[str, Any]:
    if not (run_dir / "receipt.json").exists():
        raise RunError(f"{run_dir} has no receipt: it was saved by a Detector, and can only be applied")
    receipt = read_json(run_dir / "receipt.json")
    if not isinstance(receipt, dict):
        raise RunError(f"{run_dir / 'receipt.json'} is no receipt")
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
    images, truth = drawn_ground(run, copies)
    return heat_metrics(images, run.reconstruct(images), truth, run.settings.scoring)


def drawn_ground(run: Run, copies: int = 4) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, H, W)`` and masks ``(N, H, W)``, bool, for :func:`validate`: the run's held-out normal
    images, then ``copies`` of each with a drawn defect.
    """
    return _ground(run, copies, drawn_defects)


def pasted_ground(run: Run, copies: int = 4) -> tuple[Tensor, Tensor]:
    """:func:`drawn_ground` with pasted defects, see :func:`pasted_defects`: large, and outlined as a whole.

    Raises
    ------
    RunError
        If the run is one of a texture: a texture that is moved is the same texture, and no defect.
    """
    if run.settings.crop is not None:
        raise RunError("a piece of a texture pasted elsewhere is no defect; draw defects on it instead")
    return _ground(run, copies, pasted_defects)


def _ground(
    run: Run, copies: int, deface: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    normal = held_out_images(run)
    defective, masks = deface(normal.repeat(copies, 1, 1, 1), run.settings.fit.seed)
    return torch.cat([normal, defective]), torch.cat([masks.new_zeros(len(normal), *masks.shape[1:]), masks])


def rescore(
    run_dir: str | os.PathLike[str],
    scoring: ScoringSettings,
    device: torch.device | None = None,
    data: str | os.PathLike[str] | None = None,
    category: str | None = None,
) -> dict[str, Any]:
    """Give a finished run other heat maps or image scores: no training, but new thresholds, and, where it has
    been measured on a test split, new metrics; the new receipt.

    From then on the run is another than the one that the settings of its training make: with those,
    :func:`train` refuses the folder.

    Parameters
    ----------
    data, category
        What to measure on, if the run was measured on other data than its own; see :func:`evaluate`.

    Raises
    ------
    RunError
        If the run is not finished, or was measured on other data and these are not named.
    DataError
        If its images are no longer where they were.
    """
    run_dir = Path(run_dir)
    run = load_run(run_dir, device)
    receipt = _read_receipt(run_dir)
    if "tested_on" in receipt and data is None and category is None:
        raise RunError(f"{run_dir} was measured on other data than its own; name them")
    run = replace(run, settings=replace(run.settings, scoring=scoring), calibration=None)
    calibration = Calibration.of(run.heat_maps(held_out_images(run)), scoring)
    measured = _measured(run, data, category) if receipt["metrics"] else {"metrics": {}}
    # What was measured with the old scores must not stand beside the new.
    receipt = {key: receipt[key] for key in receipt if key not in SCORED}
    receipt |= {"settings": run.settings.to_json(), "rescored_commit": code_commit(), **measured}
    # In this order an interruption leaves no old threshold beside new scores: without a calibration it is
    # found anew.
    (run_dir / "calibration.json").unlink(missing_ok=True)
    write_json(run_dir / "config.json", {**read_config(run_dir), "settings": receipt["settings"]})
    write_json(run_dir / "calibration.json", asdict(calibration))
    write_json(run_dir / "receipt.json", receipt)
    return receipt


# Entries of a receipt that depend on how heat maps are made.
SCORED = (
    "metrics",
    "defects",
    "tested_on",
    *(
        f"{what}{on}"
        for what in ("validation", "filters", "passes", "root")
        for on in ("", "_on_pasted", "_on_test")
    ),
)


def heat_metrics(
    images: Tensor, reconstructions: Tensor, truth: Tensor, scoring: ScoringSettings
) -> dict[str, float]:
    """Image AUROC, pixel AUROC, pixel AP and AU-PRO of the heat maps that ``scoring`` makes of images ``(N,
    3, H, W)`` and their reconstructions; ``truth`` ``(N, H, W)``, bool.
    """
    heat = heat_map(images, reconstructions, scoring)
    return {
        "image_auroc": metrics.image_auroc(image_scores(heat, scoring), truth.flatten(1).any(1)),
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


# Kinds of drawn defect that make sense on any object: on its surface, by the texture they were first drawn
# for, and of its structure.
DRAWN_KINDS: tuple[tuple[str, str], ...] = (
    ("brick", "scratch"),
    ("brick", "paint"),
    ("brick", "stain"),
    ("grass", "leaf"),
    ("grass", "wire"),
    ("gravel", "oil"),
    *(("part", kind) for kind in textures.PART_DEFECTS),
)


def drawn_defects(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw one synthetic defect on each image ``(N, 3, H, W)``; returns such images and masks ``(N, H, W)``,
    bool.
    """
    rng = np.random.default_rng(seed)
    # As many of each kind, and in no step with the images, which may come as several copies of a few.
    kinds = rng.permutation(len(images)) % len(DRAWN_KINDS)
    size = images.shape[-2:]
    small = F.interpolate(images, size=(textures.SIZE, textures.SIZE), mode="area")
    changes, outlines = [], []
    for index, image in enumerate(small.permute(0, 2, 3, 1).numpy()):
        drawn, mask = textures.draw_defect(*DRAWN_KINDS[int(kinds[index])], image, rng)
        changes.append(torch.from_numpy(drawn - image).permute(2, 0, 1))
        outlines.append(torch.from_numpy(mask))
    # Only the drawn change is scaled up: the image keeps its own detail.
    change = F.interpolate(torch.stack(changes).float(), size=size, mode="bilinear")
    masks = F.interpolate(torch.stack(outlines).float().unsqueeze(1), size=size, mode="nearest").squeeze(1)
    return (images + change).clamp(0, 1), masks > 0.5


def pasted_defects(
    images: Tensor, seed: int, side: tuple[float, float] = (0.15, 0.6), visible: float = 0.08
) -> tuple[Tensor, Tensor]:
    """Paste onto each image ``(N, 3, H, W)`` a piece of one of them that stood elsewhere, as if a part lay in
    the wrong place or was missing; returns such images and masks ``(N, H, W)``, bool.

    The mask is the outline of the whole piece, also where it happens to look like what it covers: so does
    whoever outlines defects by hand.

    Parameters
    ----------
    side
        Range of the two sides of a piece, as a share of the image side, each drawn log-uniformly.
    visible
        Least mean difference a piece makes, in [0, 1]; one that makes less is drawn again, a hundred times at
        most.
    """
    rng = np.random.default_rng(seed)
    height, width = images.shape[-2:]
    y, x = np.mgrid[:height, :width]
    pasted, masks = images.clone(), torch.zeros((len(images), height, width), dtype=torch.bool)
    for image, mask in zip(pasted, masks, strict=True):
        for _ in range(100):
            half = np.exp(rng.uniform(np.log(side[0]), np.log(side[1]), 2)) * min(height, width) / 2
            angle, top, left = rng.random(3) * (np.pi, height, width)
            along = (x - left) * np.cos(angle) + (y - top) * np.sin(angle)
            across = (y - top) * np.cos(angle) - (x - left) * np.sin(angle)
            # Between an ellipse and a rectangle, as most parts are.
            inside = torch.from_numpy((along / half[0]) ** 4 + (across / half[1]) ** 4 < 1)
            by = (int(rng.integers(height)), int(rng.integers(width)))
            piece = images[int(rng.integers(len(images)))].roll(by, (-2, -1))
            if inside.any() and (piece - image).abs().mean(0)[inside].mean() >= visible:
                break
        mask |= inside
        image.copy_(torch.where(inside, piece, image))
    return pasted, masks


def held_out_images(run: Run) -> Tensor:
    """The normal images ``(N, 3, H, W)`` that the run never trained on."""
    if run.held_out:
        return load_images(run.held_out, run.settings.resolution)
    category = load_category(run.data, run.settings.category, run.settings.resolution)
    _, held = split(category, run.settings.fit.seed)
    return load_images([category.train_paths[i] for i in held.tolist()], run.settings.resolution)


def measure(
    heat: Tensor, masks: Tensor | None, category: Category, scoring: ScoringSettings
) -> dict[str, float]:
    """All metrics of the heat maps ``(N, H, W)`` of a category's test split, each in [0, 1]; without masks
    ``(N, H, W)`` those of whole images alone.
    """
    labels = category.labels
    by_rule = {
        f"image_auroc_{rule}": metrics.image_auroc(
            image_scores(heat, replace(scoring, image_score=rule)), labels
        )
        for rule in IMAGE_SCORES
    }
    return {
        "image_auroc": by_rule[f"image_auroc_{scoring.image_score}"],
        **({} if masks is None else pixel_metrics(heat, masks)),
        **by_rule,
    }


def measure_by_defect(
    heat: Tensor, masks: Tensor | None, category: Category, scoring: ScoringSettings
) -> dict[str, dict[str, float]]:
    """For each kind of defect: number of its ``images``, and their ``image_auroc`` and (where there are
    masks) ``pixel_auroc`` among the normal test images.

    The kinds share their normal images, so their values are not independent.
    """
    scores = image_scores(heat, scoring)
    measured = {}
    for kind in category.defects:
        chosen = torch.tensor([defect == kind for defect in category.test_defects])
        among = chosen | ~category.labels
        measured[kind] = {
            "images": int(chosen.sum()),
            "image_auroc": metrics.image_auroc(scores[among], chosen[among]),
        }
        if masks is not None:
            measured[kind]["pixel_auroc"] = metrics.pixel_auroc(heat[among], masks[among])
    return measured


@dataclass(frozen=True)
class Run:
    """A trained run, ready to be applied.

    Parameters
    ----------
    model
        In evaluation mode, on ``device``.
    settings
        What it was trained with.
    data
        Where its training data lay.
    device
        Where to apply it.
    held_out
        The normal images it never trained on, where that is recorded.
    calibration
        Their scores, where they are recorded.
    """

    model: nn.Module
    settings: ExperimentSettings
    data: str
    device: torch.device
    held_out: tuple[Path, ...] = ()
    calibration: Calibration | None = None

    @cached_property
    def applied(self) -> nn.Module:
        """The model in the form in which it is applied: see :func:`ssae.models.folded` and, for one that was
        trained on crops, :class:`ssae.models.Tiled`.
        """
        return self.settings.tiled(folded(self.model))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, batch_size: int = 8) -> Tensor:
        """Images ``(N, 3, H, W)`` in [0, 1] to their reconstructions, on the CPU.

        As many at once as a step of training takes by default: what could be trained can be applied.
        """
        batches = progress_over(images.split(batch_size), "reconstructions")
        # The layout of the weights: with another, every convolution would turn its input over first.
        layout = torch.channels_last
        return torch.cat(
            [self.applied(b.to(self.device).contiguous(memory_format=layout)).float().cpu() for b in batches]
        )

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
    config = read_config(run_dir)
    if not (run_dir / "weights.safetensors").exists():
        raise RunError(f"{run_dir} is not finished; the same `ssae train` command goes on with it")
    settings = ExperimentSettings.from_json(config["settings"])
    run = load_weights(settings, run_dir / "weights.safetensors", config.get("data", ""), device)
    held_out = tuple(Path(config["root"]) / name for name in config.get("held_out", ()))
    return replace(run, held_out=held_out, calibration=read_calibration(run_dir / "calibration.json"))


_CONFIG = {
    "settings": dict[str, Any],
    "data": str,
    "root": str,
    "held_out": list[str],
    "images_sha256": str,
    "textures_sha256": str,
}


def read_config(run_dir: Path) -> dict[str, Any]:
    """What a run was asked for: ``settings``, ``data`` and, since it was split, ``root`` and ``held_out``.

    Raises
    ------
    RunError
        If the folder holds no run or its ``config.json`` is none.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise RunError(f"{run_dir} holds no run (no config.json); make one with `ssae train`")
    config = read_json(path)
    if not isinstance(config, dict) or "settings" not in config:
        raise RunError(f"{path} is not the config of a run")
    try:
        for key, kind in _CONFIG.items():
            if key in config:
                checked(kind, config[key], f"{path}: {key}")
    except SchemaError as error:
        raise RunError(str(error)) from error
    if "held_out" in config and "root" not in config:
        raise RunError(f"{path} names images held out but not the folder they lie in (root)")
    return config


def read_calibration(path: Path) -> Calibration | None:
    """The scores of the held-out images of a run, None if it has none.

    Raises
    ------
    RunError
        If the file is damaged.
    """
    if not path.exists():
        return None
    values = read_json(path)
    try:
        calibration = Calibration(tuple(map(float, values["scores"])), tuple(map(float, values["peaks"])))
        calibration.thresholds()
        if len(calibration.peaks) != len(calibration.scores):
            raise ValueError("one peak belongs to each score")
        return calibration
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(f"{path} does not hold the scores of held-out images ({error})") from error


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
    try:
        tensors = load(Path(path).read_bytes())
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} does not hold this run's weights ({error})") from error
    # Compared with a model without memory first, so that absurd settings cost none.
    with torch.device("meta"):
        wanted = settings.build_model().state_dict()
    if faults := misfits(tensors, wanted, exact=False):
        raise RunError(f"{path} does not hold this run's weights ({faults[0]}; {len(faults)} such faults)")
    if wrong := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise RunError(f"{path} is damaged: {wrong[0]} has values that are not finite")
    # Committed weights are stored in half precision; loading them into float32 is exact.
    model = settings.build_model()
    model.load_state_dict(tensors)
    # The layout of training, in which convolutions are fastest.
    model.to(device).to(memory_format=torch.channels_last)
    return Run(model.eval(), settings, data, device)


def calibrate(run: Run) -> Calibration:
    """The recorded scores of the images the run held out, or else those images scored now."""
    if run.calibration is not None:
        return run.calibration
    return Calibration.of(run.heat_maps(held_out_images(run)), run.settings.scoring)


def thresholds(run: Run) -> tuple[float, float]:
    """Largest image score and largest pixel score among the normal images that the run held out."""
    return calibrate(run).thresholds()[:2]


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


def make_objective(
    settings: ExperimentSettings, device: torch.device, textures: Tensor | None = None
) -> Objective:
    """What a run minimises."""
    if settings.objective == "reconstruction":
        return Reconstruction()
    if settings.objective == "denoising":
        return Denoising(settings.noise)
    return Masked(make_corruption(settings, device, textures), settings.weight, settings.noise)


def make_corruption(
    settings: ExperimentSettings, device: torch.device, textures: Tensor | None = None
) -> PartialCorruption:
    """The training corruption of a run; given no textures, it has a seeded pool of procedural ones."""
    if textures is None:
        generator = torch.Generator(device).manual_seed(step_seed(settings.fit.seed, 2**32 - 1))
        textures = procedural_textures(64, settings.resolution, generator)
    return PartialCorruption(settings.corruption, textures.to(device))


def _pixels_sha256(images: Tensor) -> str:
    digest = hashlib.sha256()
    for some in images.split(64):  # all at once would take three times the memory of the images
        digest.update((255 * some).round().byte().numpy().tobytes())
    return digest.hexdigest()


def random_symmetry(images: Tensor, symmetry: str, generator: torch.Generator) -> Tensor:
    """Turn and mirror each square image ``(B, C, H, W)`` at random.

    ``"none"``; ``"flips"``: both mirrors; ``"rotations"``: quarter turns; ``"all"``: the eight symmetries of
    the square.
    """
    _check_symmetry(symmetry)

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


def _check_symmetry(symmetry: str) -> None:
    if symmetry not in SYMMETRY_GROUPS:
        raise ValueError(f"symmetry must be one of {', '.join(SYMMETRY_GROUPS)}, got {symmetry!r}")


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


def split(category: Category, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a category's training images to train on, and of those held out."""
    share = HOLD_OUT if category.test_paths else HOLD_OUT_OF_FOLDER
    return hold_out(len(category.train_paths), seed, share)


def hold_out(count: int, seed: int, share: float = HOLD_OUT) -> tuple[Tensor, Tensor]:
    """Split ``count`` normal images at random into indices to train on and indices held out (at least one
    each, at most :data:`MOST_HELD_OUT` held out).

    Raises
    ------
    RunError
        If there are fewer than two images.
    """
    if count < 2:
        raise RunError(f"training needs at least two normal images, found {count}; add more normal images")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(step_seed(seed, 2**32)))
    held = min(max(1, round(share * count)), MOST_HELD_OUT)
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
        # A preset may come to stand for another network; what was trained stays what it was.
        "network": json.loads(json.dumps(asdict(settings.network))),
        "seed": settings.fit.seed,
    }
