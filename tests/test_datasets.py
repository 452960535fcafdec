"""The MVTec AD layout: what is read, what is refused, and that nothing on disk can stop a check."""

from __future__ import annotations

import io
import os
import shutil
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ssae import datasets
from ssae.datasets import (
    PROBLEM_KINDS,
    READ_AHEAD,
    DataError,
    categories,
    check,
    data_sha256,
    image_files,
    load_category,
    load_folder,
    load_images,
    load_masks,
    load_textures,
    mvtec_root,
    read_photo,
    tree_files,
    unused_copies,
    unused_files,
)

SIZE = 24


def photo(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def mask(value: int = 255, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[4:9, 5:12] = value
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound data folder with one category, "part"."""
    folder = tmp_path / "data"
    part = folder / "part"
    for index in range(12):
        save(photo(index), part / f"train/good/{index:03d}.png")
    for index in range(3):
        save(photo(100 + index), part / f"test/good/{index:03d}.png")
        save(photo(200 + index), part / f"test/scratch/{index:03d}.png")
        save(mask(), part / f"ground_truth/scratch/{index:03d}_mask.png")
    return folder


# Loading


def test_of_normal_images_that_are_the_same_only_the_first_counts(root: Path) -> None:
    good = root / "part" / "train" / "good"
    shutil.copy(good / "003.png", good / "003 (1).png")
    part = load_category(root, "part", 16)
    names = [f"{index:03d}.png" for index in range(12)]
    assert [path.name for path in part.train_paths] == [*names[:3], "003 (1).png", *names[4:]]
    assert [problem.path for problem in unused_copies(part)] == [str(good / "003.png")]
    assert "duplicate" in {problem.kind for problem in check(root)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_has_the_size_of_its_photograph_as_it_is_shown(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(photo(0, (SIZE, 2 * SIZE)), tmp_path / "a.jpg", exif=exif)
    shown = read_photo(tmp_path / "a.jpg").size
    save(mask(size=shown), tmp_path / "m.png")
    assert load_masks([tmp_path / "m.png"], 16, [tmp_path / "a.jpg"]).any()
    save(mask(size=shown[::-1]), tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png"):
        load_masks([tmp_path / "m.png"], 16, [tmp_path / "a.jpg"])


def test_a_sound_folder_has_no_problems_and_loads(root: Path) -> None:
    assert check(root) == []
    assert check(root / "part") == []
    assert categories(root) == ["part"]
    part = load_category(root, "part", 16)
    assert part.name == "part"
    assert part.defects == ("scratch",)
    assert part.test_defects == ("good",) * 3 + ("scratch",) * 3
    assert part.labels.tolist() == [False] * 3 + [True] * 3
    images, masks = part.test_images(), part.test_masks()
    assert images.shape == (6, 3, 16, 16)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert masks.shape == (6, 16, 16)
    assert masks.dtype == torch.bool
    assert masks.flatten(1).any(1).tolist() == part.labels.tolist()
    assert part.train_images().shape == (12, 3, 16, 16)


def test_an_image_of_the_right_size_is_read_to_the_bit(root: Path) -> None:
    read = load_category(root, "part", SIZE).train_images()[3]
    assert torch.equal((read * 255).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(photo(3))))


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    save(photo(0).convert("L"), tmp_path / "grey.png")
    read = load_images([tmp_path / "grey.png"], 16)[0]
    assert torch.equal(read[0], read[1])
    assert torch.equal(read[0], read[2])


def test_reduction_does_not_alias(tmp_path: Path) -> None:
    """Stripes one pixel wide average to grey; taking every fourth pixel would give black or white."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    save(Image.fromarray(stripes), tmp_path / "stripes.png")
    inner = load_images([tmp_path / "stripes.png"], 16)[0, :, 2:-2, 2:-2]
    assert (inner - 0.5).abs().max() < 0.02


def test_an_exif_rotation_is_undone(tmp_path: Path) -> None:
    upright = photo(5)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # orientation 6: turn clockwise to see it upright
    save(turned, tmp_path / "turned.png", exif=exif)
    save(upright, tmp_path / "upright.png")
    a, b = load_images([tmp_path / "turned.png", tmp_path / "upright.png"], SIZE)
    assert torch.equal(a, b)


def test_a_mask_keeps_its_area_when_reduced(tmp_path: Path) -> None:
    pixels = np.zeros((256, 256), np.uint8)
    pixels[40:140, 30:220] = 255
    save(Image.fromarray(pixels), tmp_path / "m.png")
    small = load_masks([tmp_path / "m.png"], 64)
    assert abs(small.float().mean().item() - (pixels > 0).mean()) < 0.005


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (254, 255), (130, 3)])
def test_a_defect_of_one_pixel_survives_any_reduction(tmp_path: Path, place: tuple[int, int]) -> None:
    pixels = np.zeros((256, 256), np.uint8)
    pixels[place] = 255
    save(Image.fromarray(pixels), tmp_path / "m.png")
    small = load_masks([tmp_path / "m.png"], 32)[0]
    assert small.nonzero().tolist() == [[place[0] // 8, place[1] // 8]]


@pytest.mark.parametrize("value", [1, 128, 255])
def test_any_single_value_marks_a_defect(tmp_path: Path, value: int) -> None:
    save(mask(value), tmp_path / "m.png")
    assert torch.equal(load_masks([tmp_path / "m.png"], SIZE)[0], torch.from_numpy(np.array(mask()) > 0))


def test_palette_and_colour_masks_are_read_by_what_is_black(tmp_path: Path) -> None:
    colour = Image.fromarray(np.array(mask())[..., None] // 255 * np.array([128, 0, 64], np.uint8))
    save(colour, tmp_path / "colour.png")
    save(colour.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "palette.png")
    save(mask().convert("1"), tmp_path / "bits.png")
    for read in load_masks([tmp_path / name for name in ("colour.png", "palette.png", "bits.png")], SIZE):
        assert torch.equal(read, torch.from_numpy(np.array(mask()) > 0))


def test_a_resolution_must_be_positive(root: Path) -> None:
    with pytest.raises(ValueError, match="resolution is 0"):
        load_category(root, "part", 0)


def test_a_bare_folder_of_images(root: Path) -> None:
    category = load_folder(root / "part/train/good", 16)
    assert category.name == "good"
    assert len(category.train_paths) == 12
    assert category.test_paths == ()
    assert category.train_images().shape == (12, 3, 16, 16)
    with pytest.raises(DataError, match="holds no image"):
        load_folder(root, 16)


def test_names_of_any_script_and_case(root: Path) -> None:
    """macOS hands over decomposed accents where the mask may have been named with composed ones."""
    name = "Kratzer ü 検査 (2)"
    save(photo(300), root / "part/test/scratch" / (unicodedata.normalize("NFD", name) + ".PNG"))
    save(mask(), root / "part/ground_truth/scratch" / (unicodedata.normalize("NFC", name) + "_mask.Png"))
    assert check(root) == []
    part = load_category(root, "part", 16)
    assert part.test_masks()[-1].any()


def test_a_mask_may_bear_the_name_of_its_image(root: Path) -> None:
    folder = root / "part/ground_truth/scratch"
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("_mask", ""))
    assert check(root) == []


def test_thousands_of_masks_are_matched_quickly(tmp_path: Path) -> None:
    names = [f"{index:05d}" for index in range(3000)]
    images = [tmp_path / "test/scratch" / f"{name}.png" for name in names]
    folder = tmp_path / "ground_truth/scratch"
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}_mask.png").touch()
    masks, problems = datasets._match_masks(images, folder)
    assert problems == []
    assert [path.name for path in masks if path is not None] == [f"{name}_mask.png" for name in names]


# Hash and environment


def test_the_hash_depends_on_names_and_bytes_only(root: Path, tmp_path: Path) -> None:
    digest = data_sha256(load_category(root, "part", 16))
    assert len(digest) == 64
    assert data_sha256(load_category(root, "part", 64)) == digest
    copy = shutil.copytree(root, tmp_path / "elsewhere")
    assert data_sha256(load_category(copy, "part", 16)) == digest
    (copy / "part/train/good/000.png").rename(copy / "part/train/good/zzz.png")
    assert data_sha256(load_category(copy, "part", 16)) != digest
    shutil.copy(root / "part/train/good/000.png", copy / "part/train/good/000.png")
    (copy / "part/train/good/zzz.png").unlink()
    assert data_sha256(load_category(copy, "part", 16)) == digest
    save(mask(1), copy / "part/ground_truth/scratch/000_mask.png")
    assert data_sha256(load_category(copy, "part", 16)) != digest


def test_mvtec_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSAE_MVTEC_ROOT", raising=False)
    with pytest.raises(DataError, match=r"SSAE_MVTEC_ROOT is not set.*Mend: download MVTec AD"):
        mvtec_root()
    monkeypatch.setenv("SSAE_MVTEC_ROOT", str(root / "nowhere"))
    with pytest.raises(DataError, match="nowhere does not exist"):
        mvtec_root()
    monkeypatch.setenv("SSAE_MVTEC_ROOT", str(root))
    assert mvtec_root() == root


# Damage: each entry does one thing to a sound folder, and says which problem that is, where, and whether
# loading still works

PNG = b"\x89PNG\r\n\x1a\n"
TRAIN, GOOD, BAD = "part/train/good/000.png", "part/test/good/000.png", "part/test/scratch/000.png"
MASK = "part/ground_truth/scratch/000_mask.png"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def middle_bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 11_000, 11_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def sixteen_bit_colour(path: Path) -> None:
    """PIL cannot write one, and would read it cut to 8 bits without a word."""
    rows = b"".join(b"\0" + np.random.default_rng(row).bytes(SIZE * 6) for row in range(SIZE))
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    path.write_bytes(PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write(image: Image.Image, format: str = "PNG", **options: object) -> Callable[[Path], None]:
    return lambda path: image.save(path, format=format, **options)


def with_alpha(low: int) -> Image.Image:
    alpha = np.full((SIZE, SIZE), 255, np.uint8)
    alpha[3, 3] = low
    image = photo(7).convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    return image


def exif_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    photo(8).save(path, exif=exif)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def link_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def rename(name: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        path.rename(path.with_name(name))

    return act


def copy_to(target: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        place = path.parents[3] / target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)

    return act


def resave_as(target: str) -> Callable[[Path], None]:
    """The same pixels in other bytes."""

    def act(path: Path) -> None:
        Image.open(path).save(path.parents[3] / target, format="BMP")

    return act


def keep(count: int) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        for file in sorted(path.iterdir())[count:]:
            file.unlink()

    return act


def add(name: str, data: bytes) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        (path / name).write_bytes(data)

    return act


def add_folder(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).mkdir()


def make_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def grey_levels(path: Path) -> None:
    pixels = np.array(mask())
    pixels[6, 6] = 100
    Image.fromarray(pixels).save(path)


def mask_on_good(path: Path) -> None:
    save(mask(), path / "good/000_mask.png")


def float_tiff(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((SIZE, SIZE), np.float32)).save(path, format="TIFF")


def animation(path: Path) -> None:
    photo(1).save(path, format="PNG", save_all=True, append_images=[photo(2), photo(3)])


def into_a_folder(path: Path) -> None:
    """As MVTec LOCO has it: 000_mask.png becomes 000/000.png."""
    (path.parent / "000").mkdir()
    path.rename(path.parent / "000" / "000.png")


NOISE16 = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16))
BLANK = Image.new("RGB", (SIZE, SIZE), (90, 90, 90))

# name: (file or folder at fault, what is done to it, kind of problem, whether load_category and its tensors
# still work)
DAMAGE: dict[str, tuple[str, Callable[[Path], None], str, bool]] = {
    "truncated": (TRAIN, truncate, "unreadable", False),
    "bit flipped": (TRAIN, flip_bit, "unreadable", False),
    "zero bytes": (GOOD, lambda path: path.write_bytes(b""), "zero_bytes", False),
    "text named png": (TRAIN, lambda path: path.write_text("hello"), "unreadable", False),
    "error page named png": (TRAIN, lambda path: path.write_text("<html>404</html>"), "unreadable", False),
    "lfs pointer": (
        TRAIN,
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "lfs_pointer",
        False,
    ),
    "postscript named png": (
        TRAIN,
        lambda path: path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"
        ),
        "unreadable",
        False,
    ),
    "zeros": (TRAIN, lambda path: path.write_bytes(bytes(5000)), "unreadable", False),
    "header only": (TRAIN, lambda path: path.write_bytes(PNG), "unreadable", False),
    "bomb": (TRAIN, bomb, "bomb", False),
    "smaller bomb": (TRAIN, middle_bomb, "bomb", False),
    "16-bit grey": (TRAIN, write(NOISE16), "sixteen_bit", False),
    "16-bit colour": (TRAIN, sixteen_bit_colour, "sixteen_bit", False),
    "float tiff": (TRAIN, float_tiff, "sixteen_bit", False),
    "palette": (TRAIN, write(photo(7).convert("P")), "palette", True),
    "opaque alpha": (TRAIN, write(with_alpha(255)), "alpha", True),
    "transparent": (TRAIN, write(with_alpha(40)), "transparent", False),
    "CMYK": (TRAIN, write(photo(7).convert("CMYK"), "JPEG"), "colour_space", True),
    "EXIF-rotated": (TRAIN, exif_turned, "exif_rotation", True),
    "JPEG named png": (TRAIN, write(photo(7), "JPEG"), "wrong_extension", True),
    "animation": (TRAIN, animation, "multi_frame", False),
    "tiny": (TRAIN, write(photo(7, (3, 3))), "tiny", False),
    "blank": (TRAIN, write(BLANK), "blank", True),
    "grey among colour": (TRAIN, write(photo(7).convert("L")), "mixed_colour", True),
    "other size": (TRAIN, write(photo(7, (40, 40))), "mixed_sizes", True),
    "not square": (TRAIN, write(photo(7, (40, 24))), "not_square", True),
    "symlink loop": (TRAIN, link_loop, "broken_link", False),
    "dead link": (TRAIN, dead_link, "broken_link", False),
    "named pipe": (TRAIN, pipe, "not_a_file", False),
    "folder named png": ("part/train/good", add_folder("x.png"), "nested_folder", True),
    "folder among images": ("part/train/good", add_folder("more"), "nested_folder", True),
    "text among images": ("part/train/good", add("notes.txt", b"hello"), "ignored", True),
    "raw photo among images": ("part/train/good", add("000.cr2", b"raw"), "ignored", True),
    "same stem": (TRAIN, copy_to("part/train/good/000.bmp"), "same_name", False),
    "other case": (TRAIN, copy_to("part/train/good/000.PNG"), "same_name", False),
    "mask missing": (MASK, remove, "mask_missing", False),
    "masks missing": ("part/ground_truth/scratch", remove, "no_masks", False),
    "no ground truth": ("part/ground_truth", remove, "no_truth", True),
    "several masks in a folder": (MASK, into_a_folder, "mask_folder", False),
    "mask of other size": (MASK, write(mask(size=(30, 30))), "mask_size", False),
    "mask turned": (BAD, write(photo(7, (SIZE, 30))), "mask_size", False),
    "mask empty": (MASK, write(mask(0)), "mask_empty", False),
    "mask full": (MASK, write(Image.new("L", (SIZE, SIZE), 255)), "mask_full", True),
    "mask with grey levels": (MASK, grey_levels, "mask_not_binary", False),
    "mask as JPEG": (MASK, write(mask(), "JPEG", quality=40), "mask_not_binary", False),
    "mask truncated": (MASK, truncate, "unreadable", False),
    "mask transparent": (MASK, write(with_alpha(0)), "transparent", False),
    "two masks": (MASK, copy_to("part/ground_truth/scratch/000.png"), "mask_ambiguous", False),
    "mask without image": (BAD, remove, "mask_without_image", True),
    "masks of no defect": (MASK, copy_to("part/ground_truth/dent/000_mask.png"), "orphan_masks", True),
    "mask on a good image": ("part/ground_truth", mask_on_good, "mask_on_good", False),
    "no train": ("part/train", remove, "missing", False),
    "no train/good": ("part/train/good", remove, "missing", False),
    "train/good a file": ("part/train/good", make_file, "not_a_folder", False),
    "train/good empty": ("part/train/good", empty, "empty", False),
    "few images": ("part/train/good", keep(3), "few_images", True),
    "train/bad": (TRAIN, copy_to("part/train/scratch/000.png"), "train_folder", True),
    "image in train": (GOOD, copy_to("part/train/000.png"), "stray_image", True),
    "no test": ("part/test", remove, "missing", False),
    "no test/good": ("part/test/good", remove, "missing", False),
    "test/good empty": ("part/test/good", empty, "empty", False),
    "test/Good": ("part/test/good", rename("Good"), "good_misspelt", False),
    "defect folder empty": ("part/test/scratch", empty, "empty", False),
    "no defects": ("part/test/scratch", remove, "no_defects", False),
    "train image in test": (TRAIN, copy_to("part/test/good/leak.png"), "train_in_test", False),
    "train image saved anew in test": (TRAIN, resave_as("part/test/good/leak.bmp"), "train_in_test", True),
    "good image among defects": (GOOD, copy_to("part/test/scratch/000.png"), "both_labels", False),
    "train image twice": (TRAIN, copy_to("part/train/good/again.png"), "duplicate", True),
    "image beside the categories": (TRAIN, copy_to("photo.png"), "stray_image", True),
    "folder beside the categories": (
        "part",
        add_folder("../notes"),
        "not_a_category",
        True,
    ),
}


