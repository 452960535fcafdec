"""Apply a run to thousands of photographs and watch the memory.

    python benchmarks/bench_stream.py [--images 10000] [--size 128] [--out FILE]

`ssae predict` may be given more photographs than fit into memory: what it holds must not grow with their
number. The model is the lite one with random weights. A process of its own scores them from files to files
and notes its greatest memory after a tenth of them and at the end. Prints both; writes them as JSON.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import common
import torch
from bench_inference import make_photographs, make_run

from ssae.inspection import inspect


def worker(folder: Path, out: Path, size: int, count: int, threads: int, pipe: Connection) -> None:
    """Send number and seconds of all photographs, and the greatest memory on the way and at the end."""
    torch.set_num_threads(threads)
    start, early, number = time.perf_counter(), 0.0, 0
    for number, _ in enumerate(inspect(make_run(size), [folder], out), start=1):
        if number == count // 10:
            early = common.peak_mebibytes()
    pipe.send((number, time.perf_counter() - start, early, common.peak_mebibytes()))


def main() -> None:
    parser = common.parser(str(__doc__), "stream", images=10_000, size=128, threads=torch.get_num_threads())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "photographs"
        folder.mkdir()
        make_photographs(folder, arguments.images, arguments.size)
        here, there = multiprocessing.Pipe()
        out = Path(work) / "found"
        process = multiprocessing.get_context("spawn").Process(
            target=worker, args=(folder, out, arguments.size, arguments.images, arguments.threads, there)
        )
        process.start()
        number, seconds, early, late = here.recv()
        process.join()
        report = (out / "report.html").stat().st_size
    memory = f"{early:.0f} MiB after a tenth, {late:.0f} at the end"
    print(f"{number} photographs, {number / seconds:.0f}/s; {memory}")
    record = {
        "benchmark": "stream",
        "images": number,
        "size": arguments.size,
        "threads": arguments.threads,
        "images_per_second": number / seconds,
        "memory_mib_after_a_tenth": early,
        "memory_mib": late,
        "report_bytes": report,
    }
    common.write(arguments.out, record)


if __name__ == "__main__":
    main()
