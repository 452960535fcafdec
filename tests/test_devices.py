"""Everything that may run on a GPU, on a pretended one: nothing is left behind on the CPU."""

from __future__ import annotations

import copy
import math
from concurrent.futures import Executor, Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, OnGPU, pretend_gpu
from torch import nn
from torch._subclasses import FakeTensorMode

from ssae import detector, experiment, inspection, metrics, training
from ssae.comparison import Budget, pool_draw, rows
from ssae.corruption import CorruptionSettings, PartialCorruption, procedural_textures
from ssae.detector import Detector
from ssae.experiment import ExperimentSettings, Run, drawn_defects, learn, load_run
from ssae.export import Inspector
from ssae.inspection import Finding, inspect
from ssae.live import BlindSpot
from ssae.mlp import MLPAutoencoder
from ssae.models import PRESETS, ModelSettings, build
from ssae.objectives import Reconstruction, masked_reconstruction
from ssae.progress import Progress
from ssae.projection import idempotence_error, residual
from ssae.scoring import Calibration, heat_map, image_scores, threshold
from ssae.signals import BlockCorruption, WindowCorruption
from ssae.training import (
    FitSettings,
    LogRow,
    TrainingDiverged,
    default_device,
    fit,
    has_fast_bfloat16,
    replay,
)
from ssae.widgets import _run

TINY = ModelSettings(
    channels=(4, 8), dilations=(1, 2), sdc_filters=4, sdc_layers=1, sdc_kernel=3, unshuffle=2, image_skip=True
)
SETTINGS = ExperimentSettings(
    "p",
    resolution=32,
    batch_size=4,
    noise=0.05,
    symmetry="all",
    shift=0.1,
    model=TINY,
    fit=FitSettings(steps=3, ema=0.9, optimiser="muon", precision="bfloat16"),
)


@pytest.fixture
def gpu():
    with pretend_gpu() as device:
        yield device


@pytest.fixture
def run(gpu):
    return Run(SETTINGS.build_model().to(gpu).eval(), SETTINGS, "", gpu)


def pictures(count=6):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def all_on_gpu(tensors):
    return all(isinstance(tensor, OnGPU) and tensor.device == GPU for tensor in tensors)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda there, here: there + here,
        lambda there, here: torch.where(there > 0, there, here),
        lambda there, here: torch.cat([there, here]),
        lambda there, here: here[there.long()],
        lambda there, here: nn.Linear(4, 4)(there),
        lambda there, here: there.numpy(),
        lambda there, here: np.asarray(there),
        lambda there, here: torch.rand(4, generator=torch.Generator("cuda")),
        lambda there, here: torch.rand(4, generator=torch.Generator(), device=there.device),
        lambda there, here: torch.multinomial(there, 2, generator=torch.Generator()),
    ],
)
def test_the_pretended_gpu_refuses_what_a_gpu_refuses(gpu, mistake):
    here = torch.rand(4)
    there = here.to(gpu)
    assert there.is_cuda
    assert not here.is_cuda
    with pytest.raises((RuntimeError, TypeError), match=r"device|numpy"):
        mistake(there, here)


def test_it_lets_pass_what_a_gpu_lets_pass(gpu):
    here = torch.arange(4.0)
    there = here.to(gpu)
    assert torch.equal(there.cpu() * 2, (there * torch.tensor(2.0)).cpu())
    assert there[torch.tensor([2, 0])].tolist() == [2, 0]
    assert type(there.to("cpu")) is torch.Tensor
    assert there.to(torch.zeros(0)).device.type == "cpu"
    assert all_on_gpu([there.double(), here.to(there), torch.zeros(2, device=gpu), there.new_zeros(3)])