def use_everything(root: Path) -> None:
    part = load_category(root, "part", 16)
    part.train_images(), part.test_images(), part.test_masks()


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_refused_where_it_matters(root: Path, name: str) -> None:
    where, harm, kind, usable = DAMAGE[name]
    harm(root / where)
    problems = check(root)
    found = [problem for problem in problems if problem.kind == kind]
    assert found, f"{kind} not among {[str(problem) for problem in problems]}"
    assert all(str(root) in problem.path and problem.message and problem.mend for problem in problems)
    assert all("{" not in str(problem) for problem in problems), "a place holder was not filled in"
    if usable:
        assert found[0].severity == "warning" or "anew" in name
        use_everything(root)
    else:
        assert found[0].severity == "error"
        with pytest.raises(DataError) as refusal:
            use_everything(root)
        assert kind in {problem.kind for problem in refusal.value.problems}


def test_a_category_is_found_whatever_its_accents_are_made_of(tmp_path: Path) -> None:
    decomposed = "Geha\u0308use"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    for split, kind in (("train", "good"), ("test", "good"), ("test", "bent")):
        (tmp_path / decomposed / split / kind).mkdir(parents=True)
    for index, split in enumerate(("train/good", "test/good", "test/bent")):
        image.rotate(90 * index).save(tmp_path / decomposed / split / f"{index}.png")
    (tmp_path / decomposed / "ground_truth" / "bent").mkdir(parents=True)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save(tmp_path / decomposed / "ground_truth" / "bent" / "2_mask.png")
    category = load_category(tmp_path, "Geh\u00e4use", 16)
    assert category.name == "Geh\u00e4use"
    assert len(category.train_paths) == 1


