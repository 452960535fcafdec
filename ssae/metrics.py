"""Exact metrics of anomaly detection: AUROC, average precision, F1-max and AU-PRO.

All of them depend on the scores only through their order, and more precisely through one small table: for
each distinct score of a defect, how many defect pixels have it, how many normal pixels lie strictly above
it, and how many are tied with it. `Ranking` is that table, and each metric is a few lines on top of it. The
work lies in counting the normal pixels. It is done by sorting them in runs (for AU-PRO alone, only those
that matter below the false-positive limit), so that maps can also come one at a time: see `PixelMetrics`.

A threshold `t` flags everything with `score >= t`, so equal scores are flagged together. Explained in
chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.ndimage
import torch

Array = np.ndarray[Any, Any]
Scores = Array | torch.Tensor

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
RUN_LENGTH = 1 << 24
LEVEL_BLOCK = 1 << 20


class MetricInputError(ValueError):
    """The input has no well-defined metric; the subclasses say why."""


class ScoreTypeError(MetricInputError, TypeError):
    """Scores are not floating point, or change type or device between updates."""


class NonFiniteScoreError(MetricInputError):
    """A score is NaN or infinite."""


class ShapeError(MetricInputError):
    """Scores and ground truth differ in shape, or have the wrong number of axes."""


class EmptyInputError(MetricInputError):
    """There are no maps, no pixels or no scores."""


class MaskValueError(MetricInputError):
    """The ground truth holds something other than 0 and 1."""


class NoDefectError(MetricInputError):
    """Nothing is marked as defective, so no metric is defined."""


class NoNormalError(MetricInputError):
    """Nothing is marked as normal, so no metric is defined."""


class RocCurve(NamedTuple):
    """Vertices of the ROC polygon, from (0, 0) to (1, 1)."""

    fpr: Array
    tpr: Array


class ProCurve(NamedTuple):
    """Vertices of the per-region-overlap polygon, from (0, 0) to the false-positive limit."""

    fpr: Array
    pro: Array


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall at every distinct defect score, from the highest threshold to the lowest."""

    precision: Array
    recall: Array
    threshold: Array


class F1Max(NamedTuple):
    """The best F1 of all thresholds, and the highest threshold that reaches it."""

    value: float
    threshold: float


