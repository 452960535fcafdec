"""Sweeps: which jobs a grid means, that finished ones are skipped and failed ones do not stop the rest."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from test_cli import ssae

from ssae import sweep as sweeps
from ssae.datasets import usable_cores
from ssae.experiment import ExperimentSettings, RunError
from ssae.receipts import format_percent
from ssae.sweep import (
    Grid,
    changed_settings,
    cluster_parameters,
    jobs_of,
    keep_receipts,
    read_sweep,
    sweep,
    sweep_on_slurm,
    sweep_table,
)
from ssae.textures import make_textures

LOCKS = Path("/proc/locks")
BASE = {
    "resolution": 32,
    "batch_size": 4,
    "model": {"channels": [8, 8], "dilations": [1, 2], "sdc_filters": 4, "sdc_layers": 1},
    "fit": {"steps": 3},
}
GRID = {
    "categories": ["brick", "weave"],
    "seeds": [0, 1],
    "base": BASE,
    "changes": {"as it is": {}, "more repair": {"weight": 0.5}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_textures(tmp_path_factory.mktemp("data") / "textures", train=6, test_good=2, per_defect=1)


@pytest.fixture
def grid_file(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(GRID))
    return path


def test_a_grid_is_the_product_of_its_parts(grid_file, tmp_path):
    jobs = jobs_of(Grid.read(grid_file), "data", tmp_path / "runs")
    assert len(jobs) == 8
    assert len({job.run_dir for job in jobs}) == 8
    assert {(j.settings.category, j.settings.fit.seed, j.settings.weight) for j in jobs} == {
        (category, seed, weight)
        for category in ("brick", "weave")
        for seed in (0, 1)
        for weight in (ExperimentSettings("any").weight, 0.5)
    }


def test_settings_of_one_category_lie_between_the_base_and_the_change(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({**GRID, "each": {"brick": {"symmetry": "flips", "weight": 0.3}}}))
    jobs = {(j.change, j.settings.category): j.settings for j in jobs_of(Grid.read(path), "data", "runs")}
    assert jobs["as it is", "brick"].symmetry == jobs["more repair", "brick"].symmetry == "flips"
    assert jobs["as it is", "brick"].weight == 0.3
    assert jobs["more repair", "brick"].weight == 0.5
    assert jobs["as it is", "weave"].weight == ExperimentSettings("any").weight


def test_a_change_alters_what_it_names_and_nothing_else():
    plain = ExperimentSettings.for_category("bottle", 64)
    changed = changed_settings("bottle", 3, {"resolution": 64}, {"corruption": {"fade": 0.5}})
    assert changed.corruption.fade == 0.5
    before, after = plain.to_json(), changed.to_json()
    before["corruption"]["fade"], before["fit"]["seed"] = 0.5, 3
    assert after == before


def test_a_length_in_minutes_takes_the_place_of_that_in_steps():
    assert changed_settings("brick", 0, {"fit": {"minutes": 5}}).fit.steps is None
    both = changed_settings("brick", 0, {"fit": {"minutes": 5}}, {"fit": {"steps": 7}}).fit
    assert (both.steps, both.minutes) == (7, None)


def test_a_change_of_the_model_starts_from_the_preset():
    lite = ExperimentSettings.for_category("bottle").build_model().settings
    changed = changed_settings("bottle", 0, {"model": {"skip": "none"}})
    assert changed.model.skip == "none"
    assert changed.model.channels == lite.channels
    full = changed_settings("bottle", 0, {"preset": "full", "model": {"skip": "none"}})
    assert full.model.channels != lite.channels


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seeds": [0]}, "lacks 'categories'"),
        ({**GRID, "more": 1}, "unknown key 'more'"),
        ({**GRID, "base": 3}, "grid.base: expected an object"),
        ({**GRID, "changes": {"a": 3}}, "grid.changes.a: expected an object"),
        ({**GRID, "changes": ["a"]}, "grid.changes: expected an object"),
        ({**GRID, "categories": "brick"}, "grid.categories: expected a list"),
        ({**GRID, "categories": ["../outside"]}, "name of a folder"),
        ({**GRID, "each": {"grass": {}}}, "each names 'grass'"),
        ({**GRID, "categories": []}, "at least one category"),
        ({**GRID, "changes": {"../outside": {}}}, "name of a folder"),
        ({**GRID, "seeds": 3}, "grid.seeds: expected a list"),
        ({**GRID, "seeds": [0, 1, 0]}, "seeds names one of them twice"),
        ({**GRID, "categories": ["brick", "brick"]}, "categories names one of them twice"),
        ([], "expected an object"),
    ],
)
def test_a_wrong_grid_is_refused_by_name(tmp_path, wrong, said):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(RunError, match=said) as error:
        Grid.read(path)
    assert "grid.json" in str(error.value)


def test_an_unknown_setting_is_refused_before_anything_runs(data, tmp_path):
    grid = Grid(("brick",), (0,), BASE, {"good": {}, "typo": {"wieght": 0.5}})
    with pytest.raises(RunError, match="wieght") as error:
        jobs_of(grid, data, tmp_path)
    assert "change 'typo'" in str(error.value)
    assert "train the run anew" not in str(error.value), "no run is there yet"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resolution": "big"}, "whole number"),
        ({"preset": "nope", "model": {}}, "'nope' is none of lite, full"),
        ({"resolution": 100}, "multiple of 8"),
    ],
)
def test_a_setting_that_makes_no_run_is_refused_in_words(change, said, tmp_path):
    with pytest.raises(RunError, match=said):
        jobs_of(Grid(("brick",), (0,), {}, {"a": change}), "data", tmp_path)


def test_a_negative_seed_is_refused_in_words(tmp_path):
    with pytest.raises(RunError, match="seed must not be negative"):
        jobs_of(Grid(("brick",), (-1,), {}, {"a": {}}), "data", tmp_path)


@pytest.mark.slow
def test_finished_jobs_are_skipped_and_failed_ones_reported(data, tmp_path, monkeypatch):
    # Without a filter the root would rank all pixels as the square does.
    grid = Grid(("brick", "absent"), (0,), {**BASE, "scoring": {"kernel": 3}}, {"as it is": {}})
    jobs = jobs_of(grid, data, tmp_path / "runs")
    said = []
    done, failed = sweep(jobs, report=said.append)
    assert [job.settings.category for job, _ in done] == ["brick"]
    assert [job.settings.category for job, _ in failed] == ["absent"]
    assert "absent" in str(failed[0][1])
    assert len(said) == 2
    monkeypatch.setattr(sweeps, "evaluate", None)
    monkeypatch.setattr(sweeps, "examine", None)
    again, _ = sweep(jobs, report=said.append)
    assert again == done
    receipt = done[0][1]
    assert receipt["validation"].keys() >= {"image_auroc", "pixel_auroc"}
    # The filter of the run itself gives what the run was measured with, on either ground.
    own = str(jobs[0].settings.scoring.kernel)
    assert receipt["filters"][own] == receipt["validation"] != receipt["root"]
    on_test = receipt["filters_on_test"][own]
    assert on_test == pytest.approx({name: receipt["metrics"][name] for name in on_test})
    assert receipt["root_on_test"] != on_test
    # A texture that is pasted elsewhere is no defect; a part is.
    assert "validation_on_pasted" not in receipt
    keep_receipts(done, tmp_path / "kept")
    assert read_sweep(tmp_path / "kept") == [("as it is", receipt) for _, receipt in done]


@pytest.mark.slow
def test_two_workers_do_what_one_does(data, tmp_path):
    grid = Grid(("brick",), (0, 1), BASE, {"as it is": {}})
    # Other numbers of threads add in another order, and give other weights.
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, usable_cores() // 2))
    try:
        one, _ = sweep(jobs_of(grid, data, tmp_path / "one"), workers=1)
    finally:
        torch.set_num_threads(before)
    two, _ = sweep(jobs_of(grid, data, tmp_path / "two"), workers=2)
    for (_, here), (_, there) in zip(one, two, strict=True):
        assert here["metrics"] == pytest.approx(there["metrics"])


@pytest.mark.slow
def test_submitit_runs_the_same_jobs(data, tmp_path):
    pytest.importorskip("submitit")
    grid = Grid(("brick", "absent"), (0,), BASE, {"as it is": {}})
    here, _ = sweep(jobs_of(grid, data, tmp_path / "here"))
    there, failed = sweep_on_slurm(
        jobs_of(grid, data, tmp_path / "there"), tmp_path / "slurm", cluster="local", timeout_min=5
    )
    assert len(here) == len(there) == len(failed) == 1
    assert there[0][1]["metrics"] == pytest.approx(here[0][1]["metrics"])


def test_jobs_that_a_cluster_refuses_are_named(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")

    def refuse(self, function, jobs):
        raise RuntimeError("sbatch: error: invalid partition specified: gpuu")

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", refuse)
    with pytest.raises(RunError, match=r"refuses these jobs.*gpuu"):
        sweep_on_slurm([], tmp_path, cluster="local")


def test_a_failed_job_keeps_nothing_in_memory(data, tmp_path, monkeypatch):
    class Images:
        pass

    alive = []

    def run_job(job):
        images = Images()
        alive.append(weakref.ref(images))
        try:
            raise ValueError("in the middle")
        except ValueError as error:
            raise RunError("diverged") from error

    monkeypatch.setattr(sweeps, "run_job", run_job)
    jobs = jobs_of(Grid(("brick",), (0,), BASE, {"as it is": {}}), data, tmp_path)
    _, failed = sweep(jobs, report=lambda line: None)
    gc.collect()
    assert [str(error) for _, error in failed] == ["diverged"]
    assert alive[0]() is None


def test_cores_that_are_not_granted_are_not_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()


def test_the_table_has_mean_and_spread():
    def receipt(seed, auroc):
        metrics = dict.fromkeys(("image_auroc", "pixel_auroc", "pixel_ap", "au_pro"), auroc)
        return {"category": "bottle", "seed": seed, "metrics": metrics}

    table = sweep_table([("a", receipt(0, 0.90)), ("a", receipt(1, 0.92)), ("b", receipt(0, 0.5))])
    assert "| bottle | a | 2 | 91.0 ± 1.4 |" in table
    assert "| bottle | b | 1 | 50.0 |" in table


def test_cluster_parameters_are_read_or_refused():
    assert cluster_parameters("slurm_partition=gpu,timeout_min=120") == {
        "slurm_partition": "gpu",
        "timeout_min": 120,
    }
    with pytest.raises(RunError, match="KEY=VALUE"):
        cluster_parameters("gpu")
    with pytest.raises(RunError, match="not folder"):
        cluster_parameters("timeout_min=5,folder=elsewhere")


def test_a_parameter_that_no_cluster_knows_is_refused_in_words(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(RunError, match="nodes_of_gold"):
        sweep_on_slurm([], tmp_path, cluster="local", nodes_of_gold=1)


@pytest.mark.slow
@pytest.mark.skipif(not LOCKS.exists(), reason="only Linux lists the locks that are held")
def test_a_worker_that_was_killed_ends_the_sweep_and_fails_no_job(data, tmp_path):
    job, out = long_sweep(data, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: len(busy(out)) == 2)
        os.kill(min(busy(out).values()), signal.SIGKILL)
        said, complaint = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == 1
    assert "a worker was killed" in complaint
    assert "Traceback" not in complaint
    assert "failed" not in said


@pytest.mark.slow
def test_the_command_prints_a_table_and_exits_1_on_failure(data, tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({**GRID, "categories": ["brick"], "seeds": [0], "changes": {"plain": {}}}))
    table = ssae("sweep", path, "--data", data, "--out", tmp_path / "runs", check=0).stdout
    assert "| brick | plain | 1 |" in table
    path.write_text(json.dumps({**GRID, "categories": ["absent"], "seeds": [0], "changes": {"plain": {}}}))
    assert "absent" in ssae("sweep", path, "--data", data, "--out", tmp_path / "runs", check=1).stderr


@pytest.mark.slow
@pytest.mark.skipif(not LOCKS.exists(), reason="only Linux lists the locks that are held")
def test_workers_end_with_a_sweep_that_was_killed(data, tmp_path):
    job, out = long_sweep(data, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = []
    try:
        wait_for(lambda: len(busy(out)) == 2)
        workers = children(job.pid)
    finally:
        job.kill()
        job.wait()
    assert len(workers) >= 2
    # Not only out of the folders: a worker that ends one run must not take the next one.
    wait_for(lambda: not any(map(alive, workers)))


@pytest.mark.slow
@pytest.mark.skipif(not LOCKS.exists(), reason="only Linux lists the locks that are held")
@pytest.mark.parametrize("everyone", [True, False])
def test_an_interrupted_sweep_trains_nothing_more(data, tmp_path, everyone):
    job, out = long_sweep(
        data,
        tmp_path,
        seeds=range(5),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # What a shell starts in the background is deaf to Control-C, and so are its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: len(busy(out)) == 2)
        begun, workers = sorted(out.glob("*/*")), children(job.pid)
        # Control-C goes to every process of a terminal, a script's signal to the one it names.
        (os.killpg if everyone else os.kill)(job.pid, signal.SIGINT)
        assert job.wait(timeout=120) == 130
    finally:
        job.kill()
    wait_for(lambda: not any(map(alive, workers)))
    assert sorted(out.glob("*/*")) == begun


def children(pid):
    """Processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if stat_of(folder.name)[1] == str(pid):
                found.append(int(folder.name))
    return found


