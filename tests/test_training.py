"""The training loop: repeatable, resumable, and honest about what went wrong."""

import io
import math
import os
import signal
import types
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ssae import training
from ssae.files import write_atomically
from ssae.models import PRESETS, build
from ssae.objectives import Denoising, Reconstruction
from ssae.training import (
    CheckpointError,
    FitSettings,
    Interrupted,
    TrainingDiverged,
    fit,
    learning_rate,
    read_log,
    replay,
    step_seed,
)


def model(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 6))


def draw(generator):
    return torch.randn(16, 6, generator=generator)


def convolutions():
    """A model whose weights lie channels last in memory, while a checkpoint holds them contiguous."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1))


def draw_images(generator):
    return torch.rand(4, 3, 8, 8, generator=generator)


def weights(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_only_convolutions_are_computed_in_half_precision_by_themselves(monkeypatch, precision):
    # A machine with fast bfloat16 must not lend its three digits to the perceptrons of the toy manifolds.
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda device: True)
    seen = {}
    for name, net, batches in (("vectors", model(), draw), ("images", convolutions(), draw_images)):
        last = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
        last.register_forward_hook(lambda *args, name=name: seen.update({name: args[-1].dtype}))
        log = fit(net, batches, Reconstruction(), FitSettings(steps=2, precision=precision), progress=False)
        assert math.isfinite(log[-1].loss)
    half = {"vectors": precision == "bfloat16", "images": precision != "float32"}
    assert seen == {k: torch.bfloat16 if v else torch.float32 for k, v in half.items()}


class StopAt(Exception):
    pass


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX systems only")
def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path):
    refused = []

    def intruding(generator):
        if not refused:
            with pytest.raises(CheckpointError, match="another process is training in") as error:
                fit(model(), draw, Reconstruction(), FitSettings(steps=2), tmp_path, progress=False)
            refused.append(str(tmp_path) in str(error.value))
        return draw(generator)

    settings = FitSettings(steps=2)
    log = fit(model(), intruding, Reconstruction(), settings, tmp_path, progress=False)
    assert refused == [True]
    assert log[-1].step == 2
    again = fit(model(), draw, Reconstruction(), settings, tmp_path, progress=False)
    assert again[-1].step == 2


def crash_at(step, draw=draw):
    """A draw that fails at its ``step``-th call, as a power cut would."""
    calls = 0

    def drawing(generator):
        nonlocal calls
        calls += 1
        if calls > step:
            raise StopAt
        return draw(generator)

    return drawing


def test_training_lowers_the_loss_and_leaves_the_model_in_evaluation_mode():
    net = model()
    log = fit(net, draw, Reconstruction(), FitSettings(steps=300, learning_rate=1e-2), progress=False)
    net.eval()
    data = torch.randn(500, 6, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        after = float((net(data) - data).square().mean())
        before = float((model().eval()(data) - data).square().mean())
    assert after < 0.3 * before
    assert not net.training
    assert log[-1].step == 300


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_one_seed_gives_bit_identical_weights_and_another_seed_others(ema):
    nets = [model() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        fit(net, draw, Denoising(0.1), FitSettings(steps=20, seed=seed, ema=ema), progress=False)
    assert same(weights(nets[0]), weights(nets[1]))
    assert not same(weights(nets[0]), weights(nets[2]))


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize(("model", "draw"), [(model, draw), (convolutions, draw_images)])
def test_a_run_that_died_goes_on_to_the_same_weights(tmp_path, ema, optimiser, model, draw):
    settings = FitSettings(steps=30, ema=ema, optimiser=optimiser, checkpoint_seconds=0)
    whole = model()
    fit(whole, draw, Denoising(0.1), settings, progress=False)

    # Log rows, and with them checkpoints, come once a second; here every step shall have one.
    clock = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.time, "monotonic", lambda: float(2 * next(clock)))
        with pytest.raises(StopAt):
            fit(model(), crash_at(17, draw), Denoising(0.1), settings, tmp_path, progress=False)
        assert len(list((tmp_path / "checkpoints").iterdir())) == 2
        resumed = model()
        log = fit(resumed, draw, Denoising(0.1), settings, tmp_path, progress=False)
    assert same(weights(whole), weights(resumed))
    assert [row.step for row in log] == sorted({row.step for row in log})
    assert read_log(tmp_path / "log.csv")[-1].step == 30


def checkpointed(tmp_path, **changes):
    settings = FitSettings(steps=30, checkpoint_seconds=0, **changes)
    clock = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.time, "monotonic", lambda: float(2 * next(clock)))
        with pytest.raises(StopAt):
            fit(model(), crash_at(10), Denoising(0.1), settings, tmp_path, progress=False)
    return settings, sorted((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "text"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys, damage):
    settings, paths = checkpointed(tmp_path)
    content = bytearray(paths[-1].read_bytes())
    content[-3] ^= 0x40
    paths[-1].write_bytes(
        {"flip": bytes(content), "truncate": bytes(content[:-40]), "empty": b"", "text": b"hello"}[damage]
    )
    whole, resumed = model(), model()
    fit(whole, draw, Denoising(0.1), settings, progress=False)
    fit(resumed, draw, Denoising(0.1), settings, tmp_path, progress=False)
    assert same(weights(whole), weights(resumed))
    assert f"{paths[-1].name}" in (said := capsys.readouterr().err)
    assert "going back to the checkpoint before it" in said


def test_when_no_checkpoint_is_good_training_says_so_and_starts_anew(tmp_path, capsys):
    settings, paths = checkpointed(tmp_path)
    for path in paths:
        path.write_bytes(b"hello")
    whole, resumed = model(), model()
    fit(whole, draw, Denoising(0.1), settings, progress=False)
    fit(resumed, draw, Denoising(0.1), settings, tmp_path, progress=False)
    assert same(weights(whole), weights(resumed))
    assert "starting from the first step" in capsys.readouterr().err


def test_each_parameter_has_one_optimiser_and_filters_have_muon():
    net = convolutions()
    state = training.TrainingState(net, FitSettings(steps=1, optimiser="muon"))
    kinds = [type(owner).__name__ for owner in state.owners.values()]
    assert kinds == ["Muon" if p.ndim == 4 else "AdamW" for p in net.parameters()]
    assert set(kinds) == {"Muon", "AdamW"}
    # A perceptron has no filters, a stack of filters nothing else: no optimiser may be left empty.
    for net in (model(), nn.Conv2d(3, 3, 3, bias=False)):
        state = training.TrainingState(net, FitSettings(steps=1, optimiser="muon"))
        assert len(state.optimisers) == 1


def test_both_optimisers_follow_one_schedule():
    net = convolutions()
    before = weights(net)
    state = training.TrainingState(net, FitSettings(steps=1, optimiser="muon"))
    training.train_step(state, net, draw_images, Reconstruction(), 0.0)
    assert same(before, weights(net))
    training.train_step(state, net, draw_images, Reconstruction(), 1e-2)
    assert not any(torch.equal(before[k], v) for k, v in weights(net).items())


MUON_CHECKPOINTS = {
    "of AdamW": (
        lambda t: t.update({"optimiser.0.exp_avg": t.pop("optimiser.0.momentum_buffer")}),
        r"optimiser\.0\.exp_avg' is unknown here",
    ),
    "moment too many": (
        lambda t: t.update({"optimiser.0.exp_avg": t["optimiser.0.momentum_buffer"].clone()}),
        r"optimiser\.0\.exp_avg' is unknown here",
    ),
    "other shape": (
        lambda t: t.update({"optimiser.0.momentum_buffer": t["optimiser.0.momentum_buffer"][:2]}),
        r"optimiser\.0\.momentum_buffer is float32 \(2, 3, 3, 3\)",
    ),
    "other type": (
        lambda t: t.update({"optimiser.0.momentum_buffer": t["optimiser.0.momentum_buffer"].half()}),
        r"optimiser\.0\.momentum_buffer is float16",
    ),
    "moment of a bias": (
        lambda t: t.update({"optimiser.1.momentum_buffer": t["optimiser.1.exp_avg"].clone()}),
        r"optimiser\.1\.momentum_buffer' is unknown here",
    ),
}


@pytest.mark.parametrize("name", MUON_CHECKPOINTS)
def test_a_checkpoint_of_other_moments_is_refused(tmp_path, name):
    change, message = MUON_CHECKPOINTS[name]
    settings = FitSettings(steps=3, optimiser="muon")
    state = training.TrainingState(convolutions(), settings)
    training.train_step(state, state.model, draw_images, Reconstruction(), 1e-2)
    snapshot = state.copy()
    change(snapshot.tensors)
    training.write_checkpoint(tmp_path / "x", snapshot, settings)
    tensors, header = training.read_checkpoint(tmp_path / "x")
    with pytest.raises(CheckpointError, match=message):
        training.TrainingState(convolutions(), settings).load(tmp_path / "x", tensors, header)


def test_a_checkpoint_of_muon_is_none_of_adamw(tmp_path):
    state = training.TrainingState(convolutions(), FitSettings(steps=3, optimiser="muon"))
    training.train_step(state, state.model, draw_images, Reconstruction(), 1e-2)
    training.write_checkpoint(tmp_path / "x", state.copy(), state.settings)
    tensors, header = training.read_checkpoint(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"optimiser\.0\.momentum_buffer' is unknown here"):
        training.TrainingState(convolutions(), FitSettings(steps=3)).load(tmp_path / "x", tensors, header)


def test_an_unknown_optimiser_or_momentum_is_refused():
    with pytest.raises(ValueError, match="optimiser must be adamw or muon, got 'sgd'"):
        FitSettings(steps=1, optimiser="sgd")
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1"):
        FitSettings(steps=1, momentum=1)


def test_other_settings_or_another_model_do_not_resume(tmp_path):
    settings, _ = checkpointed(tmp_path)
    with pytest.raises(CheckpointError, match="other settings"):
        fit(model(), draw, Denoising(0.1), FitSettings(steps=31), tmp_path, progress=False)
    with pytest.raises(CheckpointError, match=r"model.0.bias is float32 \(8,\), and .* \(9,\) here"):
        fit(model(9), draw, Denoising(0.1), settings, tmp_path, progress=False)


def test_checkpoints_hold_tensors_only(tmp_path):
    _, paths = checkpointed(tmp_path, ema=0.5)
    with safe_open(paths[-1], framework="pt") as file:
        names = list(file.keys())
        assert set(file.metadata()) == {"state", "sha256"}
    assert {name.split(".")[0] for name in names} == {"model", "average", "optimiser"}


def poisoned(net, clean, generator):
    """A fifth of all steps, decided by the step's seed alone, have no finite loss."""
    loss = Reconstruction()(net, clean, generator)
    return loss * math.nan if torch.rand((), generator=generator) < 0.2 else loss