@dataclass(frozen=True)
class Ranking:
    """All that a metric needs to know: defects counted against normals, level by level.

    Attributes
    ----------
    level : (K,) array
        The distinct scores of the defects, highest first.
    hits : (K,) int64 array
        Number of defects that have the score.
    region_share : (K,) float64 array
        What the level adds to the mean overlap of the regions: each defect pixel adds one over the size of
        its region and over the number of regions, so that all levels together add 1.
    above, tied : (K,) int64 arrays
        Number of normals with a strictly higher score, and with the same score.
    defects, normals, regions : int
        Totals.

    Notes
    -----
    Explained in chapter 11.
    """

    level: Array
    hits: Array
    region_share: Array
    above: Array
    tied: Array
    defects: int
    normals: int
    regions: int

    def auroc(self) -> float:
        """Probability that a random defect scores above a random normal, ties counting one half."""
        below = self.normals - self.above - 0.5 * self.tied
        return float(np.sum(self.hits * below) / self.defects / self.normals)

    def average_precision(self) -> float:
        """Precision averaged over the defects, each with its own score as the threshold; no interpolation."""
        return float(np.sum(self.hits * self.precision_recall_curve().precision) / self.defects)

    def f1_max(self) -> F1Max:
        """The highest F1 of any threshold."""
        # Lowering a threshold between two defect scores only adds false positives, so the levels suffice.
        true_positives = np.cumsum(self.hits)
        f1 = 2 * true_positives / (true_positives + self.above + self.tied + self.defects)
        best = int(np.argmax(f1))
        return F1Max(float(f1[best]), float(self.level[best]))

    def au_pro(self, fpr_limit: float = 0.3) -> float:
        """Area under the per-region-overlap curve up to `fpr_limit`, divided by `fpr_limit`."""
        # Each level lifts the curve along a ramp from `above` to `above + tied`. Its area left of the limit
        # has a closed form, so the curve itself need not be built.
        limit = checked_fpr_limit(fpr_limit) * self.normals
        ramp = np.clip(limit - self.above, 0, self.tied)
        height = np.where(self.tied > 0, ramp / np.maximum(self.tied, 1), 1.0)
        area = 0.5 * ramp * height + np.maximum(limit - self.above - self.tied, 0)
        # The shares add to 1 up to rounding, which must not carry a perfect score above 1.
        return min(float(np.sum(self.region_share * area) / limit), 1.0)

    def roc_curve(self) -> RocCurve:
        """The ROC curve: a polygon, straight between its vertices also where scores are tied."""
        return RocCurve(*self._polygon(np.cumsum(self.hits) / self.defects))

    def pro_curve(self, fpr_limit: float = 1.0) -> ProCurve:
        """The per-region-overlap curve, a polygon, cut at `fpr_limit` by interpolation."""
        limit = checked_fpr_limit(fpr_limit)
        fpr, pro = self._polygon(np.minimum(np.cumsum(self.region_share), 1))
        end = int(np.searchsorted(fpr, limit, side="right"))
        if end == len(fpr):
            return ProCurve(fpr, pro)
        reached = (limit - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
        value = pro[end - 1] + reached * (pro[end] - pro[end - 1])
        return ProCurve(np.append(fpr[:end], limit), np.append(pro[:end], value))

    def precision_recall_curve(self) -> PrecisionRecallCurve:
        """Precision and recall with each level as the threshold."""
        true_positives = np.cumsum(self.hits)
        precision = true_positives / (true_positives + self.above + self.tied)
        return PrecisionRecallCurve(precision, true_positives / self.defects, self.level)

    def _polygon(self, after: Array) -> tuple[Array, Array]:
        """Vertices of the curve that has the height `after` once a level is flagged."""
        x = np.stack((self.above, self.above + self.tied), axis=1).ravel() / self.normals
        # Each height is reached at the end of one ramp and held until the start of the next, or until 1.
        return np.concatenate(([0.0], x, [1.0])), np.repeat(np.concatenate(([0.0], after)), 2)


@dataclass(frozen=True)
class PixelReport:
    """Every pixel metric of one evaluation, in [0, 1] except the score `f1_threshold`, and its basis."""

    auroc: float
    ap: float
    f1_max: float
    f1_threshold: float
    au_pro: float
    fpr_limit: float
    maps: int
    regions: int
    defect_pixels: int
    normal_pixels: int


class PixelMetrics:
    """Exact pixel metrics of maps that come one by one, from disk, memory or a GPU.

    A normal pixel costs the 4 bytes of its float32 score (8 for float64) and a defect pixel 8 (12). Nothing
    is copied as a whole: normal scores lie in runs, and one run is sorted after the other. Maps on a CUDA
    device stay there and are sorted there. The maps may differ in size.

    Parameters
    ----------
    fpr_limit : float
        Where AU-PRO ends, in (0, 1].
    run_length : int
        How many normal scores are sorted together at first; later runs are longer. It affects memory and
        speed, never the result.

    Examples
    --------
    >>> import numpy as np
    >>> metrics = PixelMetrics()
    >>> for seed in range(3):
    ...     scores = np.random.default_rng(seed).random((8, 8))
    ...     metrics.update(scores, scores > 0.9)
    >>> metrics.compute().au_pro
    1.0

    Notes
    -----
    Explained in chapter 11.
    """

    def __init__(self, fpr_limit: float = 0.3, run_length: int = RUN_LENGTH) -> None:
        self.fpr_limit = checked_fpr_limit(fpr_limit)
        self._pixels = _Pixels(run_length)

    def update(self, score_maps: Scores, masks: Scores) -> None:
        """Add one map `(H, W)` or several `(N, H, W)`, with masks of the same shape.

        Raises
        ------
        MetricInputError
            One of its subclasses; the maps of earlier calls are kept and none of this call is added.
        """
        scores, truth = _as_scores(score_maps, "score_maps"), _as_truth(masks, "masks")
        if scores.ndim == 2 and truth.ndim == 2:
            scores, truth = scores[None], truth[None]
        self._pixels.add(scores, truth)

    def ranking(self) -> Ranking:
        """The table behind all metrics of the maps so far.

        Raises
        ------
        EmptyInputError, NoDefectError, NoNormalError
            If the maps so far define no metric.
        """
        return self._pixels.ranking()

    def compute(self) -> PixelReport:
        """All metrics of the maps so far; more maps may follow.

        Raises
        ------
        EmptyInputError, NoDefectError, NoNormalError
            If the maps so far define no metric.
        """
        ranking = self.ranking()
        best = ranking.f1_max()
        return PixelReport(
            auroc=ranking.auroc(),
            ap=ranking.average_precision(),
            f1_max=best.value,
            f1_threshold=best.threshold,
            au_pro=ranking.au_pro(self.fpr_limit),
            fpr_limit=self.fpr_limit,
            maps=self._pixels.maps,
            regions=ranking.regions,
            defect_pixels=ranking.defects,
            normal_pixels=ranking.normals,
        )


def au_pro(score_maps: Scores, masks: Scores, fpr_limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate, divided by that rate; exact.

    There is one curve for the whole data set: at each threshold, the share of a region that is flagged,
    averaged over all defect regions, against the share of all normal pixels that is flagged. Regions are
    8-connected within an image. Every distinct score is a threshold, equal scores are flagged together (the
    curve is straight between its vertices), and the curve is interpolated at the limit. Only what matters
    below the limit is sorted.

    Parameters
    ----------
    score_maps : (N, H, W) array or tensor
        Floating-point anomaly scores on any scale; higher is more anomalous.
    masks : (N, H, W) array or tensor
        True or 1 where a pixel is defective.
    fpr_limit : float
        In (0, 1].

    Returns
    -------
    float
        In [0, 1]: 1 if every defect pixel scores above every normal one, `fpr_limit / 2` for constant maps.

    Raises
    ------
    MetricInputError
        One of its subclasses, if the input is not as described.

    Notes
    -----
    The measure came with the MVTec AD data set (Bergmann et al.). Explained in chapter 11.

    Examples
    --------
    >>> import numpy as np
    >>> au_pro(np.array([[[0.9, 0.2, 0.1, 0.3]]]), np.array([[[1, 0, 0, 0]]]))
    1.0
    """
    limit = checked_fpr_limit(fpr_limit)
    return _collect(score_maps, masks).ranking(limit).au_pro(limit)


def pro_curve(score_maps: Scores, masks: Scores, fpr_limit: float = 0.3) -> ProCurve:
    """The curve whose normalised area is `au_pro`, with the same parameters. Explained in chapter 11."""
    limit = checked_fpr_limit(fpr_limit)
    return _collect(score_maps, masks).ranking(limit).pro_curve(limit)


def rank_pixels(score_maps: Scores, masks: Scores) -> Ranking:
    """The table behind all pixel metrics; parameters and errors as for `au_pro`. Explained in chapter 11."""
    return _collect(score_maps, masks).ranking()


def rank_images(scores: Scores | Sequence[float], labels: Scores | Sequence[int]) -> Ranking:
    """The table behind all image metrics, from one score and one label an image.

    Parameters
    ----------
    scores : (N,) array, tensor or list
        Floating-point image scores; higher is more anomalous.
    labels : (N,) array, tensor or list
        True or 1 where the image shows a defect.

    Raises
    ------
    MetricInputError
        One of its subclasses, if the input is not as described.

    Notes
    -----
    Each defective image counts as one region. Explained in chapter 11.
    """
    values, truth = _as_scores(scores, "scores"), _as_truth(labels, "labels")
    _check_scores(values, truth, "scores", "labels", axes="N")
    defects = _to_host(_select(values, truth))
    return _rank(defects, np.ones(len(defects)), len(defects), [_select(values, ~truth)], "labels")


def pixel_auroc(score_maps: Scores, masks: Scores) -> float:
    """Area under the ROC curve over all pixels of all maps `(N, H, W)`; exact, ties counting one half."""
    return rank_pixels(score_maps, masks).auroc()


def pixel_ap(score_maps: Scores, masks: Scores) -> float:
    """Average precision over all pixels of all maps `(N, H, W)`; exact, equal scores flagged together."""
    return rank_pixels(score_maps, masks).average_precision()


def pixel_f1_max(score_maps: Scores, masks: Scores) -> F1Max:
    """Best F1 of all thresholds over all pixels of all maps `(N, H, W)`, and its threshold."""
    return rank_pixels(score_maps, masks).f1_max()


def image_auroc(scores: Scores | Sequence[float], labels: Scores | Sequence[int]) -> float:
    """Area under the ROC curve of image scores `(N,)` and labels `(N,)`; exact, ties counting one half."""
    return rank_images(scores, labels).auroc()


def image_ap(scores: Scores | Sequence[float], labels: Scores | Sequence[int]) -> float:
    """Average precision of image scores `(N,)` and labels `(N,)`; exact, equal scores flagged together."""
    return rank_images(scores, labels).average_precision()


def image_f1_max(scores: Scores | Sequence[float], labels: Scores | Sequence[int]) -> F1Max:
    """Best F1 of all thresholds on image scores `(N,)` and labels `(N,)`, and its threshold."""
    return rank_images(scores, labels).f1_max()


def checked_fpr_limit(fpr_limit: float) -> float:
    """The limit as a float; `ValueError` unless it lies in (0, 1]."""
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must lie in (0, 1], got {fpr_limit}")
    return float(fpr_limit)


class _Pixels:
    """Collects normal scores in runs, and defect scores with the sizes of their regions."""

    def __init__(self, run_length: int) -> None:
        if run_length < 1:
            raise ValueError(f"run_length must be at least 1, got {run_length}")
        self.maps = 0
        self._run_length = run_length
        self._runs: list[Scores] = []
        self._filled = 0
        self._defect_scores: list[Array] = []
        self._region_sizes: list[Array] = []
        self._regions = 0
        self._kind = ""

    def add(self, scores: Scores, truth: Array) -> None:
        _check_scores(scores, truth, "score_maps", "masks", axes="NHW")
        kind = f"{scores.dtype} on {getattr(scores, 'device', 'cpu')}"
        if self._kind not in ("", kind):
            raise ScoreTypeError(f"score_maps were {self._kind} before and are {kind} now: use one type")
        self._kind = kind
        for score_map, mask in zip(scores, truth, strict=True):
            self.maps += 1
            if not mask.any():
                self._add_normals(score_map.reshape(-1))
                continue
            labels, count = scipy.ndimage.label(mask, structure=EIGHT_CONNECTED)
            region = labels[mask]
            self._regions += count
            self._region_sizes.append(np.bincount(region).astype(np.int32)[region])
            self._defect_scores.append(_to_host(_select(score_map, mask)))
            self._add_normals(_select(score_map, ~mask))

    def ranking(self, fpr_limit: float | None = None) -> Ranking:
        """Count normals against defects; with a limit, only as far down as that false-positive rate."""
        if self.maps == 0:
            raise EmptyInputError("no maps were given: call update with at least one map and its mask")
        if len(self._defect_scores) > 1:
            self._defect_scores = [np.concatenate(self._defect_scores)]
            self._region_sizes = [np.concatenate(self._region_sizes)]
        scores = self._defect_scores[0] if self._defect_scores else np.empty(0)
        sizes = self._region_sizes[0] if self._region_sizes else np.empty(0)
        runs = [*self._runs[:-1], *(run[: self._filled] for run in self._runs[-1:])]
        return _rank(scores, sizes, self._regions, runs, "masks", fpr_limit)

    def _add_normals(self, values: Scores) -> None:
        while len(values):
            if not self._runs or self._filled == len(self._runs[-1]):
                # Each run is as long as all before it together: few runs to search, however many come.
                length = max(self._run_length, sum(len(run) for run in self._runs))
                self._runs.append(_empty_run(values, length))
                self._filled = 0
            taken = min(len(self._runs[-1]) - self._filled, len(values))
            self._runs[-1][self._filled : self._filled + taken] = values[:taken]  # type: ignore[assignment]
            self._filled += taken
            values = values[taken:]


def _collect(score_maps: Scores, masks: Scores) -> _Pixels:
    """All pixels, the normal ones in a single run."""
    scores, truth = _as_scores(score_maps, "score_maps"), _as_truth(masks, "masks")
    pixels = _Pixels(run_length=max(truth.size - int(np.count_nonzero(truth)), 1))
    pixels.add(scores, truth)
    return pixels


def _rank(
    scores: Array, sizes: Array, regions: int, runs: list[Scores], truth: str, fpr_limit: float | None = None
) -> Ranking:
    """Rank defects (scores, and sizes of their regions) against runs of normals; reorders the runs."""
    defects, normals = len(scores), sum(len(run) for run in runs)
    if defects == 0:
        raise NoDefectError(f"{truth} mark nothing as defective: a metric needs at least one defect")
    if normals == 0:
        raise NoNormalError(f"{truth} mark everything as defective: a metric needs at least one normal")
    if fpr_limit is not None and len(runs) == 1:
        top, cut = _above_limit(runs[0], fpr_limit)
        runs, scores, sizes = [top], scores[scores >= cut], sizes[scores >= cut]
    order = np.argsort(scores)
    # In float64: regions times pixels of the largest can be more than the integers of the sizes hold.
    scores, share = scores[order], 1 / (regions * sizes[order].astype(np.float64))
    first = np.ones(len(scores), dtype=bool)
    first[1:] = scores[1:] != scores[:-1]
    starts = np.flatnonzero(first)
    level, hits, share = scores[starts], np.diff(starts, append=len(scores)), np.add.reduceat(share, starts)
    above, tied = _count_normals(runs, level)
    return Ranking(level[::-1], hits[::-1], share[::-1], above[::-1], tied[::-1], defects, normals, regions)


def _above_limit(run: Scores, fpr_limit: float) -> tuple[Scores, float]:
    """The normals that matter below the limit, and the lowest score among them.

    A defect with a lower score has more than the limit's share of the normals above it, so it adds no area.
    All normals tied with that lowest score are kept, because their ramp may cross the limit.
    """
    rank = len(run) - min(len(run), int(fpr_limit * len(run)) + 1)
    if isinstance(run, torch.Tensor):
        cut = float(torch.kthvalue(run, rank + 1).values)
    else:
        run.partition(rank)
        cut = float(run[rank])
    return run[run >= cut], cut


def _count_normals(runs: list[Scores], level: Array) -> tuple[Array, Array]:
    """How many normals lie above each level, and how many are tied with it; sorts the runs."""
    above, tied = np.zeros(len(level), dtype=np.int64), np.zeros(len(level), dtype=np.int64)
    for run in runs:
        if isinstance(run, torch.Tensor):
            run = torch.sort(run).values
        else:
            run.sort()
        # Part by part, so that the search needs no arrays of the size of the result.
        for part in (slice(start, start + LEVEL_BLOCK) for start in range(0, len(level), LEVEL_BLOCK)):
            first, last = _search(run, level[part], "left"), _search(run, level[part], "right")
            above[part] += len(run) - last
            tied[part] += last - first
    return above, tied


def _search(run: Scores, level: Array, side: Literal["left", "right"]) -> Array:
    if isinstance(run, torch.Tensor):
        wanted = torch.from_numpy(level).to(run.device)
        return torch.searchsorted(run, wanted, side=side).cpu().numpy()
    return np.searchsorted(run, level, side=side)


def _check_scores(scores: Scores, truth: Array, name: str, truth_name: str, axes: str) -> None:
    """`axes` names the axes that must be there, one letter each."""
    if tuple(scores.shape) != truth.shape or truth.ndim != len(axes):
        wanted, got = ", ".join(axes), f"{tuple(scores.shape)} and {truth.shape}"
        raise ShapeError(f"{name} and {truth_name} must both be ({wanted}), got {got}: reshape them")
    if truth.size == 0:
        raise EmptyInputError(f"{name} of shape {truth.shape} are empty: pass at least one score")
    for index, values in enumerate(scores if truth.ndim > 1 else [scores]):
        finite = torch.isfinite(values) if isinstance(values, torch.Tensor) else np.isfinite(values)
        if not finite.all():
            where = f"{name}[{index}]" if truth.ndim > 1 else name
            raise NonFiniteScoreError(f"{where} holds NaN or infinite scores: mend what computed them")


def _as_scores(values: Any, name: str) -> Scores:
    """Scores as an array, or as a tensor if they lie on a GPU; half precision is widened."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach()
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        if tensor.dtype in (torch.float32, torch.float64):
            return tensor if _stays_on_device(tensor) else tensor.cpu().numpy()
        kind = str(tensor.dtype)
    else:
        array = np.asarray(values)
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        if array.dtype in (np.float32, np.float64):
            return array
        kind = str(array.dtype)
    raise ScoreTypeError(f"{name} must be float16, bfloat16, float32 or float64, got {kind}: convert them")


def _as_truth(values: Any, name: str) -> Array:
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.dtype == bool:
        return array
    # Part by part, so that checking a large stack of masks costs no second stack.
    if array.dtype.kind not in "iuf" or not all(((p == 0) | (p == 1)).all() for p in np.atleast_1d(array)):
        raise MaskValueError(f"{name} must be boolean or hold only 0 and 1: try `{name} > 0`")
    return array.astype(bool)


def _stays_on_device(values: torch.Tensor) -> bool:
    return values.is_cuda


def _select(values: Scores, mask: Array) -> Scores:
    if isinstance(values, torch.Tensor):
        # torch takes no array that is read backwards.
        return values[torch.from_numpy(np.ascontiguousarray(mask)).to(values.device)]
    return values[mask]


def _to_host(values: Scores) -> Array:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def _empty_run(values: Scores, length: int) -> Scores:
    if isinstance(values, torch.Tensor):
        return values.new_empty(length)
    return np.empty(length, dtype=values.dtype)
