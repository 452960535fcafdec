"""Half precision: what a model with convolutions is trained in wherever the device has it in hardware."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ssae import textures
from ssae.comparison import Budget, rows
from ssae.corruption import CorruptionSettings, PartialCorruption, procedural_textures
from ssae.experiment import ExperimentSettings, learn, make_corruption
from ssae.mlp import MLPAutoencoder
from ssae.models import PRESETS, build
from ssae.objectives import Denoising, Idempotent, Masked, Objective, Reconstruction, masked_reconstruction
from ssae.signals import WindowCorruption
from ssae.training import FitSettings, TrainingState, train_step

CORRUPTION = PartialCorruption(
    CorruptionSettings(), procedural_textures(4, 32, torch.Generator().manual_seed(1))
)
OBJECTIVES: dict[str, Objective] = {
    "masked": Masked(CORRUPTION, 0.2, noise=0.05),
    "reconstruction": Reconstruction(),
    "denoising": Denoising(0.1),
    "idempotent": Idempotent(Masked(CORRUPTION, 0.2), CORRUPTION, 0.1),
}
MODELS = {
    **PRESETS,
    "guided": replace(PRESETS["lite"], image_guide=True),
    "SDC-AE": replace(PRESETS["lite"], skip="none"),
    "U-Net": replace(PRESETS["lite"], skip="concat"),
}


def one_step(model, clean, objective, precision):
    state = TrainingState(model.train(), FitSettings(steps=10, precision=precision))
    step = train_step(state, model, lambda generator: clean, objective, 1e-3)
    assert all(bool(p.isfinite().all()) and p.dtype == torch.float32 for p in model.parameters())
    return float(step.loss), float(step.gradient_norm)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("name", list(MODELS))
def test_a_step_of_every_model_and_objective_agrees_with_float32(name, objective):
    steps = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        steps.append(one_step(build(MODELS[name]), images(2, 3, 32, 32), OBJECTIVES[objective], precision))
    assert all(map(math.isfinite, steps[1]))
    # bfloat16 rounds by up to 0.4 %, and the errors of many values in a loss mostly cancel. Gradients differ
    # more, by a tenth with a penalty of the second pass, so of them only that they are finite is asked.
    assert steps[1][0] == pytest.approx(steps[0][0], rel=0.01)


@pytest.mark.parametrize("name", list(rows(WindowCorruption(), 4, Budget())))
def test_a_step_of_every_objective_of_vectors_agrees_with_float32(name):
    row = rows(WindowCorruption(), 4, Budget())[name]
    steps = []
    for precision in ("float32", "bfloat16"):
        model = MLPAutoencoder(64, row.code, (32,), generator=torch.Generator().manual_seed(0))
        steps.append(one_step(model, images(16, 64), row.objective, precision))
    assert all(map(math.isfinite, steps[1]))
    assert steps[1][0] == pytest.approx(steps[0][0], rel=0.01)


@pytest.mark.parametrize(
    ("corruption", "shape"), [(CORRUPTION, (4, 3, 32, 32)), (WindowCorruption(fills=("smooth",)), (4, 64))]
)
@pytest.mark.parametrize("objective", [Masked, lambda c: Idempotent(Reconstruction(), c, 1.0)])
def test_autocast_leaves_the_corruption_alone(objective, corruption, shape):
    # In it a blob would lie elsewhere by a part of a pixel, and with it every pixel of its border differ.
    clean, seen = images(*shape), []

    def model(batch):
        seen.append(batch)
        return batch

    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            objective(corruption)(model, clean, torch.Generator().manual_seed(4))
    assert len(seen) >= 2
    assert torch.equal(seen[0], seen[len(seen) // 2])


@pytest.mark.slow
def test_training_in_bfloat16_repairs_as_well_as_in_float32():
    photographs = textures.weave(
        textures.sample_weave_latents(40, torch.Generator().manual_seed(0)), size=64
    ).float()
    normal, held_out = photographs[:32], photographs[32:]
    settings = ExperimentSettings("weave", resolution=64, batch_size=4)
    device = torch.device("cpu")
    defective, mask = make_corruption(settings, device)(held_out, torch.Generator().manual_seed(9))
    losses = {}
    for precision in ("float32", "bfloat16"):
        training = FitSettings(steps=150, learning_rate=1e-2, ema=0.9, precision=precision)
        model, _ = learn(replace(settings, fit=training), normal, device, progress=False)
        with torch.no_grad():
            losses[precision] = float(masked_reconstruction(model(defective), held_out, mask, 0.2))
    # With two seeds the precisions lay 1 and 2.5 % apart, and the seeds 15 %.
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
