"""Vector autoencoders: shapes, seeds, PCA against scikit-learn, the ensemble against its members."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor, nn

from ssae.mlp import Ensemble, LinearAutoencoder, MLPAutoencoder, Residual
from ssae.objectives import Contractive, Reconstruction, ReconstructionContractive


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def autoencoder(seed: int, **changes: object) -> MLPAutoencoder:
    options: dict = {"size": 6, "code": 3, "hidden": (8,), "generator": generator(seed)} | changes
    return MLPAutoencoder(**options)


@pytest.mark.parametrize("hidden", [(), (7,), (9, 5)])
def test_shapes_and_mirrored_widths(hidden: tuple[int, ...]) -> None:
    model = autoencoder(0, hidden=hidden)
    x = torch.rand(4, 6)
    assert model.encode(x).shape == (4, 3)
    torch.testing.assert_close(model(x), model.decode(model.encode(x)))
    assert model(x).shape == (4, 6)
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [6, *hidden, 3, *hidden[::-1]]


def test_the_weights_come_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = autoencoder(3)
    torch.manual_seed(2)
    second = autoencoder(3)
    other = autoencoder(4)
    for p, q, r in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, r)


def test_initial_weights_have_the_range_and_variance_of_torch() -> None:
    layer = autoencoder(0, size=400, hidden=(300,)).encoder[0]
    assert layer.weight.abs().max() <= 1 / 20
    torch.testing.assert_close(layer.weight.var().item(), 1 / 1200, rtol=0.02, atol=0)


def test_an_activated_relu_code_is_non_negative_and_partly_zero() -> None:
    x = torch.randn(50, 6, generator=generator())
    code = autoencoder(0, activate_code=True).encode(x)
    assert code.min() == 0
    assert autoencoder(0).encode(x).min() < 0


def test_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match="'gelu'; choose one of relu, tanh, silu"):
        autoencoder(0, activation="gelu")
    with pytest.raises(ValueError, match="at least 1"):
        autoencoder(0, code=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), code=st.integers(1, 4))
def test_pca_equals_scikit_learn_and_is_an_orthogonal_projection(seed: int, code: int) -> None:
    samples = torch.randn(30, 5, generator=generator(seed), dtype=torch.float64) + 3
    points = torch.randn(10, 5, generator=generator(seed + 1), dtype=torch.float64)
    model = LinearAutoencoder.from_pca(samples, code)
    oracle = PCA(code).fit(samples.numpy())
    expected = torch.from_numpy(oracle.inverse_transform(oracle.transform(points.numpy())))
    with torch.no_grad():
        once = model(points)
        torch.testing.assert_close(once, expected)
        torch.testing.assert_close(model(once), once)
        inside = model(samples)
    # Orthogonal: the residual is perpendicular to the subspace.
    torch.testing.assert_close(
        (points - once) @ (inside - inside.mean(0)).T, torch.zeros(10, 30).double(), rtol=0, atol=1e-9
    )


def test_training_a_linear_autoencoder_ends_at_pca() -> None:
    samples = torch.randn(40, 3, generator=generator(5), dtype=torch.float64) @ torch.diag(
        torch.tensor([2.0, 1.0, 0.3], dtype=torch.float64)
    )
    best = Reconstruction()(LinearAutoencoder.from_pca(samples, 2), samples, generator()).item()
    torch.manual_seed(0)
    model = LinearAutoencoder(3, 2).double()
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = Reconstruction()(model, samples, generator())
        loss.backward()
        return loss

    assert closure().item() > 2 * best
    optimiser.step(closure)
    assert closure().item() == pytest.approx(best, rel=1e-5)


def test_pca_asks_for_no_more_directions_than_there_are() -> None:
    with pytest.raises(ValueError, match="4 samples of length 9 allow 1 to 3"):
        LinearAutoencoder.from_pca(torch.rand(4, 9), 4)


def test_an_ensemble_runs_each_part_through_its_own_member() -> None:
    members = [autoencoder(seed, activate_code=True) for seed in range(3)]
    ensemble = Ensemble(members)
    x = torch.rand(12, 6, generator=generator(9))
    expected = torch.cat([member(part) for member, part in zip(members, x.chunk(3), strict=True)])
    torch.testing.assert_close(ensemble(x), expected)
    for before, after in zip(members, ensemble.members(), strict=True):
        torch.testing.assert_close(after(x), before(x))


@pytest.mark.parametrize("objective", [Reconstruction(), Contractive(0.1), ReconstructionContractive(0.1)])
def test_training_an_ensemble_is_training_its_members(objective: Reconstruction) -> None:
    members = [autoencoder(seed, activation="tanh").double() for seed in range(2)]
    ensemble = Ensemble(members)
    joint = torch.optim.SGD(ensemble.parameters(), 0.1 * len(members))
    single = [torch.optim.SGD(member.parameters(), 0.1) for member in members]
    x = torch.rand(8, 6, generator=generator(1), dtype=torch.float64)
    for _ in range(3):
        joint.zero_grad()
        objective(ensemble, x, generator()).backward()
        joint.step()
        for member, optimiser, part in zip(members, single, x.chunk(2), strict=True):
            optimiser.zero_grad()
            objective(member, part, generator()).backward()
            optimiser.step()
    for trained, alone in zip(ensemble.members(), members, strict=True):
        torch.testing.assert_close(trained.state_dict(), alone.state_dict())


def test_a_residual_network_with_zero_weights_is_the_identity() -> None:
    network = autoencoder(0)
    x = torch.rand(4, 6, generator=generator(1))
    torch.testing.assert_close(Residual(network)(x), x + network(x))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(Residual(network)(x), x)
    # A penalty on the code would leave out the skip: it must refuse rather than be wrong.
    with pytest.raises(TypeError, match="Residual has no encode"):
        Contractive(0.1)(Residual(network), x, generator())
