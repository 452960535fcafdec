"""What is read off photographs, and what is left alone; the look at a training while it runs."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ssae.automatic import choose, choose_for, common_share, evenness, shown_symmetry
from ssae.datasets import DataError, load_folder, open_category
from ssae.experiment import random_symmetry
from ssae.progress import Progress
from ssae.scoring import ScoringSettings
from ssae.textures import DEFECTS, make_textures
from ssae.training import FitSettings, LogRow


def parts(count=40, side=64, seed=0):
    """An L of its own size, place and colour on a grey ground: no symmetry at all."""
    rng = np.random.default_rng(seed)
    images = np.full((count, 3, side, side), 0.5, np.float32)
    for image in images:
        top, left = rng.integers(10, 20, 2)
        colour = rng.random((3, 1, 1), dtype=np.float32) * 0.3
        image[:, top : top + 36, left : left + 8] = colour
        image[:, top + 28 : top + 36, left : left + 26] = colour
    return torch.from_numpy(images + rng.normal(0, 0.01, images.shape).astype(np.float32)).clamp(0, 1)


def surfaces(count=40, side=64):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    for index, image in enumerate(parts(25)):
        pixels = (255 * image.permute(1, 2, 0)).byte().numpy()
        Image.fromarray(pixels).resize((200 + index // 10, 150)).save(tmp_path / f"{index}.png")
    return tmp_path


def test_parts_share_a_layout_and_surfaces_do_not():
    assert common_share(parts()) > 0.4
    assert common_share(surfaces()) == pytest.approx(1 / 40, rel=0.2)
    assert common_share(parts()[:1].repeat(9, 1, 1, 1)) == pytest.approx(1, abs=1e-5)


def lying_anywhere(count=60, side=64, seed=0):
    """A dark rod, turned by any angle and at any place that holds all of it, on a noisy grey ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images = []
    for _ in range(count):
        angle, (v, u) = np.pi * rng.random(), rng.uniform(20, side - 20, 2)
        along = (x - u) * np.cos(angle) + (y - v) * np.sin(angle)
        across = (x - u) * np.sin(angle) - (y - v) * np.cos(angle)
        images.append(np.where((abs(along) < 18) & (abs(across) < 4), 0.2, 0.7))
    images = np.stack(images)[:, None].repeat(3, 1)
    return torch.from_numpy(images + rng.normal(0, 0.01, images.shape)).float().clamp(0, 1)


def test_a_part_that_lies_anywhere_is_no_surface(tmp_path):
    loose = lying_anywhere()
    assert common_share(loose) < 0.2, "by this alone it would be one"
    assert evenness(loose) < 0.4
    assert evenness(surfaces()) > 0.8
    for name, images in (("loose", loose), ("surface", surfaces(60))):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            pixels = (255 * image.permute(1, 2, 0)).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    assert choose(load_folder(tmp_path / "loose", 64))[0].crop is None
    assert choose(load_folder(tmp_path / "surface", 64))[0].crop == 32


def test_the_textures_of_the_book_are_surfaces(tmp_path):
    make_textures(tmp_path / "textures", test_good=1, per_defect=1)
    for category in DEFECTS:
        assert choose(open_category(tmp_path / "textures", category, 128))[0].crop == 64, category


@pytest.mark.parametrize("symmetry", ["flips", "rotations"])
def test_no_symmetry_is_claimed_that_the_photographs_lack(symmetry):
    """A missed one costs a little variety, a wrong one hides defects."""
    turned = random_symmetry(parts(100), symmetry, torch.Generator().manual_seed(1))
    assert shown_symmetry(turned) in (symmetry, "none")


@pytest.mark.parametrize(
    ("symmetry", "moves"),
    [
        ("flips", [lambda x: x, lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.flip(-1, -2)]),
        ("rotations", [lambda x, k=k: x.rot90(k, (-2, -1)) for k in range(4)]),
    ],
)
def test_a_set_that_holds_every_image_transformed_shows_that_symmetry_and_no_more(symmetry, moves):
    images = torch.cat([move(parts(25)) for move in moves])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))  # or all would be ties
    assert shown_symmetry((images + 0.02 * noise).clamp(0, 1)) == symmetry


