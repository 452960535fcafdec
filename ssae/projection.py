"""Measures of how close a map is to the orthogonal projection onto a manifold.

Each takes any callable ``f`` on batches of vectors ``(B, n)`` (a trained model, or the exact
``manifold.project``) and
returns one value per sample unless stated otherwise. Distances are Euclidean; divide by ``sqrt(n)`` for root
mean squares. For the Jacobian measures the samples of a batch must not influence each other (put a model
into ``eval()``).

Explained in chapters 1 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from ssae.manifolds import Manifold

__all__ = [
    "Conservation",
    "VectorMap",
    "conservation",
    "distance_to_manifold",
    "distance_to_projection",
    "distance_to_source",
    "idempotence_error",
    "jacobian",
    "jacobian_energy",
    "principal_angles",
    "residual",
]

VectorMap = Callable[[Tensor], Tensor]


def residual(f: VectorMap, points: Tensor) -> Tensor:
    """How much ``f`` changes each point, ``|f(x) - x|``, shape ``(B,)``: the anomaly score (chapter 1)."""
    return (f(points) - points).norm(dim=1)


def distance_to_manifold(f: VectorMap, points: Tensor, manifold: Manifold) -> Tensor:
    """Distance ``(B,)`` of the outputs ``f(x)`` from the manifold; zero if ``f`` maps onto it."""
    return manifold.nearest(f(points)).distance


def distance_to_projection(f: VectorMap, points: Tensor, manifold: Manifold) -> Tensor:
    """Distance ``(B,)`` of ``f(x)`` from the exact projection of x; zero if ``f`` is the projection."""
    return (f(points) - manifold.nearest(points).points).norm(dim=1)


def distance_to_source(f: VectorMap, points: Tensor, source: Tensor) -> Tensor:
    """Distance ``(B,)`` of ``f(x)`` from the normal sample ``(B, n)`` that x was made of."""
    return (f(points) - source).norm(dim=1)


def idempotence_error(f: VectorMap, points: Tensor) -> Tensor:
    """How far a second pass moves the output, ``|f(f(x)) - f(x)|``, shape ``(B,)``; zero for a projection."""
    once = f(points)
    return (f(once) - once).norm(dim=1)


def jacobian(f: VectorMap, points: Tensor) -> Tensor:
    """Jacobian matrices of ``f`` at each point, ``(B, m, n)``, by one reverse pass per output.

    ``f`` is called once, on the whole batch, so it may contain steps that cannot be vectorised (the search
    inside ``manifold.project``). Entry ``[b, i, j]`` is the derivative of output i with respect to input j.
    """
    output, pullback, *_ = vjp(f, points)
    basis = torch.eye(output.shape[1], dtype=output.dtype, device=output.device)
    (rows,) = vmap(pullback)(basis[:, None, :].expand(-1, len(points), -1))
    return rows.transpose(0, 1)


def jacobian_energy(f: VectorMap, points: Tensor) -> tuple[Tensor, Tensor]:
    """``|J|_F^2`` and ``|J - I|_F^2`` of ``f`` at each point, both ``(B,)``.

    For the orthogonal projection, at points on a manifold of dimension d in R^n, they are d and n - d
    (chapters 3 and 7).
    """
    matrices = jacobian(f, points)
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return matrices.square().sum((1, 2)), (matrices - identity).square().sum((1, 2))


def principal_angles(matrices: Tensor, basis: Tensor) -> Tensor:
    """Angles between the leading images of matrices and given subspaces.

    Parameters
    ----------
    matrices : Tensor
        For instance Jacobians, shape ``(B, n, m)``. Their image is taken as the span of the d leading left
        singular vectors.
    basis : Tensor
        Orthonormal bases of d-dimensional subspaces, for instance tangent spaces, shape ``(B, n, d)``.

    Returns
    -------
    Tensor
        The d principal angles in radians, in [0, pi / 2], largest first, shape ``(B, d)``. All zero if the
        subspaces agree.
    """
    d = basis.shape[-1]
    image = torch.linalg.svd(matrices).U[..., :d]
    # Sines come from the part that leaves the subspace: accurate for small angles, where arccos of a cosine
    # is not.
    outside = image - basis @ (basis.mT @ image)
    return torch.linalg.svdvals(outside).clamp(max=1).asin()


@dataclass(frozen=True)
class Conservation:
    """Both sides of the conservation inequality, per sample, shape ``(B,)``.

    Attributes
    ----------
    clean_change : Tensor
        Energy of the change that the map made outside the mask.
    bound : Tensor
        Energy of the defect minus the energy of the change inside the mask.
    """

    clean_change: Tensor
    bound: Tensor

    @property
    def holds(self) -> Tensor:
        """Boolean ``(B,)``: ``clean_change <= bound``, up to rounding of the dtype."""
        slack = 100 * torch.finfo(self.bound.dtype).eps * (1 + self.clean_change.abs() + self.bound.abs())
        return self.clean_change <= self.bound + slack


def conservation(f: VectorMap, corrupted: Tensor, clean: Tensor, mask: Tensor) -> Conservation:
    """Both sides of the conservation inequality of chapter 5 for a map ``f``.

    Parameters
    ----------
    f : callable
        Map on ``(B, n)``. For the orthogonal projection onto any closed set that contains ``clean`` the
        inequality holds.
    corrupted, clean : Tensor
        Inputs and the normal samples they were made of, ``(B, n)``. They must agree where ``mask`` is 0.
    mask : Tensor
        1 where corrupted, ``(B, n)`` or broadcastable to it; anything above 0 counts as corrupted.

    Raises
    ------
    ValueError
        If ``corrupted`` and ``clean`` differ outside the mask.
    """
    inside = (mask > 0).expand_as(corrupted)
    defect = (corrupted - clean).square()
    if bool((defect[~inside] != 0).any()):
        raise ValueError(
            "mask: corrupted and clean differ where mask is 0; mark every changed entry in the mask"
        )
    change = (f(corrupted) - corrupted).square()
    zero = torch.zeros((), dtype=change.dtype, device=change.device)
    return Conservation(
        clean_change=torch.where(inside, zero, change).sum(1),
        bound=torch.where(inside, defect - change, zero).sum(1),
    )