def alive(pid):
    """Whether a process runs; one that has ended may wait for a parent to take note."""
    try:
        return stat_of(pid)[0] != "Z"
    except OSError:
        return False


def stat_of(pid):
    """What the kernel says of a process, from its state and its parent on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def long_sweep(data, tmp_path, seeds=(0, 1), **options):
    """A sweep by two workers in a process of its own, whose runs would take days, and their folder."""
    path, out = tmp_path / "grid.json", tmp_path / "runs"
    base = {**BASE, "fit": {"steps": 10**6}}
    path.write_text(json.dumps({**GRID, "seeds": list(seeds), "base": base, "changes": {"long": {}}}))
    command = [sys.executable, "-m", "ssae.cli", "sweep", path, "--data", data, "--out", out, "--jobs", "2"]
    return subprocess.Popen([str(part) for part in command], text=True, **options), out


def busy(out):
    """The run folders in which a process is training, each with that process, by the kernel's list: to try a
    lock is to hold it.
    """
    rows = [line.split() for line in LOCKS.read_text().splitlines() if " FLOCK " in line]
    holder = {row[-3].rpartition(":")[2]: int(row[-4]) for row in rows}
    folders = [path.parent for path in out.glob("*/*/config.json")]
    return {f: holder[inode] for f in folders if (inode := str(f.stat().st_ino)) in holder}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


PRINTED = ("search", "parts", "surfaces", "surfaces_long", "grid", "budget", "symmetry", "sizes")
GRIDS = (*PRINTED, "parts_adamw")  # of which the page prints differences


@pytest.mark.parametrize("name", GRIDS)
def test_committed_receipts_are_what_the_grid_says(root, name):
    folder = root / "results" / "ablations"
    wanted = {
        (job.change, job.settings.category, job.settings.fit.seed): job.settings.to_json()
        for job in jobs_of(Grid.read(folder / f"{name}.json"), "data", "runs")
    }
    found = read_sweep(folder / name)
    assert found
    for change, receipt in found:
        # Settings that are newer than a receipt had their defaults then.
        settings = ExperimentSettings.from_json(receipt["settings"]).to_json()
        assert settings == wanted[change, receipt["category"], receipt["seed"]], change
        assert not receipt["code_commit"].endswith("-dirty"), "made from code that is in no commit"
        assert receipt["metrics"].keys() >= {"image_auroc", "pixel_auroc", "pixel_ap", "au_pro"}
        assert receipt["validation"].keys() >= {"image_auroc", "pixel_auroc", "pixel_ap", "au_pro"}


def test_the_page_prints_the_committed_receipts(root, html):
    page = (html / "13_ablations.html").read_text(encoding="utf8")
    for name in PRINTED:
        groups = {}
        for change, receipt in read_sweep(root / "results" / "ablations" / name):
            metric = "au_pro" if name == "sizes" else "pixel_auroc"
            groups.setdefault((receipt["category"], change), []).append(receipt["metrics"][metric])
        for (_, change), values in groups.items():
            assert change in page
            assert format_percent(values) in page
