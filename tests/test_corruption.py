"""Partial corruption: what it must keep, what it must change, and that a seed decides all of it."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.corruption import (
    FILLS,
    CorruptionSettings,
    PartialCorruption,
    blob_masks,
    blob_templates,
    field_at,
    octagons,
    paste_affine,
    procedural_textures,
    read_images,
    smooth_field,
    template_pixels,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=6, size=48):
    return torch.rand(count, 3, size, size, generator=generator(7))


def corruption(**changes):
    return PartialCorruption(
        dataclasses.replace(CorruptionSettings(), **changes), procedural_textures(8, 48, generator())
    )


def only(fill):
    return tuple(float(name == fill) for name in FILLS)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.sampled_from([32, 48]), width=st.sampled_from([32, 64]))
def test_shapes_ranges_and_the_untouched_part(seed, height, width):
    clean = torch.rand(4, 3, height, width, generator=generator(seed))
    corrupted, mask = corruption()(clean, generator(seed))
    assert corrupted.shape == clean.shape
    assert mask.shape == (4, 1, height, width)
    assert float(mask.min()) >= 0
    assert float(mask.max()) <= 1
    assert float(corrupted.min()) >= -1e-6
    assert float(corrupted.max()) <= 1 + 1e-6
    outside = (mask == 0).expand_as(clean)
    assert torch.equal(corrupted[outside], clean[outside])


def test_the_same_seed_gives_the_same_batch_and_another_seed_another():
    clean, corrupt = images(), corruption()
    first, again, other = (corrupt(clean, generator(s)) for s in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("fill", FILLS)
def test_every_fill_changes_the_image_under_its_mask(fill):
    clean = images()
    corrupt = corruption(
        fills=only(fill), clean_share=0.0, opacity=(1.0, 1.0), side=(0.3, 0.5), elastic=(0.1, 0.1)
    )
    corrupted, mask = corrupt(clean, generator())
    change = (corrupted - clean).abs().mean(1, keepdim=True)
    assert float(change[mask > 0.9].mean()) > 0.05
    assert float(change[mask == 0].max()) == 0


def neighbours_kept(upright):
    """Whether each fill from elsewhere has, in every pixel, the pixel of one image at one shift."""
    ramp = torch.arange(64.0) / 64
    down, across = torch.meshgrid(ramp, ramp, indexing="ij")
    clean = torch.stack([down, across, torch.zeros(64, 64)]).expand(40, 3, 64, 64).contiguous()
    filled = corruption(fills=only("elsewhere"), upright=upright).fill(clean, generator())
    steps = [filled[:, 0].diff(dim=1).abs(), filled[:, 1].diff(dim=2).abs()]
    # The image is mirrored at its border, so a step is one pixel's either way, or less at the fold.
    return [
        torch.allclose(a.median(), b.median(), atol=1e-6)
        and bool((abs(64 * a - 1) < 1e-3).float().mean() > 0.9)
        for a, b in zip(*steps, strict=True)
    ]


def test_upright_fills_are_moved_and_neither_turned_nor_scaled():
    assert all(neighbours_kept(1.0))
    assert not any(neighbours_kept(0.0))
    assert 10 <= sum(neighbours_kept(0.5)) <= 30


def test_a_stain_of_full_opacity_has_one_colour():
    clean = images()
    corrupt = corruption(
        fills=only("stain"), clean_share=0.0, opacity=(1.0, 1.0), blobs=(1, 1), side=(0.5, 0.5)
    )
    corrupted, mask = corrupt(clean, generator())
    for picture, where in zip(corrupted, mask[:, 0] == 1, strict=True):
        inside = picture[:, where]
        assert inside.shape[1] > 20
        assert float(inside.std(1).max()) < 1e-6


def test_opacity_scales_the_change():
    clean = images()
    full, mask = corruption(opacity=(1.0, 1.0))(clean, generator())
    half, same = corruption(opacity=(0.5, 0.5))(clean, generator())
    assert torch.equal(mask, same)
    torch.testing.assert_close(half - clean, 0.5 * (full - clean), atol=1e-6, rtol=0)


def test_clean_share_is_the_share_of_empty_masks():
    masks = blob_masks(
        2000, (16, 16), dataclasses.replace(CorruptionSettings(), clean_share=0.3), generator()
    )
    empty = float((masks.flatten(1).amax(1) == 0).float().mean())
    # Small blobs at the border can miss a 16 x 16 grid, which only adds to the empty ones.
    assert 0.27 < empty < 0.42


def test_templates_fade_to_zero_at_their_border():
    templates = blob_templates(64, CorruptionSettings(), generator())
    border = torch.cat(
        [templates[..., 0, :], templates[..., -1, :], templates[..., :, 0], templates[..., :, -1]], -1
    )
    assert float(border.abs().max()) == 0
    assert float(templates[:, 0, 24, 24].median()) == 1
    soft = (templates > 0) & (templates < 1)
    assert 0.1 < float(soft.float().mean()) < 0.6


def test_blob_area_grows_with_side():
    def area(side):
        return float(
            blob_masks(
                200,
                (64, 64),
                dataclasses.replace(CorruptionSettings(), side=(side, side), clean_share=0.0),
                generator(),
            ).mean()
        )

    assert area(0.1) < area(0.2) < area(0.4)


def test_grey_share_takes_the_colour_of_foreign_fills():
    clean = images().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    corrupt = corruption(fills=(0, 0, 0.5, 0.5), grey_share=1.0, clean_share=0.0)
    corrupted, _ = corrupt(clean, generator())
    assert float((corrupted - corrupted.mean(1, keepdim=True)).abs().max()) < 1e-6


def test_textures_are_images_and_differ():
    textures = procedural_textures(16, 32, generator())
    assert textures.shape == (16, 3, 32, 32)
    assert float(textures.min()) >= 0
    assert float(textures.max()) <= 1
    distance = torch.cdist(textures.flatten(1), textures.flatten(1)) + torch.eye(16) * 1e9
    assert float(distance.min()) > 1
    with pytest.raises(ValueError, match="count"):
        procedural_textures(0, 32, generator())


def test_texture_fill_without_textures_is_refused():
    with pytest.raises(ValueError, match="procedural_textures"):
        PartialCorruption()
    PartialCorruption(CorruptionSettings(fills=(1.0, 0.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    "change",
    [
        {"blobs": (0, 2)},
        {"side": (0.4, 0.1)},
        {"opacity": (0.5, 1.5)},
        {"clean_share": 2.0},
        {"upright": -0.1},
        {"fills": (1.0, 0.0)},
        {"fills": (0.0, 0.0, 0.0, 0.0)},
        {"elongation": 0.5},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        CorruptionSettings(**change)


def test_scattered_reading_is_grid_sample():
    """Also far outside the image, where it is reflected several times over."""
    pictures = torch.rand(5, 3, 17, 23, generator=generator())
    index = torch.randint(5, (400,), generator=generator(1))
    points = 8 * torch.rand(400, 2, generator=generator(2)) - 4
    expected = torch.nn.functional.grid_sample(
        pictures[index], points.view(400, 1, 1, 2), padding_mode="reflection", align_corners=False
    )[:, :, 0, 0].T
    read = read_images(pictures, index, points[:, 1], points[:, 0])
    torch.testing.assert_close(read, expected, atol=2e-5, rtol=0)


def test_a_field_at_some_pixels_is_the_field_there():
    """`smooth_field` draws its coarse field first, so the same seed gives the same one to both."""
    size, cells = (20, 31), 5
    whole = smooth_field(4, size, cells, generator(3))
    coarse = torch.randn((4, 2, cells, cells), generator=generator(3))
    expected = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)
    index, y, x = torch.ones(4, *size).nonzero(as_tuple=True)
    scattered = field_at(coarse, size, index, y, x).view(2, 4, *size).transpose(0, 1)
    torch.testing.assert_close(scattered, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(48, 48), (33, 70)])
def test_blobs_are_templates_pasted_by_grid_sample(size):
    affine = paste_affine(
        2 * torch.rand(30, 2, generator=generator(1)) - 1,
        0.05 + 0.6 * torch.rand(30, 2, generator=generator(2)),
        generator(),
    )
    templates = blob_templates(30, CorruptionSettings(), generator(4))
    grid = torch.nn.functional.affine_grid(affine, [30, 1, *size], align_corners=False)
    expected = torch.nn.functional.grid_sample(templates, grid, align_corners=False)
    template, y, x, down, across = template_pixels(affine, size)
    pasted = torch.zeros_like(expected)
    pasted[template, 0, y, x] = read_images(templates, template, down, across)[0]
    torch.testing.assert_close(pasted, expected, atol=1e-4, rtol=0)


def test_outside_its_octagon_a_template_is_0():
    affine = paste_affine(torch.zeros(30, 2), torch.full((30, 2), 0.6), generator())
    templates = blob_templates(30, CorruptionSettings(warp=0.3), generator(4))

    def pasted(octagon):
        template, y, x, down, across = template_pixels(affine, (64, 64), octagon)
        masks = torch.zeros(30, 64, 64)
        masks[template, y, x] = read_images(templates, template, down, across)[0]
        return masks, len(template)

    (whole, every), (within, fewer) = pasted(None), pasted(octagons(templates))
    assert torch.equal(whole, within)
    assert fewer < 0.9 * every


def test_the_change_is_the_opacity_times_the_dense_fill():
    """The listed pixels alone give what the whole fill, blended under the mask, would give."""
    clean, corrupt = images(), corruption(opacity=(1.0, 1.0))
    corrupted, mask = corrupt(clean, generator(5))
    draws = generator(5)
    blob_masks(len(clean), clean.shape[-2:], corrupt.settings, draws)
    torch.rand(len(clean), generator=draws)  # the opacities
    dense = torch.lerp(clean, corrupt.fill(clean, draws), mask)
    torch.testing.assert_close(corrupted, dense, atol=1e-5, rtol=0)


def test_no_blob_and_channels_last_and_grey_images():
    clean = images().to(memory_format=torch.channels_last)
    before = clean.clone()
    untouched, mask = corruption(clean_share=1.0)(clean, generator())
    assert torch.equal(untouched, clean)
    assert float(mask.max()) == 0
    first, _ = corruption()(clean, generator(2))
    second, _ = corruption()(clean.contiguous(), generator(2))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    assert torch.equal(clean, before)
    grey = PartialCorruption(
        CorruptionSettings(), procedural_textures(4, 40, generator()).mean(1, keepdim=True)
    )
    corrupted, _ = grey(images()[:, :1], generator())
    assert corrupted.shape == (6, 1, 48, 48)
