"""The embedded textures: same seed, same bytes; exact masks; disjoint areas; nobody else's files touched."""

from __future__ import annotations

import ast
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import ssae.textures
from ssae.datasets import categories, check, load_category
from ssae.textures import DEFECTS, PART_DEFECTS, SIZE, draw_defect, make_textures, sample_weave_latents, weave

FEW = {"train": 11, "test_good": 3, "per_defect": 2}


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_textures(tmp_path_factory.mktemp("textures") / "small", **FEW)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_folder_is_sound_and_complete(textures: Path) -> None:
    assert check(textures) == []
    assert categories(textures) == ["brick", "grass", "gravel", "weave"]
    for name, kinds in DEFECTS.items():
        category = load_category(textures, name, SIZE)
        assert len(category.train_paths) == 11
        assert category.defects == tuple(sorted(kinds))
        assert category.test_defects.count("good") == 3
        assert all(category.test_defects.count(kind) == 2 for kind in kinds)
        share = category.test_masks()[category.labels].float().mean((1, 2))
        assert 0.003 < share.min() < share.max() < 0.15


def test_the_same_seed_gives_the_same_bytes(textures: Path, tmp_path: Path) -> None:
    again = files(make_textures(tmp_path / "again", **FEW))
    assert again == files(textures)
    other = files(make_textures(tmp_path / "other", seed=1, **FEW))
    assert other.keys() == again.keys()
    assert all(other[name] != again[name] for name in again)


def test_an_image_does_not_depend_on_how_many_there_are(textures: Path, tmp_path: Path) -> None:
    more = files(make_textures(tmp_path / "more", train=11, test_good=3, per_defect=3))
    weave_files = {name: data for name, data in files(textures).items() if name.startswith("weave/")}
    assert weave_files.items() <= more.items()


