"""Time a training step of a preset: as `ssae train` runs it, beside the plain loop most scripts hold.

    python benchmarks/bench_training.py [--preset lite] [--batch 16] [--size 128] [--rounds 5]
        [--ways plain ssae compiled] [--out FILE]

Both sides train the same model with the same objective and corruption. *plain* is eager float32 in the
default layout of PyTorch; *ssae* is the package's own step: channels last, and bfloat16 where the processor
has it; *compiled* puts ``torch.compile`` on top and is left out where no C++ compiler is found. Each way
runs in a process of its own, so that its greatest memory is its own, and the rounds of all ways take turns.

Beside images a second stands the share of the greatest matrix-multiplication speed that this machine
reaches in float32, counting three times the operations of a forward pass for a step. Prints a table; writes
it as JSON.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import common
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssae.corruption import PartialCorruption, procedural_textures
from ssae.models import PRESETS, build
from ssae.objectives import Masked
from ssae.training import FitSettings, TrainingState, train_step

RATIO_BAR, MEMORY_BAR = 2.5, 2048.0
STEPS = 5  # a round


def prepare(way: str, preset: str, batch: int, size: int) -> Callable[[], object]:
    """One step of training; the images lie ready in memory."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(batch, 3, size, size, generator=generator)
    objective = Masked(PartialCorruption(textures=procedural_textures(64, size, generator)))
    torch.manual_seed(0)
    model = build(preset).train()
    if way == "plain":
        optimiser = torch.optim.AdamW(model.parameters())

        def plain() -> None:
            loss = objective(model, clean, generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        return plain
    model.to(memory_format=torch.channels_last)
    clean = clean.contiguous(memory_format=torch.channels_last)  # as `experiment.make_draw` gives them
    state = TrainingState(model, FitSettings(steps=10**6, ema=0.999, optimiser="muon"))
    trained = torch.compile(model) if way == "compiled" else model
    return lambda: train_step(state, trained, lambda generator: clean, objective, 1e-4)


def worker(way: str, preset: str, batch: int, size: int, threads: int, pipe: Connection) -> None:
    """Answer ``"round"`` with the seconds of a step, ``"end"`` with the greatest memory in MiB."""
    torch.set_num_threads(threads)
    step = prepare(way, preset, batch, size)
    for _ in range(2):
        step()
    pipe.send("ready")
    while pipe.recv() != "end":
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        pipe.send((time.perf_counter() - start) / STEPS)
    pipe.send(common.peak_mebibytes())


def matmul_peak(threads: int) -> float:
    """Greatest float32 operations a second of a matrix product of side 2048, of ten."""
    torch.set_num_threads(threads)
    side = 2048
    a, b = torch.rand(side, side), torch.rand(side, side)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def operations(preset: str, batch: int, size: int) -> int:
    """Of a step: three times those of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(preset)(torch.rand(batch, 3, size, size))
    return 3 * counter.get_total_flops()


def judged(table: dict[str, dict[str, Any]], preset: str, batch: int, size: int) -> dict[str, Any]:
    """The bars and whether they are met; they are meant for batches of 16 at 128 pixels of the lite model."""
    if (preset, batch, size) != ("lite", 16, 128) or not {"plain", "ssae"} <= table.keys():
        return {}
    return {
        "bars": {"ratio": RATIO_BAR, "memory_mib": MEMORY_BAR},
        "met": {
            "ratio": max(way.get("ratio", 0.0) for way in table.values()) >= RATIO_BAR,
            "memory_mib": table["ssae"]["memory_mib"] < MEMORY_BAR,
        },
    }


def main() -> None:
    parser = common.parser(str(__doc__), "training", batch=16, size=128, threads=torch.get_num_threads())
    parser.add_argument("--preset", choices=sorted(PRESETS), default="lite")
    known = ["plain", "ssae"] + (["compiled"] if shutil.which(os.environ.get("CXX", "g++")) else [])
    parser.add_argument("--ways", nargs="+", choices=known, default=known)
    arguments = parser.parse_args()
    batch, size, threads = arguments.batch, arguments.size, arguments.threads

    preset, ways = arguments.preset, arguments.ways
    peak, work = matmul_peak(threads), operations(preset, batch, size)
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for way in ways:
        pipes[way], other = context.Pipe()
        context.Process(target=worker, args=(way, preset, batch, size, threads, other), daemon=True).start()
        pipes[way].recv()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way in ways:
            pipes[way].send("round")
            seconds[way].append(pipes[way].recv())
    table: dict[str, dict[str, Any]] = {}
    for way in ways:
        pipes[way].send("end")
        step = statistics.median(seconds[way])
        table[way] = {
            "images_per_second": batch / step,
            "share_of_matmul_peak": work / step / peak,
            "step_seconds": seconds[way],
            "memory_mib": pipes[way].recv(),
        }
        if way != "plain" and "plain" in ways:
            table[way]["ratio"] = statistics.median(seconds["plain"]) / step
        print(f"{way:<9} {batch / step:6.1f} images/s, {work / step / peak:.0%} of the matmul peak,", end=" ")
        print(f"{table[way]['memory_mib']:.0f} MiB", end="")
        print(f", {table[way]['ratio']:.2f} times plain" if "ratio" in table[way] else "")
    record = {
        "benchmark": "training",
        "preset": preset,
        "batch": batch,
        "size": size,
        "threads": threads,
        "ways": table,
        "matmul_peak_gflops": peak / 1e9,
        **judged(table, preset, batch, size),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    common.write(arguments.out, record)


if __name__ == "__main__":
    main()
