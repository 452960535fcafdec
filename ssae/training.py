"""One plain training loop for every model of the book, from an MLP on a circle to SDC-CCM on MVTec AD.

All randomness of a step derives from ``(seed, step)`` and nothing else. So a run can stop anywhere and go on
from its last checkpoint as if nothing had happened, and a step that went wrong can be repeated on its own.
Explained in chapter 10.

What "the same" means depends on the device:

- **CPU**: the same settings give the same weights to the bit, interrupted or not, with the same number of
  threads, the same kind of processor and the same version of torch. Any of the three may change the order in
  which sums are rounded, and so the last digits.
- **CUDA**: the draws are the same, the sums are not. Gradients of convolutions, interpolation and indexing
  are added up in an order that differs from run to run, so two runs agree to rounding at first and drift
  apart. ``torch.use_deterministic_algorithms(True)`` before :func:`fit` takes deterministic kernels where
  torch has them, refuses the others by name, and costs speed.
- **Between devices**: CPU and CUDA draw different numbers from one seed; results agree as two seeds do.
- **Several processes**, see :mod:`ssae.distributed`: the same batches and the same loss as a single one, to
  rounding. A run may go on with another number of processes than it began with.
- ``minutes`` instead of ``steps`` lets the clock decide the learning rate: repeatable nowhere.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ssae.distributed import DataParallelModel, agree, on_first, rank, world_size
from ssae.files import write_atomically
from ssae.muon import Muon
from ssae.objectives import Objective
from ssae.schema import SchemaError, checked, parse_json

Draw = Callable[[torch.Generator], Tensor]
T = TypeVar("T")
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """How to train. Exactly one of ``steps`` and ``minutes`` is given.

    Parameters
    ----------
    steps
        Number of optimiser steps.
    minutes
        Wall time to train for; the schedule follows the clock. Not repeatable to the bit, unlike ``steps``.
    learning_rate
        Peak of the schedule.
    warmup
        Share of the run in which the learning rate rises from 0 to its peak.
    final_share
        Learning rate at the end, as a share of the peak; between the two it falls along a cosine.
    optimiser
        ``"adamw"``, or ``"muon"``: :class:`ssae.muon.Muon` for the filters of convolutions, AdamW for the
        rest, both at the same ``learning_rate``, which should be higher than for AdamW alone. A model without
        such filters is trained by AdamW alone.
    momentum
        Of Muon, in [0, 1). Less than the usual 0.95: trainings of minutes have no time for a long memory.
    weight_decay
        Decoupled weight decay.
    clip
        Greatest gradient norm, above 0; larger gradients are scaled down to it.
    ema
        Decay of the exponential moving average of the weights that the run ends with; 0 for none.
    precision
        ``"float32"``, ``"bfloat16"`` (autocast) or ``"auto"``: bfloat16 for a model with convolutions where
        the device computes it in hardware. A perceptron gains nothing by it, and the toy manifolds of the
        book are measured finer than its three digits.
    compile
        Whether to run the model through ``torch.compile``; pays off from a few minutes of training on.
    checkpoint_seconds
        Least time between two checkpoints.
    seed
        Seed of all draws.
    """

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 1e-3
    warmup: float = 0.05
    final_share: float = 0.01
    optimiser: Literal["adamw", "muon"] = "adamw"
    momentum: float = 0.8
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    checkpoint_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give exactly one of steps and minutes")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision must be auto, float32 or bfloat16, got {self.precision!r}")
        if self.optimiser not in ("adamw", "muon"):
            raise ValueError(f"optimiser must be adamw or muon, got {self.optimiser!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}")
        for name, value in (("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not (0 <= self.warmup < 1 and 0 <= self.final_share <= 1):
            raise ValueError(
                "warmup must lie in [0, 1) and final_share in [0, 1], got "
                f"{self.warmup} and {self.final_share}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")


@dataclass(frozen=True)
class LogRow:
    """One row of the training log: the loss is the mean since the row before."""

    step: int
    seconds: float
    loss: float
    learning_rate: float


class Step(NamedTuple):
    """What one step of training did: its loss, the norm of its gradient before clipping, its batch size."""

    loss: Tensor
    gradient_norm: Tensor
    samples: int


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stopped being finite."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not belong to this run."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and did, leaving a checkpoint behind if it has a run folder."""


