"""The interface of scikit-learn, and a run as one ONNX file."""

import doctest

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from ssae import detector as module
from ssae.automatic import choose
from ssae.datasets import DataError, load_folder, photo_tensor
from ssae.detector import Detector, _photo
from ssae.experiment import RunError
from ssae.export import export_run, lanczos


@pytest.fixture(scope="module")
def photographs():
    rows = np.arange(48)
    grid = ((rows[:, None] // 6 + rows // 6) % 2 * 120 + 60).astype(np.uint8)
    generator = np.random.default_rng(0)
    return [grid + generator.integers(0, 20, grid.shape, dtype=np.uint8) for _ in range(20)]


@pytest.fixture(scope="module")
def detector(photographs):
    return Detector(steps=3, resolution=32).fit(photographs)


def test_examples_run():
    assert doctest.testmod(module).failed == 0


def test_verdicts_follow_scores_and_threshold(detector, photographs):
    scores = detector.score_samples(photographs)
    assert scores.shape == (20,)
    assert np.array_equal(detector.predict(photographs), np.where(scores < detector.offset_, -1, 1))
    np.testing.assert_allclose(detector.decision_function(photographs), scores - detector.offset_)
    heat = detector.heat_maps(photographs)
    assert heat.shape == (20, 32, 32)
    assert detector.decision_.false_alarms.images == 4


def test_no_held_out_photograph_is_anomalous(detector, photographs):
    alarms = (detector.predict(photographs) == -1).sum()
    assert alarms <= 16, "at least the four held-out ones are normal"
    assert detector.offset_ == -max(detector.run_.calibration.scores)


def test_saved_and_loaded_it_says_the_same(detector, photographs, tmp_path):
    detector.save(tmp_path / "run")
    again = Detector.load(tmp_path / "run")
    np.testing.assert_allclose(
        again.score_samples(photographs), detector.score_samples(photographs), rtol=1e-4
    )
    assert again.offset_ == detector.offset_
    with pytest.raises(RunError, match="not empty"):
        detector.save(tmp_path / "run")


def test_files_arrays_and_images_are_the_same_photograph(detector, photographs, tmp_path):
    Image.fromarray(photographs[0]).save(tmp_path / "a.png")
    ways = [tmp_path / "a.png", photographs[0], Image.fromarray(photographs[0])]
    assert len(set(detector.score_samples(ways).round(12))) == 1
    assert detector.score_samples(tmp_path).shape == (1,)


def test_it_is_an_estimator(detector, photographs):
    twin = clone(detector)
    assert twin.get_params() == detector.get_params()
    with pytest.raises(NotFittedError):
        twin.predict(photographs)
    with pytest.raises(RunError, match="uint8"):
        detector.predict([photographs[0] / 255])
    with pytest.raises(RunError, match="at least two"):
        Detector(steps=1, resolution=32).fit(photographs[:1])
    with pytest.raises(RunError, match="no photographs"):
        detector.predict([])


@pytest.mark.parametrize(("before", "after"), [(64, 32), (97, 32), (32, 32), (20, 48)])
def test_lanczos_is_pillows(before, after):
    line = np.random.default_rng(before).integers(0, 256, (1, before), dtype=np.uint8)
    there = np.asarray(Image.fromarray(line).resize((after, 1), Image.Resampling.LANCZOS))[0]
    here = (lanczos(before, after) @ torch.from_numpy(line[0]).float()).clamp(0, 255).round()
    assert np.abs(here.numpy() - there).max() <= 1


@pytest.mark.slow
def test_onnx_gives_the_verdicts_of_the_run(detector, photographs, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    assert export_run(detector.run_, path) <= 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = np.stack([np.repeat(p[..., None], 3, axis=2) for p in photographs])
    # Smaller than the model along one axis or both: enlarged.
    for height, width in ((20, 24), (18, 70)):
        small = np.random.default_rng(height).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        _, score, _ = session.run(None, {"photographs": small})
        np.testing.assert_allclose(-score, detector.score_samples(list(small)), atol=2e-3)
    heat, score, anomalous = session.run(None, {"photographs": batch})
    # Pillow rounds in fixed point, so single pixels differ by one of 255 grey levels.
    resized = torch.stack([photo_tensor(Image.fromarray(p), 32) for p in batch])
    np.testing.assert_allclose(heat, detector.run_.heat_maps(resized), atol=2e-3)
    np.testing.assert_allclose(-score, detector.score_samples(photographs), atol=2e-3)
    assert np.array_equal(anomalous, score > -detector.offset_)
    assert float(session.get_modelmeta().custom_metadata_map["threshold"]) == -detector.offset_


def test_an_open_image_is_read_as_its_file_is(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(path, exif=exif)
    by_path, opened = (photo_tensor(_photo(what), 32) for what in (path, Image.open(path)))
    assert torch.equal(by_path, opened)
    assert not torch.equal(opened, photo_tensor(_photo(values), 32))


def test_an_open_image_whose_values_would_be_guessed_at_is_refused():
    deep = Image.fromarray(np.full((32, 32), 40_000, np.uint16))
    glassy = Image.new("RGBA", (32, 32), (255, 0, 0, 128))
    for image, said in ((deep, "more than 8 bits"), (glassy, "transparent")):
        with pytest.raises(DataError, match=said):
            _photo(image)


def test_a_folder_to_be_judged_is_judged_whole(detector, photographs, tmp_path):
    """Also copies and defective parts, which a folder to learn from may not hold."""
    places = ("bad/0.png", "good/0.png", "good/1.png", "good/2.png", "x/y/0.png")
    for place, photograph in zip(places, (*photographs[:2], *photographs[1:4]), strict=True):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph).save(tmp_path / place)
    expected = detector.score_samples([tmp_path / place for place in places])
    np.testing.assert_array_equal(detector.score_samples(tmp_path), expected)
    with pytest.warns(UserWarning, match="the same file as"):
        Detector(steps=1, resolution=32).fit(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"false_alarms": 5}, "a share in"),
        ({"texture": "no"}, "True, False or 'auto'"),
        ({"symmetry": "mirrored"}, "symmetry must be one of auto, none"),
    ],
)
def test_a_wrong_setting_is_named_before_the_training(photographs, monkeypatch, wrong, said):
    monkeypatch.setattr(module, "learn", lambda *_, **__: pytest.fail("it trained"))
    detector = Detector(steps=1, resolution=32, **wrong)
    with pytest.raises(ValueError, match=said):
        detector.fit(photographs)
    with pytest.raises(NotFittedError):
        detector.predict(photographs)