def test_a_named_pipe_among_photographs_does_not_wait_for_ever(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    for seed in range(3):
        photo(seed).save(tmp_path / f"{seed}.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert len(load_folder(tmp_path, 16).train_paths) == 4
    assert [problem.kind for problem in check(tmp_path) if problem.severity == "error"] == ["not_a_file"]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, True) for name in ("def_front", "KO", "anomaly", "cracked 2", "bad-ones", "masks")),
        *((name, True) for name in ("defect_no_3", "not_ok", "no good", "non-normal")),
        *((name, False) for name in ("no_defects", "default", "front", "defect-free", "tested", "brokerage")),
    ],
)
def test_folders_that_say_they_hold_defective_parts(tmp_path: Path, name: str, bad: bool) -> None:
    for index, folder in enumerate((name, "front_view")):
        (tmp_path / folder).mkdir()
        photo(index).save(tmp_path / folder / "0.png")
    assert ("bad_folder" in {problem.kind for problem in check(tmp_path)}) == bad
    if bad:
        with pytest.raises(DataError, match="looks by its name"):
            load_folder(tmp_path, 16)
    else:
        assert len(load_folder(tmp_path, 16).train_paths) == 2


def test_photographs_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    for index, place in enumerate(
        ("0.png", "1.png", "ok/2.png", "bad/3.png", "ok/more/4.png", "defective/x/5.png")
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        photo(index).save(tmp_path / place)
    assert [path.name for path in load_folder(tmp_path, 16).train_paths] == ["2.png"]
    unused = unused_files(load_folder(tmp_path, 16))
    left = {problem.path: problem.message for problem in unused if problem.kind == "passed_over"}
    assert left.keys() == {str(tmp_path), str(tmp_path / "ok" / "more")}, "defective ones are meant to be"
    assert "(2)" in left[str(tmp_path)]
    mends = {problem.path: problem.mend for problem in unused}
    assert "give this folder alone" not in mends[str(tmp_path)], "that is what was done"
    assert "give this folder alone" in mends[str(tmp_path / "ok" / "more")]
    assert {problem.path for problem in check(tmp_path) if problem.kind == "passed_over"} == left.keys()


def test_photographs_of_a_phone_are_named_where_only_they_are_there(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(DataError, match=r"IMG_1\.HEIC is in a format that is not read \(HEIC\).*JPEG or PNG"):
        load_folder(tmp_path, 16)
    photo(0).save(tmp_path / "IMG_2.jfif", "JPEG")
    assert [path.name for path in load_folder(tmp_path, 16).train_paths] == ["IMG_2.jfif"]
    assert [path.name for path in tree_files(tmp_path)] == ["IMG_2.jfif"]
    assert [path.name for path in tree_files(tmp_path, unread=True)] == ["IMG_2.jfif", "IMG_1.HEIC"]


def test_links_to_folders_are_followed_and_never_in_a_circle(tmp_path: Path) -> None:
    photos, camera = tmp_path / "photos", tmp_path / "camera"
    (photos / "in").mkdir(parents=True)
    camera.mkdir()
    photo(0).save(photos / "0.png")
    photo(1).save(camera / "1.png")
    (photos / "today").symlink_to(camera)
    (photos / "in" / "up").symlink_to(photos)
    (camera / "back").symlink_to(photos)
    (photos / "above").symlink_to(tmp_path)
    for index in range(5):
        (camera / f"{index}").mkdir()
        photo(2 + index).save(camera / f"{index}" / "2.png")
        for other in range(5):
            (camera / f"{index}" / f"to{other}").symlink_to(camera / f"{other}")
    (photos / "in" / "again").symlink_to(camera)
    found = [path.relative_to(photos).as_posix() for path in tree_files(photos)]
    assert found[0] == "0.png"
    assert sorted(os.path.realpath(photos / name) for name in found) == sorted(
        map(str, [photos / "0.png", camera / "1.png", *(camera / f"{index}" / "2.png" for index in range(5))])
    )


def test_a_link_to_a_folder_that_is_used_is_not_said_to_be_passed_over(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    photo(0).save(tmp_path / "good" / "1.png")
    (tmp_path / "aaa").mkdir()
    (tmp_path / "aaa" / "latest").symlink_to(tmp_path / "good")
    assert unused_files(load_folder(tmp_path, 16)) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    photo(0).save(tmp_path / "0.png")
    (tmp_path / "closed").mkdir()
    photo(1).save(tmp_path / "closed" / "1.png")
    (tmp_path / "closed").chmod(0o644)
    try:
        assert [path.name for path in tree_files(tmp_path)] == ["0.png", "1.png"]
        assert "permission" in {problem.kind for problem in check(tmp_path)}
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_images_further_down_are_pointed_at(tmp_path: Path) -> None:
    for place in ("a/anomaly", "a/b"):
        (tmp_path / place).mkdir(parents=True)
        photo(0).save(tmp_path / place / "0.png")
    with pytest.raises(DataError, match=r"further down, in .*b; give that"):
        load_folder(tmp_path, 16)


def test_folders_of_another_data_set_are_told_to_be_renamed(root: Path) -> None:
    """BTAD calls them ok and ko."""
    part = root / "part"
    (part / "train" / "good").rename(part / "train" / "ok")
    (part / "test" / "good").rename(part / "test" / "ok")
    errors = [problem for problem in check(root) if problem.severity == "error"]
    assert f"rename {part / 'train' / 'ok'} to good" in {problem.mend for problem in errors}
    kinds = {problem.kind for problem in errors}
    assert "good_misspelt" in kinds
    assert "no_masks" not in kinds, "normal images need none"


def test_many_photographs_are_read_in_their_order(tmp_path: Path) -> None:
    paths = []
    for index in range(READ_AHEAD + 6):
        paths.append(tmp_path / f"{index}.png")
        Image.new("L", (16, 16), index).save(paths[-1])
    loud = list(warnings.filters)
    images = load_images(paths, 16)
    assert warnings.filters == loud, "reading side by side leaves warnings as they were"
    assert (255 * images[:, 0, 0, 0]).round().int().tolist() == list(range(READ_AHEAD + 6))
    paths[40].write_bytes(b"")
    with pytest.raises(DataError, match=r"40\.png is an empty file"):
        load_images(paths, 16)


def test_a_folder_is_no_photograph(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a stray file")
    with pytest.raises(DataError, match="not a regular file"):
        read_photo(tmp_path)


def test_the_table_covers_every_kind_that_a_folder_can_show() -> None:
    elsewhere = {"permission", "no_categories", "unset", "video", "bad_folder", "several_categories", "copy"}
    elsewhere |= {"foreign_format", "passed_over"}
    assert {kind for _, _, kind, _ in DAMAGE.values()} == set(PROBLEM_KINDS) - elsewhere
    assert len(DAMAGE) >= 40


def test_all_damage_is_listed_in_one_pass(root: Path) -> None:
    for where, harm in [(TRAIN, truncate), (GOOD, exif_turned), (MASK, grey_levels)]:
        harm(root / where)
    remove(root / "part/ground_truth/scratch/001_mask.png")
    shutil.copytree(root / "part", root / "other")
    remove(root / "other/train")
    kinds = [(Path(problem.path).relative_to(root).parts[0], problem.kind) for problem in check(root)]
    shared = {"exif_rotation", "mask_not_binary", "mask_missing"}
    assert {kind for part, kind in kinds if part == "other"} == shared | {"missing"}
    assert {kind for part, kind in kinds if part == "part"} == shared | {"unreadable"}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_missing_permissions_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, since the administrator may read everything."""
    real_read, real_list = Path.read_bytes, os.listdir

    def read(path: Path) -> bytes:
        if path.name == "001.png":
            raise PermissionError(13, "Permission denied")
        return real_read(path)

    def list_(path: os.PathLike[str]) -> list[str]:
        if Path(path).name == "scratch":
            raise PermissionError(13, "Permission denied")
        return real_list(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(os, "listdir", list_)
    denied = {str(Path(p.path).relative_to(root)) for p in check(root) if p.kind == "permission"}
    assert denied == {
        "part/train/good/001.png",
        "part/test/good/001.png",
        "part/test/scratch",
        "part/ground_truth/scratch",
    }


@pytest.mark.parametrize("call", [categories, check])
def test_a_root_that_is_none(tmp_path: Path, call: Callable) -> None:
    def complaint(path: Path) -> str:
        try:
            return " ".join(str(problem) for problem in call(path))
        except DataError as error:
            return str(error)

    assert "does not exist" in complaint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in complaint(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "holds no category" in complaint(tmp_path / "empty")


def test_a_root_one_level_off_is_told_the_right_one(root: Path) -> None:
    with pytest.raises(DataError, match=str(root)):
        categories(root.parent)
    with pytest.raises(DataError, match=f"the folder above it, {root}"):
        categories(root / "part")
    with pytest.raises(DataError, match="one of the categories there: part"):
        load_category(root, "bottle", 16)


def test_a_hostile_name_is_printed_harmlessly(root: Path) -> None:
    (root / "part/train/good" / "a\x1b[31m\nb.png").write_bytes(b"")
    (root / "part/train/good" / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"")
    report = [str(problem) for problem in check(root)]
    assert len(report) == 2
    for line in report:
        assert line.isprintable()
        line.encode("utf-8")
    with pytest.raises(DataError):
        load_category(root, "part", 16).train_images()


def test_image_files_refuses_twins(root: Path) -> None:
    folder = root / "part/train/good"
    assert [path.name for path in image_files(folder)] == [f"{index:03d}.png" for index in range(12)]
    shutil.copy(folder / "000.png", folder / "000.jpg")
    with pytest.raises(DataError, match="differs from"):
        image_files(folder)


def test_a_long_error_is_cut_short(root: Path) -> None:
    shutil.rmtree(root / "part/ground_truth/scratch")
    (root / "part/ground_truth/scratch").mkdir()
    for index in range(20):
        save(photo(400 + index), root / f"part/test/scratch/1{index:02d}.png")
    with pytest.raises(DataError, match="and 13 more: `ssae data check` lists them all") as refusal:
        load_category(root, "part", 16)
    assert len(refusal.value.problems) == 23


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    photo(0).save(buffer, format="PNG")
    return buffer.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_file_can_stop_a_check(tmp_path: Path, data: st.DataObject) -> None:
    """Random bytes, and a real PNG with a stretch of it replaced, under every known extension."""
    whole = png_bytes()
    start = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.binary(max_size=60))
    content = data.draw(
        st.sampled_from([junk, whole[:start] + junk + whole[start + len(junk) :], whole[:start]])
    )
    path = tmp_path / ("x" + data.draw(st.sampled_from(sorted(datasets._FORMATS))))
    path.write_bytes(content)
    for read in (datasets._read_photo, datasets._read_mask):
        result, problems = read(path)
        assert result is not None or any(problem.severity == "error" for problem in problems)


def test_textures_are_squares_spread_over_all_folders(tmp_path):
    for kind, value in (("a", 50), ("b", 100), ("c", 150)):
        (tmp_path / kind).mkdir()
        for index in range(4):
            pixels = np.full((20, 60, 3), value, np.uint8)
            pixels[:, :20] = pixels[:, 40:] = 255  # beside the square in the middle
            Image.fromarray(pixels).save(tmp_path / kind / f"{index}.png")
    textures = load_textures(tmp_path, 16, count=6)
    assert textures.shape == (6, 3, 16, 16)
    means = (255 * textures[:, :, 4:12, 4:12]).mean((1, 2, 3)).round().tolist()
    assert means == [50, 50, 100, 100, 150, 150]
    # Fewer files than asked for: each of them once.
    everything = (255 * load_textures(tmp_path, 16)[:, :, 4:12, 4:12]).mean((1, 2, 3)).round().tolist()
    assert everything == [50] * 4 + [100] * 4 + [150] * 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no image\. Mend: put images there"):
        load_textures(tmp_path / "empty", 16)
