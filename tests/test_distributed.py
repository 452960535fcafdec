"""Two processes that train together: the same curve as one, one writer, one decision, one end.

``torchrun`` starts this very file: :func:`worker` is what each process then does.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ssae import cli, training
from ssae.corruption import CorruptionSettings, PartialCorruption, procedural_textures
from ssae.distributed import (
    FirstProcessFailed,
    ProcessError,
    on_first,
    process_group,
    rank,
    require_same,
    world_size,
)
from ssae.models import ModelSettings, build
from ssae.objectives import Denoising, Idempotent, Masked, Objective
from ssae.training import FitSettings, Interrupted, TrainingDiverged, fit, read_log, replay

STEPS = 12


def launch(*arguments: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *map(str, arguments)], stdout=pipe, stderr=pipe, text=True, **options)


def clock(speed: float = 2.0, start: float = 0.0) -> SimpleNamespace:
    """A clock that ticks each time it is read: at two seconds a tick, every step has a row in the log."""
    ticks = iter(range(10**6))
    return SimpleNamespace(monotonic=lambda: start + speed * next(ticks))


def autoencoder() -> nn.Module:
    """A small SDC-CCM, in double precision: what differs then is not rounding."""
    torch.manual_seed(0)
    settings = ModelSettings(
        channels=(8, 8), dilations=(1, 2), sdc_filters=4, sdc_layers=1, sdc_kernel=3, unshuffle=2
    )
    return build(settings).double()


def corruption() -> PartialCorruption:
    return PartialCorruption(
        CorruptionSettings(), procedural_textures(4, 32, torch.Generator().manual_seed(1))
    )


def draw(generator: torch.Generator) -> Tensor:
    # Brighter along the batch, so that the parts of a batch have other means than all of it.
    images = torch.rand(8, 3, 32, 32, dtype=torch.float64, generator=generator)
    return images * torch.linspace(0.2, 1, 8, dtype=torch.float64).view(8, 1, 1, 1)


def learn(
    run_dir: Path | None = None, objective: Objective | None = None, **settings: object
) -> tuple[list[list[float]], list[float]]:
    """A short training: step, loss, learning rate and seconds of each row, and all weights in one vector."""
    model = autoencoder()
    objective = objective or Masked(corruption(), 0.2, noise=0.05)
    length = {} if "minutes" in settings else {"steps": STEPS}
    usual = {"ema": 0.9, "optimiser": "muon", "checkpoint_seconds": 0}
    fitting = FitSettings(**{**length, **usual, **settings})
    log = fit(model, draw, objective, fitting, run_dir, progress=False)
    weights = torch.cat([value.flatten().double() for value in model.state_dict().values()])
    return [[row.step, row.loss, row.learning_rate, row.seconds] for row in log], weights.tolist()


def poisoned(model: nn.Module, clean: Tensor, generator: torch.Generator) -> Tensor:
    """No finite loss at the sixth step."""
    loss = Denoising(0.1)(model, clean, generator)
    return loss * math.nan if generator.initial_seed() == training.step_seed(0, 5) else loss


class StopsOneProcess:
    """At the eighth step one process, not the first, is asked to stop."""

    def __call__(self, model: nn.Module, clean: Tensor, generator: torch.Generator) -> Tensor:
        if rank() == 1 and generator.initial_seed() == training.step_seed(0, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return Masked(corruption(), 0.2, noise=0.05)(model, clean, generator)


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device", f"written by process {rank()}")


def raised(task, *arguments: object, **options: object) -> str:
    try:
        task(*arguments, **options)
    except (FirstProcessFailed, Interrupted, OSError, ProcessError, TrainingDiverged) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def scenarios(folder: Path) -> dict[str, object]:
    """What two processes do together, one thing after another."""
    assert world_size() == 2
    written: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(str(folder)) and arguments[2] & 3:
            written.append(Path(arguments[0]).name)

    sys.addaudithook(watch)
    found: dict[str, object] = {}

    training.time = clock()
    found["whole"] = learn(folder / "whole")
    found["twice"] = learn(objective=Idempotent(Masked(corruption(), 0.2), corruption(), 0.5))

    found["stopped"] = raised(learn, folder / "stopped", StopsOneProcess())
    found["resumed"] = learn(folder / "stopped")
    found["diverged"] = raised(learn, folder / "diverged", poisoned)

    # The clocks of two machines agree in nothing.
    training.time = clock(speed=0.5 + rank(), start=1000.0 * rank())
    found["by the clock"] = learn(minutes=0.1)
    training.time = time

    found["full disk"] = raised(on_first, no_space)
    found["odd batch"] = raised(fit, nn.Linear(6, 6), lambda g: torch.rand(3, 6), Denoising(0.1), ONE_STEP)
    found["other data"] = raised(require_same, {"settings": 1, "training images": rank()})
    found["same data"] = raised(require_same, {"settings": 1})
    found["answer"] = on_first(lambda: f"of process {rank()}")
    found["written"] = written
    return found


ONE_STEP = FitSettings(steps=1)


def worker(what: str, folder: Path) -> None:
    """What each process that ``torchrun`` starts does."""
    with process_group():
        if what == "scenarios":
            found = scenarios(folder)
            (folder / f"found-{rank()}.json").write_text(json.dumps(found))

        def drawing(generator: torch.Generator) -> Tensor:
            if generator.initial_seed() == training.step_seed(0, 3):
                if what == "scenarios" and rank() == 1:
                    raise ValueError("one process has a problem of its own")
                (folder / f"begun-{rank()}").touch()
            return torch.rand(8, 6, generator=generator)

        fit(nn.Linear(6, 6), drawing, Denoising(0.1), FitSettings(minutes=10), folder / "run", progress=False)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The processes that went through all scenarios and then, one of them failing, ended: what they said."""
    folder = tmp_path_factory.mktemp("both")
    job = launch(__file__, "scenarios", folder)
    _, complaints = job.communicate(timeout=300)
    return SimpleNamespace(folder=folder, complaints=complaints, returncode=job.returncode)


