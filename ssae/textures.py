"""Textures that need no download: four small categories in the layout of MVTec AD.

Three are cut from photographs that scikit-image ships (brick, grass, gravel; CC0). Their training crops
come from the outer thirds of a photograph and their test crops from its middle, so no pixel is in both. The
fourth, weave, is computed from six latent parameters, so the manifold of its normal images is known.
Defects are drawn with polygons and lines on test images only, by code that shares nothing with
`ssae.corruption`: a model that finds them has not merely learnt to undo its own training noise.

Explained in chapters 8 and 10.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import uniform_filter
from torch import Tensor

__all__ = [
    "DEFECTS",
    "PART_DEFECTS",
    "SIZE",
    "WEAVE_LATENTS",
    "draw_defect",
    "make_textures",
    "sample_weave_latents",
    "weave",
]

SIZE = 128  # height and width of every image, in pixels
WEAVE_LATENTS = ("period", "angle", "phase_u", "phase_v", "contrast", "tint")

_RECIPE = "ssae-textures-1"  # changes whenever the same seed gives other pixels
_PHOTOGRAPHS = ("brick", "grass", "gravel")
_TEST_COLUMNS = (176, 336)  # of 512: the middle strip of a photograph is for testing
_FINE = 4  # shapes are drawn this many times larger and averaged down
_FAINT = 0.08  # less opaque than this counts as untouched, so that mask and drawing agree exactly

Array = np.ndarray


# The weave


def weave(latents: Tensor, size: int = SIZE) -> Tensor:
    r"""Plain-woven cloth as a smooth function of six parameters: a six-dimensional manifold of images.

    With thread coordinates :math:`(u, v)`, the pixel grid turned by the angle, divided by the period and
    shifted by the phases, the warp lies on top where :math:`\sin \pi u \, \sin \pi v > 0` and the weft
    elsewhere; a logistic function of that product blends the two. Every operation is differentiable, so
    tangent spaces come from autograd.

    Parameters
    ----------
    latents
        ``(B, 6)`` floating point: period of a thread in pixels (> 0; 8 or more avoids aliasing), angle in
        radians, the two phases in threads (the image repeats after 2 of either), contrast in [0, 1], tint in
        [0, 1] (from blue warp to red).
    size
        Height and width of the images in pixels.

    Returns
    -------
    Tensor
        ``(B, 3, size, size)`` in [0, 1], dtype and device of `latents`.

    Raises
    ------
    ValueError
        `latents` is not ``(B, 6)``.
    """
    warp, weft, top = _weave_layers(latents, size)
    return top * warp + (1 - top) * weft


def _weave_layers(latents: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Colour of the warp and of the weft ``(B, 3, size, size)``, and how far the warp is on top."""
    if latents.ndim != 2 or latents.shape[1] != len(WEAVE_LATENTS):
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}; give (B, 6): {', '.join(WEAVE_LATENTS)}"
        )
    period, angle, phase_u, phase_v, contrast, tint = (column[:, None, None] for column in latents.unbind(1))
    grid = torch.arange(size, dtype=latents.dtype, device=latents.device) - (size - 1) / 2
    y, x = grid[:, None], grid[None, :]
    u = (x * angle.cos() + y * angle.sin()) / period + phase_u
    v = (y * angle.cos() - x * angle.sin()) / period + phase_v
    across_u, across_v = (math.pi * u).sin(), (math.pi * v).sin()
    # 1 on the ridge of a thread, 0 in the gap beside it, flat on top: the look of a lit cylinder.
    round_u, round_v = 1 - across_u.square().neg().add(1).pow(3), 1 - across_v.square().neg().add(1).pow(3)
    ply_u = (2 * math.pi * (2 * u + v)).cos()
    ply_v = (2 * math.pi * (2 * v + u)).cos()
    light_u = 1 - contrast * (1 - round_u * (0.62 + 0.33 * round_v + 0.05 * ply_u))
    light_v = 1 - contrast * (1 - round_v * (0.62 + 0.33 * round_u + 0.05 * ply_v))
    blue, red, cream = (latents.new_tensor(c)[:, None, None] for c in _WEAVE_COLOURS)
    warp_colour = blue + tint[:, None] * (red - blue)
    top = torch.sigmoid(12 * across_u * across_v)
    return warp_colour * light_u[:, None], cream * light_v[:, None], top[:, None]