def steep(net, clean, generator):
    """The loss stays finite where its gradient does not."""
    loss = Reconstruction()(net, clean, generator)
    if torch.rand((), generator=generator) < 0.2:
        zero = net[0].bias.sum() * 0
        loss = loss + zero.sqrt()
    return loss


def first_poisoned(seed):
    for step in range(200):
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        draw(generator)
        if torch.rand((), generator=generator) < 0.2:
            return step
    raise AssertionError


def test_a_loss_that_is_not_finite_stops_training_and_names_the_step():
    bad = first_poisoned(4)
    with pytest.raises(
        TrainingDiverged, match=rf"at step {bad} \(step seed {step_seed(4, bad)}, run seed 4\)"
    ):
        fit(model(), draw, poisoned, FitSettings(steps=200, seed=4), progress=False)


@pytest.mark.parametrize("objective", [poisoned, steep])
@pytest.mark.parametrize("length", [{"steps": 200}, {"minutes": 1.0}])
@pytest.mark.parametrize("rows_every", [0.3, 2])
def test_the_state_before_a_diverged_step_is_kept_and_repeats_it(
    tmp_path, monkeypatch, objective, length, rows_every
):
    settings = FitSettings(**length, seed=25, ema=0.9)
    bad = first_poisoned(25)
    assert bad > 4
    # The clock of this test ticks by itself: log rows come every fourth step, or with every one.
    ticks = iter(range(10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: rows_every * next(ticks))
    with pytest.raises(TrainingDiverged, match=rf"step {bad} .*diverged.safetensors"):
        fit(model(), draw, objective, settings, tmp_path, progress=False)
    repeated = model()
    rows = replay(tmp_path / "diverged.safetensors", repeated, draw, objective)
    assert rows[-1][0] == bad
    assert not (math.isfinite(rows[-1][1]) and math.isfinite(rows[-1][2]))
    assert all(math.isfinite(loss) and math.isfinite(norm) for _, loss, norm in rows[:-1])
    if "steps" in length:
        whole = model()
        with pytest.raises(StopAt):
            fit(whole, crash_at(bad), objective, settings, progress=False)
        assert same(weights(whole), weights(repeated))
    again = replay(tmp_path / "diverged.safetensors", model(), draw, objective)
    assert repr(again) == repr(rows)


def test_a_diverged_step_of_convolutions_is_repeated_to_the_bit(tmp_path, monkeypatch):
    # A clock that hardly moves: no row in the log, so all steps are repeated.
    ticks = iter(range(1, 10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: 1e-6 * next(ticks))
    losses: dict[int, list[float]] = {}

    def objective(net, clean, generator):
        loss = Denoising(0.1)(net, clean, generator)
        losses.setdefault(generator.initial_seed(), []).append(float(loss.detach()))
        return loss * math.nan if generator.initial_seed() == step_seed(0, 4) else loss

    def model():
        torch.manual_seed(0)
        return build(replace(PRESETS["lite"], sdc_layers=1))

    def draw(generator):
        return torch.rand(2, 3, 32, 32, generator=generator)

    with pytest.raises(TrainingDiverged):
        fit(model(), draw, objective, FitSettings(steps=5), tmp_path, progress=False)
    replay(tmp_path / "diverged.safetensors", model(), draw, objective)
    assert len(losses) == 5
    assert all(first == again for first, again in losses.values())


def test_replay_refuses_what_is_no_diverged_step(tmp_path):
    _, paths = checkpointed(tmp_path)
    with pytest.raises(CheckpointError, match="does not hold a diverged step"):
        replay(paths[-1], model(), draw, Reconstruction())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_two_steps_with_a_checkpoint(tmp_path, number):
    settings = FitSettings(minutes=5)
    drawn = []

    def draw_and_be_stopped(generator):
        drawn.append(generator)
        if len(drawn) == 3:
            os.kill(os.getpid(), number)
        return draw(generator)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="same command goes on"):
        fit(model(), draw_and_be_stopped, Reconstruction(), settings, tmp_path, progress=False)
    assert len(drawn) == 3
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert signal.getsignal(number) is before


def test_training_by_the_clock_ends_by_the_clock():
    log = fit(model(), draw, Reconstruction(), FitSettings(minutes=0.02), progress=False)
    # A machine that pauses near the end is given time.
    assert 1.2 <= log[-1].seconds < 10
    assert log[-1].learning_rate < 0.5 * FitSettings(minutes=1).learning_rate


def test_smoke_is_quick_when_it_is_asked_for_and_only_then(monkeypatch):
    monkeypatch.delenv("SSAE_SMOKE", raising=False)
    assert training.smoke("full", "quick") == "full"
    for value, expected in (("1", "quick"), ("0", "full"), ("", "full")):
        monkeypatch.setenv("SSAE_SMOKE", value)
        assert training.smoke("full", "quick") == expected


def test_schedule_rises_then_falls_to_its_final_share():
    settings = FitSettings(steps=1, learning_rate=2.0, warmup=0.1, final_share=0.01)
    rates = [learning_rate(p / 1000, settings) for p in range(1001)]
    peak = rates.index(max(rates))
    assert peak == 100
    assert rates[peak] == pytest.approx(2.0)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.02)


