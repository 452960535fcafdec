"""The command line as a process: what it prints, what it writes, how it exits."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ssae import cli


def ssae(*arguments, check=None, **environment):
    result = subprocess.run(
        [sys.executable, "-m", "ssae.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in result.stderr, result.stderr
    if check is not None:
        assert result.returncode == check, result.stdout + result.stderr
    return result


def photograph(path, size=(48, 40), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A bare folder of photographs of several sizes and formats, some one level down."""
    folder = tmp_path_factory.mktemp("own") / "my parts"
    for index in range(12):
        kind = ("png", "jpg", "bmp", "webp")[index % 4]
        photograph(
            folder / ("" if index % 3 else "monday") / f"{index}.{kind}", (48 + index, 60 - index), index
        )
    (folder / "notes.docx").write_text("not a photograph")
    return folder


@pytest.fixture(scope="module")
def run_of_parts(parts):
    run = parts.parent / "run"
    result = ssae("train", "--data", parts, "--steps", 2, "--out", run, check=0)
    return run, result


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "textures"
    ssae("data", "make-textures", folder, check=0)
    return folder


@pytest.mark.slow
def test_from_nothing_to_heat_maps(textures, tmp_path):
    run = tmp_path / "run"
    command = (
        "train",
        "--data",
        textures,
        "--category",
        "brick",
        "--resolution",
        64,
        "--steps",
        3,
        "--out",
        run,
    )
    assert "3 steps" in ssae(*command, check=0).stdout
    assert "3 steps" in ssae(*command, check=0).stdout
    assert "pixel_auroc" in ssae("evaluate", run, check=0).stdout
    receipt = json.loads(ssae("evaluate", run, "--json", check=0).stdout)
    assert receipt == json.loads((run / "receipt.json").read_text())
    out = tmp_path / "heat"
    result = ssae("predict", run, textures / "brick/test/scratch", "--out", out, check=0)
    assert "6 photographs" in result.stdout
    assert "confidence" in result.stdout
    assert len(list(out.glob("heat_maps/*.png"))) == len(list(out.glob("masks/*.png"))) == 6
    missing = ssae("predict", run, tmp_path / "nothing.png", "--out", out, check=1)
    assert "nothing.png" in missing.stderr


def test_check_passes_good_data_and_names_bad(textures, tmp_path):
    assert "0 errors" in ssae("data", "check", textures, check=0).stdout
    broken = tmp_path / "set" / "part" / "train" / "good"
    broken.mkdir(parents=True)
    (broken / "000.png").write_bytes(b"")
    result = ssae("data", "check", tmp_path / "set", check=1)
    assert "000.png" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "usage"),
        (("train", "--data", "x"), 2, "--out"),
        (("train", "--data", "x", "--out", "y", "--steps", "0"), 2, "at least 1"),
        (("train", "--data", "x", "--out", "y", "--steps", "5", "--minutes", "1"), 2, "not allowed with"),
        (("train", "--data", "no/such/place", "--category", "a", "--out", "y"), 1, "no/such/place"),
        (("evaluate", "no/such/run"), 1, "no run"),
        (("predict", "no/such/run", "x.png", "--out", "y"), 1, "no run"),
        (("data", "check", "no/such/place"), 1, "no/such/place"),
    ],
)
def test_misuse_gets_a_message_and_a_code(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = ssae(*arguments, check=code)
    assert message in result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_named(textures, tmp_path):
    result = ssae(
        "train",
        "--data",
        textures,
        "--category",
        "brick",
        "--out",
        tmp_path / "r",
        "--device",
        "warp",
        check=1,
    )
    assert "warp" in result.stderr


def test_several_categories_need_a_choice(textures, tmp_path):
    result = ssae("train", "--data", textures, "--out", tmp_path / "r", check=1)
    assert "--category brick | grass | gravel | weave" in result.stderr


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "data"])
def test_every_command_explains_itself(command):
    assert len(ssae(command, "--help", check=0).stdout) > 200


# A folder of one's own photographs