_WEAVE_COLOURS = ((0.27, 0.43, 0.62), (0.71, 0.38, 0.31), (0.93, 0.88, 0.76))


def sample_weave_latents(count: int, generator: torch.Generator) -> Tensor:
    """Latents ``(count, 6)`` float64 of normal cloth, each uniform in its range.

    Period 9 to 13 pixels, angle within 10 degrees, phases in [0, 2), contrast 0.65 to 0.9, tint 0 to 1.
    """
    return _scale_latents(torch.rand(count, len(WEAVE_LATENTS), generator=generator, dtype=torch.float64))


def _scale_latents(unit: Tensor) -> Tensor:
    low = unit.new_tensor([9.0, -math.pi / 18, 0.0, 0.0, 0.65, 0.0])
    high = unit.new_tensor([13.0, math.pi / 18, 2.0, 2.0, 0.9, 1.0])
    return low + (high - low) * unit


# Drawing: every shape is a coverage (H, W) in [0, 1], drawn large and averaged down


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    # random() alone is used throughout: NumPy may change the algorithms of its other distributions.
    return low + (high - low) * rng.random()


def _place(rng: np.random.Generator, margin: float = 0.2) -> Array:
    return SIZE * (margin + (1 - 2 * margin) * rng.random(2))


def _coverage(draw: Callable[[ImageDraw.ImageDraw], None], soften: float = 0.0) -> Array:
    canvas = Image.new("L", (SIZE * _FINE, SIZE * _FINE))
    draw(ImageDraw.Draw(canvas))
    canvas = canvas.reduce(_FINE)
    if soften:
        canvas = canvas.filter(ImageFilter.GaussianBlur(soften))
    return np.asarray(canvas, dtype=np.float64) / 255


def _polygon(points: Array, soften: float = 0.0) -> Array:
    corners = [(float(x), float(y)) for x, y in points * _FINE]
    return _coverage(lambda draw: draw.polygon(corners, fill=255), soften)


def _lines(lines: Sequence[Array], width: float, soften: float = 0.0) -> Array:
    thick = max(1, round(width * _FINE))

    def draw_all(draw: ImageDraw.ImageDraw) -> None:
        for points in lines:
            corners = [(float(x), float(y)) for x, y in points * _FINE]
            draw.line(corners, fill=255, width=thick, joint="curve")

    return _coverage(draw_all, soften)


def _line(points: Array, width: float, soften: float = 0.0) -> Array:
    return _lines([points], width, soften)


def _curve(rng: np.random.Generator, length: float, turn: float) -> Array:
    """Points ``(n, 2)`` of a line that changes its direction little by little, about a random place."""
    steps = 40
    heading, curl = 2 * math.pi * rng.random(), 0.0
    points = np.zeros((steps + 1, 2))
    for step in range(steps):
        curl = 0.85 * curl + turn * (rng.random() - 0.5)
        heading += curl
        points[step + 1] = points[step] + length / steps * np.array([math.cos(heading), math.sin(heading)])
    return points - points.mean(0) + _place(rng)


def _splash(rng: np.random.Generator, radius: float, rough: float, corners: int = 48) -> Array:
    """Corners of an irregular closed outline about a random place; `rough` is its relative unevenness."""
    angle = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    outline = np.ones(corners)
    for harmonic in range(2, 7):
        outline += (
            rough
            / harmonic
            * 2
            * (rng.random() - 0.5)
            * np.cos(harmonic * angle + 2 * math.pi * rng.random())
        )
    squeeze, turn = _uniform(rng, 0.6, 1.0), math.pi * rng.random()
    x, y = radius * outline * np.cos(angle), radius * squeeze * outline * np.sin(angle)
    points = np.stack(
        [x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], axis=1
    )
    return points + _place(rng)


