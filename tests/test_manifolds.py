"""Projections against brute force, closed forms, implicit derivatives and the medial axis."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.manifolds import (
    Circle,
    Ellipse,
    HarmonicSignals,
    Manifold,
    MedialAxisWarning,
    SineCurve,
    Torus,
    Trefoil,
    UnevenCircle,
    WeaveImages,
)

MANIFOLDS = [
    Circle(1.3),
    UnevenCircle(),
    Ellipse(),
    SineCurve(),
    Trefoil(),
    Torus(),
    HarmonicSignals(1),
    HarmonicSignals(2, length=16),
    WeaveImages(size=6),
]
each_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=lambda m: f"{type(m).__name__}-{m.dim}")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def off_manifold(manifold: Manifold, n: int, scale: float, seed: int = 0) -> torch.Tensor:
    """Points at a typical distance ``scale`` from the manifold."""
    points = manifold.sample(n, generator(seed))
    return points + scale * normal(n, manifold.ambient_dim, seed=seed + 1) / math.sqrt(manifold.ambient_dim)


def brute_force_distance(manifold: Manifold, points: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Distance to a dense sample made without the class's own search, and the largest gap of that sample."""
    size = 20_000 if manifold.dim == 1 else 300
    low, high = (-12.0, 12.0) if isinstance(manifold, SineCurve) else (0.0, 2 * math.pi)
    axis = torch.linspace(low, high, size, dtype=torch.float64)
    parameters = torch.cartesian_prod(*[axis] * manifold.dim).reshape(-1, manifold.dim)
    dense = manifold.embed(parameters)
    gap = float(manifold.jacobian(parameters[::97]).norm(dim=(1, 2)).max()) * (high - low) / (size - 1)
    distance = torch.cat([torch.cdist(part, dense).amin(1) for part in points.split(20)])
    return distance, gap


@each_manifold
@pytest.mark.parametrize("scale", [0.2, 1.5])
def test_projection_is_the_nearest_of_a_dense_sample(manifold: Manifold, scale: float) -> None:
    points = off_manifold(manifold, 20, scale)
    nearest = manifold.nearest(points)
    brute, gap = brute_force_distance(manifold, points)
    # No dense point may be nearer than the projection, and one lies at most a gap from it.
    assert (nearest.distance <= brute + 1e-8).all()
    assert (brute <= nearest.distance + gap).all()
    torch.testing.assert_close((nearest.points - points).norm(dim=1), nearest.distance)


@each_manifold
def test_residual_is_orthogonal_and_foot_lies_on_manifold(manifold: Manifold) -> None:
    points = off_manifold(manifold, 20, 0.5)
    nearest = manifold.nearest(points)
    assert nearest.unique.all()
    basis = manifold.tangent(nearest.points)
    assert (basis.mT @ (points - nearest.points)[:, :, None]).abs().max() < 1e-10
    torch.testing.assert_close(manifold.embed(nearest.parameters), nearest.points, atol=1e-12, rtol=0)
    torch.testing.assert_close(manifold.project(nearest.points), nearest.points, atol=1e-10, rtol=0)


@each_manifold
def test_tangent_basis_is_orthonormal_and_tangent(manifold: Manifold) -> None:
    parameters = manifold.sample_parameters(20, generator())
    points = manifold.embed(parameters)
    basis = manifold.tangent(points)
    identity = torch.eye(manifold.dim, dtype=torch.float64).expand(20, -1, -1)
    torch.testing.assert_close(basis.mT @ basis, identity, atol=1e-12, rtol=0)
    for axis in range(manifold.dim):
        step = torch.zeros(manifold.dim, dtype=torch.float64)
        step[axis] = 1e-5
        moved = (manifold.embed(parameters + step) - manifold.embed(parameters - step)) / 2e-5
        outside = moved - (basis @ (basis.mT @ moved[:, :, None]))[:, :, 0]
        assert outside.norm(dim=1).max() < 1e-7