@pytest.mark.slow
def test_a_bare_folder_is_enough(parts, run_of_parts, tmp_path):
    run, result = run_of_parts
    assert "12 photographs of good parts: 10 to learn from, 2 held out" in result.stdout
    assert "notes.docx" in result.stdout
    assert all(word in result.stdout for word in ("resolution", "texture no", "symmetry none"))
    config = json.loads((run / "config.json").read_text())
    assert len(config["held_out"]) == 2
    assert all((parts / name).exists() for name in config["held_out"])
    assert len(json.loads((run / "calibration.json").read_text())["scores"]) == 2
    assert list((run / "progress").glob("step-*.png"))
    rows = (run / "progress" / "scores.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,image_auroc,pixel_auroc"
    assert len(rows) > 1
    again = ssae("train", "--data", parts, "--steps", 2, "--out", run, check=0)
    assert "2 steps" in again.stdout
    # Nothing of the training data is needed any more.
    parts.rename(parts.parent / "gone")
    try:
        result = ssae("predict", run, parts.parent / "gone" / "monday", "--out", tmp_path / "found", check=0)
    finally:
        (parts.parent / "gone").rename(parts)
    assert "4 photographs" in result.stdout


@pytest.mark.slow
def test_a_finished_run_is_not_passed_off_for_one_of_other_photographs(parts, tmp_path):
    mine = shutil.copytree(parts, tmp_path / "mine")
    command = ("train", "--data", mine, "--steps", 1, "--out", tmp_path / "run")
    ssae(*command, check=0)
    photograph(mine / "one more.png", seed=99)
    assert "was trained on other photographs" in ssae(*command, check=1).stderr
    (tmp_path / "run" / "weights.safetensors").unlink()
    (mine / "one more.png").unlink()
    ssae(*command, check=0)
    assert (tmp_path / "run" / "weights.safetensors").exists(), "a run without weights is not finished"


@pytest.mark.slow
def test_the_options_of_the_readme_do_what_they_say(parts, tmp_path):
    foreign, run = tmp_path / "foreign", tmp_path / "run"
    for index in range(3):
        photograph(foreign / f"{index}.png", (64, 64), 70 + index)
    asked = ("--minutes", 0.05, "--foreign", foreign, "--symmetry", "flips", "--texture", "yes")
    asked += ("--resolution", 64, "--seed", 3, "--out", run)
    ssae("train", "--data", parts, *asked, check=0)
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["fit"]["minutes"], settings["fit"]["steps"]) == (0.05, None)
    assert (settings["symmetry"], settings["crop"], settings["fit"]["seed"]) == ("flips", 32, 3)
    receipt = json.loads((run / "receipt.json").read_text())
    assert receipt["textures"] == 3
    assert 2.5 < receipt["train_seconds"] < 60
    assert len((run / "progress" / "scores.csv").read_text().splitlines()) > 1
    ssae("predict", run, parts / "1.jpg", "--out", tmp_path / "found", "--maps", check=0)
    assert len(list((tmp_path / "found" / "maps").iterdir())) == 1