def test_one_array_is_not_taken_for_a_list_of_rows(detector):
    with pytest.raises(RunError, match="list of one"):
        detector.predict(np.zeros((48, 60, 3), np.uint8))


def test_no_steps_are_not_the_default_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Detector(steps=0, resolution=32).fit([np.zeros((32, 32, 3), np.uint8)] * 3)


def test_settings_are_read_off_the_photographs_as_ssae_train_does(tmp_path):
    ground = data.gravel()
    crops = [ground[y : y + 64, x : x + 64] for y in range(0, 448, 64) for x in range(0, 448, 64)]
    for index, crop in enumerate(crops):
        Image.fromarray(crop).save(tmp_path / f"{index:02}.png")
    by_train, reasons = choose(load_folder(tmp_path, 64))
    assert by_train.crop == 32, "gravel looks alike everywhere"
    for photographs in (tmp_path, crops, np.stack(crops)):
        detector = Detector(steps=1).fit(photographs)
        settings = detector.run_.settings
        assert (settings.resolution, settings.crop) == (by_train.resolution, by_train.crop)
        assert (settings.symmetry, settings.corruption) == (by_train.symmetry, by_train.corruption)
        assert detector.reasons_ == [reason.replace("--", "") for reason in reasons]
    told = Detector(steps=1, resolution=32, symmetry="flips", texture=False).fit(crops)
    settings = told.run_.settings
    assert (settings.resolution, settings.symmetry, settings.crop, told.reasons_) == (32, "flips", None, [])


def test_small_arrays_are_counted_and_not_named(capsys):
    wall = data.brick()
    crops = [wall[y : y + 64, x : x + 64] for y in range(0, 256, 64) for x in range(0, 256, 64)]
    crops[0] = crops[0][:40, :40]
    detector = Detector(steps=1, resolution=64, verbose=True).fit(crops)
    (said,) = (reason for reason in detector.reasons_ if "enlarged" in reason)
    assert said.startswith("1 of the 16 photographs")
    assert "[[" not in said
    assert said in capsys.readouterr().out