def fit(
    model: nn.Module,
    draw: Draw,
    objective: Objective,
    settings: FitSettings,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    report: Callable[[nn.Module, LogRow], None] | None = None,
) -> list[LogRow]:
    """Train ``model`` in place and return the log.

    With a process group (:func:`ssae.distributed.process_group`) all its processes call this together, and
    each step is the work of all. Only the first writes, reports and shows progress.

    Parameters
    ----------
    model
        On the device to train on.
    draw
        ``draw(generator) -> clean batch`` on the model's device; everything random about the batch comes from
        ``generator``. Always the whole batch, also where several processes share the work on it.
    objective
        ``objective(model, clean, generator) -> scalar``, see :mod:`ssae.objectives`. Several processes can
        only share objectives that call ``model`` and do nothing else with it, so not those on codes or
        Jacobians.
    settings
        See :class:`FitSettings`.
    run_dir
        Folder for ``checkpoints/`` and ``log.csv``; training resumes from the newest good checkpoint in it.
        ``None``: keep nothing.
    progress
        Whether to show a progress bar with loss and speed; it is shown on terminals only.
    report
        Called with the model and each new row of the log, about once a second. The model then has the weights
        it would end with; it is to be left as it was.

    Raises
    ------
    TrainingDiverged
        If the loss or its gradient is not finite; names the step and its seed. With a ``run_dir``, the state
        from which :func:`replay` repeats that step lies in ``diverged.safetensors`` there.
    CheckpointError
        If the checkpoints in ``run_dir`` belong to another model or other settings, or another process is
        training there.
    OSError
        If a checkpoint cannot be written, on a full disk for instance; names the file. The checkpoints before
        it stay as they are, and the same call goes on from them.
    Interrupted
        After SIGINT or SIGTERM, in any of the processes, once a checkpoint is written.
    FirstProcessFailed
        In the other processes, if the first one could not write or read.
    """
    with sole_writer(run_dir):
        return fit_in_held(run_dir, model, draw, objective, settings, progress, report)


def fit_in_held(
    run_dir: str | os.PathLike[str] | None,
    model: nn.Module,
    draw: Draw,
    objective: Objective,
    settings: FitSettings,
    progress: bool = True,
    report: Callable[[nn.Module, LogRow], None] | None = None,
) -> list[LogRow]:
    """:func:`fit` in a folder that the caller holds with :func:`sole_writer`."""
    model.train()
    state = TrainingState(model, settings)
    compiled: Any = torch.compile(model) if settings.compile else model
    trained: Callable[[Tensor], Tensor] = DataParallelModel(compiled) if world_size() > 1 else compiled
    checkpoints = _Checkpoints(Path(run_dir), settings) if run_dir is not None else None
    log: list[LogRow] = []
    if checkpoints is not None and (newest := on_first(checkpoints.read_newest)) is not None:
        state.load(*newest)
        log = [row for row in on_first(read_log, checkpoints.log) if row.step <= state.step]

    steps: list[Step] = []
    rates: list[float] = []
    # What a diverged step is repeated from.
    good = state.copy() if checkpoints is not None else None
    earlier = state.seconds
    started = saved = logged = agree(time.monotonic())[0]
    first_step = state.step
    with stop_signals() as stop, _progress_bar(settings, state, progress and rank() == 0) as bar:
        while not state.finished():
            rates.append(learning_rate(state.progress(), settings))
            steps.append(train_step(state, trained, draw, objective, rates[-1]))

            now, stopping = agree(time.monotonic(), stop.is_set())
            state.seconds = earlier + now - started
            # Looking at a loss waits for the device, so it is done once a second.
            if now - logged > 1 or state.finished() or stopping:
                if (bad := on_first(_first_not_finite, steps)) is not None:
                    raise _diverged(bad, state, rates, good, checkpoints)
                mean = torch.stack([step.loss for step in steps]).mean().item()
                log.append(LogRow(state.step, round(state.seconds, 3), mean, rates[-1]))
                speed = (state.step - first_step) * steps[-1].samples / (now - started)
                bar.set_postfix_str(f"loss {mean:.5f}, {speed:.0f} samples/s", refresh=False)
                steps, rates, logged = [], [], now
                if checkpoints is not None:
                    good = state.copy()
                    if now - saved > settings.checkpoint_seconds or stopping:
                        on_first(write_log, checkpoints.log, log)
                        on_first(checkpoints.save, good)
                        saved = agree(time.monotonic())[0]
                if report is not None:
                    with state.averaged_weights():
                        on_first(report, model, log[-1])
            bar.update((state.step if settings.steps else min(state.seconds, bar.total)) - bar.n)
            if stopping and not state.finished():
                kept = "the same command goes on from there" if checkpoints else "nothing is kept of it"
                raise Interrupted(f"stopped at step {state.step}; {kept}")
    if not log:  # it was over before, and its log has been removed since
        log.append(LogRow(state.step, state.seconds, math.nan, learning_rate(1.0, settings)))
    state.use_averaged_weights()
    model.eval()
    if checkpoints is not None:
        on_first(write_log, checkpoints.log, log)
    return log