@pytest.fixture
def both(job: SimpleNamespace) -> tuple[Path, list[dict]]:
    """Folder of the scenarios, and what each of the two processes found."""
    paths = [job.folder / f"found-{number}.json" for number in range(2)]
    assert all(path.exists() for path in paths), job.complaints
    return job.folder, [json.loads(path.read_text()) for path in paths]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "time", clock())


def assert_close(there: list, here: list, tolerance: float) -> None:
    """Numbers agree, relative to the largest of them."""
    there, here = (torch.tensor(values, dtype=torch.float64) for values in (there, here))
    torch.testing.assert_close(there, here, rtol=0, atol=tolerance * float(here.abs().max()))


def losses(run: list) -> list[float]:
    return [row[1] for row in run[0]]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["whole", "twice"])
def test_two_processes_have_the_curve_of_one(both, ticking, objective):
    alone = learn(
        objective=None if objective == "whole" else Idempotent(Masked(corruption(), 0.2), corruption(), 0.5)
    )
    assert len(losses(alone)) == STEPS
    for found in both[1]:
        assert_close(losses(found[objective]), losses(alone), 1e-10)
        assert_close(found[objective][1], alone[1], 1e-10)


@pytest.mark.slow
def test_the_log_on_the_disk_is_that_of_one_process(both, ticking, tmp_path):
    learn(tmp_path)
    assert len(read_log(tmp_path / "log.csv")) == STEPS
    assert read_log(both[0] / "whole" / "log.csv") == read_log(tmp_path / "log.csv")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_go_on(both, ticking):
    folder, (first, second) = both
    assert first["stopped"] == second["stopped"]
    assert first["stopped"].startswith("Interrupted: stopped at step 8;")
    whole, resumed = first["whole"], first["resumed"]
    assert [row[0] for row in resumed[0]] == list(range(1, STEPS + 1))
    # The log that a run goes on with has six digits.
    assert_close(losses(resumed), losses(whole), 1e-5)
    assert resumed[1] == whole[1] == second["resumed"][1]
    assert sorted(path.name for path in (folder / "stopped").iterdir()) == ["checkpoints", "log.csv"]


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(both, ticking, tmp_path):
    checkpoint = sorted((both[0] / "whole" / "checkpoints").iterdir())[0]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / checkpoint.name).write_bytes(checkpoint.read_bytes())
    assert_close(learn(tmp_path)[1], both[1][0]["whole"][1], 1e-10)


