"""The table of all objectives: what is measured on maps that are known, and what the receipts must hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssae.comparison import (
    BUDGETS,
    Budget,
    DigitTest,
    SignalTest,
    WithNoise,
    digits,
    markdown_table,
    mean_and_spread,
    nearest_sample,
    noise_rows,
    pool_draw,
    read_table,
    rows,
    signal_pool,
    train,
)
from ssae.mlp import MLPAutoencoder, Residual
from ssae.signals import WindowCorruption

TINY = Budget(steps=2, batch=4, width=8)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_exact_projection_has_its_theoretical_measures(dim: int) -> None:
    test = SignalTest(dim, count=20)
    measured = test.measure(test.manifold.project)
    zero = ("to_projection", "to_manifold", "on_manifold", "idempotence", "tangent_angle")
    assert all(measured[name] == pytest.approx(0, abs=1e-6) for name in zero)
    assert measured["jacobian"] == pytest.approx(dim)
    assert measured["jacobian_minus_identity"] == pytest.approx(64 - dim)
    assert measured["conserved"] == 1
    assert measured["pixel_auroc"] > 0.8


def test_the_identity_keeps_everything_and_finds_nothing() -> None:
    test = SignalTest(2, count=20)
    measured = test.measure(lambda x: x + 0)
    assert measured["clean_part"] == measured["idempotence"] == measured["jacobian_minus_identity"] == 0
    assert measured["pixel_auroc"] == 0.5
    assert measured["to_source"] == pytest.approx((test.corrupted - test.clean).square().mean().sqrt().item())
    assert test.measure_under_noise(lambda x: x + 0)["gain"] == pytest.approx(1)


def test_digits_are_split_in_halves_without_overlap() -> None:
    data = digits()
    assert len(data.train) + len(data.test) == 1797
    assert data.train.min() >= 0
    assert data.train.max() <= 1
    for label in range(10):
        known, new = (int((labels == label).sum()) for labels in (data.train_labels, data.test_labels))
        assert 0 <= new - known <= 1


def test_the_nearest_sample_projects_onto_the_samples() -> None:
    data = digits()
    zeros = data.train[data.train_labels == 0]
    measured = DigitTest(data, normal=0).measure(nearest_sample(zeros))
    assert measured["idempotence"] == 0
    assert measured["auroc_other_digits"] > 0.95


def test_every_row_trains_and_seeds_differ() -> None:
    pool = signal_pool(1, 50)
    everything = rows(WindowCorruption(), 2, TINY) | noise_rows(TINY)
    for name, row in everything.items():
        first, second = train(row, pool_draw(pool, 8), seeds=[0, 1], budget=TINY)
        assert isinstance(first, Residual if name.startswith("skip") else MLPAutoencoder)
        assert not torch.equal(first(pool), second(pool)), name


def test_noise_to_be_removed_is_added_outside_the_mask_too() -> None:
    clean = torch.zeros(2000, 64)
    corrupted, mask = WithNoise(WindowCorruption(), 0.3)(clean, torch.Generator().manual_seed(0))
    assert corrupted[mask == 0].std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("table", list(BUDGETS))
def test_the_committed_receipts_hold_five_seeds_of_every_row(table: str) -> None:
    receipt = read_table(table)
    expected = noise_rows(TINY) if table == "noise" else rows(WindowCorruption(), 2, TINY)
    assert len(receipt["seeds"]) >= 5
    assert set(expected) <= set(receipt["rows"])
    for name in expected:
        assert all(len(v) == len(receipt["seeds"]) for v in receipt["rows"][name]["measures"].values())
    assert receipt["code_commit"] != "unknown"
    assert not receipt["code_commit"].endswith("-dirty")
    budget = BUDGETS[table]
    assert receipt["settings"] == {
        "steps": budget.steps,
        "batch": budget.batch,
        "width": budget.width,
        "learning_rate": budget.learning_rate,
    }


def test_tables_show_mean_and_spread_and_a_missing_receipt_names_its_command(tmp_path: Path) -> None:
    receipt = {"rows": {"a": {"measures": {"m": [1.0, 3.0]}}, "b": {"measures": {"m": [0.5]}}}}
    assert mean_and_spread(receipt, "a", "m") == (2.0, pytest.approx(2**0.5))
    lines = markdown_table(receipt, {"m": ("measure", 2)}).splitlines()
    assert lines[2:] == ["| a | 2.00 ± 1.41 |", "| b | 0.50 |"]
    with pytest.raises(FileNotFoundError, match=r"python -m ssae\.comparison digits"):
        read_table("digits", tmp_path)
