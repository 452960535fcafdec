"""What a command leaves behind: what it was asked for, where it was asked for it, and a quiet screen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn
from tqdm import tqdm

from ssae import training
from ssae.cli import main
from ssae.training import FitSettings, TrainingState


def files(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_commands_write_into_the_folder_they_are_given_and_nowhere_else(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, variable in (("here", None), ("home", "HOME"), ("temporary", "TMPDIR")):
        (tmp_path / name).mkdir()
        if variable:
            monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path / "here")
    data_before = files(small_data)

    def written(*arguments: object) -> set[str]:
        before = files(tmp_path)
        assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        assert capsys.readouterr().err == "", "no bar and no warning where nobody watches"
        return {path.split("/")[0] for path, time in files(tmp_path).items() if before.get(path) != time}

    run, out = tmp_path / "run", tmp_path / "out"
    # Left by a command that was killed as it began: no reason to refuse the folder.
    run.mkdir()
    (run / "config.json.partial").write_bytes(b"half of it")
    assert written("data", "check", small_data) == set()
    assert written("train", "--data", small_data, "--resolution", 64, "--steps", 2, "--out", run) == {"run"}
    assert written("evaluate", run) == {"run"}
    assert written("predict", run, small_data / "part/test/good", "--out", out) <= {"out", "run"}
    assert files(small_data) == data_before
    for name in ("here", "home", "temporary"):
        assert files(tmp_path / name) == {}


@pytest.mark.parametrize(
    ("settings", "done", "left"),
    [
        (FitSettings(steps=100), lambda state: setattr(state, "step", 60), "00:10<00:10"),
        (FitSettings(minutes=1), lambda state: setattr(state, "seconds", 30.0), "00:10<00:20"),
    ],
)
def test_the_time_left_counts_only_what_this_process_did(
    monkeypatch: pytest.MonkeyPatch, settings: FitSettings, done: Callable, left: str
) -> None:
    """A resumed run has most of its steps behind it and none of their time: they must not look like speed."""
    state = TrainingState(nn.Linear(2, 2), settings)
    done(state)
    # What the bar is made with, and what it would say after ten seconds and twenty steps.
    made: dict = {}
    monkeypatch.setattr(training, "tqdm", lambda **options: made.update(options))
    training._progress_bar(settings, state, progress=True)
    n = made["initial"] + (20 if settings.steps else 10)
    form = made.get("bar_format")
    said = tqdm.format_meter(n, made["total"], 10.0, initial=made["initial"], bar_format=form, postfix="")
    assert left in said
