"""Many runs from one grid: categories x seeds x changes of settings, each an independent job.

A job is a run folder of its own (see :mod:`ssae.experiment`), so a sweep may be stopped and started again at
any moment: finished jobs are skipped, an interrupted one goes on from its checkpoint, a failed one does not
stop the others. Explained in chapter 13.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssae.datasets import open_category, usable_cores
from ssae.experiment import (
    ExperimentSettings,
    Run,
    drawn_ground,
    evaluate,
    heat_metrics,
    load_run,
    pasted_ground,
    train,
)
from ssae.models import PRESETS
from ssae.receipts import (
    METRICS,
    RunError,
    markdown_table,
    metric_cells,
    read_json,
    read_receipts,
    write_json,
)
from ssae.schema import SchemaError, checked

Changes = dict[str, Any]

# Sides of the box filter that `examine` tries.
FILTERS = (1, 3, 5, 7, 9, 11, 13)
# Numbers of passes of it that `examine` tries.
PASSES = (0, 1, 2, 3, 4, 6)


@dataclass(frozen=True)
class Grid:
    """What a sweep trains: every change on every category with every seed.

    Parameters
    ----------
    categories
        Names of categories.
    seeds
        Seeds of training.
    base
        Settings that all jobs share, as they stand in a run's ``config.json``; what is not named keeps its
        default for the category. Of others than those of MVTec AD and the embedded textures nothing is known:
        name their ``symmetry`` and, for textures, ``crop`` and ``corruption``, as they stand in the
        ``config.json`` of a run of ``ssae train``.
    changes
        For each name, the settings that differ from ``base``. A change of ``{}`` is the base itself.
    each
        For each category named in it, settings of that category alone, laid over ``base``.
    """

    categories: tuple[str, ...]
    seeds: tuple[int, ...]
    base: Changes
    changes: dict[str, Changes]
    each: dict[str, Changes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Grid:
        """Read a grid from a JSON file with the keys ``categories``, ``seeds``, ``base``, ``changes``
        and, where wanted, ``each``.

        Raises
        ------
        RunError
            If the file is no such grid; the message says what is wrong.
        """
        try:
            grid = checked(cls, read_json(Path(path)), f"{path}: grid")
        except SchemaError as error:
            raise RunError(str(error)) from error
        for name in (*grid.changes, *grid.categories):
            if name != Path(name).name or name in ("", ".", ".."):
                raise RunError(f"{path}: {name!r} cannot be the name of a folder; choose another name")
        if not (grid.categories and grid.seeds and grid.changes):
            raise RunError(f"{path} is empty: it needs at least one category, one seed and one change")
        if strange := grid.each.keys() - set(grid.categories):
            raise RunError(f"{path}: each names {min(strange)!r}, which is not among the categories")
        for name, values in (("categories", grid.categories), ("seeds", grid.seeds)):
            if len(set(values)) < len(values):
                raise RunError(
                    f"{path}: {name} names one of them twice; each run is trained and counted once"
                )
        return grid


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    change: str
    settings: ExperimentSettings
    data: str
    run_dir: str

    @property
    def name(self) -> str:
        """``change / category, seed k``, for messages."""
        return f"{self.change} / {self.settings.category}, seed {self.settings.fit.seed}"


def jobs_of(grid: Grid, data: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Job]:
    """All jobs of a grid; the run of each is ``out/<change>/<category>-seed<k>``.

    Raises
    ------
    RunError
        If a change has a name or a value that settings cannot have.
    """

    def job(change: str, category: str, seed: int) -> Job:
        own = grid.each.get(category, {})
        try:
            settings = changed_settings(category, seed, grid.base, own, grid.changes[change])
        except RunError as error:
            over = "its base and what `each` names" if own else "its base"
            raise RunError(f"the grid's change {change!r}, laid over {over}: {error}") from error
        run_dir = Path(out) / change / f"{category}-seed{seed}"
        return Job(change, settings, os.fspath(data), os.fspath(run_dir))

    return [
        job(change, category, seed)
        for change in grid.changes
        for category in grid.categories
        for seed in grid.seeds
    ]


def changed_settings(category: str, seed: int, *changes: Changes) -> ExperimentSettings:
    """Default settings of a category with changes laid over them, one after the other.

    Raises
    ------
    RunError
        If a name is unknown or a value does not fit.
    """
    resolution = 128
    for change in changes:
        resolution = change.get("resolution", resolution)
    if type(resolution) is not int:
        raise RunError(f"settings.resolution: expected a whole number, found {resolution!r}")
    try:
        values = ExperimentSettings.for_category(category, resolution).to_json()
    except ValueError as error:
        raise RunError(f"settings: {error}") from error
    for change in changes:
        if "model" in change and values["model"] is None:
            preset = change.get("preset", values["preset"])
            if preset not in PRESETS:
                raise RunError(f"settings.preset: {preset!r} is none of {', '.join(PRESETS)}")
            values["model"] = json.loads(json.dumps(asdict(PRESETS[preset])))
        values = _lay_over(values, change)
        length = change.get("fit")
        if isinstance(length, dict):  # a training is so many steps long, or so many minutes
            for given, other in (("steps", "minutes"), ("minutes", "steps")):
                if length.get(given) is not None and other not in length:
                    values["fit"][other] = None
    values["fit"]["seed"] = seed
    try:
        return checked(ExperimentSettings, values, "settings")
    except SchemaError as error:
        raise RunError(str(error)) from error


def _lay_over(values: dict[str, Any], change: Changes) -> dict[str, Any]:
    """``values`` with those of ``change`` in their place, nested tables entry by entry."""
    merged = dict(values)
    for name, value in change.items():
        old = merged.get(name)
        merged[name] = _lay_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def run_job(job: Job, threads: int | None = None) -> dict[str, Any]:
    """Train one job, measure it on the test split and examine it, unless that is done; its receipt."""
    if threads is not None:
        torch.set_num_threads(threads)
    receipt = train(job.settings, job.data, job.run_dir, progress=threads is None)
    if "validation" in receipt:
        return receipt
    evaluate(job.run_dir)
    return examine(job.run_dir)


def examine(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Measure a run on its validation grounds, and with other heat maps on them and on the test split; write
    that into its receipt.

    ``validation`` holds the metrics on drawn defects (:func:`ssae.experiment.drawn_ground`). ``filters``
    holds the same for box filters of other sides (:data:`FILTERS`), by the side, ``passes`` for other numbers
    of passes (:data:`PASSES`), and ``root`` for the root of the difference where the run squares, and the
    other way round. The same names with ``_on_pasted``: pasted defects
    (:func:`ssae.experiment.pasted_ground`), except for textures. What is chosen is chosen on these; the names
    with ``_on_test``, left out where the test split has no masks, show afterwards whether they were a good
    guide.
    """
    run = load_run(run_dir)
    path = Path(run_dir) / "receipt.json"
    receipt = read_json(path)
    test = open_category(run.data, run.settings.category, run.settings.resolution)
    grounds = {"": drawn_ground(run)}
    if test.has_masks:
        grounds["_on_test"] = (test.test_images(), test.test_masks())
    if run.settings.crop is None:
        grounds["_on_pasted"] = pasted_ground(run)
    for ground, (images, truth) in grounds.items():
        measured = _under_heat_maps(run, images, truth)
        if ground == "_on_test":
            del measured["validation"]  # there it is `metrics`
        receipt |= {f"{name}{ground}": values for name, values in measured.items()}
    write_json(path, receipt)
    return receipt