@each_manifold
def test_derivative_of_projection_agrees_with_finite_differences(manifold: Manifold) -> None:
    points = off_manifold(manifold, 4, 0.4)
    direction = normal(4, manifold.ambient_dim, seed=5)
    _, derivative = torch.autograd.functional.jvp(manifold.project, points, direction)
    step = 1e-5
    difference = (
        manifold.project(points + step * direction) - manifold.project(points - step * direction)
    ) / (2 * step)
    torch.testing.assert_close(derivative, difference, atol=1e-6, rtol=1e-6)


@each_manifold
def test_samples_lie_on_the_manifold_and_follow_the_generator(manifold: Manifold) -> None:
    points = manifold.sample(50, generator(3))
    assert points.dtype == torch.float64
    assert points.shape == (50, manifold.ambient_dim)
    assert manifold.nearest(points).distance.max() < 1e-12
    assert torch.equal(points, manifold.sample(50, generator(3)))
    assert not torch.equal(points, manifold.sample(50, generator(4)))
    assert manifold.sample(0, generator()).shape == (0, manifold.ambient_dim)
    assert manifold.project(points[:0]).shape == (0, manifold.ambient_dim)


@pytest.mark.parametrize(
    "manifold", [Ellipse(2.0, 0.5), SineCurve(1.5, 1.0), Trefoil()], ids=lambda m: type(m).__name__
)
def test_samples_are_uniform_in_arc_length(manifold: Manifold) -> None:
    low, high = (-manifold.extent, manifold.extent) if isinstance(manifold, SineCurve) else (0.0, 2 * math.pi)
    axis = torch.linspace(low, high, 20_001, dtype=torch.float64)
    curve = manifold.embed(axis[:, None])
    length = torch.cat([torch.zeros(1, dtype=torch.float64), (curve[1:] - curve[:-1]).norm(dim=1).cumsum(0)])
    parameters = manifold.sample_parameters(4000, generator())[:, 0]
    place = length[torch.searchsorted(axis, parameters).clamp(max=20_000)] / length[-1]
    ordered = place.sort().values
    # Kolmogorov-Smirnov distance; 1.95 / sqrt(n) is exceeded with probability 0.001.
    expected = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert (ordered - expected).abs().max() < 1.95 / math.sqrt(4000)


def test_torus_area_elements_are_sampled_by_area() -> None:
    torus = Torus(2.0, 1.0)
    across = torus.sample_parameters(20_000, generator())[:, 1]
    # The area element is proportional to ring + tube cos(v), so E cos(v) = tube / (2 ring).
    assert abs(float(across.cos().mean()) - 0.25) < 0.02


@pytest.mark.parametrize(
    "manifold",
    [
        Circle(0.7),
        Ellipse(2.0, 0.8),
        SineCurve(1.2, 0.9),
        Torus(2.0, 0.6),
        Torus(1.0, 0.7),
        HarmonicSignals(2, length=8),
    ],
    ids=lambda m: f"{type(m).__name__}-{m.reach:.3f}",
)
def test_reach_agrees_with_federers_formula(manifold: Manifold) -> None:
    assert manifold.reach is not None
    estimate = manifold.estimate_reach()
    assert manifold.reach * (1 - 1e-6) <= estimate <= manifold.reach * 1.01


@settings(max_examples=8, deadline=None)
@given(
    major=st.floats(0.6, 3),
    ratio=st.floats(0.2, 0.95),
    angles=st.lists(st.floats(0, 6.28), min_size=1, max_size=8),
    share=st.floats(-0.95, 0.95),
)
def test_moving_along_the_normal_within_the_reach_keeps_the_foot(
    major: float, ratio: float, angles: list[float], share: float
) -> None:
    ellipse = Ellipse(major, major * ratio)
    foot = ellipse.embed(torch.tensor(angles, dtype=torch.float64)[:, None])
    tangent = ellipse.tangent(foot)[:, :, 0]
    normal = torch.stack([-tangent[:, 1], tangent[:, 0]], dim=1)
    moved = foot + share * ellipse.reach * normal
    torch.testing.assert_close(ellipse.project(moved), foot, atol=1e-9, rtol=0)