@pytest.mark.parametrize(
    "changes", [{}, {"crop": 24}, {"objective": "reconstruction"}, {"objective": "denoising", "noise": 0.1}]
)
def test_a_gpu_trains_as_the_cpu_does(gpu, monkeypatch, changes):
    # A clock that hardly moves: one row in the log, however slow the machine is.
    ticks = iter(range(1, 10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: 1e-6 * next(ticks))
    settings = replace(SETTINGS, **changes)
    logs = {}
    for device in (torch.device("cpu"), gpu):
        model, logs[device.type] = learn(settings, pictures(), device, progress=False)
    assert all_on_gpu(model.state_dict().values())
    assert logs["cuda"] == logs["cpu"]


class Stop(Exception):
    pass


def test_a_run_is_resumed_on_the_gpu_and_elsewhere(gpu, tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: 2.0 * next(ticks))
    settings = replace(SETTINGS, fit=replace(SETTINGS.fit, checkpoint_seconds=0))
    whole, _ = learn(settings, pictures(), gpu, progress=False)

    def stopping(model, row):
        if row.step == 2:
            raise Stop

    for device in (gpu, torch.device("cpu")):
        folder = tmp_path / device.type
        with pytest.raises(Stop):
            learn(settings, pictures(), gpu, folder, False, stopping)
        model, _ = learn(settings, pictures(), device, folder, progress=False)
        for name, value in model.state_dict().items():
            assert value.device.type == device.type
            assert torch.equal(value.cpu(), whole.state_dict()[name].cpu())


def test_a_diverged_step_is_repeated_on_the_gpu(gpu, tmp_path):
    def objective(model, clean, generator):
        loss = Reconstruction()(model, clean, generator)
        return loss * math.nan if generator.initial_seed() == training.step_seed(0, 1) else loss

    def draw(generator):
        return torch.rand(4, 3, 32, 32, generator=generator, device=generator.device)

    def model():
        return SETTINGS.build_model().to(gpu)

    with pytest.raises(TrainingDiverged):
        fit(model(), draw, objective, SETTINGS.fit, tmp_path, progress=False)
    repeated = model()
    rows = replay(tmp_path / "diverged.safetensors", repeated, draw, objective)
    # On a slow machine the first step has a row in the log of its own, and need not be repeated.
    assert [math.isfinite(loss) for _, loss, _ in rows] in ([True, False], [False])
    assert all_on_gpu(repeated.state_dict().values())


def test_a_run_on_the_gpu_gives_its_results_on_the_cpu(run):
    heat = run.heat_maps(pictures())
    assert type(heat) is torch.Tensor
    on_cpu = replace(run, model=copy.deepcopy(run.model).cpu(), device=torch.device("cpu"))
    assert not any(isinstance(value, OnGPU) for value in on_cpu.model.state_dict().values())
    assert torch.equal(on_cpu.heat_maps(pictures()), heat)
    assert all_on_gpu(run.model.state_dict().values())


def test_progress_measures_a_model_on_the_gpu(run, tmp_path):
    normal = pictures(2)
    report = Progress(normal, *drawn_defects(normal, 0), SETTINGS.scoring, SETTINGS.fit, tmp_path)
    assert set(report.measure(run.model, LogRow(1, 1.0, 1.0, 1.0))) == {"image_auroc", "pixel_auroc"}


def test_a_detector_lives_on_the_gpu(gpu, tmp_path, monkeypatch):
    for module in (detector, experiment):
        monkeypatch.setattr(module, "default_device", lambda: gpu)
    photographs = [(255 * image.permute(1, 2, 0)).byte().numpy() for image in pictures()]
    fitted = Detector(steps=2, resolution=32, texture=True).fit(photographs)
    assert all_on_gpu(fitted.run_.model.state_dict().values())
    fitted.save(tmp_path / "run")
    again = Detector.load(tmp_path / "run")
    assert all_on_gpu(again.run_.model.state_dict().values())
    np.testing.assert_array_equal(again.predict(photographs), fitted.predict(photographs))
    np.testing.assert_array_equal(again.heat_maps(photographs), fitted.heat_maps(photographs))
    assert load_run(tmp_path / "run", torch.device("cpu")).device.type == "cpu"


class OneAfterTheOther(Executor):
    """In the thread that asks: the pretence belongs to a thread, and a real GPU to all of them."""

    def __init__(self, *_):
        pass

    def submit(self, function, /, *args):
        done = Future()
        done.set_result(function(*args))
        return done


def test_photographs_are_inspected_on_the_gpu(run, small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "ThreadPoolExecutor", OneAfterTheOther)
    folder = small_data / "part" / "test"
    run = replace(run, calibration=Calibration((0.1, 0.2), (0.1, 0.2)))
    found = list(inspect(run, [folder], tmp_path / "out", workers=1))
    assert len(found) == 2
    assert all(isinstance(finding, Finding) for finding in found)


def test_maps_on_the_gpu_are_scored_and_measured_there(gpu):
    generator = torch.Generator().manual_seed(0)
    images, repaired = torch.rand(2, 4, 3, 16, 16, generator=generator)
    masks = torch.rand(4, 16, 16, generator=generator) > 0.8
    scoring = SETTINGS.scoring
    results = []
    for device in (torch.device("cpu"), gpu):
        heat = heat_map(images.to(device), repaired.to(device), scoring)
        assert heat.device.type == device.type
        scores = image_scores(heat, scoring)
        stream = metrics.PixelMetrics(run_length=100)
        for part, mask in zip(heat, masks, strict=True):
            stream.update(part, mask.numpy())
        results.append(
            [
                Calibration.of(heat, scoring),
                threshold(heat),
                stream.compute(),
                metrics.au_pro(heat, masks.to(device)),
                metrics.pixel_f1_max(heat, masks.numpy()[:, ::-1]),
                metrics.image_auroc(scores, torch.arange(4) > 1),
            ]
        )
    assert results[0] == results[1]


@pytest.mark.parametrize("corruption", [WindowCorruption(), BlockCorruption()])
def test_vectors_are_corrupted_on_the_gpu(gpu, corruption):
    clean = torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    here = corruption(clean, torch.Generator().manual_seed(1))
    there = corruption(clean.to(gpu), torch.Generator(gpu).manual_seed(1))
    assert all_on_gpu(there)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))