def test_the_manifest_holds_the_hash_of_every_file(textures: Path) -> None:
    manifest = json.loads((textures / "manifest.json").read_text())
    found = files(textures)
    del found["manifest.json"]
    assert manifest["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    assert manifest["settings"]["seed"] == 0


def test_the_png_encoder_is_read_back_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        pixels = rng.integers(0, 256, (SIZE, SIZE, channels), dtype=np.uint8)
        path = tmp_path / f"{channels}.png"
        path.write_bytes(ssae.textures._png(pixels))
        image = Image.open(path)
        image.verify()
        assert np.array_equal(np.array(Image.open(path)).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
def test_train_and_test_share_no_pixel_of_the_photograph(textures: Path, name: str) -> None:
    """Every normal crop is found again in the photograph, training crops beside the columns of test crops."""
    photograph = getattr(skimage.data, name)()
    category = load_category(textures, name, SIZE)
    good = [
        path for path, kind in zip(category.test_paths, category.test_defects, strict=True) if kind == "good"
    ]
    columns: dict[str, set[int]] = {"train": set(), "test": set()}
    for split, paths in (("train", category.train_paths), ("test", good)):
        for path in paths:
            crop = np.array(Image.open(path))
            windows = np.lib.stride_tricks.sliding_window_view(photograph, (SIZE, SIZE))
            hits = np.argwhere((windows[:, :, ::16, ::16] == crop[::16, ::16]).all((2, 3)))
            assert len(hits) == 1
            y, x = hits[0]
            assert np.array_equal(photograph[y : y + SIZE, x : x + SIZE], crop)
            columns[split] |= set(range(x, x + SIZE))
    assert not columns["train"] & columns["test"]


@pytest.mark.parametrize(("category", "kind"), [(c, k) for c, kinds in DEFECTS.items() for k in kinds])
def test_a_mask_marks_exactly_what_was_drawn(category: str, kind: str) -> None:
    latents = sample_weave_latents(1, torch.Generator().manual_seed(3))
    flat = (
        np.full((SIZE, SIZE, 1), 0.45) if category != "weave" else weave(latents)[0].permute(1, 2, 0).numpy()
    )
    before = flat.copy()
    for seed in range(5):
        drawn, mask = draw_defect(category, kind, flat, np.random.default_rng(seed), latents)
        assert np.array_equal(flat, before), "the input image was changed"
        assert drawn.shape == flat.shape
        assert 0 <= drawn.min() <= drawn.max() <= 1
        changed = np.abs(drawn - flat).max(2)
        assert np.array_equal(drawn[~mask], flat[~mask])
        assert 20 < mask.sum() < 0.2 * mask.size
        # Visible, and nearly everywhere: a mask over unchanged pixels would make a perfect detector look bad.
        assert changed[mask].mean() > 0.05
        assert (changed[mask] > 1 / 255).mean() > 0.8


@pytest.mark.parametrize("kind", PART_DEFECTS)
def test_a_structural_defect_shows_where_its_mask_says(kind: str) -> None:
    latents = sample_weave_latents(1, torch.Generator().manual_seed(3))
    part = weave(latents)[0].permute(1, 2, 0).numpy()
    # Even ground on the left half: nothing that is moved or turned within it is a defect.
    part[:, : SIZE // 2] = 0.5
    for seed in range(8):
        drawn, mask = draw_defect("part", kind, part, np.random.default_rng(seed))
        changed = np.abs(drawn - part).max(2)
        assert np.array_equal(drawn[~mask], part[~mask])
        assert 40 <= mask.sum() < 0.45 * mask.size
        assert changed[mask].min() > 0
        assert changed[mask].mean() > 0.03
        again, _ = draw_defect("part", kind, part, np.random.default_rng(seed))
        assert np.array_equal(again, drawn)


def test_training_corruption_is_not_used_for_test_defects() -> None:
    tree = ast.parse(Path(ssae.textures.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not any(module.startswith("ssae") for module in imported if module)


# The weave


def test_the_weave_is_smooth_in_its_latents() -> None:
    """Central differences agree with autograd at every latent, which a jump or a kink would prevent."""
    latents = sample_weave_latents(2, torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda z: weave(z[None], 16)[0], latents[0])
    for index in range(latents.shape[1]):
        step = torch.zeros(6, dtype=torch.float64)
        step[index] = 1e-5
        difference = (weave((latents[0] + step)[None], 16) - weave((latents[0] - step)[None], 16))[0] / 2e-5
        assert torch.allclose(jacobian[..., index], difference, atol=1e-5)
    rank = torch.linalg.matrix_rank(jacobian.reshape(-1, 6))
    assert rank == 6, "a latent has no effect of its own"


def test_the_weave_repeats_after_two_threads_and_shifts_with_its_phase() -> None:
    latents = torch.tensor([[10.0, 0.0, 0.3, 0.7, 0.8, 0.4]], dtype=torch.float64)
    moved = latents.clone()
    moved[0, 2] += 2
    assert torch.allclose(weave(latents), weave(moved), atol=1e-12)
    moved[0, 2] = 0.3 + 0.5  # half a thread is five pixels
    assert torch.allclose(weave(latents)[..., 5:], weave(moved)[..., :-5], atol=1e-12)


def test_a_quarter_turn_of_the_weave_turns_the_image() -> None:
    latents = torch.tensor([[11.0, 0.1, 0.3, 0.7, 0.8, 0.4]], dtype=torch.float64)
    turned = latents.clone()
    turned[0, 1] += math.pi / 2
    assert torch.allclose(weave(turned), weave(latents).rot90(-1, (2, 3)), atol=1e-12)


def test_weave_range_dtype_and_refusal() -> None:
    latents = sample_weave_latents(5, torch.Generator().manual_seed(1))
    assert latents.shape == (5, 6)
    images = weave(latents.float(), 40)
    assert images.shape == (5, 3, 40, 40)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert torch.equal(latents, sample_weave_latents(5, torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match=r"give \(B, 6\)"):
        weave(latents[0])


# Writing


def test_a_second_call_does_nothing_and_damage_is_mended(textures: Path) -> None:
    victim = textures / "brick/train/good/000.png"
    stamp, before = victim.stat().st_mtime_ns, files(textures)
    make_textures(textures, **FEW)
    assert victim.stat().st_mtime_ns == stamp
    victim.write_bytes(b"damaged")
    (textures / "weave/test/good/001.png").unlink()
    make_textures(textures, **FEW)
    assert files(textures) == before


@pytest.mark.parametrize("beside", [False, True])
def test_foreign_files_are_never_touched(tmp_path: Path, beside: bool) -> None:
    out = tmp_path / "out"
    if beside:
        make_textures(out, train=1, test_good=1, per_defect=1)
    out.mkdir(exist_ok=True)
    (out / "thesis.txt").write_text("years of work")
    before = files(out)
    with pytest.raises(
        FileExistsError, match=r"thesis.txt, which make_textures did not write; give an empty"
    ):
        make_textures(out, **FEW)
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a folder"):
        make_textures(tmp_path / "out", **FEW)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = ssae.textures._png

    def fail_late(pixels: np.ndarray) -> bytes:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise KeyboardInterrupt
        return real(pixels)

    monkeypatch.setattr(ssae.textures, "_png", fail_late)
    with pytest.raises(KeyboardInterrupt):
        make_textures(tmp_path / "out", **FEW)
    assert list(tmp_path.iterdir()) == []