def test_step_seeds_differ():
    seeds = {step_seed(seed, step) for seed in range(50) for step in range(200)}
    assert len(seeds) == 10_000
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"steps": 1, "minutes": 1},
        {"steps": 0},
        {"minutes": -1},
        {"steps": 1, "ema": 1},
        {"steps": 1, "precision": "half"},
        {"steps": 1, "clip": 0},
        {"steps": 1, "learning_rate": -0.1},
        {"steps": 1, "learning_rate": math.nan},
        {"steps": 1, "weight_decay": -0.1},
        {"steps": 1, "warmup": 1},
        {"steps": 1, "final_share": 1.5},
        {"steps": 1, "optimiser": "sgd"},
        {"steps": 1, "seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match=["steps", *values][-1]):
        FitSettings(**values)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_report_sees_the_weights_that_the_run_would_end_with(monkeypatch, ema):
    # Two seconds between any two looks at the clock: a row of the log, and a report, for every step.
    ticks = iter(range(0, 10**6, 2))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(ticks))
    settings = FitSettings(steps=8, learning_rate=0.05, ema=ema)
    seen = {}

    def look(net, row):
        seen[row.step] = weights(net)

    watched, alone = model(), model()
    fit(watched, draw, Reconstruction(), settings, progress=False, report=look)
    fit(alone, draw, Reconstruction(), settings, progress=False)
    assert sorted(seen) == list(range(1, 9))
    # What the last report saw is what was delivered, and looking changed nothing.
    assert same(seen[8], weights(watched))
    assert same(weights(alone), weights(watched))
    assert not same(seen[4], seen[8])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        write_atomically(path, b"new")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "half a file takes the space that is missing"