def _under_heat_maps(run: Run, images: Tensor, truth: Tensor) -> dict[str, Any]:
    """Metrics of the run's own heat maps, of those of each filter, and of the other difference."""
    reconstructions = run.reconstruct(images)

    def measured(**changes: Any) -> dict[str, float]:
        scoring = replace(run.settings.scoring, **changes)
        return heat_metrics(images, reconstructions, truth, scoring)

    return {
        "validation": measured(),
        "filters": {str(kernel): measured(kernel=kernel) for kernel in FILTERS},
        "passes": {str(passes): measured(passes=passes) for passes in PASSES},
        "root": measured(root=not run.settings.scoring.root),
    }


def keep_receipts(
    results: Sequence[tuple[Job, dict[str, Any]]], folder: str | os.PathLike[str]
) -> list[Path]:
    """Write receipts to ``folder/<change>/<category>-seed<k>.json``, where :func:`read_sweep` finds them."""
    paths = []
    for job, receipt in results:
        name = f"{job.settings.category}-seed{job.settings.fit.seed}.json"
        paths.append(Path(folder) / job.change / name)
        write_json(paths[-1], receipt)
    return paths


def read_sweep(folder: str | os.PathLike[str]) -> list[tuple[str, dict[str, Any]]]:
    """Pairs of a change and a receipt, from a folder that :func:`keep_receipts` wrote."""
    changes = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    return [(path.name, receipt) for path in changes for receipt in read_receipts(path)]


def sweep(
    jobs: Sequence[Job], workers: int = 1, report: Callable[[str], None] = print
) -> tuple[list[tuple[Job, dict[str, Any]]], list[tuple[Job, Exception]]]:
    """Run jobs on this machine, ``workers`` at a time.

    The processor's cores are shared out evenly. Receipts come back in the order of ``jobs``; a job that
    failed is listed with its error instead.

    Parameters
    ----------
    report
        Called with one line for each job that ends.
    """
    if workers == 1:
        return _collect(jobs, ((job, _attempt(job)) for job in jobs), report)
    threads = max(1, usable_cores() // workers)
    # Forked children would inherit torch's thread pool in an unusable state.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        futures: dict[Future, Job] = {pool.submit(_work, job, threads): job for job in jobs}

        def outcome(future: Future) -> tuple[Job, Any]:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):  # takes all others with it, which have not failed
                raise RunError(
                    "a worker was killed, perhaps because memory ran out; the same command goes on with what "
                    "is left, with fewer --jobs"
                ) from error
            return futures[future], error or future.result()

        try:
            return _collect(jobs, map(outcome, as_completed(futures)), report)
        except BaseException:
            # Left to itself the pool would train all that is still waiting before it lets go.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise


