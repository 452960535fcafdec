"""Time training corruption: ssae's batched one beside a DRAEM-style loader, on one core in one run, and its
share of a training step.

    python benchmarks/bench_corruption.py [--batch 32] [--size 256] [--rounds 5] [--out FILE]

The other side is written anew from the description of its recipe (Zavrtanik et al., DRAEM, ICCV 2021),
image by image as a data loader does it: Perlin noise of random frequency, turned by a random angle and cut
at one half, is the mask; a texture changed by three of ten random augmentations is blended into it. It is
given every advantage: textures lie decoded in memory, noise and augmentations run in compiled NumPy and
Pillow code, and no image is left without a defect on either side. The cost of ours grows with the damaged
area, and its default damages several times as many pixels, so it is timed a second time with blobs that
damage about as many. Prints images a second and the ratios; writes them as JSON.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ssae.corruption import CorruptionSettings, PartialCorruption, procedural_textures
from ssae.models import build
from ssae.objectives import Masked, masked_reconstruction

Array = np.ndarray[Any, Any]
RATIO_BAR, SHARE_BAR = 10.0, 0.15
# Blobs with sides in this range damage about as many pixels as the other side does.
SMALLER = (0.06, 0.4)


# The recipe of the other side


def perlin_noise(size: int, frequencies: tuple[int, int], rng: np.random.Generator) -> Array:
    """Gradient noise ``(size, size)`` in about [-1, 1] with so many cells down and across."""
    down, across = frequencies
    angle = 2 * math.pi * rng.random((down + 1, across + 1))
    slope_y, slope_x = np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)
    y = (np.arange(size, dtype=np.float32) * down / size)[:, None]
    x = (np.arange(size, dtype=np.float32) * across / size)[None, :]
    row, column = y.astype(np.intp), x.astype(np.intp)
    y, x = y - row, x - column

    def corner(dy: int, dx: int) -> Array:
        place = (row + dy, column + dx)
        return slope_y[place] * (y - dy) + slope_x[place] * (x - dx)

    ease_y, ease_x = y**3 * (y * (6 * y - 15) + 10), x**3 * (x * (6 * x - 15) + 10)
    top = corner(0, 0) + ease_x * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + ease_x * (corner(1, 1) - corner(1, 0))
    return math.sqrt(2) * (top + ease_y * (bottom - top))


def augmentations(rng: np.random.Generator) -> list[Callable[[Image.Image], Image.Image]]:
    """Ten colour and position changes of a texture."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    def hue(image: Image.Image) -> Image.Image:
        shifted = np.array(image.convert("HSV"))
        shifted[..., 0] += np.uint8(rng.integers(256))
        return Image.fromarray(shifted, mode="HSV").convert("RGB")

    curve = [round(255 * (value / 255) ** between(0.5, 2)) for value in range(256)]
    return [
        lambda image: image.point(curve * 3),
        lambda image: ImageEnhance.Brightness(image).enhance(between(0.8, 1.2)),
        lambda image: ImageEnhance.Sharpness(image).enhance(between(0, 3)),
        hue,
        lambda image: ImageOps.solarize(image, int(between(32, 128))),
        lambda image: ImageOps.posterize(image, int(rng.integers(3, 7))),
        ImageOps.invert,
        ImageOps.autocontrast,
        ImageOps.equalize,
        lambda image: image.rotate(between(-45, 45), Image.Resampling.BILINEAR),
    ]


def draem_style(image: Array, textures: list[Image.Image], rng: np.random.Generator) -> tuple[Array, Array]:
    """One corrupted image ``(H, W, 3)`` and its mask ``(H, W, 1)``, from a normal one in [0, 1]."""
    size = image.shape[0]
    while True:
        frequencies = (2 ** int(rng.integers(0, 6)), 2 ** int(rng.integers(0, 6)))
        noise = Image.fromarray(perlin_noise(size, frequencies, rng))
        turned = noise.rotate(180 * rng.random() - 90, Image.Resampling.BILINEAR)
        mask = (np.asarray(turned) > 0.5)[..., None].astype(np.float32)
        if mask.any():
            break
    texture = textures[rng.integers(len(textures))]
    options = augmentations(rng)
    for index in rng.choice(len(options), 3, replace=False):
        texture = options[index](texture)
    foreign = np.asarray(texture, dtype=np.float32) / 255
    beta = np.float32(0.8 * rng.random())
    return image * (1 - mask) + mask * ((1 - beta) * foreign + beta * image), mask


