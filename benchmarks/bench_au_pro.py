"""Time exact AU-PRO side by side: ssae, anomalib's class and pyaupro's exact mode, on the same maps in one
run.

    python benchmarks/bench_au_pro.py [--maps 160] [--size 512] [--repeats 3] [--out FILE]

Prints one line an implementation with its value, its time and how many times longer it took than ssae, and
writes the same as JSON. anomalib and pyaupro come with `pip install .[bench]`; one that is missing is named
and left out.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch

from ssae import metrics

Array = np.ndarray[Any, Any]
LIMIT = 0.3
STREAMED_MAPS, STREAMED_POOL = 1602, 18


def synthetic_maps(count: int, size: int, seed: int = 0) -> tuple[Array, Array]:
    """Float32 maps in (0, 1) and masks: noise, raised within one to three ellipses of every other map."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:size, :size]
    scores, masks = np.empty((count, size, size), np.float32), np.zeros((count, size, size), bool)
    for score_map in scores:
        rng.standard_normal(out=score_map, dtype=np.float32)
    for mask in masks[::2]:
        for _ in range(rng.integers(1, 4)):
            centre_y, centre_x = rng.integers(0, size, 2)
            height, width = rng.integers(size // 64 + 1, size // 10 + 2, 2)
            mask |= ((y - centre_y) / height) ** 2 + ((x - centre_x) / width) ** 2 < 1
    # In place and map by map: a temporary as large as the stack would hide the peak to be measured.
    for score_map, mask in zip(scores, masks, strict=True):
        score_map += mask
        np.negative(score_map, out=score_map)
        np.exp(score_map, out=score_map)
        score_map += 1
        np.reciprocal(score_map, out=score_map)
    return scores, masks


def with_ssae(scores: Array, masks: Array) -> float:
    return metrics.au_pro(scores, masks, LIMIT)


def with_ssae_streamed(scores: Array, masks: Array) -> float:
    stream = metrics.PixelMetrics(LIMIT)
    for score_map, mask in zip(scores, masks, strict=True):
        stream.update(score_map, mask)
    return stream.compute().au_pro


def with_anomalib(scores: Array, masks: Array) -> float:
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO(fpr_limit=LIMIT)
    metric.update(torch.from_numpy(scores), torch.from_numpy(masks).int())
    return float(metric.compute())


def with_pyaupro(scores: Array, masks: Array, reference: bool = False) -> float:
    from pyaupro import PerRegionOverlap, auc_compute

    metric = PerRegionOverlap(thresholds=None, reference_implementation=reference)
    metric.update(torch.from_numpy(scores), torch.from_numpy(masks).int())
    return float(auc_compute(*metric.compute(), limit=LIMIT, reorder=True, descending=True))


def with_reference(scores: Array, masks: Array) -> float:
    return with_pyaupro(scores, masks, reference=True)


IMPLEMENTATIONS: dict[str, Callable[[Array, Array], float]] = {
    "ssae au_pro": with_ssae,
    "ssae PixelMetrics (all pixel metrics)": with_ssae_streamed,
    "anomalib AUPRO": with_anomalib,
    "pyaupro exact": with_pyaupro,
    "pyaupro reference (MVTec)": with_reference,
}


def stream_many(size: int) -> dict[str, float]:
    """Stream 420 megapixels (at 512 x 512), each map shifted differently; time without making them."""
    scores, masks = synthetic_maps(STREAMED_POOL, size)
    rng = np.random.default_rng(1)
    stream, seconds, start = metrics.PixelMetrics(LIMIT), 0.0, 0.0
    for index in range(STREAMED_MAPS):
        shifted = scores[index % STREAMED_POOL] + np.float32(0.1 * rng.random())
        start = time.perf_counter()
        stream.update(shifted, masks[index % STREAMED_POOL])
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    report = stream.compute()
    seconds += time.perf_counter() - start
    pixels = report.normal_pixels + report.defect_pixels
    return {
        "megapixels": pixels / 1e6,
        "defect_share": report.defect_pixels / pixels,
        "seconds": seconds,
        "peak_mib": common.peak_mebibytes(),
        "au_pro": report.au_pro,
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(count: int, size: int, repeats: int) -> dict[str, Any]:
    scores, masks = synthetic_maps(count, size)
    before = common.peak_mebibytes()
    with_ssae(scores, masks)
    extra = common.peak_mebibytes() - before
    print(f"{scores.size / 1e6:.1f} megapixels; ssae au_pro peaks {extra:.0f} MiB above its input")

    missing = {}
    for name, implementation in IMPLEMENTATIONS.items():
        try:
            implementation(*synthetic_maps(2, 32))  # imports and warms up
        except ImportError as error:
            missing[name] = str(error)
            print(f"{name}: left out ({error}); install it with: pip install '.[bench]'")
    times: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS if name not in missing}
    values: dict[str, float] = {}
    # Rounds, not blocks: what else the machine does then falls on all alike.
    for _ in range(repeats):
        for name in times:
            start = time.perf_counter()
            values[name] = IMPLEMENTATIONS[name](scores, masks)
            times[name].append(time.perf_counter() - start)

    own = statistics.median(times["ssae au_pro"])
    results = {}
    for name, value in values.items():
        median = statistics.median(times[name])
        results[name] = {
            "au_pro": value,
            "seconds": times[name],
            "median_seconds": median,
            "ratio": median / own,
        }
        difference = abs(value - values["ssae au_pro"])
        print(f"{name:40s} {value:.8f}  off by {difference:.1e}  {median:7.2f} s  {median / own:5.1f} x")

    wide = scores[: max(count // 8, 2)].astype(np.float64)
    part = masks[: len(wide)]
    change = abs(metrics.au_pro(np.exp(wide), part, LIMIT) - metrics.au_pro(wide, part, LIMIT))
    print(f"change under exp(): {change:.1e}")
    child = [sys.executable, __file__, "--stream-only", "--size", str(size)]
    streamed = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    line = "streamed {megapixels:.0f} megapixels in {seconds:.1f} s, peak {peak_mib:.0f} MiB"
    print(line.format(**streamed))
    return {
        "benchmark": "au_pro",
        "maps": count,
        "size": size,
        "megapixels": scores.size / 1e6,
        "regions": metrics.rank_pixels(scores, masks).regions,
        "fpr_limit": LIMIT,
        "results": results,
        "missing": missing,
        "extra_peak_mib": extra,
        "change_under_exp": change,
        "streamed": streamed,
    }


def main() -> None:
    parser = common.parser(str(__doc__), "au_pro", rounds=3, maps=160, size=512, threads=2)
    parser.add_argument("--stream-only", action="store_true", help="only stream, and print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.stream_only:
        print(json.dumps(stream_many(arguments.size)))
        return
    receipt = run(arguments.maps, arguments.size, arguments.rounds)
    common.write(arguments.out, receipt, ("scipy", "anomalib", "pyaupro"))


if __name__ == "__main__":
    main()
