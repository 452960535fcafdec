"""The corruption in JavaScript: the same random numbers give what the package gives."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import node_path

from ssae.corruption import FILLS, CorruptionSettings, PartialCorruption, procedural_textures

WEB = Path(__file__).resolve().parents[1] / "web"
SIDE = 24

NODE = node_path()
pytestmark = pytest.mark.skipif(NODE is None, reason="no node on this machine")


def draws(settings: CorruptionSettings, seed: int, textures: int) -> dict:
    """The random numbers of one corrupted image, in the order in which the package draws them."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def log_uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return uniform(math.log(low), math.log(high), *shape).exp()

    blobs = int(torch.randint(settings.blobs[0], settings.blobs[1] + 1, (1, 1), generator=generator))
    uniform(0, 1, 1, 1)  # whether the image stays clean
    side = log_uniform(*settings.side, blobs, 1)
    stretch = log_uniform(1, settings.elongation, blobs, 1).sqrt()
    extent = torch.cat([side * stretch, side / stretch], dim=1)
    centre = uniform(-1, 1, blobs, 2)
    bent = torch.randn((blobs, 2, 5, 5), generator=generator)
    turned = uniform(0, 2 * math.pi, blobs, 1)
    opacity = uniform(*settings.opacity, 1)
    torch.multinomial(torch.tensor(settings.fills), 1, replacement=True, generator=generator)
    torch.randperm(1, generator=generator)
    texture = int(torch.randint(textures, (1,), generator=generator))
    angle, scale, shift = (
        uniform(0, 2 * math.pi, 1, 1),
        log_uniform(0.7, 1.4, 1, 1),
        uniform(-1, 1, 1, 2, 1),
    )
    amount = uniform(*settings.elastic, 1, 1, 1, 1)
    coarse = torch.randn((1, 2, 5, 5), generator=generator)
    tone, any_colour = uniform(-0.4, 0.4, 1, 1), uniform(0, 1, 1, 3)
    toned, grey = uniform(0, 1, 1, 1) < 0.5, uniform(0, 1, 1) < settings.grey_share
    if settings.fills[FILLS.index("elsewhere")] and uniform(0, 1, 1) < settings.upright:
        angle, scale = torch.zeros(1), torch.ones(1)
    return {
        "blobs": [
            {
                "centre": centre[k].tolist(),
                "extent": extent[k].tolist(),
                "angle": float(turned[k]),
                "coarse": bent[k].flatten().tolist(),
            }
            for k in range(blobs)
        ],
        "opacity": float(opacity),
        "texture": texture,
        "tone": float(tone) if toned else None,
        "draws": {
            "angle": float(angle),
            "scale": float(scale),
            "shift": shift.flatten().tolist(),
            "amount": float(amount),
            "coarse": coarse.flatten().tolist(),
            "colour": any_colour.flatten().tolist(),
            "grey": bool(grey),
        },
    }


def test_javascript_corrupts_as_the_package_does(tmp_path: Path) -> None:
    textures = procedural_textures(3, SIDE, torch.Generator().manual_seed(1))
    images = procedural_textures(100, SIDE, torch.Generator().manual_seed(2))
    cases, masks, corrupted = [], [], []
    for seed, image in enumerate(images):
        kind = FILLS[seed % len(FILLS)]
        settings = replace(
            CorruptionSettings(),
            side=(0.1, 0.5),
            elongation=1 + seed / 20,
            warp=0.003 * seed,
            fade=0.05 + 0.004 * seed,
            fills=tuple(float(name == kind) for name in FILLS),
            clean_share=0,
        )
        result, mask = PartialCorruption(settings, textures)(image[None], torch.Generator().manual_seed(seed))
        corrupted.append(result[0])
        masks.append(mask[0, 0])
        case = draws(settings, seed, len(textures))
        if case["tone"] is not None:
            case["draws"]["colour"] = (image.mean((1, 2)) + case["tone"]).clamp(0, 1).tolist()
        # A batch of one image has no other: its place elsewhere is its own.
        shown = {"image": image, "other": image, "texture": textures[case["texture"]]}
        case["images"] = {name: picture.flatten().tolist() for name, picture in shown.items()}
        cases.append(case | {"kind": kind, "dials": {"warp": settings.warp, "fade": settings.fade}})
    file = tmp_path / "cases.json"
    file.write_text(json.dumps({"side": SIDE, "cases": cases}))
    command = [NODE, "parity-corruption.js", str(file)]
    outcome = subprocess.run(command, cwd=WEB, capture_output=True, text=True, check=True)
    answers = json.loads(outcome.stdout)
    assert float(torch.stack(masks).mean()) > 0.02
    for answer, mask, result, case in zip(answers, masks, corrupted, cases, strict=True):
        there = np.array(answer["mask"]).reshape(mask.shape)
        np.testing.assert_allclose(there, mask, atol=1e-4, err_msg=case["kind"])
        there = np.array(answer["corrupted"]).reshape(result.shape)
        np.testing.assert_allclose(there, result, atol=1e-4, err_msg=case["kind"])