# Measuring


def images_per_second(
    sides: dict[str, Callable[[], object]], batch: int, rounds: int
) -> dict[str, list[float]]:
    """Throughput in each round, by processor time: what else the machine does counts little.

    The sides take turns, so that a disturbance falls on both.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for corrupt in sides.values():
        corrupt()  # warms up
    for _ in range(rounds):
        for name, corrupt in sides.items():
            start = time.process_time()
            corrupt()
            rates[name].append(batch / (time.process_time() - start))
    return rates


def compare(batch: int, size: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    textures = procedural_textures(64, size, generator)
    clean = torch.rand(batch, 3, size, size, generator=generator)
    default = PartialCorruption(CorruptionSettings(clean_share=0.0), textures)
    smaller = PartialCorruption(CorruptionSettings(clean_share=0.0, side=SMALLER), textures)
    pictures = [Image.fromarray(a) for a in (255 * textures.permute(0, 2, 3, 1)).byte().numpy()]
    single = list(clean.permute(0, 2, 3, 1).contiguous().numpy())

    def theirs() -> tuple[Tensor, Tensor]:
        pairs = [draem_style(image, pictures, rng) for image in single]
        images, masks = (
            torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) for part in zip(*pairs, strict=True)
        )
        return images.contiguous(), masks.contiguous()

    def area(masks: Tensor) -> float:
        return (masks > 0).float().mean().item()

    sides = {
        "ssae": lambda: default(clean, generator),
        "ssae_smaller": lambda: smaller(clean, generator),
        "draem_style": theirs,
    }
    rates = images_per_second(sides, batch, rounds)
    result: dict[str, Any] = {
        name: {
            "images_per_second": rates[name],
            "corrupted_area": statistics.mean(area(corrupt()[1]) for _ in range(8)),
        }
        for name, corrupt in sides.items()
    }
    other = statistics.median(rates["draem_style"])
    for name, key in (("ssae", "ratio"), ("ssae_smaller", "ratio_smaller")):
        own = statistics.median(rates[name])
        result[key] = own / other
        print(
            f"{name} {own:.0f} images/s, DRAEM-style {other:.0f}: {own / other:.1f} times, damaged "
            f"{result[name]['corrupted_area']:.1%} and {result['draem_style']['corrupted_area']:.1%}"
        )
    return result


def share_of_step(batch: int, size: int, rounds: int) -> dict[str, Any]:
    """Wall time of the corruption within a training step of the lite model."""
    generator = torch.Generator().manual_seed(0)
    corruption = PartialCorruption(textures=procedural_textures(64, size, generator))
    torch.manual_seed(0)
    model = build("lite").to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters())
    clean = torch.rand(batch, 3, size, size, generator=generator)
    objective = Masked(corruption)
    steps, shares = [], []
    for index in range(rounds + 2):
        start = time.perf_counter()
        corrupted, mask = corruption(clean, generator)
        corrupting = time.perf_counter() - start
        loss = masked_reconstruction(model(corrupted), clean, mask, objective.weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        whole = time.perf_counter() - start
        if index >= 2:  # the first two warm up
            steps.append(whole)
            shares.append(corrupting / whole)
    share = statistics.median(shares)
    median = statistics.median(steps)
    print(f"lite training step of {batch} x 3 x {size} x {size}: {median:.3f} s, corruption {share:.1%}")
    return {
        "batch": batch,
        "size": size,
        "threads": torch.get_num_threads(),
        "step_seconds": steps,
        "share": share,
    }


def main() -> None:
    arguments = common.parser(str(__doc__), "corruption", batch=32, size=256, threads=2).parse_args()
    torch.set_num_threads(1)
    result = compare(arguments.batch, arguments.size, arguments.rounds)
    torch.set_num_threads(arguments.threads)
    step = share_of_step(16, 128, arguments.rounds)
    record = {
        "benchmark": "corruption",
        "batch": arguments.batch,
        "size": arguments.size,
        **result,
        "training_step": step,
        "bars": {"ratio": RATIO_BAR, "ratio_smaller": RATIO_BAR, "share": SHARE_BAR},
        "met": {
            "ratio": result["ratio"] >= RATIO_BAR,
            "ratio_smaller": result["ratio_smaller"] >= RATIO_BAR,
            "share": step["share"] < SHARE_BAR,
        },
    }
    common.write(arguments.out, record, ("pillow",))


if __name__ == "__main__":
    main()