@pytest.mark.slow
def test_photographs_in_train_good_get_a_test_split_later(parts, tmp_path):
    mine = tmp_path / "screws"
    shutil.copytree(parts / "monday", mine / "train" / "good")
    ssae("train", "--data", mine, "--steps", 1, "--out", tmp_path / "run", check=0)
    for kind, seed in (("good", 50), ("bent", 51)):
        photograph(mine / "test" / kind / "0.png", (48, 48), seed)
    (mine / "ground_truth" / "bent").mkdir(parents=True)
    mask = np.zeros((48, 48), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(mine / "ground_truth" / "bent" / "0_mask.png")
    result = ssae("evaluate", tmp_path / "run", "--data", mine, check=0)
    assert "screws" in result.stdout


@pytest.mark.slow
def test_another_data_set_of_the_layout_is_looked_at_too(tmp_path):
    """Its bottles are not those of MVTec AD, whatever the folder is called."""
    category = tmp_path / "btad" / "bottle"
    for index in range(24):
        photograph(category / "train" / "good" / f"{index}.png", (64, 64), index)
    for kind in ("good", "bad"):
        photograph(category / "test" / kind / "0.png", (64, 64), 100 + len(kind))
    (category / "ground_truth" / "bad").mkdir(parents=True)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(category / "ground_truth" / "bad" / "0.png")
    run = tmp_path / "run"
    said = ssae("train", "--data", tmp_path / "btad", "--steps", 1, "--out", run, check=0).stdout
    assert "texture yes: " in said, said
    assert "resolution 64: " in said, said
    assert json.loads((run / "config.json").read_text())["settings"]["crop"] == 32
    assert json.loads((run / "receipt.json").read_text())["dataset"] == "btad"
    assert "ssae evaluate" in said


@pytest.mark.slow
def test_copies_are_named_and_left_out(parts, tmp_path):
    mine = shutil.copytree(parts, tmp_path / "mine")
    shutil.copy(mine / "1.jpg", mine / "1 (1).jpg")
    said = ssae("train", "--data", mine, "--steps", 1, "--out", tmp_path / "run", check=0).stdout
    assert "12 photographs of good parts" in said
    assert re.search(r"1\.jpg is the same file as .*1 \(1\)\.jpg and not used", said), said
    # A folder that is not read has no copies, and none of its files may be blamed for one.
    chosen = tmp_path / "chosen"
    for folder in ("all", "good"):
        shutil.copytree(parts / "monday", chosen / folder)
    assert "is the same" not in ssae("data", "check", chosen, check=0).stdout
    (mine / "broken.png").write_bytes(b"no image")
    shutil.copy(mine / "2.bmp", mine / "1.bmp")
    checked = ssae("data", "check", mine)
    assert checked.returncode == 1
    assert "broken.png" in checked.stdout
    assert "1.jpg is the same" in checked.stdout
    assert "differs from" in checked.stdout, "one fault hides no other"


@pytest.mark.slow
def test_names_that_the_terminal_cannot_show(run_of_parts, tmp_path):
    photograph(tmp_path / "photos" / "日本.png")
    found = ssae(
        "predict", run_of_parts[0], tmp_path / "photos", "--out", tmp_path / "out", PYTHONIOENCODING="ascii"
    )
    assert found.returncode == 0, found.stderr
    assert "\\u65e5" in found.stdout


@pytest.mark.slow
def test_null_bytes_in_a_list_of_paths_are_refused_in_words(run_of_parts, tmp_path):
    command = [sys.executable, "-m", "ssae.cli", "predict", run_of_parts[0], "-", "--out", tmp_path / "out"]
    result = subprocess.run(command, input="a.png\0b.png\0", capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert "find -print" in result.stderr


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.cuda.OutOfMemoryError("CUDA"), RuntimeError("... can't allocate memory: ...")],
)
def test_full_memory_is_said_in_words(error, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("ssae.datasets.check", fail)
    assert cli.main(["data", "check", "."]) == 1
    assert "memory is full" in capsys.readouterr().err


@pytest.mark.slow
def test_logs_are_quiet_unless_asked_for(parts, run_of_parts, tmp_path):
    _, quiet = run_of_parts
    assert quiet.stderr == ""
    loud = ssae("train", "-v", "--data", parts, "--steps", 2, "--out", tmp_path / "run", check=0)
    assert loud.stdout.splitlines()[:5] == quiet.stdout.splitlines()[:5]
    said = loud.stderr.splitlines()
    assert any("ssae.datasets: read 12 images" in line for line in said)
    assert any("ssae.experiment: settings: {" in line for line in said)
    assert any(f"ssae.files: wrote {tmp_path / 'run' / 'weights.safetensors'}" in line for line in said)


@pytest.mark.slow
def test_without_a_compiler_compiling_is_refused_in_words(parts, tmp_path):
    command = ("train", "--data", parts, "--steps", "1", "--compile", "--out", tmp_path / "run")
    # A cache of its own, or else it may find what an earlier test compiled.
    result = ssae(*command, check=1, CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert "install a C++ compiler, or leave --compile away" in result.stderr
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.slow
def test_paths_come_from_standard_input(parts, run_of_parts, tmp_path):
    listed = "\n".join(map(str, sorted(parts.glob("*.jpg"))))
    result = subprocess.run(
        [sys.executable, "-m", "ssae.cli", "predict", run_of_parts[0], "-", "--out", tmp_path / "found"],
        input=listed,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "found" / "scores.jsonl").read_text().splitlines()) == len(listed.splitlines())


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--resolution", "100"), 1, "--resolution must be a multiple of 8, got 100; try 96"),
        (("--seed", "-1"), 2, "must not be negative"),
    ],
)
def test_numbers_that_make_no_run_are_refused_and_leave_nothing(parts, tmp_path, options, code, said):
    result = ssae("train", "--data", parts, "--steps", "1", *options, "--out", tmp_path / "run", check=code)
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


