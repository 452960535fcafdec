"""The method in five lines: a detector with the interface of scikit-learn's outlier detectors.

Explained in chapter 14.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ssae.automatic import choose_for
from ssae.datasets import (
    SMALLEST,
    load_folder,
    photo_tensor,
    read_photo,
    tree_files,
    unused_files,
    upright_photo,
)
from ssae.experiment import (
    HOLD_OUT_OF_FOLDER,
    SYMMETRY_GROUPS,
    Run,
    calibrate,
    hold_out,
    learn,
    load_run,
    require_memory,
    weights_of,
)
from ssae.files import write_atomically
from ssae.inspection import Decision
from ssae.receipts import RunError, write_json
from ssae.scoring import Calibration, image_scores
from ssae.training import default_device

#: A file, an 8-bit array ``(H, W)`` or ``(H, W, 3)``, or a Pillow image.
Photograph: TypeAlias = "str | os.PathLike[str] | NDArray[np.uint8] | Image.Image"

#: A folder of photographs, or photographs. To learn from, a folder is read as by
#: :func:`ssae.datasets.load_folder`; to be judged, with all folders inside, in the order of
#: :func:`ssae.datasets.tree_files`.
Photographs: TypeAlias = "str | os.PathLike[str] | Sequence[Photograph]"


class Detector(OutlierMixin, BaseEstimator):
    """Learn what good parts look like, and find what is different.

    The conventions are scikit-learn's: a higher score is more normal, and a verdict is 1 for normal, -1 for
    anomalous. A saved detector is a run, which ``ssae predict`` applies as well.

    Parameters
    ----------
    steps, minutes
        Length of training; give at most one. By default that of :class:`ssae.experiment.ExperimentSettings`.
    resolution
        Height and width in pixels to which photographs are resized; None for what suits their size, at most
        128.
    symmetry
        How a good part may lie and still be good: ``"none"``, ``"flips"``, ``"rotations"``, ``"all"``;
        ``"auto"`` for what the photographs show, as ``ssae train`` does.
    texture
        Whether the photographs show a surface that looks alike everywhere, such as cloth; ``"auto"`` for what
        they show.
    preset
        Model: ``"lite"`` for CPUs, ``"full"`` for GPUs.
    false_alarms
        Share of the held-out normal photographs that may lie beyond the threshold, in [0, 1).
    seed
        Seed of everything random.
    verbose
        Whether to show progress.

    Attributes
    ----------
    offset_
        The threshold of :meth:`score_samples`.
    decision_
        The thresholds and what they say about false alarms, in words when printed.
    run_
        The trained run, whose ``settings`` are those that were chosen.
    reasons_
        Why they were chosen, a sentence each; not known of a loaded run.

    Examples
    --------
    Crops of a brick wall, and a training that is far too short to be of use:

    >>> from skimage import data
    >>> from ssae.detector import Detector
    >>> wall = data.brick()
    >>> photographs = [wall[y : y + 64, x : x + 64] for y in range(0, 448, 64) for x in range(0, 448, 64)]
    >>> detector = Detector(steps=2, resolution=32, texture=True).fit(photographs)
    >>> detector.decision_.false_alarms.images
    10
    >>> scratched = photographs[0].copy()
    >>> scratched[30:34] = 255
    >>> detector.predict([scratched])
    array([-1])
    >>> detector.heat_maps([scratched]).shape
    (1, 32, 32)
    """

    def __init__(
        self,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        resolution: int | None = None,
        symmetry: str = "auto",
        texture: bool | Literal["auto"] = "auto",
        preset: str = "lite",
        false_alarms: float = 0.0,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        self.steps = steps
        self.minutes = minutes
        self.resolution = resolution
        self.symmetry = symmetry
        self.texture = texture
        self.preset = preset
        self.false_alarms = false_alarms
        self.seed = seed
        self.verbose = verbose

    def fit(self, X: Photographs, y: None = None) -> Detector:
        """Train on photographs of normal parts; a fifth of them, at most 500, is held out to set
        the threshold.

        Raises
        ------
        ValueError
            If a setting is none that there is.
        RunError
            If there are fewer than two photographs.
        DataError
            If one cannot be read.
        """
        if not 0 <= self.false_alarms < 1:  # before the training, not after it
            raise ValueError(f"false_alarms is a share in [0, 1), 0.05 for 5 %; got {self.false_alarms}")
        if self.symmetry not in ("auto", *SYMMETRY_GROUPS):
            raise ValueError(
                f"symmetry must be one of auto, {', '.join(SYMMETRY_GROUPS)}, got {self.symmetry!r}"
            )
        if self.texture not in (True, False, "auto"):
            raise ValueError(f"texture must be True, False or 'auto', got {self.texture!r}")
        texture = "auto" if self.texture == "auto" else ("yes" if self.texture else "no")
        photographs = _listed(X, _good_files)
        settings, reasons = choose_for(
            "photographs", photographs, _photo, self.resolution, self.symmetry, texture, self.preset
        )
        reasons = [reason.replace("--", "") for reason in reasons]  # no options of a command here
        if self.verbose:
            print("\n".join(reasons))
        given = self.steps is not None or self.minutes is not None
        steps = self.steps if given else settings.fit.steps
        settings = replace(
            settings, fit=replace(settings.fit, steps=steps, minutes=self.minutes, seed=self.seed)
        )
        require_memory(len(photographs), settings.resolution)
        images = torch.cat(list(_batches(photographs, settings.resolution)))
        kept, held = hold_out(len(images), self.seed, HOLD_OUT_OF_FOLDER)
        device = default_device()
        model, _ = learn(settings, images[kept], device, progress=self.verbose)
        run = Run(model, settings, "", device)
        calibration = Calibration.of(run.heat_maps(images[held]), settings.scoring)
        return self._take(replace(run, calibration=calibration), reasons)

    def score_samples(self, X: Photographs) -> NDArray[np.float64]:
        """Score of each photograph ``(N,)``, lower where it is less normal: the image score, negated."""
        check_is_fitted(self)
        scores = [-image_scores(heat, self.run_.settings.scoring).numpy() for heat in self._heat(X)]
        return np.concatenate(scores).astype(np.float64)

    def decision_function(self, X: Photographs) -> NDArray[np.float64]:
        """Distance from the threshold ``(N,)``, negative for anomalous photographs."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Photographs) -> NDArray[np.int64]:
        """1 for each normal photograph, -1 for each anomalous one: ``(N,)``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def heat_maps(self, X: Photographs) -> NDArray[np.float32]:
        """Heat map of each photograph, ``(N, resolution, resolution)``, larger where it is less normal."""
        check_is_fitted(self)
        return np.concatenate([heat.numpy() for heat in self._heat(X)])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the detector as a run.

        Raises
        ------
        RunError
            If the folder is not empty.
        """
        check_is_fitted(self)
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} is not empty; save into a new folder")
        write_json(folder / "config.json", {"settings": self.run_.settings.to_json(), "data": ""})
        write_json(folder / "calibration.json", asdict(calibrate(self.run_)))
        write_atomically(folder / "weights.safetensors", save(weights_of(self.run_.model)))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], false_alarms: float = 0.0) -> Detector:
        """Read a detector from a run, its own or one of ``ssae train``.

        Raises
        ------
        RunError
            If the folder holds no finished run.
        """
        run = load_run(folder)
        settings = run.settings
        detector = cls(
            steps=settings.fit.steps,
            minutes=settings.fit.minutes,
            resolution=settings.resolution,
            symmetry=settings.symmetry,
            texture=settings.crop is not None,
            preset=settings.preset,
            false_alarms=false_alarms,
            seed=settings.fit.seed,
        )
        return detector._take(run)

    def _take(self, run: Run, reasons: Sequence[str] = ()) -> Detector:
        self.run_, self.reasons_ = run, list(reasons)
        self.decision_ = Decision.of(run, self.false_alarms)
        self.offset_ = -self.decision_.image
        return self

    def _heat(self, photographs: Photographs) -> Iterator[Tensor]:
        for images in _batches(_listed(photographs, _all_files), self.run_.settings.resolution):
            yield self.run_.heat_maps(images)