@pytest.mark.parametrize(
    "content", ["step,seconds\n1,2\n", "\x00\x00", "step,seconds,loss,learning_rate\n1,2,x,3\n"]
)
def test_a_damaged_log_is_named(tmp_path, content):
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(CheckpointError, match=r"log\.csv is damaged .*remove it"):
        read_log(tmp_path / "log.csv")


@pytest.mark.parametrize(
    ("kernel", "pages", "shown"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_the_progress_bar_shows_in_a_notebook_and_not_in_the_pages(monkeypatch, kernel, pages, shown):
    """Here, as in a notebook, the standard error is no terminal."""
    monkeypatch.delenv("SSAE_BOOK_PAGES", raising=False)
    monkeypatch.setattr(training.sys, "stderr", io.StringIO())
    monkeypatch.setitem(training.sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    shell = types.SimpleNamespace(kernel=object()) if kernel else None
    monkeypatch.setitem(training.sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    if pages:
        monkeypatch.setenv("SSAE_BOOK_PAGES", "1")
    settings = FitSettings(steps=3)
    state = training.TrainingState(nn.Conv2d(1, 1, 1), settings)
    with training._progress_bar(settings, state, True) as bar:
        assert bool(bar.disable) != shown
    with training._progress_bar(settings, state, False) as bar:
        assert bar.disable
