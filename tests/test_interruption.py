"""Power cuts, kill -9 and full disks: a run that goes on afterwards ends as if nothing had happened."""

from __future__ import annotations

import builtins
import multiprocessing
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssae import files, training
from ssae.objectives import Denoising
from ssae.training import FitSettings, fit, read_checkpoint, read_log, step_seed

# Children are forked from a server that has imported what they will need, also what an optimiser imports at
# its first use, and computed nothing: a quick start.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["ssae.training", "ssae.objectives", "torch._dynamo", "numpy.random", "pytest"]
)

EVERY = 21  # steps between two checkpoints, by the clock of these tests


def model(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 6))


def train(run_dir: Path | None, steps: int, before_step: Callable[[int], None] = lambda step: None) -> Tensor:
    """A short training with a checkpoint every 21 steps, to all its weights in one vector."""
    number = {step_seed(0, step): step for step in range(steps)}

    def draw(generator: torch.Generator) -> Tensor:
        before_step(number[generator.initial_seed()])
        return torch.randn(16, 6, generator=generator)

    net = model()
    ticks = iter(range(10**6))
    settings = FitSettings(steps=steps, ema=0.9, checkpoint_seconds=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "time", SimpleNamespace(monotonic=lambda: 0.05 * next(ticks)))
        fit(net, draw, Denoising(0.1), settings, run_dir, progress=False)
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


def start(task: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    child = CONTEXT.Process(target=task, args=arguments)
    child.start()
    return child


def good_checkpoints(run_dir: Path) -> list[int]:
    """Steps of the checkpoints that can be read; raises if a whole-looking one cannot."""
    return [read_checkpoint(path)[1].step for path in sorted((run_dir / "checkpoints").glob("*.safetensors"))]


# kill -9


def train_watched(run_dir: Path, watch: Path, steps: int, pause: float) -> None:
    """Train, writing down each step that begins and the first of them."""
    descriptor = os.open(watch, os.O_RDWR | os.O_CREAT)
    first: list[int] = []

    def before_step(step: int) -> None:
        first.append(step)
        os.pwrite(descriptor, struct.pack("<qq", first[0], step), 0)
        time.sleep(pause)

    weights = train(run_dir, steps, before_step)
    np.save(run_dir / "weights.npy", weights)


def watched(watch: Path) -> tuple[int, int] | None:
    content = watch.read_bytes() if watch.exists() else b""
    return struct.unpack("<qq", content) if len(content) == 16 else None


@pytest.mark.slow
def test_killed_twenty_times_at_random_a_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    steps, run_dir = 2000, tmp_path / "run"
    moments = random.Random(0)
    reached = 0
    for kill in range(20):
        watch = tmp_path / f"watch-{kill}"
        child = start(train_watched, run_dir, watch, steps, 0.002)
        # Counted in steps, so that a slow machine gets as far as a fast one.
        target = moments.randrange(3 * EVERY)
        while (seen := watched(watch)) is None or seen[1] - seen[0] < target:
            assert child.is_alive(), "it ended before it was killed"
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.004))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        first, last = watched(watch)
        assert first >= reached - EVERY - 1, "more than one checkpoint interval was lost"
        reached = max(reached, last)
    child = start(train_watched, run_dir, tmp_path / "watch", steps, 0.0)
    child.join()
    assert child.exitcode == 0
    assert watched(tmp_path / "watch")[0] > 0, "the last run began from the first step"
    assert np.array_equal(np.load(run_dir / "weights.npy"), train(None, steps))


# Every boundary of a write


