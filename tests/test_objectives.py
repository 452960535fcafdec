"""Objectives against closed forms, brute force and torch.autograd.functional."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from ssae.mlp import LinearAutoencoder, MLPAutoencoder
from ssae.objectives import (
    Contractive,
    Denoising,
    Idempotent,
    Masked,
    Reconstruction,
    ReconstructionContractive,
    Sparse,
    masked_reconstruction,
    squared_jacobian_norm,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def identity(x: Tensor) -> Tensor:
    return x


def zero(x: Tensor) -> Tensor:
    return 0 * x


def half_hidden(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A corruption without chance: the first half of each sample becomes -1."""
    mask = torch.zeros_like(clean)
    mask[:, : clean.shape[1] // 2] = 1
    return torch.where(mask > 0, -torch.ones_like(clean), clean), mask


@pytest.fixture
def model() -> MLPAutoencoder:
    return MLPAutoencoder(5, 3, hidden=(8,), activation="tanh", generator=generator()).double()


@pytest.fixture
def clean() -> Tensor:
    return torch.rand(7, 5, generator=generator(1), dtype=torch.float64)


# Masked reconstruction.


def by_hand(output: Tensor, clean: Tensor, mask: Tensor, weight: float) -> float:
    """The formula of the paper, one value at a time."""
    total = 0.0
    for f, x, m in zip(output, clean, mask.expand_as(clean), strict=True):
        keep = repair = keep_mass = repair_mass = 0.0
        for fi, xi, mi in zip(f.flatten().tolist(), x.flatten().tolist(), m.flatten().tolist(), strict=True):
            keep += ((1 - mi) * (fi - xi)) ** 2
            repair += (mi * (fi - xi)) ** 2
            keep_mass += 1 - mi
            repair_mass += mi
        total += (1 - weight) * (keep / keep_mass if keep_mass else 0.0)
        total += weight * (repair / repair_mass if repair_mass else 0.0)
    return total / len(clean)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    weight=st.floats(0, 1),
    channels=st.sampled_from([1, 3]),
    kind=st.sampled_from(["soft", "binary", "one empty", "all empty", "one full"]),
)
def test_masked_reconstruction_is_the_formula(seed: int, weight: float, channels: int, kind: str) -> None:
    g = generator(seed)
    output, target = torch.rand(2, 3, channels, 4, 2, generator=g, dtype=torch.float64)
    mask = torch.rand(3, 1, 4, 2, generator=g, dtype=torch.float64)
    if kind == "binary":
        mask = mask.round()
    elif kind == "one empty":
        mask[1] = 0
    elif kind == "all empty":
        mask.zero_()
    elif kind == "one full":
        mask[2] = 1
    loss = masked_reconstruction(output, target, mask, weight)
    assert loss.item() == pytest.approx(by_hand(output, target, mask, weight), rel=1e-12, abs=1e-15)


def test_the_number_of_channels_and_the_size_of_the_defect_do_not_matter_for_an_even_error() -> None:
    for channels, columns in [(1, 1), (3, 1), (3, 7)]:
        mask = torch.zeros(2, 1, 8, 8)
        mask[..., :columns] = 1
        target = torch.zeros(2, channels, 8, 8)
        output = target + torch.where(mask > 0, 0.2, 0.1)
        expected = 0.7 * 0.1**2 + 0.3 * 0.2**2
        assert masked_reconstruction(output, target, mask, 0.3).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_an_empty_or_full_mask_gives_finite_gradients(fill: float) -> None:
    output = torch.rand(2, 3, 4, 4, generator=generator()).requires_grad_()
    masked_reconstruction(output, torch.zeros(2, 3, 4, 4), torch.full((2, 1, 4, 4), fill), 0.5).backward()
    assert output.grad is not None
    torch.testing.assert_close(output.grad, output.detach() * 2 * 0.5 / (48 * 2))


def test_a_boolean_mask_is_accepted() -> None:
    output, target = torch.rand(2, 4, 6, generator=generator())
    mask = torch.rand(4, 6, generator=generator(1)) > 0.5
    boolean = masked_reconstruction(output, target, mask, 0.5)
    assert boolean.item() == masked_reconstruction(output, target, mask.float(), 0.5).item()