def train_step(
    state: TrainingState, model: Callable[[Tensor], Tensor], draw: Draw, objective: Objective, rate: float
) -> Step:
    """One step of training: draw a batch, compute the objective, follow its gradient.

    Parameters
    ----------
    state
        Changed in place.
    model
        ``state.model``, or its compiled form.
    draw, objective
        As in :func:`fit`.
    rate
        Learning rate of the step.
    """
    generator = state.generator.manual_seed(step_seed(state.settings.seed, state.step))
    clean = draw(generator)
    with _autocast(generator.device, state.settings.precision, state.convolutional):
        loss = objective(model, clean, generator)
    state.model.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), state.settings.clip)
    for optimiser in state.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    state.average_weights()
    state.step += 1
    return Step(loss.detach(), norm.detach(), len(clean))


def replay(
    path: str | os.PathLike[str], model: nn.Module, draw: Draw, objective: Objective
) -> list[tuple[int, float, float]]:
    """Repeat a step that diverged, from the state that :func:`fit` kept.

    Parameters
    ----------
    path
        ``diverged.safetensors`` of the run folder.
    model
        Of the same shape as the one that diverged; its weights end as they were *before* the diverged step.
    draw, objective
        What was given to :func:`fit`.

    Returns
    -------
    list of (int, float, float)
        Step, loss and gradient norm of the steps up to and including the diverged one (to the bit on a CPU).

    Raises
    ------
    CheckpointError
        If the file is damaged or belongs to another model.
    """
    path = Path(path)
    tensors, header = read_checkpoint(path)
    if not header.rates:
        raise CheckpointError(f"{path} does not hold a diverged step; give the diverged.safetensors of a run")
    model.train()
    state = TrainingState(model, header.settings)
    state.load(path, tensors, header)
    rows = []
    for rate in header.rates:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        number = state.step
        step = train_step(state, model, draw, objective, rate)
        rows.append((number, float(step.loss), float(step.gradient_norm)))
    model.load_state_dict(before)
    return rows


def step_seed(seed: int, step: int) -> int:
    """Seed of the generator that a step draws from; well mixed, so that neighbouring steps and seeds share
    nothing.
    """
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def learning_rate(progress: float, settings: FitSettings) -> float:
    """Linear warm-up, then a cosine from the peak down to ``final_share`` of it; ``progress`` in [0, 1]."""
    if progress < settings.warmup:
        # Not quite 0 at the first step, which would waste it.
        return settings.learning_rate * max(progress / settings.warmup, 0.01)
    along = (progress - settings.warmup) / max(1e-9, 1 - settings.warmup)
    share = settings.final_share + (1 - settings.final_share) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, along))
    )
    return settings.learning_rate * share


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere autocast only costs time."""
    if device.type == "cuda":
        # From Ampere on; torch.cuda.is_bf16_supported asks about the current device, whichever is meant.
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    return bool(cpu_capabilities().get("amx_bf16") or cpu_capabilities().get("avx512_bf16"))


def has_convolutions(model: nn.Module) -> bool:
    """Whether a parameter of the model is a stack of images' filters."""
    return any(map(is_filters, model.parameters()))


def is_filters(parameter: Tensor) -> bool:
    """Whether a parameter is a stack of images' filters, four-dimensional as those of a convolution are."""
    return parameter.ndim == 4