def train_until_boundary(run_dir: Path, steps: int, limit: int, name: Path) -> None:
    """Train, and die at the ``limit``-th point between two system calls that write."""
    passed = 0

    def boundary(what: str) -> None:
        nonlocal passed
        passed += 1
        if passed == limit:
            name.write_text(what)
            os.kill(os.getpid(), signal.SIGKILL)

    class HalfWritten:
        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self) -> HalfWritten:
            boundary("file opened, nothing written")
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            boundary("half the file written")
            self.file.write(content[len(content) // 2 :])

        def __getattr__(self, attribute: str) -> object:
            return getattr(self.file, attribute)

    def around(function: Callable, what: str) -> Callable:
        def wrapped(*arguments: object, **options: object) -> object:
            boundary(f"before {what}")
            result = function(*arguments, **options)
            boundary(f"after {what}")
            return result

        return wrapped

    def opened(path: Path, mode: str = "r", **options: object) -> object:
        file = builtins.open(path, mode, **options)  # noqa: SIM115 (the wrapper closes it)
        return HalfWritten(file) if mode == "wb" else file

    files.open = opened
    os.fsync = around(os.fsync, "the sync")
    os.replace = around(os.replace, "the rename")
    Path.unlink = around(Path.unlink, "the removal of an old checkpoint")
    train(run_dir, steps)


@pytest.mark.slow
def test_death_at_every_write_boundary_costs_one_interval_at_most(tmp_path: Path) -> None:
    steps = 4 * EVERY
    whole = train(None, steps)
    died_at: list[str] = []
    for limit in range(1, 1000):
        run_dir = tmp_path / f"run-{limit}"
        name = tmp_path / f"boundary-{limit}"
        child = start(train_until_boundary, run_dir, steps, limit, name)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        died_at.append(name.read_text())
        # Whatever lies under its final name is whole, and no more than one checkpoint is behind the log.
        rows = read_log(run_dir / "log.csv")
        good = good_checkpoints(run_dir)
        assert not rows or rows[-1].step - max(good, default=0) <= EVERY + 1
        begun: list[int] = []
        assert torch.equal(train(run_dir, steps, begun.append), whole), died_at[-1]
        assert (begun or [steps])[0] == max(good, default=0)
        assert read_log(run_dir / "log.csv")[-1].step == steps
    assert len(set(died_at)) == 8, set(died_at)
    assert len(died_at) > 40
    assert not [path for path in run_dir.rglob("*.partial")], "the uninterrupted run leaves nothing half done"


def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    leftover = tmp_path / "checkpoints" / "step-000000007.safetensors.partial"
    leftover.write_bytes(b"half of it")
    train(tmp_path, 2 * EVERY + 2)
    assert not leftover.exists()
    assert len(good_checkpoints(tmp_path)) == 2


def test_unreadable_checkpoints_of_later_steps_push_nothing_out(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 2 * EVERY + 2)
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    for step in (4000, 5000):
        (run_dir / "checkpoints" / f"step-{step:09d}.safetensors").write_bytes(b"of another version")

    def stop(step: int) -> None:
        if step == EVERY + 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(run_dir, 2 * EVERY + 2, stop)
    assert good_checkpoints(run_dir) == [EVERY], "what was written first is still there, and nothing else"
    assert torch.equal(train(run_dir, 2 * EVERY + 2), whole)


# A full disk


def full_disk(run_dir: Path) -> Callable[[int], None]:
    """Fill the file system up after the second checkpoint."""

    def before_step(step: int) -> None:
        if step == 2 * EVERY + 5:
            with suppress(OSError), open(run_dir / "filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))

    return before_step


def check_full_disk(run_dir: Path, refill: Callable[[], None], error: OSError) -> None:
    assert Path(error.filename).parent in (run_dir, run_dir / "checkpoints")
    assert str(error.filename) in str(error)
    kept = good_checkpoints(run_dir)
    assert kept
    assert kept[-1] >= EVERY
    refill()
    begun: list[int] = []
    assert torch.equal(train(run_dir, 4 * EVERY, begun.append), train(None, 4 * EVERY))
    assert begun[0] == kept[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB of its own; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_checkpoint_before_it_kept(small_disk: Path) -> None:
    run_dir = small_disk / "run"
    with pytest.raises(OSError, match="No space left") as error:
        train(run_dir, 4 * EVERY, full_disk(run_dir))
    check_full_disk(run_dir, (run_dir / "filler").unlink, error.value)


def test_a_quota_is_named_and_the_checkpoint_before_it_kept(tmp_path: Path) -> None:
    """As above by a limit on the size of files, which needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def before_step(step: int) -> None:
        if step == 2 * EVERY + 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        with pytest.raises(OSError, match="too large") as error:
            train(tmp_path, 4 * EVERY, before_step)
    finally:
        lift()
    check_full_disk(tmp_path, lift, error.value)


@pytest.mark.slow
def test_the_command_line_ends_with_a_message_on_a_full_disk(small_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ssae.cli", "train", "--data", str(small_data)]
    command += ["--resolution", "64", "--steps", "2", "--out", str(tmp_path / "run")]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert f"{tmp_path / 'run'}" in result.stderr
    assert "too large" in result.stderr
    assert not list((tmp_path / "run").rglob("*.partial"))