def test_sums_are_accumulated_in_float32_under_autocast() -> None:
    target = torch.zeros(1, 1, 256, 256)
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., :100] = 1
    with torch.autocast("cpu", torch.bfloat16):
        output = torch.full_like(target, 0.125, dtype=torch.bfloat16)
        loss = masked_reconstruction(output, target, mask, 0.5)
    assert loss.dtype == torch.float32
    # 65,536 equal bfloat16 values summed in bfloat16 stall at 256 times the value.
    assert loss.item() == pytest.approx(0.125**2, rel=1e-6)


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"weight is 1\.5"):
        masked_reconstruction(x, x, x, 1.5)
    with pytest.raises(ValueError, match=r"output has shape \(2, 1\)"):
        masked_reconstruction(x[:, :1], x, x, 0.5)
    with pytest.raises(ValueError, match="sigma is -1"):
        Denoising(-1)
    with pytest.raises(ValueError, match="weight is nan"):
        Contractive(float("nan"))
    with pytest.raises(ValueError, match=r"noise is -0\.1"):
        Masked(half_hidden, noise=-0.1)


# Objectives on maps whose value is known.


def test_values_on_the_identity_and_on_zero(clean: Tensor) -> None:
    energy = clean.square().mean().item()
    assert Reconstruction()(identity, clean, generator()).item() == 0
    assert Reconstruction()(zero, clean, generator()).item() == pytest.approx(energy)
    big = torch.zeros(200, 500, dtype=torch.float64)
    assert Denoising(0.3)(identity, big, generator()).item() == pytest.approx(0.09, rel=0.02)
    # The identity keeps the clean half and leaves the defect, x + 1, in the other.
    defect = (clean[:, :2] + 1).square().mean().item()
    assert Masked(half_hidden, 0.3)(identity, clean, generator()).item() == pytest.approx(0.3 * defect)


