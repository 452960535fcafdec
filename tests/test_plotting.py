"""The drawings shared by the chapters: what they compute and what they refuse."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ssae import plotting


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")
    matplotlib.rcdefaults()


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((3, 8, 6), (8, 6, 3)),
        ((1, 8, 6), (8, 6)),
        ((8, 6), (8, 6)),
        ((8, 6, 3), (8, 6, 3)),
        ((8, 6, 1), (8, 6)),
    ],
)
def test_as_image_takes_every_layout(shape, drawn):
    assert plotting.as_image(torch.rand(shape)).shape == drawn
    assert plotting.as_image(np.random.default_rng(0).random(shape)).shape == drawn


def test_as_image_keeps_pixels_in_place():
    image = torch.arange(3 * 4 * 5, dtype=torch.float32).reshape(3, 4, 5)
    assert plotting.as_image(image)[2, 3, 1] == image[1, 2, 3]


def test_as_image_refuses_a_batch():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\)"):
        plotting.as_image(np.zeros((2, 3, 4, 4)))


def test_overlay_leaves_the_image_where_the_score_is_lowest_and_covers_it_where_it_is_highest():
    image = np.full((4, 4), 0.5)
    heat = np.zeros((4, 4))
    heat[1, 2] = 7.0
    blended = plotting.overlay(image, heat, opacity=1.0)
    assert np.allclose(blended[0, 0], 0.5)
    assert np.allclose(blended[1, 2], matplotlib.colormaps[plotting.HEAT](1.0)[:3])


def test_overlay_of_a_constant_map_is_the_image():
    image = np.random.default_rng(0).random((3, 5, 5))
    assert np.allclose(plotting.overlay(image, np.full((5, 5), 2.0)), plotting.as_image(image))


def test_overlay_with_common_limits_is_comparable():
    image, weak, strong = np.zeros((2, 2)), np.full((2, 2), 0.5), np.full((2, 2), 1.0)
    limits = (0.0, 1.0)
    assert (
        plotting.overlay(image, weak, limits=limits).sum()
        < plotting.overlay(image, strong, limits=limits).sum()
    )


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match="resize"):
        plotting.overlay(np.zeros((4, 4)), np.zeros((2, 2)))


def test_palette_is_told_apart_by_lightness_or_hue_in_every_colour_vision():
    """Simulated protanopia, deuteranopia and tritanopia (Machado 2009) keep the main colours apart."""
    machado = {
        "protan": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deutan": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "tritan": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }
    colour = pytest.importorskip("skimage.color")
    names = ["normal", "anomaly", "projection", "accent", "ink"]
    rgb = np.array([matplotlib.colors.to_rgb(plotting.PALETTE[name]) for name in names])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for kind, matrix in machado.items():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1)
        srgb = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = colour.rgb2lab(srgb[None])[0]
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 100 * np.eye(len(names))
        assert distance.min() > 15, (kind, distance.round(1))


def test_show_images_draws_one_panel_for_each_image_and_outlines_masks():
    mask = np.zeros((6, 6))
    mask[2:4, 2:4] = 1
    figure = plotting.show_images(
        torch.rand(3, 3, 6, 6), ["a", "b", "c"], masks=[None, mask, np.zeros((6, 6))]
    )
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1]
    assert [bool(axes.collections) for axes in figure.axes] == [False, True, False]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]


def test_show_images_in_rows_leaves_the_rest_empty():
    figure = plotting.show_images(torch.rand(5, 1, 4, 4), columns=3)
    assert [len(axes.images) for axes in figure.axes] == [1] * 5 + [0]


@pytest.mark.parametrize("titles", [["one"], ["one", "two", "three", "four"]])
def test_show_images_refuses_a_wrong_number_of_titles(titles):
    with pytest.raises(ValueError, match="titles"):
        plotting.show_images(torch.rand(3, 1, 4, 4), titles)


def test_show_images_refuses_nothing():
    with pytest.raises(ValueError, match="no image"):
        plotting.show_images([])


def test_show_heat_maps_has_two_rows_on_one_scale():
    figure = plotting.show_heat_maps(torch.rand(4, 3, 5, 5), torch.rand(4, 5, 5), titles=list("abcd"))
    assert len(figure.axes) == 8
    with pytest.raises(ValueError, match="4 images but 3"):
        plotting.show_heat_maps(torch.rand(4, 3, 5, 5), torch.rand(3, 5, 5))


def test_show_scores_draws_every_score():
    _, axes = plt.subplots()
    plotting.show_scores(axes, torch.rand(7), torch.rand(5) + 1, threshold=0.9)
    assert sorted(len(points.get_offsets()) for points in axes.collections) == [5, 7]


def test_use_style_sets_the_palette_and_can_be_undone():
    plotting.use_style()
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    assert colours[0] == plotting.PALETTE["normal"]
    assert colours[1] == plotting.PALETTE["anomaly"]
    matplotlib.rcdefaults()
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] != colours
