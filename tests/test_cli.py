"""The command line as a process: what it prints, what it writes, how it exits."""

import json
import subprocess
import sys

import pytest


def ssae(*arguments, check=None):
    result = subprocess.run(
        [sys.executable, "-m", "ssae.cli", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in result.stderr, result.stderr
    if check is not None:
        assert result.returncode == check, result.stdout + result.stderr
    return result


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
    assert "6 images" in result.stdout
    assert len(list(out.glob("*.png"))) == 6
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