def cpu_capabilities() -> dict[str, Any]:
    """What torch says of the CPU, empty where it is too old to say anything."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def smoke(full: T, quick: T) -> T:
    """``quick`` when ``SSAE_SMOKE=1`` is set, else ``full``: lets tests run every chapter in seconds."""
    return quick if os.environ.get("SSAE_SMOKE") == "1" else full


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_optimisers(
    parameters: Sequence[nn.Parameter], settings: FitSettings
) -> list[torch.optim.Optimizer]:
    """The optimisers of ``parameters``, each of which belongs to one of them."""
    by_muon = [settings.optimiser == "muon" and is_filters(p) for p in parameters]
    filters = [p for p, muon in zip(parameters, by_muon, strict=True) if muon]
    others = [p for p, muon in zip(parameters, by_muon, strict=True) if not muon]
    rate, decay = settings.learning_rate, settings.weight_decay
    optimisers: list[torch.optim.Optimizer] = []
    if others:
        # A small model has many small tensors: one fused call is six times as fast as a step for each.
        fused = others[0].device.type in ("cpu", "cuda")
        optimisers.append(torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=fused))
    if filters:
        optimisers.append(Muon(filters, lr=rate, weight_decay=decay, momentum=settings.momentum))
    return optimisers


class TrainingState:
    """Everything that changes while training: weights, their average, the optimiser, the step and the time
    spent.
    """

    def __init__(self, model: nn.Module, settings: FitSettings) -> None:
        self.model = model
        self.convolutional = has_convolutions(model)
        # The layout in which CPU and GPU convolutions are fastest; in another one they round otherwise.
        if self.convolutional:
            model.to(memory_format=torch.channels_last)
        self.settings = settings
        device = next(model.parameters()).device
        parameters = list(model.parameters())
        self.optimisers = build_optimisers(parameters, settings)
        owners = {p: o for o in self.optimisers for group in o.param_groups for p in group["params"]}
        # In the model's order, by which a checkpoint numbers them.
        self.owners = {p: owners[p] for p in parameters}
        self.generator = torch.Generator(device)
        self.step = 0
        self.seconds = 0.0
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()} if settings.ema else {}

    def progress(self) -> float:
        """Share of the run that is done."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        assert self.settings.minutes is not None
        return self.seconds / (60 * self.settings.minutes)

    def finished(self) -> bool:
        """Whether all of the run is done."""
        return self.progress() >= 1

    @torch.no_grad()
    def average_weights(self) -> None:
        """Let the average follow the weights, if there is one."""
        if not self.settings.ema:
            return
        # A young average must forget its random start faster than an old one.
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def use_averaged_weights(self) -> None:
        """Put the average, if there is one, in the place of the weights."""
        if self.settings.ema:
            self.model.load_state_dict(self.average)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model as it would be if training ended now; afterwards as it was."""
        if not self.settings.ema:
            yield
            return
        weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.use_averaged_weights()
        try:
            yield
        finally:
            self.model.load_state_dict(weights)

    def copy(self) -> Snapshot:
        """The state as it is now, safe from further steps; stays on its device."""
        named = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        named |= {f"average.{k}": v for k, v in self.average.items()}
        for index, (parameter, owner) in enumerate(self.owners.items()):
            named |= {f"optimiser.{index}.{k}": v for k, v in owner.state.get(parameter, {}).items()}
        tensors = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in named.items()}
        return Snapshot(tensors, self.step, self.seconds)

    def load(self, path: Path, tensors: dict[str, Tensor], header: CheckpointHeader) -> None:
        """Continue from what :func:`read_checkpoint` read.

        Raises
        ------
        CheckpointError
            If the names, shapes or types of the tensors are not those of this model and its optimiser.
        """
        if faults := misfits(tensors, self._wanted(tensors)):
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise CheckpointError(
                f"{path} belongs to another model: {faults[0]}{more}; choose another run folder"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        for name, value in part("average.").items():
            self.average[name].copy_(value)
        for index, (parameter, owner) in enumerate(self.owners.items()):
            moments = part(f"optimiser.{index}.")
            # A fused optimiser walks through memory, so moments must lie there as their parameter does. It
            # counts its steps on the device.
            fused = owner.param_groups[0].get("fused")
            moments = {
                k: v.clone().to(parameter.device if fused else "cpu")
                if k == "step"
                else torch.empty_like(parameter).copy_(v)
                for k, v in moments.items()
            }
            owner.state.pop(parameter, None)
            if moments:
                owner.state[parameter] = moments
        self.step, self.seconds = header.step, header.seconds

    def _wanted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this state must find in a checkpoint that holds ``tensors``."""
        wanted: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        wanted |= {f"average.{k}": v for k, v in self.average.items()}
        # A parameter that has had no gradient yet has no entry; one that has had some has all of them.
        for index, (parameter, owner) in enumerate(self.owners.items()):
            if isinstance(owner, Muon):
                moments: dict[str, Tensor] = {f"optimiser.{index}.momentum_buffer": parameter}
            else:
                moments = {f"optimiser.{index}.{k}": parameter for k in ("exp_avg", "exp_avg_sq")}
                moments[f"optimiser.{index}.step"] = torch.zeros(())
            if tensors.keys() & moments.keys():
                wanted |= moments
        return wanted


