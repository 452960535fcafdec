"""What the corruptions of vectors promise: where they change, by how much, and what they draw from."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssae.signals import BlockCorruption, WindowCorruption

CORRUPTIONS = [WindowCorruption(), BlockCorruption()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), which=st.sampled_from(CORRUPTIONS), double=st.booleans())
def test_nothing_changes_outside_a_binary_mask(seed: int, which: Callable, double: bool) -> None:
    dtype = torch.float64 if double else torch.float32
    clean = torch.rand(16, 64, generator=generator(seed), dtype=dtype)
    before = clean.clone()
    corrupted, mask = which(clean, generator(seed))
    assert torch.equal(clean, before)
    assert corrupted.dtype == mask.dtype == dtype
    assert corrupted.shape == mask.shape == clean.shape
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(corrupted[mask == 0], clean[mask == 0])
    again, _ = which(clean, generator(seed))
    assert torch.equal(corrupted, again)


@given(low=st.integers(1, 30), extra=st.integers(0, 10), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_window_is_one_run_of_allowed_length(low: int, extra: int, seed: int) -> None:
    _, mask = WindowCorruption(length=(low, low + extra))(torch.zeros(20, 40), generator(seed))
    lengths = mask.sum(1)
    assert ((lengths >= low) & (lengths <= low + extra)).all()
    rises = (mask.diff(dim=1, prepend=torch.zeros(20, 1)) == 1).sum(1)
    assert (rises == 1).all()


def test_every_length_and_the_first_and_last_place_occur() -> None:
    _, mask = WindowCorruption(length=(2, 4))(torch.zeros(2000, 8), generator())
    assert mask.sum(1).unique().tolist() == [2, 3, 4]
    assert mask[:, 0].any()
    assert mask[:, -1].any()


def rectangle(mask: Tensor) -> Tensor:
    rows, columns = mask.any(1), mask.any(0)
    return rows[:, None] & columns[None, :]


def test_the_block_is_a_rectangle_of_allowed_sides() -> None:
    _, mask = BlockCorruption(side=(2, 5))(torch.zeros(500, 64), generator())
    sides = set()
    for image in mask.view(-1, 8, 8).bool():
        assert torch.equal(image, rectangle(image))
        sides |= {int(image.any(1).sum()), int(image.any(0).sum())}
    assert sides == {2, 3, 4, 5}


@pytest.mark.parametrize("which", CORRUPTIONS)
def test_opacity_is_the_share_of_the_fill(which: WindowCorruption | BlockCorruption) -> None:
    clean = torch.rand(50, 64, generator=generator(), dtype=torch.float64)
    full, mask = type(which)(opacity=(1.0, 1.0))(clean, generator(1))
    half, _ = type(which)(opacity=(0.5, 0.5))(clean, generator(1))
    torch.testing.assert_close(half, (clean + full) / 2)
    none, _ = type(which)(opacity=(0.0, 0.0))(clean, generator(1))
    torch.testing.assert_close(none, clean)
    assert mask.any()


@pytest.mark.parametrize("fill", ["constant", "white", "smooth"])
def test_fills_have_the_stated_mean_deviation_and_smoothness(fill: str) -> None:
    corruption = WindowCorruption(length=(64, 64), opacity=(1, 1), fills=(fill,), centre=2.0, scale=0.5)
    filled, _ = corruption(torch.zeros(20_000, 64), generator())
    torch.testing.assert_close(filled.mean().item(), 2.0, rtol=0, atol=0.02)
    torch.testing.assert_close(filled.std().item(), 0.5, rtol=0.02, atol=0)
    centred = filled - 2
    neighbours = ((centred[:, 1:] * centred[:, :-1]).mean() / centred.square().mean()).item()
    # Gaussian smoothing of deviation s gives neighbours the correlation exp(-1 / (4 s^2)).
    expected = {"constant": 1.0, "white": 0.0, "smooth": 0.9394}[fill]
    assert neighbours == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("which", [WindowCorruption, BlockCorruption])
def test_the_clean_share_stays_clean(which: type) -> None:
    clean = torch.rand(4000, 64, generator=generator())
    corrupted, mask = which(clean_share=0.3)(clean, generator())
    untouched = ~mask.any(1)
    assert untouched.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(corrupted[untouched], clean[untouched])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="length is"):
        WindowCorruption(length=(5, 3))
    with pytest.raises(ValueError, match="opacity is"):
        BlockCorruption(opacity=(0.5, 1.2))
    with pytest.raises(ValueError, match="choose among constant, white, smooth"):
        WindowCorruption(fills=("pink",))  # type: ignore[arg-type]
    for wrong in ({"smoothing": 0.0}, {"scale": -0.1}, {"smoothing": math.nan}):
        with pytest.raises(ValueError, match="smoothing must be positive and scale not negative"):
            WindowCorruption(**wrong)
    with pytest.raises(ValueError, match="clean has length 10"):
        WindowCorruption()(torch.zeros(1, 10), generator())
    with pytest.raises(ValueError, match="square image of side 4"):
        BlockCorruption()(torch.zeros(1, 65), generator())