def test_a_fill_is_drawn_on_the_gpu(gpu):
    generator = torch.Generator(gpu).manual_seed(1)
    textures = procedural_textures(4, 32, generator)
    fill = PartialCorruption(CorruptionSettings(), textures).fill(pictures().to(gpu), generator)
    assert all_on_gpu([textures, fill])


@pytest.mark.parametrize("name", list(rows(WindowCorruption(), 4, Budget())))
def test_every_objective_of_vectors_trains_on_the_gpu(gpu, name):
    row = rows(WindowCorruption(), 4, Budget())[name]
    model = MLPAutoencoder(64, row.code, (8,), generator=torch.Generator().manual_seed(0)).to(gpu)
    draw = pool_draw(torch.rand(32, 64).to(gpu), 4)
    log = fit(model, draw, row.objective, FitSettings(steps=1), progress=False)
    assert math.isfinite(log[-1].loss)
    assert all_on_gpu(model.state_dict().values())


def test_projections_are_measured_on_the_gpu(gpu):
    model = MLPAutoencoder(4, 2, (8,)).to(gpu)
    points = torch.rand(3, 4).to(gpu)
    # The functions of torch.func, in `jacobian`, lose the label of the pretended GPU.
    assert all_on_gpu([residual(model, points), idempotence_error(model, points)])


def test_figures_take_models_from_the_gpu(run):
    images = pictures(2)
    assert type(_run(run.model, images)) is torch.Tensor
    figure = BlindSpot(
        {"plain": ("Plain", run.model)}, {"plain": (0, 31)}, images, images, 1 - images, 0.1, 2
    )
    assert set(figure.errors(4)) == {"plain"}
    assert all_on_gpu(run.model.state_dict().values())


def test_the_exported_graph_also_runs_on_the_gpu(run, gpu):
    photographs = torch.randint(256, (1, 40, 36, 3), dtype=torch.uint8).to(gpu)
    assert all_on_gpu(Inspector(run.model, SETTINGS.scoring, 32, 0.5)(photographs))


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 9), True)])
def test_bfloat16_is_fast_from_ampere_on(capability, fast):
    # A T4 has none in hardware, an A100 and an L4 have.
    with pretend_gpu(capability) as device:
        assert has_fast_bfloat16(device) is fast


def test_the_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device().type == "cuda"


def test_the_weights_of_a_new_model_wake_no_gpu(monkeypatch):
    def touched(*arguments):
        raise AssertionError("a GPU was touched")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", touched)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched)
    before = torch.random.get_rng_state()
    weights = [SETTINGS.build_model().to_image.weight for _ in range(2)]
    assert torch.equal(*weights)
    assert torch.equal(before, torch.random.get_rng_state())


# Autocast chooses types by other rules on CUDA than on a CPU, and torch knows them without a GPU.


@pytest.fixture
def autocast_of_cuda():
    # torch.autocast("cuda") would switch itself off where there is no GPU.
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.clear_autocast_cache()


@pytest.mark.parametrize(
    "settings",
    [
        *PRESETS.values(),
        replace(PRESETS["lite"], image_guide=True),
        replace(PRESETS["lite"], skip="none"),
        replace(PRESETS["lite"], skip="concat"),
    ],
)
def test_types_fit_under_the_autocast_of_cuda(settings, autocast_of_cuda):
    with FakeTensorMode(), torch.device("cuda"):
        model = build(settings)
        images, mask = torch.empty(2, 3, 64, 64), torch.empty(2, 1, 64, 64)
        output = model(images)
        assert output.device.type == "cuda"
        assert model.to_image(torch.empty(1, settings.channels[0], 4, 4)).dtype == torch.bfloat16
        assert masked_reconstruction(output, images, mask, 0.2).dtype == torch.float32