MISUSE = {
    # what: (prepare the folder, command, exit code, words the message must have)
    "no such folder": (None, "train --data HERE/parst --out HERE/run", 1, ["parst", "does not exist"]),
    "empty folder": (
        lambda here: (here / "parts").mkdir(),
        "train --data HERE/parts --out HERE/run",
        1,
        ["parts", "holds no image", ".jpg"],
    ),
    "one image": (
        lambda here: photograph(here / "parts" / "a.png"),
        "train --data HERE/parts --out HERE/run",
        1,
        ["at least two", "add more"],
    ),
    "a video": (
        lambda here: (
            photograph(here / "parts" / "a.png"),
            (here / "parts/a.png").rename(here / "parts/a.mp4"),
        ),
        "train --data HERE/parts --out HERE/run",
        1,
        ["a.mp4", "is a video", "single pictures"],
    ),
    "text named .png": (
        lambda here: (
            [photograph(here / "parts" / f"{i}.png") for i in range(3)]
            and (here / "parts" / "bad.png").write_text("hello")
        ),
        "train --data HERE/parts --out HERE/run",
        1,
        ["bad.png", "cannot be read", "export it again"],
    ),
    "defects among the good": (
        lambda here: [photograph(here / "parts" / kind / "a.png") for kind in ("first", "defective")],
        "train --data HERE/parts --out HERE/run",
        1,
        ["defective", "good parts only"],
    ),
    "unknown category": (
        lambda here: photograph(here / "set" / "nut" / "train" / "good" / "a.png"),
        "train --data HERE/set --category bolt --out HERE/run",
        1,
        ["bolt", "does not exist", "nut"],
    ),
    "a file where the run should be": (
        lambda here: (
            [photograph(here / "parts" / f"{i}.png", seed=i) for i in range(3)]
            and (here / "run").write_text("mine")
        ),
        "train --data HERE/parts --out HERE/run --steps 1",
        1,
        ["run", "is a file"],
    ),
    "a run that is not finished": (
        lambda here: (here / "run").mkdir() or (here / "run" / "config.json").write_text('{"settings": {}}'),
        "predict HERE/run HERE --out HERE/out",
        1,
        ["not finished", "goes on with it"],
    ),
    "no run": (None, "predict HERE HERE --out HERE/out", 1, ["holds no run", "ssae train"]),
    "nonsense for a share": (
        None,
        "predict HERE HERE --out x --false-alarms 120",
        2,
        ["less than 100 per cent"],
    ),
    "both length options": (None, "train --data HERE --out x --steps 5 --minutes 5", 2, ["not allowed with"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", MISUSE)
def test_misuse_gets_an_error_to_act_on(what, tmp_path):
    prepare, command, code, words = MISUSE[what]
    if prepare:
        prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = ssae(*(word.replace("HERE", str(tmp_path)) for word in command.split()), check=code)
    for word in words:
        assert word in result.stderr
    assert sorted(tmp_path.rglob("*")) == before, "a refused command writes nothing"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("monday", ["among the photographs", "elsewhere"]),
        (".", ["among the photographs", "elsewhere"]),
        ("../a file/found", ["a file", "name another folder"]),
    ],
)
def test_misplaced_results_are_refused(out, words, parts, run_of_parts):
    (parts.parent / "a file").write_text("mine")
    before = sorted(parts.rglob("*"))
    result = ssae("predict", run_of_parts[0], parts, "--out", parts / out, check=1)
    for word in words:
        assert word in result.stderr
    assert sorted(parts.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write anywhere"
)
def test_a_folder_that_may_not_be_written_is_named(parts, run_of_parts, tmp_path):
    tmp_path.chmod(0o500)
    result = ssae("predict", run_of_parts[0], parts, "--out", tmp_path / "found", check=1)
    assert "found" in result.stderr
    assert "ask for permission" in result.stderr


@pytest.mark.slow
def test_a_bad_file_among_good_ones_is_named_and_passed_over(parts, run_of_parts, tmp_path):
    photograph(tmp_path / "new" / "fine.png")
    (tmp_path / "new" / "broken.png").write_text("hello")
    (tmp_path / "new" / "phone.HEIC").write_bytes(b"ftypheic")
    result = ssae(
        "predict", run_of_parts[0], tmp_path / "new", tmp_path / "lost.png", "--out", tmp_path / "o", check=1
    )
    assert "broken.png" in result.stderr
    assert "lost.png" in result.stderr
    assert "1 photographs" in result.stdout
    assert "export it as JPEG or PNG" in result.stderr
    assert "3 unreadable" in result.stdout


@pytest.mark.slow
def test_a_run_is_exported_with_the_threshold_that_was_asked_for(run_of_parts, tmp_path):
    onnx = pytest.importorskip("onnx")
    thresholds = []
    for share in (0, 50):
        path = tmp_path / f"{share}.onnx"
        said = ssae("export", run_of_parts[0], "--out", path, "--false-alarms", share, check=0).stdout
        assert str(path) in said
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        thresholds.append(float(metadata["threshold"]))
    assert thresholds[1] < thresholds[0]


def test_an_export_without_its_packages_says_which(run_of_parts, tmp_path):
    (tmp_path / "onnxscript.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'onnxscript'\", name='onnxscript')\n"
    )
    out = tmp_path / "model.onnx"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = ssae("export", run_of_parts[0], "--out", out, check=1, PYTHONPATH=path)
    assert "pip install onnx onnxscript" in result.stderr
    assert not out.exists()


def test_a_pattern_that_no_shell_expanded_is_expanded(tmp_path):
    for name in ("b.png", "a.png", "c.jpg", "[x].png"):
        (tmp_path / name).write_bytes(b"")
    assert cli.expanded(str(tmp_path / "*.png")) == [
        str(tmp_path / name) for name in ("[x].png", "a.png", "b.png")
    ]
    assert cli.expanded(str(tmp_path / "[x].png")) == [str(tmp_path / "[x].png")]
    assert cli.expanded(str(tmp_path / "*.bmp")) == [str(tmp_path / "*.bmp")], "named as it was given"
