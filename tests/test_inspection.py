"""Applying a run to photographs: what is written, in which order, with how much memory."""

import csv
import html.parser
import io
import itertools
import json
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_experiment import MODEL

from ssae import inspection, plotting
from ssae.experiment import ExperimentSettings, Run, RunError
from ssae.inspection import Decision, Failure, Finding, draw_heat, files, in_order, inspect, png, unused_name
from ssae.report import Report
from ssae.scoring import Calibration, ScoringSettings

SIDE = 32


@pytest.fixture(scope="module")
def run():
    settings = ExperimentSettings(
        "part", resolution=SIDE, model=MODEL, scoring=ScoringSettings.for_resolution(SIDE)
    )
    calibration = Calibration((0.4, 0.1, 0.3, 0.2), (0.9, 0.6, 0.8, 0.7))
    model = settings.build_model().eval()
    return Run(model, settings, "", torch.device("cpu"), calibration=calibration)


def photograph(path, size=(40, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    for index in range(11):
        photograph(
            folder / ("bent" if index % 2 else "") / f"{index:03}.png", (30 + index, 50 - index), index
        )
    (folder / "bent" / "005.png").write_bytes(b"no image")
    photograph(folder / "bent" / "007.jpg", seed=20)  # of one name with 007.png
    return folder


def test_everything_is_written_and_a_bad_file_stops_nothing(run, photographs, tmp_path):
    out = tmp_path / "out"
    found = list(inspect(run, [photographs], out, maps=True))
    good = [f for f in found if isinstance(f, Finding)]
    bad = [f for f in found if isinstance(f, Failure)]
    assert len(good) == 11
    assert len(bad) == 1
    assert "005.png" in bad[0].message
    assert len({f.heat_map for f in good}) == 11, "files of one name must not overwrite each other"
    for finding in good:
        with Image.open(finding.file) as photo:
            size = photo.size
        with (
            Image.open(out / finding.heat_map) as heat,
            Image.open(out / finding.mask) as mask,
            Image.open(out / finding.map) as raw,
        ):
            assert heat.size == mask.size == raw.size == size
            marked = np.asarray(mask)
            assert np.array_equal(marked, np.where(np.asarray(raw) > 0.9, 255, 0))
            assert finding.marked == (marked > 0).mean()
    with open(out / "scores.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [r["file"] for r in rows] == [r["image_path"] for r in lines] == [f.file for f in found]
    assert [float(r["score"]) for r in rows if not r["error"]] == [f.score for f in good]
    assert all(r["pred_label"] == (r["pred_score"] > 0.4) for r in lines if "error" not in r)


def test_a_folder_that_cannot_be_listed_is_named_and_passed_over(run, photographs, tmp_path, monkeypatch):
    listdir = os.listdir

    def refuse(path):
        if Path(path).name == "bent":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    out = tmp_path / "out"
    found = list(inspect(run, [photographs], out))
    assert [Path(f.file).name for f in found if isinstance(f, Failure)] == ["bent"]
    assert "permission" in next(f.message for f in found if isinstance(f, Failure)).lower()
    assert len(found) == 7, "the six beside it are scored"
    assert (out / "report.html").exists()


def test_a_full_disk_is_named_by_the_table_that_had_no_room(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "scores.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as error, inspection._Tables(tmp_path) as tables:
        tables.add(Failure("a.png", "unreadable"))
    assert error.value.filename == str(tmp_path / "scores.csv")


def test_an_earlier_report_does_not_outlive_its_request(run, photographs, tmp_path):
    out = tmp_path / "out"
    list(inspect(run, [photographs], out))
    stopped = inspect(run, [photographs], out)
    next(stopped)
    stopped.close()
    assert not (out / "report.html").exists()


def test_scores_do_not_depend_on_company(run, photographs, tmp_path):
    together = {f.file: f for f in inspect(run, [photographs], tmp_path / "a") if isinstance(f, Finding)}
    for file, finding in itertools.islice(together.items(), 3):
        (alone,) = inspect(run, [file], tmp_path / "b")
        assert alone.score == pytest.approx(finding.score, rel=1e-4)


def test_the_number_of_workers_changes_neither_scores_nor_torch_s_threads(run, photographs, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        alone, four = (list(inspect(run, [photographs], tmp_path / str(n), workers=n)) for n in (1, 4))
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:  # a thread that begins later
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert [found.file for found in alone] == [found.file for found in four]
    scores = [[f.score for f in found if isinstance(f, Finding)] for found in (alone, four)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1, 9, 3), (40, 30, 3)])
def test_a_packed_picture_is_read_back_bit_by_bit(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels[: shape[0] // 2] = 7  # runs as well as noise
    Image.open(io.BytesIO(png(pixels))).verify()  # compares the check sums
    with Image.open(io.BytesIO(png(pixels))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), pixels)


def test_the_heat_map_is_the_overlay_in_eight_bits():
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    heat = generator.random((20, 24), dtype=np.float32)
    drawn = np.asarray(draw_heat(picture, heat, (0.2, 0.7))) / 255
    exact = plotting.overlay(np.asarray(picture) / 255, heat, limits=(0.2, 0.7))
    assert np.abs(drawn - exact).max() < 4 / 255


def test_results_may_not_lie_among_the_photographs(run, photographs, tmp_path):
    before = sorted(photographs.rglob("*"))
    for out in (photographs, photographs / "bent", photographs / "new" / "deep"):
        with pytest.raises(RunError, match="elsewhere"):
            list(inspect(run, [photographs], out))
    assert sorted(photographs.rglob("*")) == before
    out = tmp_path / "out"
    list(inspect(run, [photographs / "000.png"], out))
    with pytest.raises(RunError, match="elsewhere"):
        list(inspect(run, [out / "heat_maps"], out))


def test_a_folder_without_images_is_named(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no image"):
        list(inspect(run, [tmp_path / "empty"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_was_scored_before_an_error_is_told_before_it(run, photographs, tmp_path):
    def paths():
        yield from [photographs / "000.png"] * 21
        raise OSError("the pipe broke")

    told = inspect(run, paths(), tmp_path / "out")
    assert all(isinstance(next(told), Finding) for _ in range(21))
    with pytest.raises(OSError, match="pipe broke"):
        next(told)
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 22


def test_an_empty_folder_beside_others_is_named_before_anything_is_done(run, photographs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no image"):
        list(inspect(run, [photographs, tmp_path / "empty"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    one_by_one = iter([photographs / "000.png", tmp_path / "empty", photographs / "002.png"])
    kinds = [type(found) for found in inspect(run, one_by_one, tmp_path / "out")]
    assert kinds == [Finding, Failure, Finding]


def test_nothing_named_destroys_no_earlier_results(run, photographs, tmp_path):
    list(inspect(run, [photographs / "000.png"], tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="no file was named"):
        list(inspect(run, iter([]), tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_photograph_that_became_unreadable_leaves_no_old_result(run, photographs, tmp_path):
    photo, out = tmp_path / "photos" / "a.png", tmp_path / "out"
    photo.parent.mkdir()
    photo.write_bytes((photographs / "000.png").read_bytes())
    (finding,) = inspect(run, [photo], out, maps=True)
    assert (out / finding.mask).exists()
    photo.write_bytes(b"")
    (failure,) = inspect(run, [photo], out, maps=True)
    assert isinstance(failure, Failure)
    assert not any(
        path.is_file() for folder in ("heat_maps", "masks", "maps") for path in (out / folder).iterdir()
    )


def test_a_name_that_no_file_can_have_stops_nothing(run, photographs, tmp_path):
    named = iter(["x" * 300 + ".png", photographs / "000.png"])
    assert [type(found) for found in inspect(run, named, tmp_path / "out")] == [Failure, Finding]


def test_maps_of_an_earlier_request_do_not_stay_beside_new_results(run, photographs, tmp_path):
    (first,) = inspect(run, [photographs / "000.png"], tmp_path / "out", maps=True)
    assert (tmp_path / "out" / first.map).exists()
    list(inspect(run, [photographs / "000.png"], tmp_path / "out"))
    assert not (tmp_path / "out" / first.map).exists()


def test_results_do_not_lie_beside_photographs_given_singly(run, photographs):
    before = sorted(photographs.rglob("*"))
    with pytest.raises(RunError, match="elsewhere"):
        list(inspect(run, [photographs / "000.png", photographs / "002.png"], photographs))
    assert sorted(photographs.rglob("*")) == before


def test_a_spreadsheet_takes_no_name_for_a_formula(run, photographs, tmp_path, monkeypatch):
    place = tmp_path / "photos"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in ("=1+1.png", "-3.png", "Pr\u00fcfling.png"):
        (place / name).write_bytes((photographs / "000.png").read_bytes())
    list(inspect(run, ["=1+1.png", "-3.png", "Pr\u00fcfling.png"], tmp_path / "out"))
    content = (tmp_path / "out" / "scores.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf"), "the mark by which a spreadsheet knows UTF-8"
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    assert [row["file"] for row in rows] == ["./=1+1.png", "./-3.png", "Pr\u00fcfling.png"]
    assert all(os.path.exists(row["file"]) for row in rows)


def test_paths_may_come_one_by_one(run, photographs, tmp_path):
    paths = (path for path in [photographs / "000.png", photographs / "002.png"])
    assert [f.file[-7:] for f in inspect(run, paths, tmp_path / "out")] == ["000.png", "002.png"]


def test_names_never_collide(photographs, tmp_path):
    named = [
        name for _, name in files([photographs, photographs / "000.png", photographs / "bent"], tmp_path)
    ]
    assert len({name.lower() for name in named}) == len(named)
    assert named[-1].startswith("00")


def test_very_many_files_of_one_name_are_named_at_once():
    taken = {}
    start = time.perf_counter()
    names = [unused_name("image", taken) for _ in range(20_000)]
    assert time.perf_counter() - start < 5
    assert names[:3] == ["image", "image-2", "image-3"]
    others = [unused_name(name, taken) for name in ("Image", "image-3", "image-20001", "image-3-2")]
    assert len({name.lower() for name in names + others}) == 20_004


def test_results_come_in_order_and_never_far_ahead():
    taken = 0
    lock = threading.Lock()

    def items():
        nonlocal taken
        for index in range(100):
            with lock:
                taken += 1
            yield index

    def slow(index):
        time.sleep(0.002 if index % 7 == 0 else 0)
        return index

    with ThreadPoolExecutor(4) as pool:
        for done, result in enumerate(in_order(pool, slow, items(), ahead=8)):
            assert result == done
            assert taken <= done + 8


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_file_that_asks_for_nothing(run, tmp_path):
    nasty = photograph(tmp_path / "in" / "<script>alert(1)&lt;.png")
    (found,) = inspect(run, [tmp_path / "in"], tmp_path / "out")
    assert found.file == str(nasty)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert nasty.name in page.text
    assert page.tags.count("img") == 2
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)


def test_the_report_keeps_the_highest_scores_only(tmp_path, monkeypatch):
    monkeypatch.setattr(Report, "ROWS", 5)
    report = Report(tmp_path / "report.html", "as told")
    tiny = Image.new("RGB", (4, 4))
    for score in np.random.default_rng(0).permutation(20):
        report.finding(f"file-{score}-", float(score), bool(score > 10), 0.0, tiny, tiny)
    report.write()
    page = Page((tmp_path / "report.html").read_text())
    assert [f"file-{score}-" in page.text for score in range(20)] == [False] * 15 + [True] * 5
    assert "9 of 20" in page.text


def test_the_decision_says_how_far_to_trust_it(run):
    text = str(Decision.of(run, 0.25))
    assert text.startswith("threshold 0.3")
    assert "1 of 4" in text


def test_memory_does_not_grow_with_the_number_of_files(run, tmp_path, monkeypatch):
    """However many files there are, only so many photographs are alive at a time."""
    one = photograph(tmp_path / "one.png")
    alive = highest = 0
    lock = threading.Lock()
    decode = inspection._decode

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    def counted(*arguments, **settings):
        nonlocal alive, highest
        photo = decode(*arguments, **settings)
        weakref.finalize(photo, gone)
        with lock:
            alive += 1
            highest = max(highest, alive)
        return photo

    monkeypatch.setattr(inspection, "_decode", counted)
    found = sum(1 for _ in inspect(run, (one for _ in range(200)), tmp_path / "out"))
    assert found == 200
    assert highest <= 10 * inspection.BATCH