def _batches(photographs: Sequence[Photograph], resolution: int, size: int = 32) -> Iterator[Tensor]:
    for start in range(0, len(photographs), size):
        yield torch.stack([photo_tensor(_photo(p), resolution) for p in photographs[start : start + size]])


def _good_files(folder: str | os.PathLike[str]) -> Sequence[Photograph]:
    category = load_folder(folder, SMALLEST)
    for problem in unused_files(category):
        warnings.warn(str(problem), stacklevel=4)
    return category.train_paths


def _all_files(folder: str | os.PathLike[str]) -> Sequence[Photograph]:
    return list(tree_files(folder, unread=True))


def _listed(
    photographs: Photographs, files_of: Callable[[str | os.PathLike[str]], Sequence[Photograph]]
) -> Sequence[Photograph]:
    if isinstance(photographs, str | os.PathLike):
        photographs = files_of(photographs)
    if len(photographs) == 0:
        raise RunError("no photographs were given")
    return photographs


def _photo(photograph: Photograph) -> Image.Image:
    if isinstance(photograph, str | os.PathLike):
        return read_photo(photograph)
    if isinstance(photograph, Image.Image):
        return upright_photo(photograph)
    array = np.asarray(photograph)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise RunError(
            f"a photograph must be (H, W) or (H, W, 3) with values of 8 bits (uint8, 0 to 255), got "
            f"{array.dtype} of shape {array.shape}; convert it first"
        )
    if min(array.shape[:2]) < SMALLEST:
        raise RunError(
            f"a photograph has at least {SMALLEST} pixels a side, got an array of shape {array.shape}; a "
            "single photograph is given as a list of one"
        )
    return Image.fromarray(array)