def test_curvature_of_circle_sphere_like_directions_and_helpers() -> None:
    circle = Circle(2.0)
    points = circle.sample(5, generator())
    inward = -points / 2
    torch.testing.assert_close(circle.curvature(points, inward), torch.full((5, 1), 0.5, dtype=torch.float64))
    torch.testing.assert_close(
        circle.curvature(points, -inward), torch.full((5, 1), -0.5, dtype=torch.float64)
    )

    torus = Torus(2.0, 0.5)
    outer = torch.tensor([[2.5, 0.0, 0.0]], dtype=torch.float64)
    towards_core = torch.tensor([[-1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[1 / 2.5, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(torus.curvature(outer, towards_core), expected)


@pytest.mark.parametrize(
    ("manifold", "point"),
    [
        (Circle(), [0.0, 0.0]),
        (Ellipse(1.5, 0.75), [0.3, 0.0]),
        (SineCurve(), [math.pi / 2, -2.0]),
        (Torus(), [0.0, 0.0, 0.4]),
        (Torus(2.0, 0.75), [2.0, 0.0, 0.0]),
        (Trefoil(), [0.0, 0.0, 0.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Manifold) else str(value),
)
def test_medial_axis_is_reported(manifold: Manifold, point: list[float]) -> None:
    beside = off_manifold(manifold, 1, 0.01)
    points = torch.cat([torch.tensor([point], dtype=torch.float64), beside])
    with pytest.warns(MedialAxisWarning, match="1 of 2 points"):
        projected = manifold.project(points)
    nearest = manifold.nearest(points)
    assert nearest.unique.tolist() == [False, True]
    assert projected.isfinite().all()
    assert manifold.nearest(projected).distance.max() < 1e-9
    brute, _ = brute_force_distance(manifold, points)
    assert (nearest.distance <= brute + 1e-9).all()


def test_focal_point_is_reported_where_the_minimum_is_still_unique() -> None:
    # The centre of curvature at a vertex of the ellipse: one nearest point, but the projection is not smooth
    # there.
    ellipse = Ellipse(1.5, 0.75)
    focal = torch.tensor([[1.5 - ellipse.reach, 0.0]], dtype=torch.float64)
    assert not ellipse.nearest(focal).unique.any()
    just_outside = focal + torch.tensor([[0.05, 0.0]], dtype=torch.float64)
    assert ellipse.nearest(just_outside).unique.all()


def test_points_off_the_medial_axis_warn_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ellipse().project(torch.tensor([[0.3, 1e-3], [2.0, 0.0]], dtype=torch.float64))


def test_free_phase_signals_closed_form_agrees_with_the_search() -> None:
    signals = HarmonicSignals(2, length=16)
    points = off_manifold(signals, 40, 1.0)
    searched, _ = Manifold._nearest_parameters(signals, points)
    torch.testing.assert_close(signals.project(points), signals.embed(searched), atol=1e-9, rtol=0)


def test_tied_phase_signals_are_shifts_of_one_shape() -> None:
    signals = HarmonicSignals(1, length=64)
    shift = 2 * math.pi / 64
    first, second = signals.embed(torch.tensor([[0.4], [0.4 + shift]], dtype=torch.float64))
    torch.testing.assert_close(first.roll(-1), second)


def test_uneven_circle_has_the_stated_share_on_its_rare_arc() -> None:
    uneven = UnevenCircle(rare_share=0.1)
    points = uneven.sample(20_000, generator())
    assert abs(float(uneven.is_rare(points).double().mean()) - 0.1) < 0.01
    centre = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    assert uneven.is_rare(centre).tolist() == [True, False]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"points: expected shape \(B, 2\)"):
        Circle().project(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="dim: expected 1"):
        HarmonicSignals(3)
    with pytest.raises(ValueError, match="harmonics"):
        HarmonicSignals(1, length=4)


def test_cloth_has_two_parameters_for_each_image() -> None:
    cloth = WeaveImages(size=8)
    one, other = cloth.embed(torch.tensor([[0.3, 1.1], [0.3 + math.pi, 1.1 + math.pi]], dtype=torch.float64))
    torch.testing.assert_close(one, other)
    assert cloth.nearest(one[None]).unique.all()
    assert cloth.images(one[None]).shape == (1, 3, 8, 8)
