"""Metrics against brute force, closed forms, scikit-learn and the MVTec reference, and their invariances."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import auc, average_precision_score, f1_score, roc_auc_score

from ssae import metrics

# No deadline: a busy machine is no failure.
examples = settings(max_examples=50, deadline=None)
LIMITS = st.sampled_from([0.05, 0.3, 0.5, 0.77, 1.0])


@st.composite
def maps_and_masks(draw, levels=6):
    """Small maps with many ties, and masks with at least one defect and one normal pixel."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(2, 6)))
    scores = draw(arrays(np.float64, shape, elements=st.integers(0, levels).map(float)))
    masks = draw(arrays(np.bool_, shape).filter(lambda m: m.any() and not m.all()))
    return scores, masks


def brute_force_curve(scores, masks):
    """The curve by its definition: one point for each distinct score, every region masked out in turn."""
    regions = []
    for index, mask in enumerate(masks):
        labels, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, labels == number) for number in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        flagged = scores >= threshold
        overlap = np.mean([flagged[index][region].mean() for index, region in regions])
        points.append((flagged[~masks].mean(), overlap))
    return np.array(points).T


def normalised_area(fpr, pro, limit):
    inside = fpr <= limit
    x, y = np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))
    return auc(x, y) / limit


def noise_maps(seed=0, shape=(6, 32, 32), dtype=np.float64):
    rng = np.random.default_rng(seed)
    masks = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), (0, 3, 3)) > 0.15
    masks[::3] = False
    return (rng.standard_normal(shape) + masks).astype(dtype), masks


# Oracles


@examples
@given(maps_and_masks(), LIMITS)
def test_au_pro_equals_brute_force_over_every_threshold(case, limit):
    scores, masks = case
    expected = normalised_area(*brute_force_curve(scores, masks), limit)
    assert metrics.au_pro(scores, masks, limit) == pytest.approx(expected, abs=1e-12)


@examples
@given(maps_and_masks(), LIMITS)
def test_the_area_under_the_pro_curve_is_au_pro(case, limit):
    fpr, pro = metrics.pro_curve(*case, limit)
    assert np.all(np.diff(fpr) >= 0)
    assert np.all(np.diff(pro) >= 0)
    assert (fpr[0], pro[0], fpr[-1]) == (0, 0, limit)
    assert auc(fpr, pro) / limit == pytest.approx(metrics.au_pro(*case, limit), abs=1e-12)


@examples
@given(maps_and_masks(levels=12))
def test_auroc_and_average_precision_equal_scikit_learn(case):
    scores, masks = case
    truth, values = masks.ravel(), scores.ravel()
    assert metrics.pixel_auroc(scores, masks) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    assert metrics.pixel_ap(scores, masks) == pytest.approx(average_precision_score(truth, values), abs=1e-12)
    assert metrics.image_auroc(values, truth) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    assert metrics.image_ap(values, truth) == pytest.approx(average_precision_score(truth, values), abs=1e-12)


@examples
@given(maps_and_masks())
def test_f1_max_is_the_best_of_every_threshold(case):
    scores, masks = case
    truth, values = masks.ravel(), scores.ravel()
    by_threshold = {t: f1_score(truth, values >= t) for t in np.unique(values)}
    best = metrics.pixel_f1_max(scores, masks)
    assert best.value == pytest.approx(max(by_threshold.values()), abs=1e-12)
    assert by_threshold[best.threshold] == pytest.approx(best.value, abs=1e-12)
    assert metrics.image_f1_max(values, truth) == best


@examples
@given(maps_and_masks())
def test_curves_hold_the_areas_they_are_drawn_for(case):
    ranking = metrics.rank_pixels(*case)
    fpr, tpr = ranking.roc_curve()
    assert auc(fpr, tpr) == pytest.approx(ranking.auroc(), abs=1e-12)
    precision, recall, threshold = ranking.precision_recall_curve()
    steps = np.diff(recall, prepend=0)
    assert float(np.sum(steps * precision)) == pytest.approx(ranking.average_precision(), abs=1e-12)
    assert np.all(np.diff(threshold) < 0)


@pytest.mark.parametrize("step", [None, 0.5])
@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
def test_au_pro_equals_the_mvtec_reference(step, limit):
    pyaupro = pytest.importorskip("pyaupro")
    scores, masks = noise_maps(seed=3)
    scores = scores if step is None else np.round(scores / step) * step
    oracle = pyaupro.PerRegionOverlap(reference_implementation=True)
    oracle.update(torch.from_numpy(scores), torch.from_numpy(masks).int())
    fpr, pro = (values.double().numpy() for values in oracle.compute())
    expected = normalised_area(fpr, pro, limit)
    assert metrics.au_pro(scores, masks, limit) == pytest.approx(expected, abs=1e-5)


