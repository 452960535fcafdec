"""One category end to end: runs, receipts, predictions."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from ssae import experiment, receipts, sweep
from ssae.datasets import Category, DataError, load_category
from ssae.experiment import ExperimentSettings, RunError, evaluate, load_run, train, validate
from ssae.models import ModelSettings
from ssae.scoring import ScoringSettings, image_scores
from ssae.textures import make_textures
from ssae.training import CheckpointError, FitSettings

MODEL = ModelSettings(
    channels=(8, 8), dilations=(1, 2), sdc_filters=4, sdc_layers=1, sdc_kernel=3, unshuffle=2
)
RECEIPT_KEYS = {
    "dataset",
    "category",
    "split_note",
    "resolution",
    "preset",
    "settings",
    "seed",
    "metrics",
    "data_sha256",
    "code_commit",
    "device",
    "versions",
    "train_seconds",
    "images_per_second",
    "created",
}


def small(category="brick", **fit):
    return ExperimentSettings.for_category(
        category, 32, batch_size=4, model=MODEL, fit=FitSettings(**{"steps": 4, **fit})
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_textures(tmp_path_factory.mktemp("data") / "textures", train=8, test_good=3, per_defect=2)


@pytest.fixture(scope="module")
def run_dir(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "brick"
    train(small(), data, folder, torch.device("cpu"), progress=False)
    return folder


def test_a_run_leaves_what_the_contract_names(run_dir):
    assert {"config.json", "log.csv", "weights.safetensors", "receipt.json"} <= {
        p.name for p in run_dir.iterdir()
    }
    receipt = json.loads((run_dir / "receipt.json").read_text())
    assert receipt.keys() >= RECEIPT_KEYS
    assert receipt["dataset"] == "textures"
    assert receipt["train_images"] == 7
    assert receipt["settings"] == small().to_json()


def test_evaluation_fills_the_metrics_of_the_receipt(run_dir):
    measured = evaluate(run_dir)["metrics"]
    assert {"image_auroc", "pixel_auroc", "pixel_ap", "au_pro"} <= measured.keys()
    assert all(0 <= value <= 1 for value in measured.values())
    assert json.loads((run_dir / "receipt.json").read_text())["metrics"] == measured
    assert evaluate(run_dir)["metrics"] == measured


def test_evaluation_measures_each_kind_of_defect_among_the_normal_images(run_dir, data):
    by_defect = evaluate(run_dir)["defects"]
    category = load_category(data, "brick", small().resolution)
    assert list(by_defect) == list(category.defects)
    run = load_run(run_dir)
    for kind, measured in by_defect.items():
        chosen = [i for i, defect in enumerate(category.test_defects) if defect in ("good", kind)]
        heat = run.heat_maps(category.test_images()[chosen])
        truth = category.test_masks()[chosen].flatten()
        assert measured["images"] == category.test_defects.count(kind)
        assert measured["pixel_auroc"] == pytest.approx(
            roc_auc_score(truth, heat.flatten().numpy()), abs=1e-6
        )
        labels = [category.test_defects[i] == kind for i in chosen]
        scores = image_scores(heat, run.settings.scoring)
        assert measured["image_auroc"] == pytest.approx(roc_auc_score(labels, scores.numpy()), abs=1e-6)


def test_the_same_command_again_does_nothing_and_other_settings_are_refused(run_dir, data):
    before = (run_dir / "weights.safetensors").stat().st_mtime_ns
    assert train(small(), data, run_dir, progress=False)["category"] == "brick"
    assert (run_dir / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="other settings"):
        train(small(seed=1), data, run_dir, progress=False)


def test_a_run_that_is_older_than_a_setting_had_its_default(run_dir, data, tmp_path):
    old = shutil.copytree(run_dir, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    del config["settings"]["fit"]["optimiser"], config["settings"]["fit"]["momentum"]
    (old / "config.json").write_text(json.dumps(config))
    before = (old / "weights.safetensors").stat().st_mtime_ns
    assert train(small(), data, old, progress=False)["category"] == "brick"
    assert (old / "weights.safetensors").stat().st_mtime_ns == before
    # What was not there cannot have been chosen.
    settings = small()
    with pytest.raises(RunError, match="other settings"):
        train(replace(settings, fit=replace(settings.fit, optimiser="muon")), data, old, progress=False)
    # Neither finished nor far: the same call goes on.
    for name in ("receipt.json", "weights.safetensors", "log.csv", "calibration.json"):
        (old / name).unlink(missing_ok=True)
    train(small(), data, old, torch.device("cpu"), progress=False)
    assert (old / "weights.safetensors").read_bytes() == (run_dir / "weights.safetensors").read_bytes()


def test_two_runs_with_one_seed_are_bit_identical(run_dir, data, tmp_path):
    train(small(), data, tmp_path / "again", torch.device("cpu"), progress=False)
    train(small(seed=1), data, tmp_path / "other", torch.device("cpu"), progress=False)
    weights = [
        (f / "weights.safetensors").read_bytes() for f in (run_dir, tmp_path / "again", tmp_path / "other")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_a_foreign_folder_is_not_touched(data, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match="choose another folder"):
        train(small(), data, tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_threshold_is_the_largest_held_out_score(run_dir):
    run = load_run(run_dir)
    held = experiment.held_out_images(run)
    assert len(held) == 1
    heat = run.heat_maps(held)
    scores = experiment.image_scores(heat, run.settings.scoring)
    assert experiment.thresholds(run) == pytest.approx((float(scores.max()), float(heat.max())))


def test_validation_uses_no_test_image(run_dir, monkeypatch):
    def forbidden(*_):
        raise AssertionError("the test split was read")

    monkeypatch.setattr(experiment.Category, "test_images", forbidden)
    monkeypatch.setattr(experiment.Category, "test_masks", forbidden)
    measured = validate(load_run(run_dir))
    assert measured.keys() == {"image_auroc", "pixel_auroc", "pixel_ap", "au_pro"}


def test_drawn_defects_change_the_image_inside_their_masks():
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    drawn, masks = experiment.drawn_defects(images, seed=0)
    change = (drawn - images).abs().mean(1)
    assert bool(masks.flatten(1).any(1).all())
    assert float(change[masks].mean()) > 10 * float(change[~masks].mean())


def test_pasted_defects_are_pieces_of_the_images_outlined_whole():
    images = torch.rand(12, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    pasted, masks = experiment.pasted_defects(images, seed=0, side=(0.2, 0.5))
    kept = masks.unsqueeze(1).expand_as(images).logical_not()
    assert torch.equal(pasted[kept], images[kept])
    known = {tuple(colour) for colour in images.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in pasted.permute(0, 2, 3, 1)[masks].tolist()} <= known
    change = (pasted - images).abs().mean(1)
    assert all(float(change[i][masks[i]].mean()) >= 0.08 for i in range(12))
    # No piece is larger than the longest sides allow; one at the border may be cut down to any size.
    areas = masks.flatten(1).sum(1)
    assert int(areas.min()) >= 1
    assert int(areas.max()) <= (0.5 * 48 + 2) ** 2
    again, _ = experiment.pasted_defects(images, seed=0, side=(0.2, 0.5))
    other, _ = experiment.pasted_defects(images, seed=1, side=(0.2, 0.5))
    assert torch.equal(pasted, again)
    assert not torch.equal(pasted, other)


def test_images_without_any_difference_are_pasted_upon_all_the_same():
    _, masks = experiment.pasted_defects(torch.full((2, 3, 32, 32), 0.5), seed=0)
    assert masks.any()


def test_a_texture_has_no_pasted_ground(run_dir):
    with pytest.raises(RunError, match="no defect"):
        experiment.pasted_ground(load_run(run_dir))
    run = load_run(run_dir)
    run = replace(run, settings=replace(run.settings, crop=None))
    images, masks = experiment.pasted_ground(run, copies=3)
    assert masks.flatten(1).any(1).tolist() == [False, True, True, True]
    assert torch.equal(images[:1], experiment.held_out_images(run))


def test_rescored_is_as_if_it_had_always_been_scored_so(run_dir, data, tmp_path):
    other = ScoringSettings(kernel=1, passes=1, image_score="max", root=True)
    copy, anew = tmp_path / "copy", tmp_path / "anew"
    shutil.copytree(run_dir, copy)
    evaluate(copy)
    before = sweep.examine(copy)
    rescored = experiment.rescore(copy, other)
    train(replace(small(), scoring=other), data, anew, torch.device("cpu"), progress=False)
    expected = evaluate(anew)
    assert "passes_on_test" in before
    assert rescored.keys() - {"rescored_commit"} == expected.keys(), "what was examined was scored otherwise"
    for key in ("settings", "metrics", "defects", "data_sha256"):
        assert rescored[key] == expected[key]
    assert json.loads((copy / "receipt.json").read_text()) == rescored
    assert load_run(copy).settings == load_run(anew).settings
    assert (copy / "calibration.json").read_text() == (anew / "calibration.json").read_text()


def test_metrics_name_the_data_that_they_were_measured_on(run_dir, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    by_category = evaluate(copy, category="grass")
    assert by_category["tested_on"]["category"] == "grass"
    assert by_category["metrics"] == evaluate(copy, data=data, category="grass")["metrics"]
    with pytest.raises(RunError, match="other data than its own"):
        experiment.rescore(copy, ScoringSettings(kernel=1))
    rescored = experiment.rescore(copy, small().scoring, category="grass")
    assert rescored["metrics"] == by_category["metrics"]
    assert rescored["tested_on"] == by_category["tested_on"]
    own = evaluate(copy)
    assert "tested_on" not in own
    assert own["metrics"] != by_category["metrics"]


def test_masks_are_read_once(run_dir, tmp_path, monkeypatch):
    copy, read = tmp_path / "copy", []
    shutil.copytree(run_dir, copy)
    masks = Category.test_masks
    monkeypatch.setattr(Category, "test_masks", lambda self: read.append(self.name) or masks(self))
    evaluate(copy)
    assert read == ["brick"]


def test_without_masks_whole_images_are_measured(run_dir, data, tmp_path):
    bare, copy = tmp_path / "data", tmp_path / "copy"
    shutil.copytree(data / "brick", bare / "brick")
    shutil.rmtree(bare / "brick" / "ground_truth")
    shutil.copytree(run_dir, copy)
    with_masks, without = evaluate(copy), evaluate(copy, data=bare)
    rules = {name: value for name, value in with_masks["metrics"].items() if name.startswith("image")}
    assert without["metrics"] == rules
    for kind, found in without["defects"].items():
        assert found == {k: v for k, v in with_masks["defects"][kind].items() if k != "pixel_auroc"}
    receipt = train(small(), bare, tmp_path / "run", torch.device("cpu"), progress=False)
    assert receipt["data_sha256"] != with_masks["data_sha256"]
    examined = sweep.examine(tmp_path / "run")
    assert "filters" in examined
    assert "filters_on_test" not in examined


def test_of_very_many_images_few_are_held_out():
    kept, held = experiment.hold_out(50_000, 0, experiment.HOLD_OUT_OF_FOLDER)
    assert len(held) == 500, "README, help, docstrings and chapter 14 say so"
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(50_000))


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(data, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment.os, "sysconf", {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setattr(experiment.Category, "train_images", lambda self: pytest.fail("they were read"))
    with pytest.raises(RunError, match="fewer images or a lower resolution"):
        train(replace(small(), resolution=128), data, tmp_path / "run", torch.device("cpu"), progress=False)


def test_a_run_without_a_receipt_is_named_before_anything_is_measured(run_dir, data, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "receipt.json").unlink()
    monkeypatch.setattr(experiment, "measure", None)
    for act in (lambda: evaluate(copy), lambda: experiment.rescore(copy, ScoringSettings())):
        with pytest.raises(RunError, match="has no receipt"):
            act()


def test_other_images_under_the_same_names_are_noticed(data, tmp_path):
    other = make_textures(tmp_path / "other", seed=1, train=8, test_good=3, per_defect=2)
    train(small(), data, tmp_path / "run", torch.device("cpu"), progress=False)
    (tmp_path / "run" / "receipt.json").unlink()
    with pytest.raises(RunError, match="its images are others"):
        train(small(), other, tmp_path / "run", torch.device("cpu"), progress=False)
    # The same images at another place are the same run, which knows the new place from then on.
    moved = shutil.copytree(data, tmp_path / "moved")
    train(small(), moved, tmp_path / "run", torch.device("cpu"), progress=False)
    assert load_run(tmp_path / "run").data == str(moved)
    assert all(moved in path.parents for path in load_run(tmp_path / "run").held_out)


def test_a_category_at_another_resolution_is_read_at_that_of_the_run(run_dir, data, tmp_path):
    large = load_category(data, "brick", 64)
    train(small(), large, tmp_path / "run", torch.device("cpu"), progress=False)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (
        run_dir / "weights.safetensors"
    ).read_bytes()
    assert load_run(tmp_path / "run").calibration == load_run(run_dir).calibration


def test_a_folder_in_which_another_process_trains_is_left_alone(data, tmp_path):
    pytest.importorskip("fcntl")
    code = (
        "import sys, time\nfrom ssae.training import sole_writer\n"
        "with sole_writer(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="another process is training"):
            train(small(), data, tmp_path / "run", torch.device("cpu"), progress=False)
    finally:
        holder.kill()
        holder.wait()
    assert not (tmp_path / "run" / "config.json").exists()
    train(small(), data, tmp_path / "run", torch.device("cpu"), progress=False)


def test_a_finished_run_whose_log_was_removed_is_finished_all_the_same(data, tmp_path):
    settings = small(checkpoint_seconds=0.0)
    expected = train(settings, data, tmp_path / "run", torch.device("cpu"), progress=False)
    for name in ("log.csv", "receipt.json", "weights.safetensors"):
        (tmp_path / "run" / name).unlink()
    again = train(settings, data, tmp_path / "run", torch.device("cpu"), progress=False)
    assert again["train_steps"] == expected["train_steps"]
    json.loads((tmp_path / "run" / "receipt.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("wrong", ['{"scores": [1, 2], "peaks": [1]}', '{"scores": [], "peaks": []}', "[]"])
def test_a_damaged_calibration_is_named(run_dir, tmp_path, wrong):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "calibration.json").write_text(wrong)
    with pytest.raises(RunError, match="does not hold the scores"):
        load_run(copy)


def test_sizes_that_the_model_cannot_take_are_refused_with_some_that_it_can():
    for change in ({"resolution": 100}, {"crop": 20}, {"crop": 2}):
        with pytest.raises(ValueError, match=r"multiple of 8 for this model, got \d+; try \d+"):
            replace(small(), **change)
    for side in range(16, 300, 8):
        crop = experiment.texture_settings(True, side)["crop"]
        assert crop % 16 == 0
        assert crop <= side
    assert experiment.texture_settings(True, 8)["crop"] == 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crop": 256}, "crop must not exceed the resolution"),
        ({"objective": "denoising"}, "needs noise above 0"),
        ({"noise": -0.1}, "noise must not be negative"),
        ({"weight": 1.5}, r"weight must lie in \[0, 1\]"),
    ],
)
def test_settings_that_would_train_something_else_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(small(), **change)


def test_rescoring_that_fails_leaves_no_threshold_of_other_scores(run_dir, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    before = json.loads((copy / "receipt.json").read_text())
    expected = experiment.rescore(shutil.copytree(copy, tmp_path / "done"), ScoringSettings(kernel=1))

    def full(path, values):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(experiment, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        experiment.rescore(copy, ScoringSettings(kernel=1))
    monkeypatch.undo()
    assert json.loads((copy / "receipt.json").read_text()) == before
    run = load_run(copy)
    assert run.settings == small()
    assert experiment.thresholds(run) == pytest.approx(experiment.thresholds(load_run(run_dir)))
    assert experiment.rescore(copy, ScoringSettings(kernel=1)) == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no run"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "not the config"),
        (lambda f: (f / "config.json").write_text('{"settings": {"category": 3}}'), "do not fit"),
        (
            lambda f: (f / "config.json").write_text('{"settings": {"category": "x"}}'),
            "not hold this run's weights",
        ),
        (lambda f: (f / "weights.safetensors").unlink(), "not finished"),
        (lambda f: (f / "weights.safetensors").write_bytes(b"12345678"), "weights"),
    ],
)
def test_a_damaged_run_is_named(run_dir, tmp_path, damage, message):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "weights.safetensors", "receipt.json"):
        (copy / name).write_bytes((run_dir / name).read_bytes())
    damage(copy)
    with pytest.raises(RunError, match=message):
        load_run(copy)


def test_settings_survive_json():
    settings = replace(small(), weight=0.1)
    assert ExperimentSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(("symmetry", "count"), [("none", 1), ("flips", 4), ("rotations", 4), ("all", 8)])
def test_symmetries_are_the_group_they_claim(symmetry, count):
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(400, 1, 3, 3)
    drawn = experiment.random_symmetry(image, symmetry, torch.Generator().manual_seed(0))
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == count
    with pytest.raises(ValueError, match="symmetry"):
        experiment.random_symmetry(image, "mirror", torch.Generator())


def test_shifts_move_whole_pixels():
    image = torch.rand(50, 2, 12, 12, generator=torch.Generator().manual_seed(1))
    moved = experiment.random_shift(image, 2, torch.Generator().manual_seed(0))
    offsets = set()
    for before, after in zip(image, moved, strict=True):
        hits = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(after[:, 2:-2, 2:-2], before[:, 2 + dy : 10 + dy, 2 + dx : 10 + dx])
        ]
        assert len(hits) == 1
        offsets.add(hits[0])
    assert len(offsets) > 10


def test_split_note_tells_when_the_split_is_not_official(data):
    from ssae.datasets import Category

    paths = tuple(data.joinpath(str(i)) for i in range(264))
    official = Category(
        "grid", data.parent / "mvtec" / "grid", 32, paths, paths[:78], ("good",) * 21 + ("bent",) * 57
    )
    assert receipts.split_note(official).startswith("official split")
    other = replace(official, train_paths=paths[:243])
    assert receipts.split_note(other).startswith("not the official split: 243 normal training")


def test_foreign_textures_take_the_place_of_computed_ones(data, tmp_path):
    folder = tmp_path / "foreign"
    for index in range(3):
        (folder / "kind").mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "kind" / f"{index}.png")
    computed = train(small(), data, tmp_path / "computed", progress=False)
    receipt = train(small(), data, tmp_path / "given", progress=False, textures=folder)
    assert receipt["textures"] == 3
    assert len(receipt["textures_sha256"]) == 64
    assert "textures" not in computed
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("computed", "given")]
    assert weights[0] != weights[1]
    assert train(small(), data, tmp_path / "given", progress=False, textures=folder) == receipt
    (folder / "kind" / "0.png").unlink()
    with pytest.raises(RunError, match="other foreign textures"):
        train(small(), data, tmp_path / "given", progress=False, textures=folder)
    with pytest.raises(DataError, match="nothing"):
        train(small(), data, tmp_path / "new", progress=False, textures=tmp_path / "nothing")
    assert not (tmp_path / "new").exists()
