"""Time the ways to apply a model: torch and ONNX Runtime in batches, the per-image loop that most scripts
hold, and `ssae predict` from files to files beside the bare model.

    python benchmarks/bench_inference.py [--sizes 128 256] [--images 256] [--rounds 5] [--out FILE]

The model is the lite one with random weights, which cost what trained ones do. Each way runs in a process of
its own, so that its greatest memory is its own, and the rounds of all ways take turns, so that a busy machine
is unfair to none. The bare model is what its user would write: batches in evaluation and inference mode, in
the layout that convolutions like, torch's threads sharing every layer. Beside it stands the same model with
batches side by side, one thread for each, as `predict` does it: no more can be had from the model itself. A
latency is the time from handing over one photograph, decoded, to having its score.

The bars: `predict` (decode, model, heat map, mask, tables and report) at no less than 0.9 of what the bare
model reaches on tensors that lie ready in memory. Prints a table; writes it as JSON.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image

from ssae.datasets import load_images
from ssae.experiment import ExperimentSettings, Run
from ssae.export import export_run
from ssae.inspection import BATCH, inspect
from ssae.scoring import Calibration, ScoringSettings, heat_map, image_scores

BAR = 0.9
WAYS = ("bare model", "bare model, side by side", "torch", "onnxruntime", "loop", "predict")


def make_run(size: int) -> Run:
    """An untrained lite run; what it finds does not matter, how long it takes does."""
    settings = ExperimentSettings("part", resolution=size, scoring=ScoringSettings.for_resolution(size))
    model = settings.build_model().to(memory_format=torch.channels_last).eval()
    return Run(model, settings, "", torch.device("cpu"), calibration=Calibration((1.0,), (1.0,)))


def make_photographs(folder: Path, count: int, size: int) -> list[Path]:
    """Smooth noise, which compresses about as well as a photograph."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        paths.append(folder / f"{index:05}.png")
        small.resize((size, size), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def prepare(
    way: str, paths: list[Path], size: int, work: Path
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What is timed for throughput, over all photographs, and for latency, over one."""
    run = make_run(size)
    images = load_images(paths, size)
    batches = images.contiguous(memory_format=torch.channels_last).split(BATCH)
    if way.startswith("bare model"):

        @torch.inference_mode()
        def bare(batch: torch.Tensor) -> None:
            run.model(batch)

        one = images[:1].contiguous(memory_format=torch.channels_last)
        if way == "bare model":
            return (lambda: [bare(batch) for batch in batches]), (lambda: bare(one))
        pool = ThreadPoolExecutor(torch.get_num_threads(), "bare", torch.set_num_threads, (1,))
        return (lambda: list(pool.map(bare, batches))), (lambda: pool.submit(bare, one).result())
    if way in ("torch", "loop"):
        parts = batches if way == "torch" else images.split(1)

        def score(batch: torch.Tensor) -> torch.Tensor:
            return image_scores(run.heat_maps(batch), run.settings.scoring)

        def by_hand(batch: torch.Tensor) -> float:
            with torch.no_grad():  # as scripts do it: no batch, no layout, a score at a time
                return float(
                    image_scores(
                        heat_map(batch, run.model(batch), run.settings.scoring), run.settings.scoring
                    )
                )

        step = score if way == "torch" else by_hand
        return (lambda: [step(part) for part in parts]), (lambda: step(images[:1]))
    if way == "onnxruntime":
        import onnxruntime

        path = work / f"{size}.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        stacks = [(255 * batch).byte().permute(0, 2, 3, 1).contiguous().numpy() for batch in batches]
        return (lambda: [session.run(None, {"photographs": stack}) for stack in stacks]), (
            lambda: session.run(None, {"photographs": stacks[0][:1]})
        )
    out = work / f"found-{size}"
    return (lambda: sum(1 for _ in inspect(run, paths, out))), (
        lambda: sum(1 for _ in inspect(run, paths[:1], out))
    )


def worker(way: str, paths: list[Path], size: int, work: Path, threads: int, pipe: Connection) -> None:
    """Answer ``"all"`` and ``"one"`` with seconds, ``"end"`` with the greatest memory in MiB."""
    torch.set_num_threads(threads)
    everything, single = prepare(way, paths, size, work)
    single()
    pipe.send("ready")
    while (asked := pipe.recv()) != "end":
        start = time.perf_counter()
        everything() if asked == "all" else single()
        pipe.send(time.perf_counter() - start)
    pipe.send(common.peak_mebibytes())


def measure(size: int, count: int, rounds: int, threads: int, work: Path) -> dict[str, dict[str, Any]]:
    """All ways at one size, the rounds taking turns."""
    folder = work / f"photographs-{size}"
    folder.mkdir()
    paths = make_photographs(folder, count, size)
    export_run(make_run(size), work / f"{size}.onnx")
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for way in WAYS:
        pipes[way], other = context.Pipe()
        context.Process(target=worker, args=(way, paths, size, work, threads, other), daemon=True).start()
        pipes[way].recv()

    def ask(way: str, what: str) -> float:
        pipes[way].send(what)
        return float(pipes[way].recv())

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    latencies: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            seconds[way].append(ask(way, "all"))
            if way != "predict":
                latencies[way] += [ask(way, "one") for _ in range(20)]
    bare = statistics.median(seconds["bare model"])
    table = {}
    for way in WAYS:
        middle = statistics.median(seconds[way])
        row: dict[str, Any] = {
            "images_per_second": count / middle,
            "share_of_bare_model": bare / middle,
            "seconds": seconds[way],
            "memory_mib": ask(way, "end"),
        }
        if latencies[way]:
            row["latency_p50_ms"], row["latency_p99_ms"] = (
                1000 * float(np.percentile(latencies[way], q)) for q in (50, 99)
            )
        table[way] = row
        print(f"{size}: {way:<{max(map(len, WAYS))}} {row['images_per_second']:7.1f} images/s", end=", ")
        print(f"{row['share_of_bare_model']:.2f} of the bare model, {row['memory_mib']:.0f} MiB", end="")
        if latencies[way]:
            print(f", p50 {row['latency_p50_ms']:.1f} ms, p99 {row['latency_p99_ms']:.1f} ms", end="")
        print()
    return table


def main() -> None:
    parser = common.parser(str(__doc__), "inference", images=256, threads=torch.get_num_threads())
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        tables = {
            str(size): measure(size, arguments.images, arguments.rounds, arguments.threads, Path(work))
            for size in arguments.sizes
        }
    record = {
        "benchmark": "inference",
        "images": arguments.images,
        "threads": arguments.threads,
        "sizes": tables,
        "bars": {"predict_share": BAR},
        "met": {size: table["predict"]["share_of_bare_model"] >= BAR for size, table in tables.items()},
    }
    common.write(arguments.out, record)


if __name__ == "__main__":
    main()
