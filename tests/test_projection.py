"""The measures of projection quality on maps whose values are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssae import projection
from ssae.manifolds import Circle, Ellipse, HarmonicSignals, Manifold, SineCurve, Torus, Trefoil


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


each_manifold = pytest.mark.parametrize(
    "manifold",
    [Circle(), Ellipse(), SineCurve(), Trefoil(), Torus(), HarmonicSignals(1), HarmonicSignals(2)],
    ids=lambda m: f"{type(m).__name__}-{m.dim}",
)


@each_manifold
def test_exact_projection_scores_perfectly(manifold: Manifold) -> None:
    clean = manifold.sample(30, generator())
    points = clean + 0.1 * normal(*clean.shape, seed=1)
    project = manifold.project
    assert projection.distance_to_manifold(project, points, manifold).max() < 1e-9
    assert projection.distance_to_projection(project, points, manifold).max() < 1e-12
    assert projection.idempotence_error(project, points).max() < 1e-9
    torch.testing.assert_close(projection.residual(project, points), manifold.nearest(points).distance)
    # Nothing on the manifold is nearer than the projection, so the source is not.
    assert (projection.residual(project, points) <= (points - clean).norm(dim=1) + 1e-12).all()


@each_manifold
def test_jacobian_of_projection_on_manifold_is_the_tangent_projector(manifold: Manifold) -> None:
    points = manifold.sample(10, generator())
    matrices = projection.jacobian(manifold.project, points)
    basis = manifold.tangent(points)
    torch.testing.assert_close(matrices, basis @ basis.mT, atol=1e-9, rtol=0)
    contraction, anchored = projection.jacobian_energy(manifold.project, points)
    torch.testing.assert_close(contraction, torch.full((10,), float(manifold.dim), dtype=torch.float64))
    codimension = float(manifold.ambient_dim - manifold.dim)
    torch.testing.assert_close(anchored, torch.full((10,), codimension, dtype=torch.float64))
    assert projection.principal_angles(matrices, basis).max() < 1e-9


@each_manifold
def test_jacobian_off_the_manifold_has_the_curvature_eigenvalues(manifold: Manifold) -> None:
    foot = manifold.sample(10, generator())
    basis = manifold.tangent(foot)
    direction = normal(*foot.shape, seed=2)
    direction = direction - (basis @ (basis.mT @ direction[:, :, None]))[:, :, 0]
    direction = direction / direction.norm(dim=1, keepdim=True)
    height = 0.3 * (manifold.reach or manifold.estimate_reach())
    matrices = projection.jacobian(manifold.project, foot + height * direction)
    expected = (1 / (1 - height * manifold.curvature(foot, direction))).sort(dim=1).values
    measured = torch.linalg.eigvalsh((matrices + matrices.mT) / 2)
    torch.testing.assert_close(matrices, matrices.mT, atol=1e-9, rtol=0)
    torch.testing.assert_close(measured[:, -manifold.dim :], expected, atol=1e-8, rtol=0)
    assert measured[:, : -manifold.dim].abs().max() < 1e-9


def test_jacobian_agrees_with_autograd_functional() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 4)).double()
    points = normal(6, 5)
    matrices = projection.jacobian(net, points)
    assert matrices.shape == (6, 4, 5)
    for point, matrix in zip(points, matrices, strict=True):
        expected = torch.autograd.functional.jacobian(net, point)
        torch.testing.assert_close(matrix, expected)


@pytest.mark.parametrize(
    "manifold", [Ellipse(), Trefoil(), HarmonicSignals(1, length=16)], ids=lambda m: type(m).__name__
)
def test_jacobian_of_projection_agrees_with_autograd_functional(manifold: Manifold) -> None:
    points = manifold.sample(3, generator()) + 0.1
    matrices = projection.jacobian(manifold.project, points)
    for point, matrix in zip(points, matrices, strict=True):
        expected = torch.autograd.functional.jacobian(lambda x: manifold.project(x[None])[0], point)
        torch.testing.assert_close(matrix, expected)


def test_linear_map_energies_in_closed_form() -> None:
    weight = normal(4, 4)
    contraction, anchored = projection.jacobian_energy(lambda x: x @ weight.T, normal(3, 4, seed=1))
    torch.testing.assert_close(contraction, weight.square().sum().expand(3))
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(anchored, (weight - identity).square().sum().expand(3))


def test_measures_of_a_shifted_map() -> None:
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    points = normal(5, 2)
    assert torch.allclose(
        projection.residual(lambda x: x + shift, points), torch.tensor(5.0, dtype=torch.float64)
    )
    assert torch.allclose(
        projection.idempotence_error(lambda x: x + shift, points), torch.tensor(5.0, dtype=torch.float64)
    )
    source = projection.distance_to_source(lambda x: x + shift, points, points + shift)
    torch.testing.assert_close(source, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


@settings(max_examples=30, deadline=None)
@given(angle=st.floats(0, math.pi / 2))
def test_principal_angle_of_a_turned_plane(angle: float) -> None:
    basis = torch.eye(3, dtype=torch.float64)[None, :, :2]
    turned = torch.tensor(
        [[1.0, 0, 0], [0, math.cos(angle), 0], [0, math.sin(angle), 0]], dtype=torch.float64
    )[None]
    measured = projection.principal_angles(turned, basis)
    torch.testing.assert_close(measured, torch.tensor([[angle, 0.0]], dtype=torch.float64), atol=1e-7, rtol=0)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 12), shift=st.floats(-5, 5))
def test_conservation_holds_for_the_projection_onto_a_finite_set(seed: int, size: int, shift: float) -> None:
    source = generator(seed)
    cloud = torch.randn(20, 12, generator=source, dtype=torch.float64)
    mask = torch.zeros(20, 12, dtype=torch.float64)
    mask[:, :size] = 1
    corrupted = cloud + mask * shift
    result = projection.conservation(lambda x: cloud[torch.cdist(x, cloud).argmin(1)], corrupted, cloud, mask)
    assert result.holds.all()


def test_conservation_fails_for_a_map_that_is_no_projection() -> None:
    clean = torch.zeros(1, 3, dtype=torch.float64)
    mask = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    corrupted = clean + 0.5 * mask
    result = projection.conservation(lambda x: x + 1, corrupted, clean, mask)
    assert not result.holds.any()
    assert result.clean_change.item() == 2
    assert result.bound.item() == 0.25 - 1


def test_conservation_rejects_a_mask_that_hides_part_of_the_defect() -> None:
    clean = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="mask"):
        projection.conservation(lambda x: x, clean + 1, clean, torch.tensor([[1.0, 0, 0]]))