def _grain(rng: np.random.Generator, cells: int) -> Array:
    """A smooth random field ``(H, W)`` in about [-1, 1] with `cells` bumps a side."""
    coarse = Image.fromarray((2 * rng.random((cells, cells)) - 1).astype(np.float32))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64)


def _lit(coverage: Array, reach: int = 2) -> Array:
    """Relief of a shape under light from the upper left: positive on lit rims, negative on shaded ones."""
    return coverage - np.roll(coverage, (reach, reach), axis=(0, 1))


def _blend(image: Array, paint: Array, alpha: Array) -> tuple[Array, Array]:
    """Paint over an image ``(H, W, C)``; returns it with the mask ``(H, W)`` of the pixels painted."""
    alpha = np.where(alpha < _FAINT, 0.0, alpha)
    paint = np.broadcast_to(paint if paint.ndim == 3 else paint[..., None], image.shape)
    return np.clip((1 - alpha[..., None]) * image + alpha[..., None] * paint, 0, 1), alpha > 0


Defect = Callable[[Array, np.random.Generator, "Tensor | None"], tuple[Array, Array]]


def _scratch(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A long cut: a bright bottom with a dark lip."""
    points = _curve(rng, _uniform(rng, 50, 110), 0.12)
    cut = _line(points, _uniform(rng, 2.0, 3.2))
    tone = 0.86 + 0.08 * _grain(rng, 32) + 0.5 * np.minimum(_lit(cut, 1), 0)
    return _blend(image, tone, _uniform(rng, 0.75, 0.95) * cut)


def _chip(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A spalled piece: an angular hollow, rough inside, its rim in light and shade."""
    shape = _polygon(_splash(rng, _uniform(rng, 8, 15), 0.9, corners=11))
    tone = 0.66 + 0.10 * _grain(rng, 40) + 0.06 * _grain(rng, 12) - 0.32 * _lit(shape, 3)
    return _blend(image, tone, shape)


def _paint(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A splash of light paint with drops around it."""
    alpha = _polygon(_splash(rng, _uniform(rng, 8, 14), 0.8), 0.6)
    for _ in range(3 + int(4 * rng.random())):
        alpha = np.maximum(alpha, _polygon(_splash(rng, _uniform(rng, 1.5, 3.5), 0.3), 0.5))
    return _blend(image, 0.90 + 0.04 * _grain(rng, 8) + 0.10 * _lit(alpha), 0.95 * alpha)


def _stain(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A dried spill: the ground shows through, darker, most at the rim."""
    outline = _splash(rng, _uniform(rng, 13, 22), 0.6)
    shape = _polygon(outline, 0.8)
    middle = outline.mean(0)
    inner = _polygon(middle + 0.82 * (outline - middle), 2.0)
    depth = _uniform(rng, 0.50, 0.62) * (1 - 0.22 * inner) + 0.05 * _grain(rng, 10)
    tint = np.array([0.36, 0.24, 0.12]) if image.shape[2] == 3 else np.array([0.12])
    return _blend(image, image * (1 - depth[..., None]) + tint * depth[..., None], shape)


def _oil(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A wet dark patch that levels the relief below it and mirrors some light."""
    shape = _polygon(_splash(rng, _uniform(rng, 14, 22), 0.7), 0.8)
    gloss = np.clip(_grain(rng, 9) - 0.45, 0, 1)
    paint = 0.10 + 0.28 * image[..., 0] + 0.8 * gloss
    return _blend(image, paint, 0.96 * shape)


def _bare(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A bald spot: dark earth with crumbs."""
    shape = _polygon(_splash(rng, _uniform(rng, 12, 20), 0.8), 1.0)
    return _blend(image, 0.17 + 0.06 * _grain(rng, 48) + 0.04 * _grain(rng, 16), 0.97 * shape)


def _wire(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A bent metal wire with a bright ridge."""
    points = _curve(rng, _uniform(rng, 70, 130), 0.20)
    width = _uniform(rng, 2.6, 3.8)
    body, ridge = _line(points, width), _line(points - 0.35, width / 3, 0.4)
    return _blend(image, 0.14 + 0.84 * ridge, body)


def _thread(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A foreign thread lying loosely on the cloth."""
    points = _curve(rng, _uniform(rng, 60, 120), 0.30)
    width = _uniform(rng, 2.4, 3.4)
    body, ridge = _line(points, width), _line(points - 0.3, width / 2, 0.5)
    colour = np.array([(0.10, 0.33, 0.22), (0.16, 0.13, 0.18), (0.86, 0.63, 0.10)][int(3 * rng.random())])
    return _blend(image, colour * (0.65 + 0.55 * ridge[..., None]), body)


def _leaf(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A fallen leaf: pointed outline, midrib and side veins."""
    length, slim, turn = _uniform(rng, 15, 22), _uniform(rng, 0.38, 0.52), 2 * math.pi * rng.random()
    along = np.linspace(-1, 1, 41)
    half = slim * (1 - along**2) * (1 - 0.25 * along)
    frame = length * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    centre = _place(rng, 0.25)

    def placed(x: Array, y: Array) -> Array:
        return np.stack([x, y], axis=1) @ frame + centre

    shape = _polygon(placed(np.concatenate([along, along[::-1]]), np.concatenate([half, -half[::-1]])))
    rib = placed(along, np.zeros_like(along))
    veins = []
    for start in np.arange(-0.7, 0.7, 0.28):
        for side in (1, -1):
            reach = np.linspace(0, 1, 8)
            width = slim * (1 - start**2)
            veins.append(placed(start + 0.3 * reach, side * 0.9 * width * reach))
    tone = (0.86 if rng.random() < 0.6 else 0.16) + 0.05 * _grain(rng, 6)
    paint = tone + (0.5 - tone) * 0.55 * np.maximum(_line(rib, 1.2), _lines(veins, 0.6)) + 0.15 * _lit(shape)
    return _blend(image, paint, shape)


def _litter(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A crumpled scrap of paper: bright facets that meet in creases."""
    outline = _splash(rng, _uniform(rng, 11, 17), 0.5, corners=9)
    middle = outline.mean(0) + 3 * (rng.random(2) - 0.5)
    shape = _polygon(outline)
    tone = np.full((SIZE, SIZE), 0.85)
    for index in range(len(outline)):
        facet = _polygon(np.stack([outline[index], outline[(index + 1) % len(outline)], middle]))
        tone += (0.30 * rng.random() - 0.16) * facet
    return _blend(image, tone, shape)


def _nut(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A hexagonal steel nut; the ground shows through its bore."""
    radius, turn, centre = _uniform(rng, 10, 15), math.pi / 3 * rng.random(), _place(rng, 0.2)
    six = np.arange(6) * math.pi / 3 + turn
    ring = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    outer = _polygon(centre + radius * np.stack([np.cos(six), np.sin(six)], axis=1))
    flat = _polygon(centre + 0.80 * radius * np.stack([np.cos(ring), np.sin(ring)], axis=1))
    bore = _polygon(centre + 0.50 * radius * np.stack([np.cos(ring), np.sin(ring)], axis=1))
    thread = _polygon(centre + 0.60 * radius * np.stack([np.cos(ring), np.sin(ring)], axis=1))
    tone = 0.52 + 0.26 * flat + 0.30 * _lit(outer) - 0.45 * thread + 0.02 * _grain(rng, 32)
    return _blend(image, tone, outer * (1 - bore))


def _hole(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A hole torn into the cloth, with frayed ends reaching into it."""
    outline = _splash(rng, _uniform(rng, 8, 14), 0.6)
    middle = outline.mean(0)
    alpha = _polygon(outline, 0.3)
    ends = []
    for corner in outline[:: 3 + int(2 * rng.random())]:
        reach = middle + (corner - middle) * _uniform(rng, 0.45, 0.8)
        ends.append(np.stack([corner, reach + 3 * (rng.random(2) - 0.5)]))
    frayed = 0.85 * _lines(ends, 1.1)[..., None]
    paint = 0.06 * (1 - frayed) + np.array([0.80, 0.74, 0.62]) * frayed
    return _blend(image, paint, alpha)


def _broken(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A weft thread missing over some length: only the warp is left, and the dark behind it."""
    assert latents is not None
    period, angle, _, phase_v, *_ = latents[0].tolist()
    x, y = _place(rng, 0.3) - (SIZE - 1) / 2
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    row = (
        math.floor(across / period + phase_v) - phase_v
    ) * period  # the gap before the thread nearest the place
    length = _uniform(rng, 30, 70)
    box = np.array([[-length / 2, 0], [length / 2, 0], [length / 2, period], [-length / 2, period]])
    corners = box + np.array([along, row])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shape = _polygon(corners @ turn + SIZE / 2)
    warp = _to_array(_weave_layers(latents, SIZE)[0])
    return _blend(image, 0.62 * warp**1.4, shape)


def _displaced(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A patch of the same cloth sewn in at the wrong angle."""
    assert latents is not None
    other = latents.clone()
    other[0, 1] += _uniform(rng, 0.5, 1.0) * (1 if rng.random() < 0.5 else -1)
    patch = _to_array(weave(other))
    return _blend(image, patch, _polygon(_splash(rng, _uniform(rng, 13, 20), 0.4)))


def _missing(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A piece broken off: what lies behind the part, the tone of the picture's border, shows through."""
    border = np.concatenate([image[:4].reshape(-1, image.shape[2]), image[-4:].reshape(-1, image.shape[2])])
    shape = _polygon(_splash(rng, _uniform(rng, 10, 34), 0.9, corners=13), 0.5)
    relief = 0.04 * _grain(rng, 12) + 0.15 * _lit(shape)
    return _blend(image, np.median(border, axis=0) + relief[..., None], shape)


def _moved(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A jagged piece of another place of the same part."""
    shape = _polygon(_splash(rng, _uniform(rng, 8, 32), 0.9, corners=11), 0.5)
    by = [int(_uniform(rng, 16, 64)) * (1 if rng.random() < 0.5 else -1) for _ in range(2)]
    return _blend(image, np.roll(image, by, axis=(0, 1)), shape)


def _turned(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A piece turned in its place."""
    outline = _splash(rng, _uniform(rng, 12, 32), 0.5)
    centre = outline.mean(0)
    angle = _uniform(rng, 0.35, 1.2) * (1 if rng.random() < 0.5 else -1)
    y, x = np.mgrid[:SIZE, :SIZE]
    x, y = x - centre[0], y - centre[1]
    across = x * math.cos(angle) - y * math.sin(angle) + centre[0]
    down = x * math.sin(angle) + y * math.cos(angle) + centre[1]
    return _blend(image, _read(image, down, across), _polygon(outline, 0.5))


def _bent(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
    """A round region pushed sideways, most in its middle."""
    centre, radius, angle = _place(rng), _uniform(rng, 14, 30), 2 * math.pi * rng.random()
    y, x = np.mgrid[:SIZE, :SIZE]
    inside = np.clip(1 - ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / radius**2, 0, 1)
    push = _uniform(rng, 0.35, 0.6) * radius * inside**2
    bent = _read(image, y - push * math.sin(angle), x - push * math.cos(angle))
    return _blend(image, bent, (inside > 0).astype(float))


def _read(image: Array, y: Array, x: Array) -> Array:
    """The nearest pixel of an image at each place."""
    return image[np.rint(y).astype(int).clip(0, SIZE - 1), np.rint(x).astype(int).clip(0, SIZE - 1)]


def _visible(draw: Defect) -> Defect:
    """A defect whose mask holds only what shows, drawn again where nearly nothing does: a patch moved or
    turned within an even surface is no defect."""

    def drawn(image: Array, rng: np.random.Generator, latents: Tensor | None) -> tuple[Array, Array]:
        for _ in range(20):
            result, mask = draw(image, rng, latents)
            change = np.abs(result - image).max(axis=2)
            shows = uniform_filter(change, 5) > 0.03
            if (mask & shows).sum() >= 40:
                break
        mask = mask & shows & (change > 0)
        return np.where(mask[..., None], result, image), mask

    return drawn


DEFECTS: Mapping[str, Mapping[str, Defect]] = {
    "brick": {"chip": _chip, "paint": _paint, "scratch": _scratch, "stain": _stain},
    "grass": {"bare": _bare, "leaf": _leaf, "litter": _litter, "wire": _wire},
    "gravel": {"leaf": _leaf, "nut": _nut, "oil": _oil, "wire": _wire},
    "weave": {"broken": _broken, "displaced": _displaced, "hole": _hole, "stain": _stain, "thread": _thread},
}

# Structural defects for an image of any part; no category of the embedded textures has them.
PART_DEFECTS: Mapping[str, Defect] = {
    name: _visible(draw)
    for name, draw in {"bent": _bent, "missing": _missing, "moved": _moved, "turned": _turned}.items()
}


def draw_defect(
    category: str, kind: str, image: Array, rng: np.random.Generator, latents: Tensor | None = None
) -> tuple[Array, Array]:
    """Draw one defect onto a normal image.

    Parameters
    ----------
    category, kind
        Keys of `DEFECTS`, such as ``"brick"``, ``"chip"``; or ``"part"`` and a key of `PART_DEFECTS`.
    image
        ``(128, 128, C)`` in [0, 1], one channel or three. It is not changed.
    rng
        Source of shape, place and shade.
    latents
        ``(1, 6)``, the parameters of the cloth; the defects of ``"weave"`` follow its threads.

    Returns
    -------
    defective, mask
        The drawn image, and ``(128, 128)`` bool: exactly the pixels painted. Outside it the image is
        unchanged.
    """
    kinds = PART_DEFECTS if category == "part" else DEFECTS[category]
    return kinds[kind](image, rng, latents)


# Files


def make_textures(
    out_dir: str | os.PathLike[str],
    seed: int = 0,
    *,
    train: int = 72,
    test_good: int = 16,
    per_defect: int = 6,
) -> Path:
    """Write the four categories in the layout of MVTec AD, and a ``manifest.json`` of settings and hashes.

    The folder appears complete or not at all. Called again it does nothing where the same textures lie whole,
    makes them anew where its own files were changed, and touches no folder that holds anything else.

    Parameters
    ----------
    out_dir
        Folder to write; its parents are made.
    seed
        The same seed gives the same bytes.
    train, test_good, per_defect
        Images a category for training, normal ones for testing, and defective ones of each kind.

    Returns
    -------
    Path
        `out_dir`.

    Raises
    ------
    FileExistsError
        `out_dir` holds something that is not these textures.
    """
    out = Path(out_dir)
    settings = {
        "recipe": _RECIPE,
        "seed": seed,
        "train": train,
        "test_good": test_good,
        "per_defect": per_defect,
    }
    if _is_whole(out, settings):
        return out
    _refuse_foreign(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        digests: dict[str, str] = {}
        latents: dict[str, list[float]] = {}
        for number, category in enumerate(DEFECTS):
            for name, image, parameters in _category_images(
                category, (seed, number), (train, test_good, per_defect)
            ):
                data = _png(_to_bytes(image))
                path = scratch / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                digests[name] = hashlib.sha256(data).hexdigest()
                if parameters is not None:
                    latents[name] = [round(value, 12) for value in parameters]
        manifest = {
            "settings": settings,
            "sources": {name: "photograph of scikit-image, CC0" for name in _PHOTOGRAPHS}
            | {"weave": "computed"},
            "weave_latents": {"names": WEAVE_LATENTS, "files": latents},
            "files": digests,
        }
        (scratch / "manifest.json").write_text(
            json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        scratch.chmod(0o755)
        if out.is_dir():
            shutil.rmtree(out)
        try:
            scratch.rename(out)
        except OSError:
            if not _is_whole(out, settings):  # else another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _manifest(folder: Path) -> dict | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return manifest if manifest["settings"]["recipe"].startswith("ssae-textures-") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_whole(folder: Path, settings: dict) -> bool:
    manifest = _manifest(folder)
    if manifest is None or manifest["settings"] != settings:
        return False
    try:
        return all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in manifest["files"].items()
        )
    except OSError:
        return False


def _refuse_foreign(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    mend = "give an empty or new folder"
    if not folder.is_dir() or folder.is_symlink():
        raise FileExistsError(f"{folder} exists and is not a folder of its own; {mend}")
    manifest = _manifest(folder)
    own = {"manifest.json", *manifest["files"]} if manifest else set()
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in own:
            raise FileExistsError(f"{folder} holds {path.name}, which make_textures did not write; {mend}")


def _category_images(
    category: str, key: tuple[int, int], counts: tuple[int, int, int]
) -> Iterator[tuple[str, Array, list[float] | None]]:
    """Yield name, pixels ``(H, W, C)`` in [0, 1] and the latents of a weave, of every file of a category."""
    train, test_good, per_defect = counts
    plan = {"train/good": train, "test/good": test_good} | {
        f"test/{kind}": per_defect for kind in DEFECTS[category]
    }
    photograph = getattr(skimage.data, category)() / 255 if category in _PHOTOGRAPHS else None
    for number, (folder, count) in enumerate(plan.items()):
        split, kind = folder.split("/")
        for index in range(count):
            # A stream of its own for each image. Adding one leaves the others as they are, but for the row
            # from which a photograph's crop is taken: the rows are spread over as many as there are.
            rng = np.random.Generator(np.random.PCG64([*key, number, index]))
            latents = None
            if photograph is None:
                latents = _scale_latents(torch.from_numpy(rng.random((1, len(WEAVE_LATENTS)))))
                # The mean of four uniform variables stands in for a camera's noise: standard deviation
                # 0.0115.
                noise = 0.08 * (rng.random((4, SIZE, SIZE, 1)).mean(0) - 0.5)
                image = _to_array(weave(latents)) + noise
            else:
                image = _crop(photograph, split, (index + rng.random()) / count, rng)
            name = f"{category}/{folder}/{index:03d}.png"
            if kind != "good":
                image, mask = draw_defect(category, kind, image, rng, latents)
                yield f"{category}/ground_truth/{kind}/{index:03d}_mask.png", mask[..., None], None
            yield name, image, latents[0].tolist() if latents is not None else None


def _crop(photograph: Array, split: str, height: float, rng: np.random.Generator) -> Array:
    """A crop ``(128, 128, 1)`` from a strip that belongs to `split`; `height` in [0, 1) says how far down."""
    first, last = _TEST_COLUMNS
    rows, columns = photograph.shape
    strips = [(first, last)] if split == "test" else [(0, first), (last, columns)]
    left, right = strips[int(len(strips) * rng.random())]
    x = left + int((right - left - SIZE + 1) * rng.random())
    y = int((rows - SIZE + 1) * height)
    return photograph[y : y + SIZE, x : x + SIZE, None]


def _to_array(images: Tensor) -> Array:
    """The first of images ``(B, C, H, W)`` as ``(H, W, C)``."""
    return images[0].permute(1, 2, 0).numpy()


def _to_bytes(image: Array) -> Array:
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _png(pixels: Array) -> bytes:
    """A PNG of uint8 pixels ``(H, W, 1 or 3)``, stored without compression.

    Compressed bytes differ between versions of zlib, and with them the hashes of the manifest; stored ones
    do not.
    """
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1).tobytes()
    stored = b"\x78\x01"
    for start in range(0, len(rows), 65535):
        block = rows[start : start + 65535]
        final = start + len(block) == len(rows)
        stored += struct.pack("<BHH", final, len(block), len(block) ^ 0xFFFF) + block
    stored += struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stored), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