# Closed forms


def test_au_pro_of_a_case_done_by_hand():
    # Six normals. Region one has two pixels: 9 lies above all normals, 5.5 below two of them. Region two is
    # one pixel, below one normal and tied with one. Up to half of the normals, so three of them, region one
    # covers 1/2 + 1/2 * 1/3 = 2/3 of the area and region two (0 + 1/2 + 1) / 3 = 1/2.
    by_hand = metrics.PixelMetrics(fpr_limit=0.5)
    by_hand.update(np.array([[9, 5.5, 8, 6, 5, 3, 2, 1]]), np.array([[1, 1, 0, 0, 0, 0, 0, 0]]))
    by_hand.update(np.array([[6.0]]), np.array([[1]]))
    assert by_hand.compute().au_pro == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-15)
    # A quarter of the normals is one and a half of them: the limit cuts through the ramp of region two.
    assert by_hand.ranking().au_pro(0.25) == pytest.approx((1 / 2 + 0.5**3 / 1.5) / 2, abs=1e-15)


@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
def test_perfect_maps_score_one_and_reversed_maps_nothing(limit):
    _, masks = noise_maps()
    perfect = masks + 0.5 * np.random.default_rng(0).random(masks.shape)
    assert metrics.au_pro(perfect, masks, limit) == 1
    assert metrics.pixel_auroc(perfect, masks) == 1
    assert metrics.pixel_ap(perfect, masks) == 1
    assert metrics.pixel_f1_max(perfect, masks).value == 1
    assert metrics.au_pro(-perfect, masks, limit) == 0
    assert metrics.pixel_auroc(-perfect, masks) == 0


@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
def test_constant_maps_score_what_chance_scores(limit):
    _, masks = noise_maps()
    constant = np.full(masks.shape, 3.25)
    assert metrics.au_pro(constant, masks, limit) == pytest.approx(limit / 2, abs=1e-14)
    assert metrics.pixel_auroc(constant, masks) == 0.5
    assert metrics.pixel_ap(constant, masks) == pytest.approx(masks.mean(), abs=1e-14)
    share = masks.mean()
    assert metrics.pixel_f1_max(constant, masks).value == pytest.approx(2 * share / (1 + share), abs=1e-14)


