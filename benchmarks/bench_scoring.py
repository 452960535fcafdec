"""Time the way from images and reconstructions to heat maps and scores: ssae's, on whole batches, beside a
loop over images with SciPy's box filter, as most scripts hold it.

    python benchmarks/bench_scoring.py [--images 160] [--size 256] [--rounds 5] [--threads 2] [--out FILE]

Both sides compute the same: the squared difference averaged over colours, three passes of the box filter,
the mean of the highest hundredth; away from the border, where the two filters see different neighbours, the
maps are compared. Prints images a second and the ratio; writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor

from ssae.scoring import ScoringSettings, heat_map, image_scores

RESULTS = Path(__file__).parent / "results" / "scoring.json"
BATCH = 32


def ours(images: Tensor, reconstructions: Tensor, settings: ScoringSettings) -> tuple[Tensor, Tensor]:
    """Heat maps and scores, a batch at a time."""
    pairs = zip(images.split(BATCH), reconstructions.split(BATCH), strict=True)
    maps = [heat_map(image, output, settings) for image, output in pairs]
    return torch.cat(maps), torch.cat([image_scores(part, settings) for part in maps])


def loop(images: np.ndarray, reconstructions: np.ndarray, settings: ScoringSettings) -> np.ndarray:
    """Heat maps, an image at a time; the scores are computed and not kept."""
    maps = np.empty((len(images), *images.shape[2:]), np.float32)
    for index, (image, output) in enumerate(zip(images, reconstructions, strict=True)):
        heat = ((image - output) ** 2).mean(0)
        for _ in range(settings.passes):
            heat = uniform_filter(heat, settings.kernel)
        maps[index] = heat
        np.sort(heat, axis=None)[-max(1, round(settings.top_share * heat.size)) :].mean()
    return maps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = ScoringSettings.for_resolution(arguments.size)
    generator = torch.Generator().manual_seed(0)
    images, outputs = torch.rand(2, arguments.images, 3, arguments.size, arguments.size, generator=generator)
    arrays = images.numpy(), outputs.numpy()

    rates: dict[str, list[float]] = {"ssae": [], "loop": []}
    for _ in range(arguments.rounds + 1):
        for name in rates:
            start = time.perf_counter()
            if name == "ssae":
                maps, _ = ours(images, outputs, settings)
            else:
                other = loop(*arrays, settings)
            rates[name].append(arguments.images / (time.perf_counter() - start))
    rates = {name: values[1:] for name, values in rates.items()}  # the first round warms up
    edge = settings.passes * (settings.kernel // 2)
    inner = (slice(None), slice(edge, -edge), slice(edge, -edge))
    gap = float(np.abs(maps.numpy()[inner] - other[inner]).max())
    ratio = statistics.median(rates["ssae"]) / statistics.median(rates["loop"])
    for name, values in rates.items():
        print(f"{name:<5} {statistics.median(values):7.1f} images/s")
    print(f"{ratio:.2f} times the loop; largest difference of the maps {gap:.1e}")
    record = {
        "benchmark": "scoring",
        "images": arguments.images,
        "size": arguments.size,
        "threads": arguments.threads,
        "images_per_second": rates,
        "ratio": ratio,
        "largest_difference": gap,
        "cpu": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
