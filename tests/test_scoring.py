"""Heat maps, image scores and thresholds against closed forms and independent code."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ssae.scoring import (
    Calibration,
    ScoringSettings,
    box_filter,
    difference_map,
    false_alarms,
    heat_map,
    image_scores,
    threshold,
)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_difference_map_averages_squares_over_channels():
    a, b = rand(2, 3, 4, 5), rand(2, 3, 4, 5, seed=1)
    expected = np.mean((a.numpy() - b.numpy()) ** 2, axis=1)
    np.testing.assert_allclose(difference_map(a, b).numpy(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="equal shape"):
        difference_map(a, b[:1])


@settings(max_examples=20, deadline=None)
@given(kernel=st.sampled_from([1, 3, 5, 7]), passes=st.integers(0, 4), seed=st.integers(0, 1000))
def test_box_filter_away_from_the_border_is_scipy_s(kernel, passes, seed):
    maps = rand(1, 40, 44, seed=seed)
    expected = maps[0].numpy().astype(np.float64)
    for _ in range(passes):
        expected = ndimage.uniform_filter(expected, kernel, mode="reflect")
    reach = passes * (kernel // 2)
    inner = slice(reach, -reach or None)
    ours = box_filter(maps, kernel, passes)[0].numpy()
    np.testing.assert_allclose(ours[inner, inner], expected[inner, inner], rtol=1e-4, atol=1e-6)


def test_box_filter_keeps_a_constant_up_to_the_border():
    torch.testing.assert_close(box_filter(torch.full((1, 9, 12), 0.7), 5, 3), torch.full((1, 9, 12), 0.7))


def test_box_filter_spreads_a_point_as_far_as_the_formula_says():
    maps = torch.zeros(1, 101, 101)
    maps[0, 50, 50] = 1
    smooth = box_filter(maps, 7, 4)[0].double()
    offset = (torch.arange(101) - 50).double()
    torch.testing.assert_close(
        (smooth.sum(1) * offset**2).sum(),
        torch.tensor(4 * (7**2 - 1) / 12, dtype=torch.float64),
        rtol=1e-4,
        atol=0,
    )


def test_image_scores():
    heat = torch.arange(200.0).view(2, 10, 10)
    assert image_scores(heat, ScoringSettings(image_score="sum")).tolist() == [4950.0, 14950.0]
    assert image_scores(heat, ScoringSettings(image_score="max")).tolist() == [99.0, 199.0]
    assert image_scores(heat, ScoringSettings(image_score="top", top_share=0.03)).tolist() == [98.0, 198.0]


def test_heat_map_is_filter_of_difference():
    a, b = rand(2, 3, 16, 16), rand(2, 3, 16, 16, seed=1)
    s = ScoringSettings(kernel=3, passes=2)
    assert torch.equal(heat_map(a, b, s), box_filter(difference_map(a, b), 3, 2))


@settings(max_examples=30, deadline=None)
@given(scores=st.lists(st.floats(0, 1e3), min_size=1, max_size=200), level=st.floats(0.01, 0.999))
def test_quantile_threshold_leaves_at_most_the_rest_above(scores, level):
    limit = threshold(torch.tensor(scores, dtype=torch.float64), "quantile", level)
    assert limit in scores
    assert np.mean(np.array(scores) > limit) <= 1 - level + 1e-12
    smaller = [score for score in scores if score < limit]
    if smaller:
        assert np.mean(np.array(scores) > max(smaller)) > 1 - level - 1e-12, "a smaller limit would do"
    assert threshold(torch.tensor(scores, dtype=torch.float64), "max") == max(scores)


def test_sigma_threshold():
    assert threshold(torch.tensor([1.0, 3.0]), "sigma", 2) == pytest.approx(2 + 2 * 1)


@pytest.mark.parametrize("scores", [[], [float("nan")], [1.0, float("inf")]])
def test_threshold_refuses_what_is_no_score(scores):
    with pytest.raises(ValueError, match="finite"):
        threshold(torch.tensor(scores))


def test_settings_are_checked_and_follow_the_resolution():
    for change in ({"kernel": 4}, {"passes": -1}, {"image_score": "mean"}, {"top_share": 0.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            ScoringSettings(**change)
    with pytest.raises(ValueError, match="rule"):
        threshold(torch.ones(3), "median")
    assert [ScoringSettings.for_resolution(r).kernel for r in (32, 64, 128, 256, 512)] == [1, 3, 7, 15, 29]


def test_false_alarms_of_the_largest_score_match_simulation():
    """The share beyond the k-th largest of n uniform scores, against its exact interval."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20000, 12, generator=generator).sort(dim=1, descending=True).values
    for above in (0, 3):
        beyond = 1 - scores[:, above]
        told = false_alarms(12, above)
        assert float(beyond.mean()) == pytest.approx(told.expected, abs=3e-3)
        inside = (beyond > told.low) & (beyond < told.high)
        assert float(inside.float().mean()) == pytest.approx(0.95, abs=6e-3)


def test_false_alarms_in_closed_form():
    told = false_alarms(40, 0, confidence=0.9)
    assert told.high == pytest.approx(1 - 0.05 ** (1 / 40))
    assert told.low == pytest.approx(1 - 0.95 ** (1 / 40))
    with pytest.raises(ValueError, match="above"):
        false_alarms(5, 5)


def test_calibrated_thresholds_leave_the_asked_share_above():
    values = tuple(float(v) for v in torch.randperm(40, generator=torch.Generator().manual_seed(1)))
    calibration = Calibration(values, tuple(2 * v for v in values))
    for rate, above in ((0.0, 0), (0.05, 2), (0.06, 2), (0.5, 20)):
        image, pixel, told = calibration.thresholds(rate)
        assert sum(v > image for v in values) == above == told.above
        assert pixel == 2 * image
    with pytest.raises(ValueError, match="rate"):
        calibration.thresholds(1.0)
    with pytest.raises(ValueError, match="finite"):
        Calibration((float("nan"),), (0.0,)).thresholds()


def test_the_root_of_the_difference_is_filtered_where_it_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    images, repaired = torch.rand(2, 2, 3, 16, 16, generator=generator)
    settings = ScoringSettings(kernel=3, passes=2)
    root = heat_map(images, repaired, dataclasses.replace(settings, root=True))
    torch.testing.assert_close(root, box_filter(difference_map(images, repaired).sqrt(), 3, 2))
    assert not torch.allclose(root, heat_map(images, repaired, settings))
    # One grey level everywhere: the root of the mean square is that level.
    even = heat_map(images, images + 0.25, dataclasses.replace(settings, root=True))
    torch.testing.assert_close(even, torch.full_like(even, 0.25))
