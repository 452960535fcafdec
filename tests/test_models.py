"""Convolutional autoencoders: shapes, the place of every ingredient, errors."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssae.models import (
    PRESETS,
    ConvexCombination,
    ModelSettings,
    SDCAutoencoder,
    SDCLayer,
    Tiled,
    build,
    count_parameters,
    folded,
    tile_starts,
)

TINY = ModelSettings(
    channels=(4, 8), dilations=(1, 2), sdc_filters=4, sdc_layers=2, sdc_kernel=3, unshuffle=2
)


@pytest.mark.parametrize("skip", ["ccm", "none", "concat"])
@pytest.mark.parametrize("unshuffle", [1, 2])
def test_output_has_the_shape_of_the_input(skip, unshuffle):
    settings = dataclasses.replace(TINY, skip=skip, unshuffle=unshuffle)
    images = torch.rand(2, 3, 3 * settings.stride, 2 * settings.stride)
    assert SDCAutoencoder(settings)(images).shape == images.shape


def test_lite_has_about_half_a_million_parameters():
    assert 0.4e6 < count_parameters(build("lite")) < 0.6e6


def test_full_follows_the_paper_s_widths():
    # 15.6 M is what method notes give for six rates; five rates have a smaller neck.
    assert 10e6 < count_parameters(build("full")) < 16e6
    assert PRESETS["full"].dilations == (1, 2, 4, 8, 16)


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 63), (1, 1, 64, 64), (3, 64, 64)])
def test_a_shape_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"multiples of 8|expected images"):
        SDCAutoencoder(TINY)(torch.rand(shape))


def test_the_error_names_a_size_that_works():
    model = SDCAutoencoder(TINY)
    with pytest.raises(ValueError, match="resize or crop to 64 x 96"):
        model(torch.rand(1, 3, 62, 99))
    model(torch.rand(1, 3, 64, 96))


@pytest.mark.parametrize(
    "change", [{"sdc_kernel": 4}, {"ccm_kernel": 2}, {"skip": "add"}, {"channels": ()}, {"dilations": ()}]
)
def test_settings_that_make_no_model_are_refused(change):
    with pytest.raises(ValueError, match=r"odd|skip must|at least one"):
        dataclasses.replace(TINY, **change)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="lite, full"):
        build("huge")


def test_convex_combination_stays_between_its_inputs():
    module = ConvexCombination(4, 3).eval()
    skip, below = torch.randn(2, 2, 4, 8, 8)
    mixed = module(skip, below)
    assert bool(
        ((mixed >= torch.minimum(skip, below) - 1e-6) & (mixed <= torch.maximum(skip, below) + 1e-6)).all()
    )
    share = module.coefficients(skip, below)
    torch.testing.assert_close(mixed, share * skip + (1 - share) * below)


def test_sdc_layer_sees_as_far_as_its_largest_dilation():
    layer = SDCLayer(1, 1, (1, 8), 3).eval()
    image = torch.zeros(1, 1, 33, 33, requires_grad=True)
    layer.branches[1](image)[0, 0, 16, 16].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero().flatten().tolist()
    assert rows == [8, 16, 24]


def test_only_models_with_skips_have_parameters_in_them():
    # Without skips there is nothing to join, so nothing to learn there either.
    torch.manual_seed(0)
    with_skip = SDCAutoencoder(TINY).eval()
    assert sum("skips" in name for name, _ in with_skip.named_parameters()) > 0
    without = SDCAutoencoder(dataclasses.replace(TINY, skip="none"))
    assert sum("skips" in name for name, _ in without.named_parameters()) == 0


def test_image_skip_mixes_the_image_itself_with_the_decoded_one():
    torch.manual_seed(0)
    model = SDCAutoencoder(dataclasses.replace(TINY, image_skip=True)).eval()
    # A saturated coefficient near 1 must give the image back.
    model.image_skip.weigh[1].bias.data.fill_(50.0)
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(model(images), images)


@pytest.mark.parametrize("change", [{}, {"image_skip": True}, {"image_skip": True, "image_guide": True}])
@pytest.mark.parametrize("skip", ["ccm", "none", "concat"])
def test_half_precision_gives_the_same_images_to_its_digits(skip, change):
    # Under autocast the image stays float32 while the features are bfloat16: they must mix all the same.
    torch.manual_seed(0)
    model = SDCAutoencoder(dataclasses.replace(TINY, skip=skip, **change)).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
    half.float().square().mean().backward()
    torch.testing.assert_close(half.float(), model(images), atol=0.03, rtol=0.03)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_the_guide_moves_the_coefficients_where_two_images_do_not():
    module = ConvexCombination(4, 1, guide_channels=2).eval()
    skip, below = torch.randn(2, 1, 4, 8, 8)
    guides = torch.randn(2, 1, 2, 8, 8)
    first, second = (module.coefficients(skip, below, guide) for guide in guides)
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="image_guide needs image_skip"):
        dataclasses.replace(TINY, image_guide=True, image_skip=False)


@pytest.mark.parametrize("skip", ["ccm", "none", "concat"])
def test_folded_is_the_same_function_without_its_norms(skip):
    settings = ModelSettings(
        channels=(6, 8), dilations=(1, 2), sdc_filters=4, sdc_layers=2, sdc_kernel=3, skip=skip, unshuffle=2,
        image_skip=True, image_guide=True,
    )  # fmt: skip
    model = build(settings)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in ((module.running_mean, -1), (module.running_var, 0.5), (module.weight, 0.5)):
                values.data.uniform_(low, 2, generator=generator)
            module.bias.data.uniform_(-1, 1, generator=generator)
    images = torch.rand(3, 3, 32, 48, generator=generator)
    with pytest.raises(ValueError, match=r"model\.eval"):
        folded(model)
    before = {name: value.clone() for name, value in model.eval().state_dict().items()}
    lean = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in lean.modules())
    with torch.no_grad():
        torch.testing.assert_close(lean(images), model(images), rtol=1e-4, atol=1e-5)
    # The model itself stays as it was, and trainable.
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_no_model_of_the_book_is_folded_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    images = torch.rand(3, 1, 2, 2)
    assert torch.equal(folded(model)(images), model(images))


@given(length=st.integers(8, 300), side=st.integers(1, 8))
def test_tiles_cover_a_length_and_overlap_by_half(length, side):
    starts = tile_starts(length, side)
    assert starts[0] == 0
    assert starts[-1] == length - side
    assert all(0 < after - before <= max(1, side // 2) for before, after in pairwise(starts))


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (33, 50)])
def test_tiles_of_a_map_that_sees_single_pixels_are_the_map(size):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    pointwise = nn.Conv2d(3, 3, 1).double()
    with torch.no_grad():
        torch.testing.assert_close(Tiled(pointwise, 16)(images), pointwise(images))


def test_a_tiled_model_meets_nothing_but_tiles():
    met = []

    class Watched(nn.Module):
        def forward(self, images):
            met.append(tuple(images.shape[-2:]))
            return images

    images = torch.rand(1, 3, 40, 24)
    torch.testing.assert_close(Tiled(Watched(), 16)(images), images)
    assert set(met) == {(16, 16)}
    with pytest.raises(ValueError, match="less than that of a tile, 16"):
        Tiled(Watched(), 16)(images[..., :8])