def misfits(tensors: dict[str, Tensor], wanted: dict[str, Tensor], exact: bool = True) -> list[str]:
    """Why tensors from a file cannot be those wanted: one reason for each that is missing, unknown, or of
    another shape or type. Without ``exact``, any floating-point type serves for another.
    """
    faults = []
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            faults.append(f"{name} is missing")
        elif name not in wanted:
            faults.append(f"{name!a} is unknown here")
        else:
            there, here = tensors[name], wanted[name]
            same_type = there.dtype == here.dtype or (
                not exact and there.is_floating_point() and here.is_floating_point()
            )
            if there.shape != here.shape or not same_type:
                faults.append(f"{name} is {_describe(there)}, and {_describe(here)} here")
    return faults


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


class Snapshot(NamedTuple):
    """A training state at one moment: its tensors by name, the step and the seconds spent."""

    tensors: dict[str, Tensor]
    step: int
    seconds: float


class _Checkpoints:
    """Checkpoints of one run: safetensors files with a checksum, written atomically, the newest two kept."""

    KEEP = 2

    def __init__(self, run_dir: Path, settings: FitSettings) -> None:
        self.folder = run_dir / "checkpoints"
        self.log = run_dir / "log.csv"
        self.settings = settings

    def save(self, snapshot: Snapshot) -> None:
        name = f"step-{snapshot.step:09d}.safetensors"
        write_checkpoint(self.folder / name, snapshot, self.settings)
        # Later steps are of an attempt that nobody could go on with; counted as the newest, they would push
        # out what is written now. What a killed process had begun to write only fills the disk.
        done = [path for path in self.paths() if path.name <= name]
        later = [path for path in self.paths() if path.name > name]
        for old in [*done[: -self.KEEP], *later, *self.folder.glob("step-*.partial")]:
            old.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def read_newest(self) -> tuple[Path, dict[str, Tensor], CheckpointHeader] | None:
        """The newest good checkpoint of these settings, if there is any."""
        paths = self.paths()
        for path in reversed(paths):
            try:
                tensors, header = read_checkpoint(path)
            except CheckpointError as error:
                tqdm.write(f"{error}; going back to the checkpoint before it", file=sys.stderr)
                continue
            # How often checkpoints are written is no part of what is trained.
            every = self.settings.checkpoint_seconds
            if replace(header.settings, checkpoint_seconds=every) != self.settings:
                raise CheckpointError(
                    f"{path} was trained with other settings; go on with those, or choose another run folder"
                )
            LOGGER.info("going on from %s", path)
            return path, tensors, header
        if paths:
            tqdm.write(
                f"{self.folder} holds no good checkpoint; starting from the first step", file=sys.stderr
            )
        return None


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says of its tensors.

    Attributes
    ----------
    step
        Steps done.
    seconds
        Time spent on them.
    settings
        Settings of the run.
    rates
        Learning rates of the steps to be repeated, see :func:`replay`.
    """

    step: int
    seconds: float
    settings: FitSettings
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.step < 0 or self.seconds < 0:
            raise ValueError("step and seconds must not be negative")


def write_checkpoint(
    path: Path, snapshot: Snapshot, settings: FitSettings, rates: Sequence[float] = ()
) -> None:
    """Write a snapshot as safetensors, atomically, with a checksum over all of it.

    Parameters
    ----------
    path
        File to write.
    snapshot
        See :meth:`TrainingState.copy`.
    settings, rates
        See :class:`CheckpointHeader`.
    """
    tensors = {name: value.cpu() for name, value in snapshot.tensors.items()}
    header = CheckpointHeader(snapshot.step, snapshot.seconds, settings, tuple(rates))
    state = json.dumps(asdict(header), sort_keys=True, allow_nan=False)
    write_atomically(path, save(tensors, {"state": state, "sha256": _digest(tensors, state)}))


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], CheckpointHeader]:
    """Read what :func:`write_checkpoint` wrote: tensors by name, and the header.

    Nothing in the file is executed, and nothing is believed before the checksum over tensors and header fits.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is damaged, or is no checkpoint of this version.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: as views they would keep the file mapped, and Windows deletes no mapped file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if metadata.keys() != {"state", "sha256"}:
        raise CheckpointError(f"{path} is no checkpoint of this version of ssae")
    if metadata["sha256"] != _digest(tensors, metadata["state"]):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    where = f"{path}: header"
    try:
        return tensors, checked(CheckpointHeader, parse_json(metadata["state"], where), where)
    except SchemaError as error:
        raise CheckpointError(str(error)) from error


