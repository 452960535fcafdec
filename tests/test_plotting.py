"""The drawings shared by the chapters: what they compute and what they refuse."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ssae import plotting

SVG = {"svg": "http://www.w3.org/2000/svg"}


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


SPIRAL = torch.tensor([[0.6, -0.5], [0.5, 0.6]])  # f(x) = SPIRAL x turns and shrinks


def spiral(frames: int, points: torch.Tensor) -> torch.Tensor:
    return torch.stack([points @ torch.linalg.matrix_power(SPIRAL, k).T for k in range(frames)])


def test_animated_points_start_and_end_where_the_trajectories_do():
    points = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    projected = torch.nn.functional.normalize(points, dim=1)
    trajectories = {
        "projection": torch.stack([points, *[projected] * 5]),
        "spiral": spiral(6, points),
    }
    animation = plotting.animate_iterates(
        trajectories, title="t", description="d", ground=torch.rand(20, 2), counts=(0, 1, 2, 4, 8, 16)
    )
    root = ElementTree.fromstring(animation.svg)
    panels = root.findall("svg:g", SVG)
    assert len(panels) == 2
    style = root.findtext("svg:style", namespaces=SVG)
    drawn, meant = [], []
    for panel, places in zip(panels, trajectories.values(), strict=True):
        circles = panel.findall(".//svg:circle", SVG)
        assert len(circles) == len(points)
        for index, circle in enumerate(circles):
            end = np.array([float(circle.get("cx")), float(circle.get("cy"))])
            label = circle.get("class").split()[-1]
            keyframes = re.search(rf"@keyframes {animation.name}-{label}\{{(.*?\}})\}}", style)[1]
            stops = re.findall(r"([^{}]+)\{translate:(\S+) (\S+)\}", keyframes)
            assert stops[0][0].startswith("0%")
            assert stops[-1][0].endswith("100%")
            offsets = np.array(
                [[float(x.removesuffix("px")), float(y.removesuffix("px"))] for _, x, y in stops]
            )
            drawn += [end + offsets[0], end + offsets[-1]]
            meant += [places[0, index].numpy(), places[-1, index].numpy()]
            assert len(stops) == (2 if places is trajectories["projection"] else 6)
    # One scale for both panels and both axes, with y upwards.
    drawn, meant = np.array(drawn), np.array(meant)
    across, up = np.polyfit(meant[:, 0], drawn[:, 0], 1), np.polyfit(meant[:, 1], drawn[:, 1], 1)
    assert across[0] == pytest.approx(-up[0], rel=0.01)
    assert np.abs(np.polyval(across, meant[:, 0]) - drawn[:, 0]).max() < 0.15
    assert np.abs(np.polyval(up, meant[:, 1]) - drawn[:, 1]).max() < 0.15
    assert [text.text for text in root.findall("svg:text", SVG)][-1] == "applied 16 times"


def test_an_animation_is_still_by_default_and_moves_only_where_that_is_welcome():
    animation = plotting.animate_iterates({"a": spiral(4, torch.eye(2))}, title="t", description="d")
    style = ElementTree.fromstring(animation.svg).findtext("svg:style", namespaces=SVG)
    still, welcome, moving = style.partition("@media screen and (prefers-reduced-motion:no-preference){")
    assert welcome
    assert "animation" not in still
    assert "@keyframes" in moving
    # The box that pauses it is for the same readers.
    assert f".{animation.name} input,.{animation.name} label{{display:none}}" in still
    shown = animation._repr_html_()
    box = ElementTree.fromstring(shown).find("input")
    assert f"#{box.get('id')}:checked~svg .m{{animation-play-state:paused}}" in moving
    assert "<script" not in shown
    assert re.findall(r"https?://[^\"]*", shown) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    # Without the rules of motion there is the whole of every path, and one line of the counter.
    trails = [
        path
        for path in ElementTree.fromstring(animation.svg).findall(".//svg:path", SVG)
        if path.get("class")
    ]
    assert len(trails) == 3
    assert all(path.get("opacity") is None for path in trails)
    counters = ElementTree.fromstring(animation.svg).findall("svg:text", SVG)
    assert [text.get("opacity") for text in counters] == ["0", "0", "0", None]


def test_an_animation_says_what_it_shows():
    animation = plotting.animate_iterates(
        {"<f> & g": spiral(3, torch.eye(2))}, title='A "map" <f>', description="a & b < c"
    )
    root = ElementTree.fromstring(animation.svg)
    assert root.get("role") == "img"
    said = {
        element.get("id"): element.text
        for element in (*root.iter(f"{{{SVG['svg']}}}title"), *root.iter(f"{{{SVG['svg']}}}desc"))
    }
    assert [said[name] for name in root.get("aria-labelledby").split()] == ['A "map" <f>', "a & b < c"]
    assert root.find("svg:g/svg:text", SVG).text == "<f> & g"
    assert repr(animation) == '<Animation: A "map" <f>>'


def test_animations_on_one_page_have_names_of_their_own():
    def name(points, **options):
        return plotting.animate_iterates({"a": points}, title="t", description="d", **options).name

    points = spiral(3, torch.eye(2))
    names = [name(points), name(points + torch.eye(2)), name(points, ground=torch.eye(2) / 2)]
    assert len(set(names)) == 3
    assert name(points) == names[0]


@pytest.mark.parametrize(
    ("trajectories", "options", "fault"),
    [
        ({}, {}, "no trajectory"),
        ({"a": np.zeros((3, 4, 3))}, {}, r"\(3, 4, 3\)"),
        ({"a": np.zeros((3, 4, 2)), "b": np.zeros((2, 4, 2))}, {}, "'b'"),
        ({"a": np.full((3, 4, 2), np.inf)}, {}, "not finite"),
        ({"a": np.zeros((3, 4, 2))}, {"counts": (0, 1)}, "2 counts for 3 frames"),
        ({"a": np.zeros((3, 4, 2))}, {"colours": ()}, "0 colours"),
        ({"a": np.zeros((3, 4, 2))}, {"ground": np.zeros(4)}, r"\(4,\)"),
    ],
)
def test_animate_iterates_refuses(trajectories, options, fault):
    with pytest.raises(ValueError, match=fault):
        plotting.animate_iterates(trajectories, title="t", description="d", **options)
