"""Settings for photographs that nobody has described: what can be read off them, and what is left alone.

A wrong guess costs more than none: crops of a part that is not a surface lose its shape, and a symmetry
that the part does not have hides defects. So a thing is chosen only where the photographs show it plainly,
and each choice comes with its reason. Explained in chapter 14.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ssae.datasets import Category, photo_tensor, read_photo
from ssae.experiment import ExperimentSettings, texture_settings
from ssae.scoring import ScoringSettings

T = TypeVar("T")

SAMPLE = 100  # photographs looked at
ENOUGH = 20  # with fewer, nothing is read off them
SIDE = 64  # pixels at which they are looked at
SIDE_OF_MODEL = 128
SMALLEST_MODEL = 32

# The generators of each group of symmetries, largest group first.
GROUPS = (
    ("all", ("mirrored", "turned")),
    ("rotations", ("turned",)),
    ("flips", ("mirrored", "upside down")),
)


def choose(
    category: Category,
    resolution: int | None = None,
    symmetry: str = "auto",
    texture: str = "auto",
    preset: str = "lite",
) -> tuple[ExperimentSettings, list[str]]:
    """Settings for a folder of photographs, and the reason of each.

    Parameters
    ----------
    category
        From :func:`ssae.datasets.load_folder`; its own resolution plays no part.
    resolution, symmetry, texture, preset
        See :func:`choose_for`.

    Raises
    ------
    DataError
        If a photograph cannot be read.
    """
    paths = category.train_paths
    return choose_for(category.name, paths, read_photo, resolution, symmetry, texture, preset)


def choose_for(
    name: str,
    photographs: Sequence[T],
    read: Callable[[T], Image.Image],
    resolution: int | None = None,
    symmetry: str = "auto",
    texture: str = "auto",
    preset: str = "lite",
) -> tuple[ExperimentSettings, list[str]]:
    """Settings for photographs, and the reason of each.

    Parameters
    ----------
    name
        What the settings call them.
    photographs
        At least one; files, arrays or whatever ``read`` takes.
    read
        Makes an image of one of them.
    resolution
        Height and width of the model's images; None to choose.
    symmetry
        ``"auto"`` or one of those of :func:`ssae.experiment.random_symmetry`.
    texture
        ``"yes"`` where the photographs show one surface that looks alike everywhere, ``"no"``, or ``"auto"``.
    preset
        Model, see ``ssae.models.PRESETS``.
    """
    # At random: every fifth, say, could be the same side of each part, or the same camera of several.
    chosen = random.Random(0).sample(range(len(photographs)), min(SAMPLE, len(photographs)))
    sample = [photographs[index] for index in sorted(chosen)]
    photos, sides, shapes, longest = [], [], [], 0
    for photograph in sample:
        photo = read(photograph)
        sides.append(min(photo.size))
        shapes.append(photo.width / photo.height)
        longest = max(longest, *photo.size)
        photos.append(photo_tensor(photo, SIDE))
    images = torch.stack(photos)
    reasons = []

    if resolution is None:
        typical = sorted(sides)[len(sides) // 10]  # a few small ones must not decide for all
        resolution = max(SMALLEST_MODEL, min(SIDE_OF_MODEL, typical // 16 * 16))
        lost = max(2, round(2 * longest / resolution))  # both sides are squeezed to the resolution
        reasons.append(
            f"resolution {resolution}: defects smaller than about {lost} pixels of your photographs are "
            "lost; a larger --resolution sees finer and takes longer"
        )
    small = [photo for photo, side in zip(sample, sides, strict=True) if side < resolution]
    if len(small) > len(sides) // 10:
        reasons.append(
            f"{len(small)} of the {len(sides)} photographs looked at have a side of less than {resolution} "
            "pixels and are enlarged; a lower --resolution would lose nothing"
        )
    elif small:
        example = f", {small[0]} for one" if isinstance(small[0], str | os.PathLike) else ""
        reasons.append(
            f"{len(small)} of the {len(sides)} photographs looked at have a side of less than {resolution} "
            f"pixels and are enlarged{example}; better leave them out"
        )
    if max(shapes) > 1.05 * min(shapes):
        reasons.append(
            f"the photographs are between {min(shapes):.2f} and {max(shapes):.2f} times as wide as high, and "
            "all are squeezed to a square, so that one part looks different in each; turn or crop them alike"
        )
    if texture == "auto":
        alike = common_share(images) < 0.2 and evenness(images) > 0.5
        texture = "yes" if len(images) >= ENOUGH and alike else "no"
        what = (
            "every place looks like every other, so random crops are trained on"
            if texture == "yes"
            else "the photographs share one layout or show a part before a background, or are too few to "
            "tell, so they are trained on whole"
        )
        reasons.append(f"texture {texture}: {what}")
    if symmetry == "auto":
        symmetry = shown_symmetry(images)
        why_none = (
            "too few photographs to tell whether mirrored or turned ones look like them"
            if len(images) < ENOUGH
            else "mirrored or turned photographs cannot be shown to look like yours"
        )
        reasons.append(
            f"symmetry none: {why_none}; if such a part is still a good one, say so with --symmetry"
            if symmetry == "none"
            else f"symmetry {symmetry}: your photographs look alike when they are mirrored or turned so"
        )
    settings = ExperimentSettings(
        name,
        preset=preset,
        resolution=resolution,
        symmetry=symmetry,
        scoring=ScoringSettings.for_resolution(resolution),
        **texture_settings(texture == "yes", resolution),
    )
    return settings, reasons


def common_share(images: Tensor) -> float:
    """Share of the variance within images ``(N, C, H, W)`` that their mean image has: 1 if all are one image.

    About ``1 / N`` for independent crops of a surface, near 1 for parts that lie in one place.
    """
    centred = images - images.mean((2, 3), keepdim=True)
    return float(centred.mean(0).square().mean() / centred.square().mean().clamp_min(1e-12))


def evenness(images: Tensor) -> float:
    """How alike the places of an image are, in [0, 1]: contrast in the quietest sixteenth of an image
    ``(C, H, W)`` over that of its average sixteenth, the median over images ``(N, C, H, W)``.

    A part that lies anywhere leaves some place empty: measured, discs and rods stay below .35 and the
    textures of this book between .65 and 1.
    """
    side = images.shape[-1] // 4
    places = images.mean(1).unfold(1, side, side).unfold(2, side, side).std((-2, -1)).flatten(1)
    return float((places.amin(1) / places.mean(1).clamp_min(1e-6)).median())


def shown_symmetry(images: Tensor) -> str:
    """The largest group of symmetries that images ``(N, C, H, W)`` show: ``"all"``, ``"rotations"``,
    ``"flips"`` or ``"none"``.

    A transformation is shown if a transformed image is as near to the others as the image itself: nearer than
    it in at least 45 of 100 cases, where 50 are expected. Both are measured on the pixels, which tell
    parts apart, and on the power spectrum, which tells surfaces apart wherever they were cut. The test is
    cautious: of sets that have a symmetry it misses many by chance, with independent images a sixth to a
    third of them in each comparison. A missed one costs a little variety, a wrong one hides defects.
    """
    if len(images) < ENOUGH:
        return "none"
    moves = {
        "mirrored": lambda x: x.flip(-1),
        "upside down": lambda x: x.flip(-2),
        "turned": lambda x: x.rot90(1, (-2, -1)),
    }
    shown = {
        name: all(_as_near(f(images), f(move(images))) for f in (_pixels, _spectrum))
        for name, move in moves.items()
    }
    return next((group for group, generators in GROUPS if all(shown[g] for g in generators)), "none")


def _as_near(here: Tensor, moved: Tensor) -> bool:
    def nearest(points: Tensor) -> Tensor:
        distances = torch.cdist(points, here)
        return distances.fill_diagonal_(float("inf")).amin(1)

    return float((nearest(moved) < nearest(here)).float().mean()) >= 0.45


def _pixels(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 2).flatten(1)


def _spectrum(images: Tensor) -> Tensor:
    grey = images.mean(1)
    window = torch.hann_window(grey.shape[-1], periodic=False)
    power = torch.fft.fft2((grey - grey.mean((1, 2), keepdim=True)) * window[:, None] * window)
    # The odd middle part is symmetric about the zero frequency, so that mirroring maps it onto itself.
    middle = torch.fft.fftshift(power.abs().square(), dim=(1, 2))[:, 1:, 1:]
    coarse = F.avg_pool2d(middle[:, None], 3).clamp_min(1e-12).log()
    return (coarse - coarse.mean((2, 3), keepdim=True)).flatten(1)