@pytest.mark.slow
def test_only_the_first_process_writes(both):
    first, second = (set(found["written"]) for found in both[1])
    names = {name.removesuffix(".partial").rpartition(".")[0] for name in first}
    assert {"log.csv", "diverged.safetensors"} <= names
    assert not second


@pytest.mark.slow
def test_the_clock_of_the_first_process_counts_for_both(both):
    first, second = (found["by the clock"] for found in both[1])
    assert first == second
    # Six seconds, half a second a step after the reading at the start.
    assert (first[0][-1][0], first[0][-1][3]) == (12, 6.0)


@pytest.mark.slow
def test_an_error_in_the_first_process_ends_both(both):
    first, second = (found["full disk"] for found in both[1])
    assert first == "OSError: [Errno 28] No space left on device: 'written by process 0'"
    assert second == "FirstProcessFailed: the first process failed and says why"
    assert [found["answer"] for found in both[1]] == ["of process 0"] * 2


@pytest.mark.slow
def test_a_step_that_diverged_in_two_processes_is_repeated_in_one(both):
    folder, found = both
    assert found[0]["diverged"] == found[1]["diverged"]
    assert "not finite at step 5 " in found[0]["diverged"]
    rows = replay(folder / "diverged" / "diverged.safetensors", autoencoder(), draw, poisoned)
    assert [row[0] for row in rows] == [5]
    assert math.isnan(rows[0][1])


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused_by_every_process(both):
    for found in both[1]:
        assert (
            "a batch of 3 cannot be divided evenly among 2 processes; start one of 1, 3" in found["odd batch"]
        )
        assert found["other data"].startswith("ProcessError: process 1 has other training images")
        assert found["same data"] == "nothing"


@pytest.mark.slow
def test_the_command_line_under_torchrun(small_data, tmp_path, capfd):
    options = ["train", "--data", str(small_data), "--resolution", "32", "--steps", "3", "--device", "cpu"]
    # In bfloat16 the halves of a batch round otherwise than the whole, by more than is asked below.
    options += ["--precision", "float32"]
    job = launch("-m", "ssae.cli", *options, "--out", tmp_path / "both")
    said, complaints = job.communicate(timeout=300)
    assert job.returncode == 0, complaints
    assert said.count("3 steps in") == 1
    assert cli.main([*options, "--out", str(tmp_path / "alone")]) == 0

    both, alone = tmp_path / "both", tmp_path / "alone"
    assert json.loads((both / "receipt.json").read_text())["processes"] == 2
    assert "processes" not in json.loads((alone / "receipt.json").read_text())
    assert {path.name for path in both.iterdir()} == {path.name for path in alone.iterdir()}
    # Rows come once a second, so only the sum over all steps can be compared.
    totals = [
        sum(
            row.loss * (row.step - before)
            for row, before in zip(log, [0, *(r.step for r in log)], strict=False)
        )
        for log in (read_log(both / "log.csv"), read_log(alone / "log.csv"))
    ]
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    there, here = (load_file(folder / "weights.safetensors") for folder in (both, alone))
    assert there.keys() == here.keys()
    for name, value in here.items():
        # Adam moves a weight that has almost no gradient by the sign of a rounding error; Muon takes a
        # direction of almost no gradient as seriously as the others.
        torch.testing.assert_close(there[name], value, rtol=0, atol=5e-3)
        assert float((there[name].double() - value.double()).abs().mean()) < 1e-4


@pytest.mark.slow
def test_a_process_that_fails_ends_the_other(both, job):
    # Without that, the other would train for ten minutes, and the job not end in time.
    assert (job.folder / "begun-0").exists()
    assert job.returncode != 0
    assert "one process has a problem of its own" in job.complaints


@pytest.mark.slow
def test_a_signal_to_torchrun_leaves_a_checkpoint(tmp_path):
    job = launch(__file__, "train", tmp_path)
    while not ((tmp_path / "begun-0").exists() and (tmp_path / "begun-1").exists()):
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    job.terminate()
    _, complaints = job.communicate(timeout=100)
    assert "the same command goes on from there" in complaints
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


if __name__ == "__main__":
    worker(sys.argv[1], Path(sys.argv[2]))