def _digest(tensors: dict[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def sole_writer(run_dir: str | os.PathLike[str] | None) -> Iterator[None]:
    """Hold a run folder against other trainings; the system lets go of it when the process ends, however.
    ``None`` is no folder to hold.

    Raises
    ------
    CheckpointError
        If it is held already.
    """
    lock = None if run_dir is None else on_first(_lock, Path(run_dir))
    try:
        yield
    finally:
        if lock is not None and rank() == 0:
            os.close(lock)


def _lock(run_dir: Path) -> int | None:
    """A lock on a folder, as the descriptor that holds it; None where the system knows no such locks."""
    if fcntl is None:
        return None
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(
            f"another process is training in {run_dir}; wait until it ends, stop it, or choose another folder"
        ) from error
    except OSError:  # a network drive that cannot lock
        os.close(descriptor)
        return None
    return descriptor


def write_log(path: Path, log: list[LogRow]) -> None:
    """Write a training log as CSV."""
    lines = [",".join(field.name for field in fields(LogRow))]
    lines += [f"{row.step},{row.seconds:.3f},{row.loss:.6g},{row.learning_rate:.6g}" for row in log]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_log(path: Path) -> list[LogRow]:
    """Read a training log; an absent one is empty.

    Raises
    ------
    CheckpointError
        If the file is no training log.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        if header != [field.name for field in fields(LogRow)]:
            raise ValueError("its first line names other columns")
        return [LogRow(int(row[0]), float(row[1]), float(row[2]), float(row[3])) for row in rows]
    except (IndexError, ValueError, csv.Error) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); remove it, and the run goes on without its past rows"
        ) from error


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a loop can end between two steps, not inside one."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _autocast(device: torch.device, precision: str, convolutional: bool) -> torch.autocast | nullcontext:
    if precision == "bfloat16" or (precision == "auto" and convolutional and has_fast_bfloat16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _in_notebook() -> bool:
    """Whether a kernel runs this code; that its module is loaded says nothing."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _progress_bar(settings: FitSettings, state: TrainingState, progress: bool) -> tqdm:
    # disable=None shows the bar on terminals only, so logs and rendered pages stay clean. A notebook's stream
    # says that it is none, and whoever waits there wants to see it all the same.
    shown = _in_notebook() and "SSAE_BOOK_PAGES" not in os.environ
    disable = (False if shown else None) if progress else True
    if settings.steps is not None:
        return tqdm(total=settings.steps, initial=state.step, unit="step", disable=disable)
    assert settings.minutes is not None
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=60 * settings.minutes, initial=state.seconds, bar_format=form, disable=disable)


def _first_not_finite(steps: list[Step]) -> int | None:
    """Index of the first step whose loss or gradient is not finite."""
    loss = torch.stack([step.loss for step in steps])
    norm = torch.stack([step.gradient_norm for step in steps])
    bad = ~(loss.isfinite() & norm.isfinite())
    return bad.tolist().index(True) if bad.any() else None


def _diverged(
    bad: int,
    state: TrainingState,
    rates: list[float],
    good: Snapshot | None,
    checkpoints: _Checkpoints | None,
) -> TrainingDiverged:
    """The error for the step at index ``bad`` since the state was ``good``, which it keeps for ``replay``."""
    step = state.step - len(rates) + bad
    kept = ""
    if good is not None and checkpoints is not None:
        path = checkpoints.folder.parent / "diverged.safetensors"
        on_first(write_checkpoint, path, good, state.settings, rates[: bad + 1])
        kept = f"; ssae.training.replay repeats the step from {path}"
    return TrainingDiverged(
        f"the loss or its gradient is not finite at step {step} (step seed "
        f"{step_seed(state.settings.seed, step)}, run seed {state.settings.seed}); "
        f"lower the learning rate, or train in float32{kept}"
    )