def test_a_symmetry_that_all_photographs_show_is_found():
    turned = random_symmetry(parts(100), "all", torch.Generator().manual_seed(1))
    assert shown_symmetry(turned) == "all"
    assert shown_symmetry(parts(100)) == "none"
    assert shown_symmetry(turned[:10]) == "none", "too few to tell"


def test_choices_come_with_reasons_and_give_way_to_the_user(folder):
    settings, reasons = choose(load_folder(folder, 128))
    assert settings.resolution == 128
    assert settings.symmetry == "none"
    assert settings.crop is None
    assert len(reasons) == 3
    asked, reasons = choose(load_folder(folder, 128), 64, "all", "yes")
    assert (asked.resolution, asked.symmetry, asked.crop) == (64, "all", 32)
    assert reasons == []
    assert asked.scoring == ScoringSettings.for_resolution(64)


def test_few_photographs_are_not_said_to_look_otherwise(folder):
    few = load_folder(folder, 128)
    few = replace(few, train_paths=few.train_paths[:12])
    assert any("too few photographs to tell" in reason for reason in choose(few)[1])
    assert not any("cannot be shown" in reason for reason in choose(few)[1])


def test_small_photographs_get_a_small_model(tmp_path):
    for index in range(3):
        Image.fromarray(np.full((70, 90, 3), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
    assert choose(load_folder(tmp_path, 128))[0].resolution == 64


def test_photographs_of_several_shapes_are_pointed_out(folder):
    Image.fromarray(np.full((200, 150, 3), 90, np.uint8)).save(folder / "upright.png")
    _, reasons = choose(load_folder(folder, 128))
    (said,) = (reason for reason in reasons if "as wide as high" in reason)
    assert "between 0.75 and 1.35" in said


def test_the_sample_is_not_one_camera_of_several():
    """Five views of each of two hundred parts, in turn: every tenth photograph would be the first view."""
    seen = []

    def read(index):
        seen.append(index % 5)
        return Image.fromarray(np.full((32, 32), index % 250, np.uint8))

    choose_for("parts", range(1000), read)
    assert len(seen) == 100
    assert set(seen) == set(range(5))


def test_one_small_photograph_does_not_decide_for_all(folder):
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / "thumbnail.png")
    settings, reasons = choose(load_folder(folder, 128))
    assert settings.resolution == 128
    assert any("thumbnail.png" in reason and "1 of the" in reason for reason in reasons)


def test_a_folder_is_taken_for_what_it_is(folder, tmp_path):
    assert len(open_category(folder, None, 32).train_paths) == 25
    split = tmp_path / "set"
    (split / "good").mkdir(parents=True)
    (split / "bad").mkdir()
    for name in ("good", "bad"):
        (folder / f"{len(name)}.png").rename(split / name / "a.png")
    assert [p.parent.name for p in load_folder(split, 32).train_paths] == ["good"]
    (split / "good").rename(split / "first")
    with pytest.raises(DataError, match="good parts only"):
        load_folder(split, 32)


def test_progress_is_measured_at_its_points_and_leaves_the_model_alone(tmp_path):
    normal = parts(4, 16)
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[:, 4:8, 4:8] = True
    defective = torch.where(masks[:, None], 1 - normal, normal)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    progress = Progress(normal, defective, masks, ScoringSettings(kernel=1), FitSettings(steps=100), tmp_path)
    for step in (3, 6, 7, 24, 100):
        progress(model, LogRow(step, step / 10, 0.1, 1e-3))
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [6, 24]
    assert all(0 <= float(row["image_auroc"]) <= 1 for row in rows)
    with Image.open(tmp_path / "step-0000024.png") as sheet:
        assert sheet.size == (4 * 16, 4 * 16)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    # Resumed from a checkpoint at step 12: what came after it is measured anew, what came before is not.
    progress = Progress(normal, defective, masks, ScoringSettings(kernel=1), FitSettings(steps=100), tmp_path)
    for step in (13, 19, 26, 33):
        progress(model, LogRow(step, step / 10, 0.1, 1e-3))
    with open(tmp_path / "scores.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [6, 13, 26, 33]
