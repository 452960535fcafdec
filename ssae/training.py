"""One plain training loop for every model of the book, from an MLP on a circle to SDC-CCM on MVTec AD.

All randomness of a step derives from ``(seed, step)`` and nothing else. So a run can stop anywhere and go on
from its last checkpoint as if nothing had happened, and a step that went wrong can be repeated on its own.
Explained in chapter 10.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from ssae.objectives import Objective

Draw = Callable[[torch.Generator], Tensor]
T = TypeVar("T")


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
    weight_decay
        Decoupled weight decay of AdamW.
    clip
        Greatest gradient norm; larger gradients are scaled down to it.
    ema
        Decay of the exponential moving average of the weights that the run ends with; 0 for none.
    precision
        ``"float32"``, ``"bfloat16"`` (autocast) or ``"auto"``: bfloat16 where the device computes it in
        hardware.
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
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")


@dataclass(frozen=True)
class LogRow:
    """One row of the training log: the loss is the mean since the row before."""

    step: int
    seconds: float
    loss: float
    learning_rate: float


class TrainingDiverged(RuntimeError):
    """The loss stopped being finite."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not belong to this run."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and did, leaving a checkpoint behind."""


def fit(
    model: nn.Module,
    draw: Draw,
    objective: Objective,
    settings: FitSettings,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[LogRow]:
    """Train ``model`` in place and return the log.

    Parameters
    ----------
    model
        On the device to train on.
    draw
        ``draw(generator) -> clean batch`` on the model's device; everything random about the batch comes from
        ``generator``.
    objective
        ``objective(model, clean, generator) -> scalar``, see :mod:`ssae.objectives`.
    settings
        See :class:`FitSettings`.
    run_dir
        Folder for ``checkpoints/`` and ``log.csv``; training resumes from the newest good checkpoint in it.
        ``None``: keep nothing.
    progress
        Whether to show a progress bar with loss and speed; it is shown on terminals only.

    Raises
    ------
    TrainingDiverged
        If the loss is not finite; names the step and the seed that repeat it.
    CheckpointError
        If the checkpoints in ``run_dir`` belong to another model or other settings.
    Interrupted
        After SIGINT or SIGTERM, once a checkpoint is written.
    """
    device = next(model.parameters()).device
    # Channels last is the layout in which CPU and GPU convolutions are fastest; vectors do not have it.
    if any(p.ndim == 4 for p in model.parameters()):
        model.to(memory_format=torch.channels_last)
    model.train()
    trained: Callable[[Tensor], Tensor] = torch.compile(model) if settings.compile else model
    state = _TrainingState(model, settings)
    checkpoints = _Checkpoints(Path(run_dir), settings) if run_dir is not None else None
    log: list[LogRow] = []
    if checkpoints is not None and (resumed := checkpoints.load_newest()) is not None:
        state.load(*resumed)
        log = [row for row in read_log(checkpoints.folder.parent / "log.csv") if row.step <= state.step]

    generator = torch.Generator(device)
    autocast = _autocast(device, settings.precision)
    losses: list[Tensor] = []
    earlier = state.seconds
    started = saved = logged = time.monotonic()
    first_step = state.step
    with stop_signals() as stop, _progress_bar(settings, state, progress) as bar:
        while not state.finished():
            rate = learning_rate(state.progress(), settings)
            for group in state.optimiser.param_groups:
                group["lr"] = rate
            generator.manual_seed(step_seed(settings.seed, state.step))
            clean = draw(generator)
            with autocast():
                loss = objective(trained, clean, generator)
            state.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            state.optimiser.step()
            state.average_weights()
            state.step += 1
            losses.append(loss.detach())

            now = time.monotonic()
            state.seconds = earlier + now - started
            if now - logged > 1 or state.finished() or stop.is_set():
                mean = torch.stack(losses).mean().item()
                if not math.isfinite(mean):
                    raise _diverged(losses, state.step, settings.seed)
                log.append(LogRow(state.step, round(state.seconds, 3), mean, rate))
                speed = (state.step - first_step) * len(clean) / (now - started)
                bar.set_postfix_str(f"loss {mean:.5f}, {speed:.0f} samples/s", refresh=False)
                losses, logged = [], now
                if checkpoints is not None and (now - saved > settings.checkpoint_seconds or stop.is_set()):
                    write_log(checkpoints.folder.parent / "log.csv", log)
                    checkpoints.save(state)
                    saved = time.monotonic()
            bar.update((state.step if settings.steps else min(state.seconds, bar.total)) - bar.n)
            if stop.is_set() and not state.finished():
                raise Interrupted(f"stopped at step {state.step}; the same command goes on from there")
    state.use_averaged_weights()
    model.eval()
    if checkpoints is not None:
        write_log(checkpoints.folder.parent / "log.csv", log)
    return log


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
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return bool(cpu_capabilities().get("amx_bf16") or cpu_capabilities().get("avx512_bf16"))


def cpu_capabilities() -> dict[str, Any]:
    """What torch says of the CPU, empty where it is too old to say anything."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def smoke(full: T, quick: T) -> T:
    """``quick`` when ``SSAE_SMOKE=1`` is set, else ``full``: lets tests run every chapter in seconds."""
    return quick if os.environ.get("SSAE_SMOKE") == "1" else full


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _TrainingState:
    """Everything that changes while training: weights, their average, the optimiser, the step and the time
    spent.
    """

    def __init__(self, model: nn.Module, settings: FitSettings) -> None:
        self.model = model
        self.settings = settings
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step = 0
        self.seconds = 0.0
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()} if settings.ema else {}

    def progress(self) -> float:
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        assert self.settings.minutes is not None
        return self.seconds / (60 * self.settings.minutes)

    def finished(self) -> bool:
        return self.progress() >= 1

    @torch.no_grad()
    def average_weights(self) -> None:
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
        if self.settings.ema:
            self.model.load_state_dict(self.average)

    def tensors(self) -> dict[str, Tensor]:
        named = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        named |= {f"average.{k}": v for k, v in self.average.items()}
        for index, entry in self.optimiser.state_dict()["state"].items():
            named |= {f"optimiser.{index}.{k}": v for k, v in entry.items()}
        return {name: value.detach().cpu().contiguous() for name, value in named.items()}

    def load(self, tensors: dict[str, Tensor], step: int, seconds: float) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint belongs to another model: {error}") from error
        for name, value in part("average.").items():
            self.average[name].copy_(value)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimiser.").items():
            index, key = name.split(".", 1)
            entries.setdefault(int(index), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": entries, "param_groups": groups})
        self.step, self.seconds = step, seconds


class _Checkpoints:
    """Checkpoints of one run: safetensors files with a checksum, written atomically, the newest two kept."""

    KEEP = 2

    def __init__(self, run_dir: Path, settings: FitSettings) -> None:
        self.folder = run_dir / "checkpoints"
        # How often checkpoints are written is no part of what is trained.
        self.settings = {k: v for k, v in asdict(settings).items() if k != "checkpoint_seconds"}

    def save(self, state: _TrainingState) -> None:
        tensors = state.tensors()
        header = {
            "step": str(state.step),
            "seconds": repr(state.seconds),
            "settings": json.dumps(self.settings, sort_keys=True),
            "sha256": _digest(tensors),
        }
        write_atomically(self.folder / f"step-{state.step:09d}.safetensors", save(tensors, header))
        for old in self.paths()[: -self.KEEP]:
            old.unlink()

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def load_newest(self) -> tuple[dict[str, Tensor], int, float] | None:
        for path in reversed(self.paths()):
            try:
                tensors, header = _read_checkpoint(path)
            except CheckpointError as error:
                tqdm.write(f"{error}; going back to the checkpoint before it")
                continue
            if json.loads(header["settings"]) != json.loads(json.dumps(self.settings)):
                raise CheckpointError(
                    f"{path} was trained with other settings; go on with those, or choose another run folder"
                )
            return tensors, int(header["step"]), float(header["seconds"])
        return None


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if header.get("sha256") != _digest(tensors):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    return tensors, header


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment either the old or the whole new content is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_log(path: Path, log: list[LogRow]) -> None:
    """Write a training log as CSV."""
    lines = [",".join(field.name for field in fields(LogRow))]
    lines += [f"{row.step},{row.seconds:.3f},{row.loss:.6g},{row.learning_rate:.6g}" for row in log]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_log(path: Path) -> list[LogRow]:
    """Read a training log; an absent one is empty."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [
            LogRow(int(r["step"]), float(r["seconds"]), float(r["loss"]), float(r["learning_rate"]))
            for r in csv.DictReader(file)
        ]


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


def _autocast(device: torch.device, precision: str) -> Callable[[], torch.autocast | nullcontext]:
    if precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device)):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext


def _progress_bar(settings: FitSettings, state: _TrainingState, progress: bool) -> tqdm:
    # disable=None shows the bar on terminals only, so logs and rendered pages stay clean.
    disable = None if progress else True
    if settings.steps is not None:
        return tqdm(total=settings.steps, initial=state.step, unit="step", disable=disable)
    assert settings.minutes is not None
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=60 * settings.minutes, initial=state.seconds, bar_format=form, disable=disable)


def _diverged(losses: list[Tensor], step: int, seed: int) -> TrainingDiverged:
    finite = torch.stack(losses).isfinite().tolist()
    bad = step - len(losses) + finite.index(False)
    return TrainingDiverged(
        f"the loss is not finite at step {bad} (step seed {step_seed(seed, bad)}); "
        f"lower the learning rate, or train in float32"
    )
