"""Time the way from images and reconstructions to heat maps and scores: ssae's, on whole batches, beside a
loop over images with SciPy's box filter, as most scripts hold it.

    python benchmarks/bench_scoring.py [--images 160] [--size 256] [--rounds 5] [--threads 2] [--out FILE]

Both sides compute the same: the squared difference averaged over colours, three passes of the box filter,
the mean of the highest hundredth; away from the border, where the two filters see different neighbours, the
maps are compared. Prints images a second and the ratio; writes them as JSON.
"""

from __future__ import annotations

import statistics
import time

import common
import numpy as np
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor

from ssae.scoring import ScoringSettings, heat_map, image_scores

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
    parser = common.parser(str(__doc__), "scoring", images=160, size=256, threads=torch.get_num_threads())
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
    }
    common.write(arguments.out, record, ("scipy",))


if __name__ == "__main__":
    main()
