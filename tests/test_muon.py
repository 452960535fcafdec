"""Muon: torch's own where that can be asked, and what its step promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssae.muon import Muon, orthogonalised


@settings(deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_singular_values_come_near_one_and_singular_vectors_stay(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, rank, dtype=torch.float64, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, rank, dtype=torch.float64, generator=generator))
    # The smallest is a hundredth of the largest; what is far smaller only grows by the slope at 0.
    values = 10 ** (-2 * torch.rand(rank, dtype=torch.float64, generator=generator))
    found = u.mT @ orthogonalised((u * values @ v.mT)[None])[0] @ v
    assert 0.6 < found.diagonal().min() <= found.diagonal().max() < 1.25
    torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-9)


def test_each_matrix_of_a_stack_is_its_own_and_a_tall_one_is_a_wide_one_turned():
    stack = torch.randn(3, 7, 20, generator=torch.Generator().manual_seed(0))
    together = orthogonalised(stack)
    for matrix, found in zip(stack, together, strict=True):
        torch.testing.assert_close(orthogonalised(matrix[None])[0], found)
        torch.testing.assert_close(orthogonalised(matrix.mT[None])[0].mT, found)
    assert torch.equal(orthogonalised(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def reference_step(weight, gradient, mean, lr, weight_decay, momentum):
    """A step as Jordan et al. and Liu et al. write it, for one matrix in double precision."""
    mean = momentum * mean + (1 - momentum) * gradient
    x = (1 - momentum) * gradient + momentum * mean
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm()
    for _ in range(5):
        product = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * product + 2.0315 * product @ product) @ wide
    x = wide if x.shape[0] <= x.shape[1] else wide.T
    return (1 - lr * weight_decay) * weight - lr * 0.2 * max(x.shape) ** 0.5 * x, mean


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 6), (9, 9)])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.2, "momentum": 0.9}])
def test_its_steps_are_those_of_the_papers(shape, options):
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
    theirs, mean = ours.detach().flatten(1), torch.zeros_like(ours.detach().flatten(1))
    optimiser = Muon([ours], lr=0.1, **options)
    for _ in range(5):
        ours.grad = torch.randn(shape, dtype=torch.float64, generator=generator)
        theirs, mean = reference_step(
            theirs, ours.grad.flatten(1), mean, 0.1, **{"weight_decay": 0.0, "momentum": 0.95, **options}
        )
        optimiser.step()
        torch.testing.assert_close(ours.detach().flatten(1), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (9, 9)])
def test_its_steps_are_those_of_torch_to_the_digits_of_bfloat16(shape):
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(shape, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    options = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    by_us = Muon([ours], **options)
    by_them = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        before = ours.detach().clone()
        by_us.step()
        by_them.step()
        step, difference = (ours - before).detach(), (ours - theirs).detach()
        assert float(difference.norm()) < 0.05 * float(step.norm())
        theirs.data.copy_(ours.data)


@pytest.mark.parametrize("condition", [1e3, 1e6, 1e12])
def test_single_precision_is_good_enough_however_skewed_the_matrix(condition):
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(90, 24, dtype=torch.float64, generator=generator))
    matrix = (u * torch.logspace(0, -math.log10(condition), 24, dtype=torch.float64) @ v.mT)[None]
    exact, single = orthogonalised(matrix), orthogonalised(matrix.float()).double()
    assert float((exact - single).abs().max()) < 1e-3
    assert float(torch.linalg.svdvals(single).max()) < 1.25


def test_a_matrix_of_rank_one_and_one_of_nothing():
    one = torch.outer(torch.arange(1.0, 6.0), torch.ones(7))[None]
    assert 0.65 < float(torch.linalg.svdvals(orthogonalised(one))[0, 0]) < 1.25
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(3, 4)
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight.detach(), torch.ones(3, 4))


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_coarse_rounding_makes_no_step_long(rank):
    # Products in bfloat16, or in TF32, leave eigenvalues of a Gram matrix below 0, which must not grow.
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(16, rank, generator=generator) @ torch.randn(rank, 108, generator=generator)
    found = torch.linalg.svdvals(orthogonalised(matrix[None].bfloat16())[0].float())
    assert float(found.max()) < 1.4
    assert float(found[0]) > 0.6


def test_groups_keep_their_own_rates_and_a_closure_is_called():
    slow, fast = (nn.Parameter(torch.zeros(3, 4)) for _ in range(2))
    optimiser = Muon([{"params": [slow], "lr": 0.01}, {"params": [fast]}], lr=0.1)

    def closure():
        assert torch.is_grad_enabled()
        optimiser.zero_grad()
        loss = ((slow - 1) ** 2 + (fast - 1) ** 2).sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 24
    torch.testing.assert_close(fast.detach(), 10 * slow.detach())


@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (16, 32, 3, 3), (12, 16, 1, 1)])
def test_a_step_is_as_long_as_one_of_adam_at_a_fifth_of_the_rate(shape):
    filters = nn.Parameter(torch.zeros(shape))
    filters.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    Muon([filters], lr=0.01).step()
    # 0.2 times the rate, but for what the singular values lack of 1.
    assert 0.6 * 0.002 < float(filters.detach().square().mean().sqrt()) < 1.2 * 0.002
    assert float((filters.detach() * filters.grad).sum()) < 0


def test_layout_in_memory_and_company_change_nothing():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 8, 6, 3, 3, generator=generator)
    gradients = torch.randn(4, 8, 6, 3, 3, generator=generator)
    alone = [nn.Parameter(weight.clone()) for weight in start]
    together = [nn.Parameter(weight.clone(memory_format=torch.channels_last)) for weight in start]
    company = Muon(together, lr=0.1)
    for own, shared, gradient in zip(alone, together, gradients, strict=True):
        own.grad, shared.grad = gradient.clone(), gradient.clone(memory_format=torch.channels_last)
        Muon([own], lr=0.1).step()
    together[3].grad = None  # has had no part in the loss
    company.step()
    for own, shared in zip(alone[:3], together[:3], strict=True):
        torch.testing.assert_close(own, shared)
    assert torch.equal(together[3], start[3])


def test_a_skewed_valley_is_crossed_along_all_its_directions():
    """Least squares whose inputs differ a thousandfold in strength: what Muon is for."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.logspace(0, -3, 20)
    inputs = torch.randn(500, 20, generator=generator) * strength
    truth = torch.randn(8, 20, generator=generator)
    error = {}
    for name, optimiser in (
        ("muon", lambda p: Muon(p, lr=0.1)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0)),
    ):
        mixing, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1)))
        weight = nn.Parameter(torch.zeros(8, 20))
        stepper = optimiser([weight])
        for step in range(200):
            stepper.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 200)) / 2
            loss = ((inputs @ mixing) @ (weight - truth).mT).square().mean()
            stepper.zero_grad()
            loss.backward()
            stepper.step()
        error[name] = float((weight - truth).detach().square().mean())
    assert error["muon"] < 0.7 * error["adamw"]


def test_vectors_are_refused_by_shape():
    with pytest.raises(ValueError, match=r"Muon takes matrices, got a parameter of shape \(5,\)"):
        Muon([nn.Parameter(torch.zeros(5))])
    optimiser = Muon([nn.Parameter(torch.zeros(5, 5))])
    with pytest.raises(ValueError, match="Muon takes matrices"):
        optimiser.add_param_group({"params": [nn.Parameter(torch.zeros(5))]})
    assert len(optimiser.param_groups) == 1


@pytest.mark.parametrize(
    "setting", [{"lr": -1.0}, {"lr": math.nan}, {"weight_decay": -0.1}, {"momentum": 1.0}, {"momentum": -0.1}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="must not be negative and momentum must lie in"):
        Muon([nn.Parameter(torch.zeros(2, 2))], **setting)
