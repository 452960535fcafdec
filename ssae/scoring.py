"""From a reconstruction to a heat map, from a heat map to one number, from normal numbers to a threshold.

The difference map and its average over the colour channels are the paper's (caption of its Figure 3); the
repeated box filter and the sum as image score follow what is known of it. The filter's size and number of
passes are the book's own choice. Explained in chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy import stats
from torch import Tensor

IMAGE_SCORES = ("sum", "max", "top")
THRESHOLD_RULES = ("max", "quantile", "sigma")


@dataclass(frozen=True)
class ScoringSettings:
    """How a difference map becomes a heat map and an image score.

    Parameters
    ----------
    kernel
        Side of the box filter in pixels, odd.
    passes
        How often the box filter is applied; 0 leaves the difference map as it is.
    image_score
        ``"sum"`` (the paper's), ``"max"``, or ``"top"``: the mean of the largest ``top_share`` of the heat
        map.
    top_share
        Share of pixels that ``"top"`` averages, in (0, 1].
    root
        Whether the square root of the difference map is filtered. The paper squares: a bright scratch then
        outshines a large grey stain. Chapter 13 shows what the root gains on drawn defects.
    """

    kernel: int = 5
    passes: int = 3
    image_score: str = "top"
    top_share: float = 0.01
    root: bool = False

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                f"kernel must be odd and positive so that the map stays in place, got {self.kernel}"
            )
        if self.passes < 0:
            raise ValueError(f"passes must not be negative, got {self.passes}")
        if self.image_score not in IMAGE_SCORES:
            raise ValueError(
                f"image_score must be one of {', '.join(IMAGE_SCORES)}, got {self.image_score!r}"
            )
        if not 0 < self.top_share <= 1:
            raise ValueError(f"top_share must lie in (0, 1], got {self.top_share}")

    @classmethod
    def for_resolution(cls, resolution: int, **changes: object) -> ScoringSettings:
        """Default settings at a resolution: the same filter in units of the image, 15 pixels wide at 256."""
        kernel = 2 * round((15 * resolution / 256 - 1) / 2) + 1
        return cls(**{"kernel": max(1, kernel), **changes})  # type: ignore[arg-type]


def difference_map(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Squared difference of every pixel, averaged over the colour channels.

    Parameters
    ----------
    images, reconstructions
        ``(B, C, H, W)`` of equal shape.

    Returns
    -------
    Tensor
        ``(B, H, W)``, float32 or wider, not negative.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise ValueError(
            f"images and reconstructions must be (B, C, H, W) of equal shape, "
            f"got {tuple(images.shape)} and {tuple(reconstructions.shape)}"
        )
    dtype = torch.promote_types(images.dtype, torch.float32)
    return (images.to(dtype) - reconstructions.to(dtype)).square().mean(1)


def box_filter(maps: Tensor, kernel: int, passes: int) -> Tensor:
    """Apply a ``kernel`` x ``kernel`` mean filter ``passes`` times to maps ``(B, H, W)``.

    A window that hangs over the border averages the pixels it has, so a constant map stays constant. Many
    passes come near a Gaussian of variance ``passes * (kernel**2 - 1) / 12`` pixels squared.
    """
    # The filter is linear and works on rows and columns alone: all its passes are one matrix for each.
    # What is traced for an export holds no numbers yet, so it must neither be kept nor meet what was kept.
    matrix = _box_matrix if torch.compiler.is_compiling() else _kept_box_matrix
    down, across = (matrix(side, kernel, passes).to(maps) for side in maps.shape[-2:])
    return down @ maps @ across.T


def _box_matrix(side: int, kernel: int, passes: int) -> Tensor:
    """What ``passes`` means over ``kernel`` neighbours make of a line of ``side`` pixels, as a matrix."""
    place = torch.arange(side)
    near = ((place[:, None] - place).abs() <= kernel // 2).double()
    return torch.linalg.matrix_power(near / near.sum(1, keepdim=True), passes)


@lru_cache(maxsize=16)
def _kept_box_matrix(side: int, kernel: int, passes: int) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve whoever asks next
        return _box_matrix(side, kernel, passes)


def heat_map(images: Tensor, reconstructions: Tensor, settings: ScoringSettings) -> Tensor:
    """Difference map or its root, box-filtered: ``(B, H, W)``, larger where the model changed the image."""
    change = difference_map(images, reconstructions)
    return box_filter(change.sqrt() if settings.root else change, settings.kernel, settings.passes)


def image_scores(heat: Tensor, settings: ScoringSettings) -> Tensor:
    """One number for each heat map ``(B, H, W)``, by ``settings.image_score``: ``(B,)``."""
    flat = heat.flatten(1)
    if settings.image_score == "sum":
        return flat.sum(1)
    if settings.image_score == "max":
        return flat.amax(1)
    return flat.topk(max(1, round(settings.top_share * flat.shape[1])), dim=1).values.mean(1)


def threshold(normal_scores: Tensor, rule: str = "quantile", level: float = 0.99) -> float:
    """Score above which a sample is called anomalous, from the scores of normal samples alone.

    Parameters
    ----------
    normal_scores
        Scores of held-out normal samples, any shape.
    rule
        ``"max"``: the largest; ``"quantile"``: the ``level``-quantile, ``level`` in (0, 1); ``"sigma"``: mean
        plus ``level`` standard deviations.
    level
        Meaning depends on the rule.

    Raises
    ------
    ValueError
        If there are no scores, one is not finite, the rule is unknown, or the level of a quantile is not in
        (0, 1).
    """
    scores = normal_scores.double().flatten()
    if len(scores) == 0 or not bool(scores.isfinite().all()):
        raise ValueError("a threshold needs at least one normal score, and all of them finite")
    if rule == "max":
        return float(scores.max())
    if rule == "quantile":
        if not 0 < level < 1:
            raise ValueError(f"the level of a quantile lies in (0, 1), 0.98 for 98 %; got {level}")
        # torch.quantile refuses more than 2**24 values, which a stack of heat maps has.
        rank = min(len(scores), max(1, math.ceil(level * len(scores))))
        return float(scores.kthvalue(rank).values)
    if rule == "sigma":
        return float(scores.mean() + level * scores.std(correction=0))
    raise ValueError(f"rule must be one of {', '.join(THRESHOLD_RULES)}, got {rule!r}")


@dataclass(frozen=True)
class FalseAlarms:
    """What a threshold taken from normal scores says about the false alarms to come.

    Parameters
    ----------
    images
        Held-out normal images.
    above
        How many of them lie above the threshold.
    expected
        Mean share of normal images that will.
    low, high
        Ends of the two-sided interval that holds this share with the asked confidence.
    confidence
        That confidence, in (0, 1).
    """

    images: int
    above: int
    expected: float
    low: float
    high: float
    confidence: float


def false_alarms(images: int, above: int, confidence: float = 0.95) -> FalseAlarms:
    """Share of normal images beyond the ``above + 1``-th largest of ``images`` held-out normal scores.

    Exact for any continuous distribution of independent scores: the share follows a beta distribution with
    parameters ``above + 1`` and ``images - above``. Its upper end is that of the interval of Clopper and
    Pearson. Explained in chapter 14.

    Raises
    ------
    ValueError
        If the numbers do not fit each other.
    """
    if not 0 <= above < images or not 0 < confidence < 1:
        raise ValueError(
            f"above must lie in [0, images) and confidence in (0, 1), got {above} of {images}, {confidence}"
        )
    share = stats.beta(above + 1, images - above)
    low, high = share.interval(confidence)
    return FalseAlarms(images, above, float(share.mean()), float(low), float(high), confidence)


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out normal images, from which any threshold follows.

    Parameters
    ----------
    scores
        Image score of each.
    peaks
        Largest value of each heat map.
    """

    scores: tuple[float, ...]
    peaks: tuple[float, ...]

    @classmethod
    def of(cls, heat: Tensor, settings: ScoringSettings) -> Calibration:
        """From the heat maps ``(N, H, W)`` of held-out normal images."""
        return cls(tuple(image_scores(heat, settings).tolist()), tuple(heat.flatten(1).amax(1).tolist()))

    def thresholds(self, rate: float = 0.0) -> tuple[float, float, FalseAlarms]:
        """Threshold of image scores, threshold of pixels, and what the former says about false alarms.

        Each is the smallest that leaves at most the share ``rate`` of the held-out images above it; an image
        is above the pixel threshold if any of its pixels is.

        Raises
        ------
        ValueError
            If ``rate`` is not in [0, 1) or there are no scores, or one is not finite.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"the rate of false alarms must lie in [0, 1), got {rate}")
        above = math.floor(rate * len(self.scores) + 1e-9)

        def cut(values: Sequence[float]) -> float:
            if not values or not all(map(math.isfinite, values)):
                raise ValueError("a threshold needs at least one normal score, and all of them finite")
            return sorted(values, reverse=True)[above]

        return cut(self.scores), cut(self.peaks), false_alarms(len(self.scores), above)