def sweep_on_slurm(
    jobs: Sequence[Job],
    folder: str | os.PathLike[str],
    cluster: str = "slurm",
    report: Callable[[str], None] = print,
    **parameters: Any,
) -> tuple[list[tuple[Job, dict[str, Any]]], list[tuple[Job, Exception]]]:
    """Run jobs as one Slurm job array through submitit; see :func:`sweep`.

    Parameters
    ----------
    folder
        Where submitit keeps its logs; the cluster's nodes must see it.
    cluster
        ``"slurm"``; ``"local"`` runs the same on this machine.
    parameters
        Passed to submitit: ``timeout_min``, ``slurm_partition``, ``gpus_per_node`` and so on.

    Raises
    ------
    RunError
        If submitit is not installed or takes none of this, for instance an unknown parameter.
    """
    try:
        import submitit
    except ImportError as error:
        raise RunError("a cluster needs submitit: pip install submitit") from error
    try:
        executor = submitit.AutoExecutor(folder=Path(folder), cluster=cluster)
        executor.update_parameters(**parameters)
        submitted = executor.map_array(run_job, list(jobs))
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"the cluster refuses these jobs: {error}") from error

    def outcomes() -> Iterator[tuple[Job, dict[str, Any] | BaseException]]:
        for job, sent in zip(jobs, submitted, strict=True):
            try:
                yield job, sent.result()
            except Exception as error:
                yield job, error

    return _collect(jobs, outcomes(), report)


def _work(job: Job, threads: int) -> dict[str, Any]:
    """``run_job`` in a worker, which ends with a run that was told to stop instead of taking the next."""
    try:
        return run_job(job, threads)
    except KeyboardInterrupt:
        os._exit(130)


def _end_with_parent() -> None:
    """Have this process stop, with a checkpoint, once the sweep that started it is gone: killed, it cannot
    say so, and another sweep may want to go on with the same runs.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        while True:  # one signal may come just when a training has ended and another has not begun
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(job: Job) -> dict[str, Any] | Exception:
    try:
        return run_job(job)
    except Exception as error:
        # A sweep of a night must not end because one of its jobs did. Nor may what failed hold its images and
        # its network until then, as the frames of its traceback would.
        link: BaseException | None = error
        while link is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
        return error


def _collect(
    jobs: Sequence[Job],
    outcomes: Iterator[tuple[Job, Any]],
    report: Callable[[str], None],
) -> tuple[list[tuple[Job, dict[str, Any]]], list[tuple[Job, Exception]]]:
    done: dict[Job, dict[str, Any]] = {}
    failed: list[tuple[Job, Exception]] = []
    for job, outcome in outcomes:
        place = f"[{len(done) + len(failed) + 1}/{len(jobs)}] {job.name}"
        if isinstance(outcome, BaseException):
            failed.append((job, outcome))  # type: ignore[arg-type]
            report(f"{place}: failed, {outcome}")
        else:
            done[job] = outcome
            report(f"{place}: image AUROC {outcome['metrics']['image_auroc']:.4f}")
    return [(job, done[job]) for job in jobs if job in done], failed


def sweep_table(results: Sequence[tuple[str, dict[str, Any]]], ground: str = "metrics") -> str:
    """Markdown table of pairs of a change and a receipt: one row for each category and change, mean ± spread
    over seeds, in per cent.

    Parameters
    ----------
    ground
        ``"metrics"`` for the test split, ``"validation"`` for drawn defects over held-out normal images.
    """
    groups: dict[tuple[str, str], list[dict[str, float]]] = {}
    for change, receipt in results:
        groups.setdefault((receipt["category"], change), []).append(receipt[ground])
    rows = [
        [category, change, str(len(found)), *metric_cells(found)]
        for (category, change), found in groups.items()
    ]
    return markdown_table(["category", "change", "seeds", *METRICS.values()], rows)


def cluster_parameters(text: str) -> dict[str, Any]:
    """Read ``key=value,...`` as keyword arguments, numbers as numbers.

    Raises
    ------
    RunError
        If the text is none of that.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise RunError(f"--slurm needs KEY=VALUE pairs separated by commas, got {text!r}")
    # What is for the scheduler, not for this program's own parameters of the same call.
    if own := {"jobs", "folder", "cluster", "report"} & {name for name, _, _ in pairs}:
        raise RunError(f"--slurm takes parameters of submitit such as timeout_min=60, not {min(own)}")
    return {name: int(value) if value.isdigit() else value for name, _, value in pairs}