def test_regions_are_eight_connected_and_end_with_their_image():
    # One diagonal region of two pixels, only one of which is found; a region of one pixel in the next image.
    masks = np.zeros((2, 3, 3), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[1, 0, 0] = True
    scores = np.where(masks, 2.0, 1.0)
    scores[0, 1, 1] = 0
    ranking = metrics.rank_pixels(scores, masks)
    assert ranking.regions == 2
    assert metrics.au_pro(scores, masks, 0.5) == pytest.approx((1 / 2 + 1) / 2, abs=1e-15)


def test_every_region_counts_alike_however_large():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = masks[0, 15, 15] = True
    found_large, found_small = np.zeros(masks.shape), np.zeros(masks.shape)
    found_large[0, :10, :10] = found_small[0, 15, 15] = 1
    assert metrics.au_pro(found_large, masks) == pytest.approx(metrics.au_pro(found_small, masks), abs=1e-15)


# Invariances

MONOTONE = {
    "exp": np.exp,
    "steep exp": lambda s: np.exp(60 * s),
    "affine": lambda s: 3e-5 * s - 7,
    "cube": lambda s: s**3,
    "arctan": np.arctan,
}


@pytest.mark.parametrize("name", MONOTONE)
def test_metrics_do_not_change_under_a_monotone_map(name):
    scores, masks = noise_maps(dtype=np.float32)
    scores = scores.astype(np.float64)
    before, after = metrics.rank_pixels(scores, masks), metrics.rank_pixels(MONOTONE[name](scores), masks)
    for limit in (0.01, 0.3, 1.0):
        assert after.au_pro(limit) == pytest.approx(before.au_pro(limit), abs=1e-12)
    assert after.auroc() == pytest.approx(before.auroc(), abs=1e-12)
    assert after.average_precision() == pytest.approx(before.average_precision(), abs=1e-12)
    assert after.f1_max().value == before.f1_max().value
    assert metrics.au_pro(MONOTONE[name](scores), masks) == pytest.approx(before.au_pro(0.3), abs=1e-12)


@examples
@given(maps_and_masks(), LIMITS, st.randoms(use_true_random=False))
def test_metrics_do_not_depend_on_the_order_or_orientation_of_images(case, limit, random):
    scores, masks = case
    order = list(range(len(scores)))
    random.shuffle(order)
    expected = metrics.au_pro(scores, masks, limit)
    for turned in (
        (scores[order], masks[order]),
        (scores[:, ::-1, ::-1], masks[:, ::-1, ::-1]),
        (scores.transpose(0, 2, 1), masks.transpose(0, 2, 1)),
    ):
        assert metrics.au_pro(*turned, limit) == pytest.approx(expected, abs=1e-12)


@examples
@given(maps_and_masks(), LIMITS)
def test_repeating_the_data_set_changes_nothing(case, limit):
    scores, masks = (np.concatenate([part, part]) for part in case)
    assert metrics.au_pro(scores, masks, limit) == pytest.approx(metrics.au_pro(*case, limit), abs=1e-12)


@examples
@given(maps_and_masks(), LIMITS)
def test_sorting_only_above_the_limit_changes_nothing(case, limit):
    assert metrics.au_pro(*case, limit) == pytest.approx(metrics.rank_pixels(*case).au_pro(limit), abs=1e-12)
    short, full = metrics.pro_curve(*case, limit), metrics.rank_pixels(*case).pro_curve(limit)
    at = np.linspace(0, limit, 7)[1:-1] + 1e-9
    np.testing.assert_allclose(np.interp(at, *short), np.interp(at, *full), atol=1e-12)


@examples
@given(maps_and_masks())
def test_breaking_a_tie_in_favour_of_the_defect_never_lowers_au_pro(case):
    scores, masks = case
    assert metrics.au_pro(scores + 0.5 * masks, masks) >= metrics.au_pro(scores, masks) - 1e-12


# Streaming, types and devices


@examples
@given(maps_and_masks(), LIMITS, st.integers(1, 40))
def test_streaming_equals_one_shot_for_every_run_length(case, limit, run_length):
    scores, masks = case
    stream = metrics.PixelMetrics(fpr_limit=limit, run_length=run_length)
    for index, (score_map, mask) in enumerate(zip(scores, masks, strict=True)):
        stream.update(score_map, mask) if index % 2 else stream.update(score_map[None], mask[None])
    report = stream.compute()
    assert report.auroc == pytest.approx(metrics.pixel_auroc(scores, masks), abs=1e-12)
    assert report.ap == pytest.approx(metrics.pixel_ap(scores, masks), abs=1e-12)
    assert (report.f1_max, report.f1_threshold) == metrics.pixel_f1_max(scores, masks)
    assert report.au_pro == pytest.approx(metrics.au_pro(scores, masks, limit), abs=1e-12)
    assert (report.maps, report.defect_pixels) == (len(scores), masks.sum())
    assert report.normal_pixels + report.defect_pixels == masks.size


def test_compute_may_be_called_between_updates_and_leaves_the_input_alone():
    scores, masks = noise_maps()
    kept = scores.copy()
    stream = metrics.PixelMetrics(run_length=100)
    stream.update(scores[:3], masks[:3])
    assert stream.compute().au_pro == pytest.approx(metrics.au_pro(scores[:3], masks[:3]), abs=1e-12)
    stream.update(scores[3:], masks[3:])
    assert stream.compute().au_pro == pytest.approx(metrics.au_pro(scores, masks), abs=1e-12)
    np.testing.assert_array_equal(scores, kept)


def test_maps_of_different_sizes_may_be_streamed():
    scores, masks = noise_maps()
    stream, whole = metrics.PixelMetrics(), metrics.PixelMetrics()
    stream.update(scores[1:2], masks[1:2])
    stream.update(scores[0, :20], masks[0, :20])
    stream.update(scores[0, 20:], masks[0, 20:])
    whole.update(scores[:2], masks[:2])
    assert stream.compute().au_pro == pytest.approx(whole.compute().au_pro, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_floating_type_are_ranked_as_they_are(dtype):
    scores, masks = noise_maps()
    tensor = torch.from_numpy(scores).to(dtype).requires_grad_()
    expected = metrics.au_pro(tensor.detach().double().numpy(), masks)
    assert metrics.au_pro(tensor, torch.from_numpy(masks)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_masks_of_zeros_and_ones_are_as_good_as_boolean_ones(kind):
    scores, masks = noise_maps()
    assert metrics.au_pro(scores, masks.astype(kind)) == metrics.au_pro(scores, masks)


def check_device_path(device):
    scores, masks = noise_maps()
    scores = np.round(scores * 4) / 4
    tensor = torch.from_numpy(scores).to(device)
    for limit in (0.05, 0.3, 1.0):
        assert metrics.au_pro(tensor, masks, limit) == metrics.au_pro(scores, masks, limit)
    assert metrics.image_auroc(tensor[:, 0, 0], masks.any((1, 2))) == metrics.image_auroc(
        scores[:, 0, 0], masks.any((1, 2))
    )
    streams = metrics.PixelMetrics(run_length=700), metrics.PixelMetrics(run_length=700)
    streams[0].update(tensor, torch.from_numpy(masks).to(device))
    streams[1].update(scores, masks)
    assert streams[0].compute() == streams[1].compute()


def test_the_tensor_path_gives_the_same_numbers(monkeypatch):
    # The code a GPU runs, on CPU tensors.
    monkeypatch.setattr(metrics, "_stays_on_device", lambda values: True)
    check_device_path("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_on_a_gpu_give_the_same_numbers():
    check_device_path("cuda")


def test_float32_maps_accumulate_in_float64():
    # Two million normals against one region: float32 counts would be off in the seventh digit.
    rng = np.random.default_rng(0)
    scores, masks = rng.random((2, 1024, 1024), dtype=np.float32), np.zeros((2, 1024, 1024), bool)
    masks[0, :300, :300] = True
    expected = roc_auc_score(masks.ravel(), scores.ravel())
    assert metrics.pixel_auroc(scores, masks) == pytest.approx(expected, abs=1e-13)
    assert metrics.au_pro(scores, masks, 1.0) == pytest.approx(expected, abs=1e-13)


# Errors

GOOD = noise_maps()


@pytest.mark.parametrize(
    "measure", [metrics.au_pro, metrics.pixel_auroc, metrics.pixel_ap, metrics.pro_curve]
)
@pytest.mark.parametrize(
    ("scores", "masks", "error", "words"),
    [
        (np.where(GOOD[1], np.nan, GOOD[0]), GOOD[1], metrics.NonFiniteScoreError, r"score_maps\[1\]"),
        (np.where(GOOD[1], np.inf, GOOD[0]), GOOD[1], metrics.NonFiniteScoreError, "infinite"),
        (np.zeros((0, 4, 4)), np.zeros((0, 4, 4), bool), metrics.EmptyInputError, "empty"),
        (np.zeros((2, 0, 4)), np.zeros((2, 0, 4), bool), metrics.EmptyInputError, "empty"),
        (GOOD[0], np.zeros_like(GOOD[1]), metrics.NoDefectError, "at least one defect"),
        (GOOD[0], np.ones_like(GOOD[1]), metrics.NoNormalError, "at least one normal"),
        (GOOD[0], GOOD[1][:, :-1], metrics.ShapeError, r"\(6, 32, 32\) and \(6, 31, 32\)"),
        (GOOD[0][0], GOOD[1][0], metrics.ShapeError, r"\(N, H, W\)"),
        (GOOD[0][:, None], GOOD[1][:, None], metrics.ShapeError, r"\(N, H, W\)"),
        ((100 * GOOD[0]).astype(int), GOOD[1], metrics.ScoreTypeError, "int64"),
        (GOOD[0] > 0, GOOD[1], metrics.ScoreTypeError, "bool"),
        (torch.from_numpy(GOOD[0]).to(torch.int32), GOOD[1], metrics.ScoreTypeError, "int32"),
        (GOOD[0], 255 * GOOD[1].astype(np.uint8), metrics.MaskValueError, "masks > 0"),
        (GOOD[0], np.where(GOOD[1], np.nan, 0), metrics.MaskValueError, "only 0 and 1"),
        (GOOD[0], torch.from_numpy(0.5 * GOOD[1]), metrics.MaskValueError, "only 0 and 1"),
    ],
)
def test_pixel_input_that_defines_no_metric_is_refused_by_name(measure, scores, masks, error, words):
    with pytest.raises(error, match=words) as caught:
        measure(scores, masks)
    assert isinstance(caught.value, metrics.MetricInputError)


@pytest.mark.parametrize("measure", [metrics.image_auroc, metrics.image_ap, metrics.image_f1_max])
@pytest.mark.parametrize(
    ("scores", "labels", "error"),
    [
        ([0.1, float("nan")], [0, 1], metrics.NonFiniteScoreError),
        ([0.1, float("-inf")], [0, 1], metrics.NonFiniteScoreError),
        (np.zeros(0), [], metrics.EmptyInputError),
        ([0.1, 0.2], [0, 0], metrics.NoDefectError),
        ([0.1, 0.2], [1, 1], metrics.NoNormalError),
        ([0.1, 0.2], [0, 1, 1], metrics.ShapeError),
        ([[0.1, 0.2]], [[0, 1]], metrics.ShapeError),
        ([1, 2], [0, 1], metrics.ScoreTypeError),
        ([0.1, 0.2], [0, 2], metrics.MaskValueError),
        ([0.1, 0.2], ["good", "bad"], metrics.MaskValueError),
    ],
)
def test_image_input_that_defines_no_metric_is_refused_by_name(measure, scores, labels, error):
    with pytest.raises(error):
        measure(scores, labels)


@pytest.mark.parametrize("limit", [0, -0.1, 1.5, float("nan")])
def test_a_limit_outside_zero_and_one_is_refused(limit):
    with pytest.raises(ValueError, match="fpr_limit"):
        metrics.au_pro(*GOOD, limit)
    with pytest.raises(ValueError, match="fpr_limit"):
        metrics.PixelMetrics(fpr_limit=limit)


def test_a_stream_without_maps_or_with_mixed_types_is_refused_and_a_bad_update_adds_nothing():
    stream = metrics.PixelMetrics()  # GOOD begins with a normal map
    with pytest.raises(metrics.EmptyInputError, match="update"):
        stream.compute()
    stream.update(GOOD[0][:1].astype(np.float32), GOOD[1][:1])
    with pytest.raises(metrics.NoDefectError):
        stream.compute()
    stream.update(GOOD[0].astype(np.float32), GOOD[1])
    before = stream.compute()
    with pytest.raises(metrics.ScoreTypeError, match="float32 on cpu before and are float64"):
        stream.update(*GOOD)
    spoilt = GOOD[0].astype(np.float32)
    spoilt[-1, -1, -1] = np.nan
    with pytest.raises(metrics.NonFiniteScoreError):
        stream.update(spoilt, GOOD[1])
    assert stream.compute() == before
    with pytest.raises(ValueError, match="run_length"):
        metrics.PixelMetrics(run_length=0)


def test_many_regions_beside_a_large_one_overflow_nothing():
    """Their number times its pixels is more than a 32-bit integer holds."""
    mask = np.zeros((512, 512), bool)
    mask[:256, :] = True
    mask[258::2, ::2] = True
    regions = scipy.ndimage.label(mask, structure=np.ones((3, 3)))[1]
    assert regions * 256 * 512 >= 2**31
    scores = mask.astype(np.float32)
    scores[:256, :256] = 0.5
    assert metrics.au_pro(scores[None], mask[None]) == pytest.approx(1)
    levels = metrics.rank_pixels(scores[None], mask[None])
    half = (regions - 1 + 0.5) / regions
    assert np.cumsum(levels.region_share)[0] == pytest.approx(half)


# Memory

PEAK = """
import numpy as np
from ssae import metrics

def peak():
    # Not resource.getrusage: a child's peak there starts at that of its parent.
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

rng = np.random.default_rng(0)
noise, mask = rng.standard_normal((512, 512), dtype=np.float32), np.zeros((512, 512), bool)
mask[50:130, 200:260] = True

def one_map(index):
    # Shifted a little from map to map, so that the data set is not a few values many times.
    scores = noise + np.float32(0.1 * rng.random())
    return (scores + mask, mask) if index % 2 else (scores, np.zeros_like(mask))

metrics.au_pro(*(part[None] for part in one_map(1)))
"""

ONE_SHOT = """
scores, masks = np.empty((160, 512, 512), np.float32), np.empty((160, 512, 512), bool)
for index in range(160):
    scores[index], masks[index] = one_map(index)
before = peak()
value = metrics.au_pro(scores, masks)
print(peak() - before, value)
"""

STREAMED = """
stream = metrics.PixelMetrics()
for index in range(1602):
    stream.update(*one_map(index))
report = stream.compute()
assert report.normal_pixels + report.defect_pixels >= 419_900_000
print(peak(), report.au_pro)
"""


def peak_mebibytes(script):
    done = subprocess.run([sys.executable, "-c", PEAK + script], capture_output=True, text=True, check=True)
    used, value = map(float, done.stdout.split())
    assert 0.3 < value < 0.7
    return used


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_au_pro_of_42_megapixels_needs_less_than_one_gibibyte_beyond_its_input():
    assert peak_mebibytes(ONE_SHOT) < 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_420_megapixels_stream_through_less_than_four_gibibytes():
    assert peak_mebibytes(STREAMED) < 4096