def test_kept_noise_costs_the_identity_nothing_and_a_denoiser_its_variance() -> None:
    def nothing(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return clean, torch.zeros_like(clean)

    clean = torch.ones(200, 500, dtype=torch.float64)
    kept = Masked(nothing, weight=0.0, noise=0.3)
    assert kept(identity, clean, generator()).item() == 0
    assert kept(torch.ones_like, clean, generator()).item() == pytest.approx(0.09, rel=0.02)


def test_objectives_repeat_with_their_generator_and_reach_every_weight(
    model: MLPAutoencoder, clean: Tensor
) -> None:
    masked = Masked(half_hidden, 0.5, noise=0.1)
    for objective in [
        Reconstruction(),
        Sparse(0.1),
        Contractive(0.1),
        Contractive(0.1, probes=2),
        ReconstructionContractive(0.1),
        ReconstructionContractive(0.1, probes=2),
        Denoising(0.1),
        masked,
        Idempotent(masked, half_hidden, 0.1),
    ]:
        model.zero_grad()
        loss = objective(model, clean, generator(3))
        assert loss.shape == ()
        assert loss.item() == objective(model, clean, generator(3)).item()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_random_objectives_depend_on_their_generator(model: MLPAutoencoder, clean: Tensor) -> None:
    for objective in [
        Denoising(0.1),
        ReconstructionContractive(1.0, probes=1),
        Masked(half_hidden, noise=0.1),
    ]:
        assert objective(model, clean, generator(1)).item() != objective(model, clean, generator(2)).item()


def test_sparse_penalises_the_mean_size_of_the_code(model: MLPAutoencoder, clean: Tensor) -> None:
    plain = Reconstruction()(model, clean, generator())
    expected = plain + 0.2 * model.encode(clean).abs().sum(1).mean() / 5
    torch.testing.assert_close(Sparse(0.2)(model, clean, generator()), expected)


def test_idempotent_penalises_the_second_step(model: MLPAutoencoder, clean: Tensor) -> None:
    corrupted, _ = half_hidden(clean, generator())
    once = model(corrupted)
    expected = Reconstruction()(model, clean, generator()) + 0.7 * (model(once) - once).square().mean()
    torch.testing.assert_close(
        Idempotent(Reconstruction(), half_hidden, 0.7)(model, clean, generator()), expected
    )
    pca = LinearAutoencoder.from_pca(clean, 2)
    added = Idempotent(Reconstruction(), half_hidden, 1.0)(pca, clean, generator())
    torch.testing.assert_close(added, Reconstruction()(pca, clean, generator()))


def test_an_objective_on_codes_says_what_it_needs(clean: Tensor) -> None:
    with pytest.raises(TypeError, match="function has no encode"):
        Contractive(0.1)(identity, clean, generator())


# Jacobian penalties.


def brute_force(function: nn.Module, clean: Tensor) -> Tensor:
    return torch.stack([jacobian(function, x).square().sum() for x in clean])


def test_contractive_norms_equal_autograd_functional(model: MLPAutoencoder, clean: Tensor) -> None:
    error = Reconstruction()(model, clean, generator())
    encoder = error + 0.3 * brute_force(model.encoder, clean).mean() / 5
    torch.testing.assert_close(Contractive(0.3)(model, clean, generator()), encoder)
    whole = error + 0.3 * brute_force(model, clean).mean() / 5
    torch.testing.assert_close(ReconstructionContractive(0.3)(model, clean, generator()), whole)


def test_gradients_of_the_penalty_equal_finite_differences(model: MLPAutoencoder, clean: Tensor) -> None:
    objective = ReconstructionContractive(1.0)
    weight = model.encoder[0].weight
    (slope,) = torch.autograd.grad(objective(model, clean, generator()), weight)
    step = 1e-5
    for row, column in [(0, 0), (3, 4), (7, 2)]:
        values = []
        for shift in (step, -2 * step):
            with torch.no_grad():
                weight[row, column] += shift
            values.append(objective(model, clean, generator()).item())
        with torch.no_grad():
            weight[row, column] += step
        assert slope[row, column].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("probes", [1, 4])
def test_random_probes_are_unbiased_with_the_stated_variance(model: MLPAutoencoder, probes: int) -> None:
    sample = torch.rand(1, 5, generator=generator(2), dtype=torch.float64)
    full = jacobian(model, sample[0])
    gram = full @ full.T
    variance = 2 * (gram.square().sum() - gram.diagonal().square().sum()) / probes
    inputs = sample.expand(4000, 5).clone().requires_grad_()
    drawn = squared_jacobian_norm(model(inputs), inputs, probes, generator(4)).detach()
    assert abs(drawn.mean() - full.square().sum()) < 4 * (variance / 4000).sqrt()
    torch.testing.assert_close(drawn.var(), variance, rtol=0.15, atol=0)


def test_probes_are_exact_for_a_map_with_orthogonal_rows() -> None:
    inputs = torch.rand(3, 2, 4, 4, generator=generator()).requires_grad_()
    norm = squared_jacobian_norm(0.5 * inputs, inputs, 1, generator(1))
    torch.testing.assert_close(norm, torch.full((3,), 0.25 * 32))


def test_probes_need_a_generator() -> None:
    inputs = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(ValueError, match="generator None"):
        squared_jacobian_norm(inputs * 2, inputs, probes=1)


def test_the_penalty_works_where_gradients_are_off(model: MLPAutoencoder, clean: Tensor) -> None:
    expected = ReconstructionContractive(0.3)(model, clean, generator()).item()
    with torch.no_grad():
        loss = ReconstructionContractive(0.3)(model, clean, generator())
    assert loss.item() == expected


@pytest.fixture
def linear_data() -> tuple[Tensor, Tensor]:
    """Correlated data in R^4 and the map ``C (C + gamma I)^-1`` for gamma = 0.09."""
    g = generator(7)
    mixing = torch.randn(3, 4, generator=g, dtype=torch.float64)
    clean = torch.randn(50, 3, generator=g, dtype=torch.float64) @ mixing
    covariance = clean.T @ clean / len(clean)
    return clean, covariance @ torch.linalg.inv(covariance + 0.09 * torch.eye(4, dtype=torch.float64))


def test_the_linear_optimum_of_rcae_is_c_over_c_plus_gamma(linear_data: tuple[Tensor, Tensor]) -> None:
    clean, expected = linear_data
    linear = nn.Linear(4, 4, bias=False).double()
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = ReconstructionContractive(0.09)(linear, clean, generator())
        value.backward()
        return value

    optimiser.step(closure)
    torch.testing.assert_close(linear.weight.detach(), expected, rtol=1e-6, atol=1e-6)


def test_the_same_map_is_stationary_for_denoising(linear_data: tuple[Tensor, Tensor]) -> None:
    clean, expected = linear_data
    linear = nn.Linear(4, 4, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(expected)
    loss = Denoising(0.3)(linear, clean.repeat(20_000, 1), generator())
    (slope,) = torch.autograd.grad(loss, linear.weight)
    # One standard error of the Monte Carlo gradient at this size is about 1e-4.
    assert slope.abs().max() < 5e-4
