"""Toy manifolds of normal data, each with its exact orthogonal projection.

A manifold is given by a parametrisation: a smooth map from `dim` parameters to `ambient_dim` coordinates.
Everything else (tangent space, curvature, projection and the Jacobian of the projection) follows from that
map, so a new manifold needs little more than an ``embed`` method. All tensors are float64, all methods
batched.

Explained in chapter 1.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

__all__ = [
    "Circle",
    "Ellipse",
    "HarmonicSignals",
    "Manifold",
    "MedialAxisWarning",
    "Nearest",
    "SineCurve",
    "Torus",
    "Trefoil",
    "UnevenCircle",
    "WeaveImages",
]

TWO_PI = 2 * math.pi

# torch compiles its own forward-mode rules with a function that it has deprecated; readers cannot mend that.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated", category=FutureWarning)


class MedialAxisWarning(UserWarning):
    """Some points have no unique nearest point, or none on which the projection depends smoothly."""


@dataclass(frozen=True)
class Nearest:
    """Nearest points on a manifold, with what is known about them.

    Attributes
    ----------
    points : Tensor
        Nearest points, shape ``(B, n)``; differentiable once with respect to the query.
    parameters : Tensor
        Their parameters, shape ``(B, d)``.
    distance : Tensor
        Euclidean distance from the query, shape ``(B,)``.
    unique : Tensor
        Boolean, shape ``(B,)``. False on (and within the tolerance of) the medial axis, where two nearest
        points tie, and at focal points, where infinitely many do to second order. ``points`` then holds one
        of them.
    """

    points: Tensor
    parameters: Tensor
    distance: Tensor
    unique: Tensor


class Manifold(ABC):
    """A closed submanifold of R^n given by a parametrisation with period 2 pi in each parameter.

    Subclasses define ``ambient_dim``, ``dim`` and :meth:`embed`; where a closed form of the projection is
    known they override :meth:`_nearest_parameters`. Explained in chapter 1.
    """

    ambient_dim: int
    dim: int

    #: Grid points per parameter at which the search for the nearest point starts.
    grid_size: int = 512
    #: Number of local minima of the grid that Newton's method refines.
    starts: int = 4
    #: Relative tolerance below which two distances tie, and 1 - h kappa counts as zero.
    medial_tolerance: float = 1e-6

    @abstractmethod
    def embed(self, parameters: Tensor) -> Tensor:
        """Map parameters ``(..., d)`` to points ``(..., n)``."""

    @property
    def reach(self) -> float | None:
        """Largest r such that points closer than r project uniquely; None where no formula is known."""
        return None

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` points ``(n, ambient_dim)``, uniform with respect to arc length or area."""
        return self.embed(self.sample_parameters(n, generator))

    def sample_parameters(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` parameters ``(n, d)`` whose points are uniform on the manifold (rejection sampling)."""
        accepted: list[Tensor] = []
        missing = n
        while missing > 0:
            proposal = self._propose_parameters(2 * missing + 16, generator)
            level = torch.rand(len(proposal), generator=generator, dtype=torch.float64) * self._volume_bound
            kept = proposal[level < self._volume(proposal)][:missing]
            accepted.append(kept)
            missing -= len(kept)
        return torch.cat(accepted) if accepted else torch.empty(0, self.dim, dtype=torch.float64)

    def project(self, points: Tensor) -> Tensor:
        """Project points ``(B, n)`` orthogonally onto the manifold.

        The result is differentiable once: its Jacobian is that of the exact projection.

        Warns
        -----
        MedialAxisWarning
            If some point has no unique projection. :meth:`nearest` tells which.
        """
        nearest = self.nearest(points)
        ambiguous = int((~nearest.unique).sum())
        if ambiguous:
            warnings.warn(
                f"{type(self).__name__}.project: {ambiguous} of {len(points)} points have no unique "
                "projection (they lie on the medial axis); nearest(points).unique tells which",
                MedialAxisWarning,
                stacklevel=2,
            )
        return nearest.points

    def nearest(self, points: Tensor) -> Nearest:
        """Find the nearest point of each of ``points`` ``(B, n)`` and say whether it is unique.

        Raises
        ------
        ValueError
            If ``points`` is not a batch of vectors of length ``ambient_dim``.
        """
        if points.ndim != 2 or points.shape[1] != self.ambient_dim:
            raise ValueError(
                f"points: expected shape (B, {self.ambient_dim}) for {type(self).__name__}, "
                f"got {tuple(points.shape)}; pass a batch of vectors"
            )
        points = points.to(torch.float64)
        if len(points) == 0:
            none = points.new_empty(0)
            return Nearest(points, points.new_empty(0, self.dim), none, none.bool())
        with torch.no_grad():
            parameters, unique = self._nearest_parameters(points.detach())
            jacobian, metric, hessian = self._second_order(parameters, points.detach())
            # 1 - h kappa for each principal curvature: the eigenvalues of the Hessian measured in the metric.
            contraction = torch.linalg.eigvals(torch.linalg.solve(metric, hessian)).real.amin(1)
            unique = unique & (contraction > self.medial_tolerance)
            safe = torch.where(unique[:, None, None], hessian, metric)
            inverse = torch.linalg.solve(safe, jacobian.mT)
        # One Newton step on the record of autograd: at the minimum it moves nothing, and by the implicit
        # function theorem its derivative with respect to the query is the derivative of the minimiser.
        residual = self.embed(parameters) - points
        refined = parameters - (inverse @ residual[:, :, None])[:, :, 0]
        foot = self.embed(refined)
        return Nearest(foot, refined.detach(), (foot - points).detach().norm(dim=1), unique)

    def tangent(self, points: Tensor) -> Tensor:
        """Orthonormal basis ``(B, n, d)`` of the tangent space at the projection of each point ``(B, n)``."""
        return torch.linalg.qr(self.jacobian(self.nearest(points).parameters)).Q

    def jacobian(self, parameters: Tensor) -> Tensor:
        """Derivative ``(B, n, d)`` of :meth:`embed` at parameters ``(B, d)``."""
        return vmap(jacfwd(self.embed))(parameters)

    def hessian(self, parameters: Tensor) -> Tensor:
        """Second derivative ``(B, n, d, d)`` of :meth:`embed` at parameters ``(B, d)``."""
        return vmap(jacfwd(jacfwd(self.embed)))(parameters)

    def curvature(self, points: Tensor, normals: Tensor) -> Tensor:
        """Principal curvatures ``(B, d)`` in ascending order, seen in the direction of ``normals``.

        The sign follows the normal: positive where the manifold bends towards it. Moving a distance h along
        the normal multiplies the Jacobian of the projection by 1 / (1 - h kappa) along each principal
        direction (chapter 1).

        Parameters
        ----------
        points : Tensor
            Points on the manifold, shape ``(B, n)``.
        normals : Tensor
            Unit normal vectors at these points, shape ``(B, n)``.
        """
        parameters = self.nearest(points).parameters
        jacobian = self.jacobian(parameters)
        second = torch.einsum("bnij,bn->bij", self.hessian(parameters), normals.to(torch.float64))
        half = torch.linalg.cholesky(jacobian.mT @ jacobian)
        # L^-1 II L^-T is symmetric and has the eigenvalues of G^-1 II.
        left = torch.linalg.solve_triangular(half, second, upper=False)
        return torch.linalg.eigvalsh(torch.linalg.solve_triangular(half, left.mT, upper=False))

    def estimate_reach(self) -> float:
        """Upper bound of the reach from Federer's formula over the pairs of grid points.

        The reach is the infimum over pairs x, y of the manifold of ``|y - x|^2 / (2 dist(y - x, T_x))``; a
        grid gives it from above. At most 1,024 grid points are used.
        """
        step = -(-len(self._grid) // 1024)
        parameters = self._grid[::step]
        points = self.embed(parameters)
        basis = torch.linalg.qr(self.jacobian(parameters)).Q
        best = math.inf
        for point, tangent in zip(points, basis, strict=True):
            chord = points - point
            normal = chord - (chord @ tangent) @ tangent.mT
            height = normal.norm(dim=1)
            # Pairs this close only add rounding; curvature is seen at every larger distance as well.
            far = height > 1e-9
            best = min(best, float((chord.square().sum(1)[far] / (2 * height[far])).min()))
        return best

    # How the nearest point is found: a grid for the global picture, Newton's method for the digits.

    def _nearest_parameters(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters ``(B, d)`` of the points nearest to ``(B, n)``, and whether they are unique ``(B,)``."""
        # Newton's line search holds twelve trial points for every start.
        chunk = max(16, min(2048, 2**23 // (12 * self.starts * self.ambient_dim)))
        pieces = [self._search(part) for part in points.split(chunk)]
        return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])

    def _search(self, points: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(points)
        parameters, is_minimum = self._candidates(points)
        flat = parameters.reshape(batch * self.starts, self.dim)
        repeated = points.repeat_interleave(self.starts, dim=0)
        wanted = is_minimum.flatten()
        flat[wanted] = self._newton(flat[wanted], repeated[wanted])
        refined = flat.reshape(parameters.shape)
        feet = self.embed(refined)
        distance = torch.where(is_minimum, (feet - points[:, None]).norm(dim=2), torch.inf)
        shortest, best = distance.min(1)
        rows = torch.arange(batch)
        ties = distance <= shortest[:, None] + self.medial_tolerance * (1 + shortest[:, None])
        # The same foot reached from two starts is no tie.
        apart = (feet - feet[rows, best][:, None]).norm(dim=2) > 1e-4 * self._extent
        return refined[rows, best], ~(ties & apart).any(1)

    def _candidates(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters ``(B, starts, d)`` of the deepest minima on the grid, and which entries are minima."""
        distance = torch.cdist(points, self._grid_points)
        shaped = distance.reshape(len(points), *[self.grid_size] * self.dim)
        minimum = torch.ones_like(shaped, dtype=torch.bool)
        for axis in range(1, self.dim + 1):
            for shift in (-1, 1):
                minimum &= shaped <= shaped.roll(shift, dims=axis)
        masked = torch.where(minimum.reshape(distance.shape), distance, torch.inf)
        depth, order = masked.topk(self.starts, dim=1, largest=False)
        return self._grid[order], depth.isfinite()

    def _newton(self, parameters: Tensor, points: Tensor, iterations: int = 60) -> Tensor:
        """Minimise the distance from ``points`` by Newton's method with step halving."""
        halvings = 0.5 ** torch.arange(12, dtype=torch.float64)
        parameters = parameters.clone()
        active = torch.arange(len(points))
        for _ in range(iterations):
            current, target = parameters[active], points[active]
            residual = self.embed(current) - target
            jacobian, metric, hessian = self._second_order(current, target)
            indefinite = torch.linalg.cholesky_ex(hessian).info > 0
            gradient = jacobian.mT @ residual[:, :, None]
            step = torch.linalg.solve(torch.where(indefinite[:, None, None], metric, hessian), gradient)[
                :, :, 0
            ]
            trial = current - halvings[:, None, None] * step
            before = residual.square().sum(1)
            after = (self.embed(trial) - target).square().sum(2)
            # The slack lets full Newton steps pass once the energy no longer resolves the change.
            accepted = after <= before + 1e-13 * (1 + before)
            chosen = trial[accepted.int().argmax(0), torch.arange(len(active))]
            moved = torch.where(accepted.any(0)[:, None], chosen, current)
            parameters[active] = moved
            # Convergence is quadratic: after a step of 1e-9 the next one is below rounding.
            active = active[(moved - current).abs().amax(1) > 1e-9]
            if len(active) == 0:
                break
        return parameters

    def _second_order(self, parameters: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Jacobian, metric and Hessian of half the squared distance, the latter two ``(B, d, d)``."""
        jacobian = self.jacobian(parameters)
        metric = jacobian.mT @ jacobian
        residual = self.embed(parameters) - points
        return jacobian, metric, metric + torch.einsum("bnij,bn->bij", self.hessian(parameters), residual)

    @cached_property
    def _grid(self) -> Tensor:
        axis = torch.arange(self.grid_size, dtype=torch.float64) * (TWO_PI / self.grid_size)
        return torch.cartesian_prod(*[axis] * self.dim).reshape(-1, self.dim)

    @cached_property
    def _grid_points(self) -> Tensor:
        return self.embed(self._grid)

    @cached_property
    def _extent(self) -> float:
        return float((self._grid_points - self._grid_points.mean(0)).norm(dim=1).max())

    def _propose_parameters(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, self.dim, generator=generator, dtype=torch.float64) * TWO_PI

    def _volume(self, parameters: Tensor) -> Tensor:
        jacobian = self.jacobian(parameters)
        return torch.linalg.det(jacobian.mT @ jacobian).sqrt()

    @cached_property
    def _volume_bound(self) -> float:
        # The maximum lies between grid points; a tenth above the largest value seen is ample for smooth maps.
        return 1.1 * float(self._volume(self._grid).max())


@dataclass(frozen=True)
class Circle(Manifold):
    """Circle of the given radius around the origin of the plane; its reach is the radius."""

    radius: float = 1.0
    ambient_dim = 2
    dim = 1

    def embed(self, parameters: Tensor) -> Tensor:
        angle = parameters[..., 0]
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=-1)

    @property
    def reach(self) -> float:
        return self.radius

    def _nearest_parameters(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.atan2(points[:, 1:], points[:, :1]), points.norm(
            dim=1
        ) > self.medial_tolerance * self.radius


@dataclass(frozen=True)
class UnevenCircle(Circle):
    """Circle with a rare arc: a stretch of it that is normal but hardly ever sampled.

    Parameters
    ----------
    rare_centre, rare_width : float
        Middle and length of the rare arc, in radians.
    rare_share : float
        Probability in [0, 1] that a sample falls on the rare arc. The density is uniform on it and on the
        rest.
    """

    rare_centre: float = math.pi / 2
    rare_width: float = math.pi / 2
    rare_share: float = 0.005

    def sample_parameters(self, n: int, generator: torch.Generator) -> Tensor:
        rare = torch.rand(n, generator=generator, dtype=torch.float64) < self.rare_share
        place = torch.rand(n, generator=generator, dtype=torch.float64)
        start = self.rare_centre - self.rare_width / 2
        on_arc = start + self.rare_width * place
        elsewhere = start + self.rare_width + (TWO_PI - self.rare_width) * place
        return torch.where(rare, on_arc, elsewhere)[:, None].remainder(TWO_PI)

    def is_rare(self, points: Tensor) -> Tensor:
        """Boolean ``(B,)``: whether each of ``points`` ``(B, 2)`` projects onto the rare arc."""
        angle = torch.atan2(points[:, 1], points[:, 0])
        offset = (angle - self.rare_centre + math.pi).remainder(TWO_PI) - math.pi
        return offset.abs() < self.rare_width / 2


@dataclass(frozen=True)
class Ellipse(Manifold):
    """Ellipse with semi-axes ``major >= minor`` along the axes; its reach is ``minor^2 / major``."""

    major: float = 1.5
    minor: float = 0.75
    ambient_dim = 2
    dim = 1

    def embed(self, parameters: Tensor) -> Tensor:
        angle = parameters[..., 0]
        return torch.stack([self.major * angle.cos(), self.minor * angle.sin()], dim=-1)

    @property
    def reach(self) -> float:
        return self.minor**2 / self.major


@dataclass(frozen=True)
class SineCurve(Manifold):
    """The whole graph of ``amplitude * sin(frequency * x)``, sampled over ``-extent <= x <= extent``.

    The curve has no ends; its reach is the radius of curvature at a crest, ``1 / (amplitude * frequency^2)``.
    """

    amplitude: float = 1.0
    frequency: float = 1.0
    extent: float = TWO_PI
    ambient_dim = 2
    dim = 1

    def embed(self, parameters: Tensor) -> Tensor:
        x = parameters[..., 0]
        return torch.stack([x, self.amplitude * (self.frequency * x).sin()], dim=-1)

    @property
    def reach(self) -> float:
        return 1 / (self.amplitude * self.frequency**2)

    def _candidates(self, points: Tensor) -> tuple[Tensor, Tensor]:
        x, y = points[:, 0], points[:, 1]
        # The nearest point is no farther than the one straight above or below, and at least |y| - amplitude
        # away in height, which bounds how far to the side it can lie.
        vertical = (y - self.amplitude * (self.frequency * x).sin()).abs()
        beyond = (y.abs() - self.amplitude).clamp_min(0)
        reach = (vertical.square() - beyond.square()).clamp_min(0).sqrt()
        grid = x[:, None] + reach[:, None] * torch.linspace(-1, 1, self.grid_size, dtype=torch.float64)
        distance = (self.embed(grid[..., None]) - points[:, None]).norm(dim=2)
        padded = torch.nn.functional.pad(distance, (1, 1), value=torch.inf)
        minimum = (distance <= padded[:, :-2]) & (distance <= padded[:, 2:])
        depth, order = torch.where(minimum, distance, torch.inf).topk(self.starts, dim=1, largest=False)
        return grid.gather(1, order)[..., None], depth.isfinite()

    @cached_property
    def _grid(self) -> Tensor:
        return torch.linspace(-self.extent, self.extent, self.grid_size, dtype=torch.float64)[:, None]

    def _propose_parameters(self, n: int, generator: torch.Generator) -> Tensor:
        return (2 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1) * self.extent


@dataclass(frozen=True)
class Trefoil(Manifold):
    """Trefoil knot in R^3, wound around a torus of radius 2 and tube radius 1, times ``scale``."""

    scale: float = 1.0
    ambient_dim = 3
    dim = 1

    def embed(self, parameters: Tensor) -> Tensor:
        t = parameters[..., 0]
        ring = 2 + (3 * t).cos()
        return self.scale * torch.stack([ring * (2 * t).cos(), ring * (2 * t).sin(), (3 * t).sin()], dim=-1)


@dataclass(frozen=True)
class Torus(Manifold):
    """Torus in R^3 around the z-axis: a tube of radius ``tube`` around a circle of radius ``ring > tube``.

    Its reach is the smaller of ``tube`` and ``ring - tube``.
    """

    ring: float = 2.0
    tube: float = 0.75
    ambient_dim = 3
    dim = 2
    grid_size = 48

    def embed(self, parameters: Tensor) -> Tensor:
        around, across = parameters[..., 0], parameters[..., 1]
        radius = self.ring + self.tube * across.cos()
        return torch.stack([radius * around.cos(), radius * around.sin(), self.tube * across.sin()], dim=-1)

    @property
    def reach(self) -> float:
        return min(self.tube, self.ring - self.tube)

    def _nearest_parameters(self, points: Tensor) -> tuple[Tensor, Tensor]:
        x, y, z = points.unbind(1)
        radius = torch.hypot(x, y)
        parameters = torch.stack([torch.atan2(y, x), torch.atan2(z, radius - self.ring)], dim=1)
        from_core = torch.hypot(radius - self.ring, z)
        tolerance = self.medial_tolerance * self.ring
        return parameters, (radius > tolerance) & (from_core > tolerance)


@dataclass(frozen=True)
class HarmonicSignals(Manifold):
    """Signals of ``length`` samples made of two harmonics, with mean zero.

    ``x_k = a_1 sin(w_1 t_k + u_1) + a_2 sin(w_2 t_k + u_2)`` with ``t_k = 2 pi k / length`` and integer
    ``w_1 < w_2``.

    Parameters
    ----------
    dim : int
        2: both phases are free, the manifold is a flat torus with the projection in closed form (the phases
        of the two Fourier coefficients). 1: the phases are tied, ``u_j = w_j u``, so the signals are the
        shifts of one shape.
    length : int
        Number of samples n; the ambient dimension.
    amplitudes, harmonics : tuple
        ``(a_1, a_2)`` and ``(w_1, w_2)``.

    Raises
    ------
    ValueError
        If ``dim`` is neither 1 nor 2, or the harmonics are not resolved by ``length`` samples.
    """

    dim: int = 1  # type: ignore[misc]
    length: int = 64
    amplitudes: tuple[float, float] = (1.0, 0.5)
    harmonics: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if self.dim not in (1, 2):
            raise ValueError(f"dim: expected 1 (tied phases) or 2 (free phases), got {self.dim}")
        first, second = self.harmonics
        if not 0 < first < second < self.length / 2:
            raise ValueError(
                f"harmonics: expected 0 < w_1 < w_2 < length / 2 = {self.length / 2}, got {self.harmonics}"
            )

    @property
    def ambient_dim(self) -> int:  # type: ignore[override]
        return self.length

    @property
    def grid_size(self) -> int:  # type: ignore[override]
        return 512 if self.dim == 1 else 48

    def embed(self, parameters: Tensor) -> Tensor:
        time = torch.arange(self.length, dtype=torch.float64) * (TWO_PI / self.length)
        first = self.amplitudes[0] * (self.harmonics[0] * time + self._phase(parameters, 0)).sin()
        second = self.amplitudes[1] * (self.harmonics[1] * time + self._phase(parameters, 1)).sin()
        return first + second

    def _phase(self, parameters: Tensor, which: int) -> Tensor:
        if self.dim == 1:
            return self.harmonics[which] * parameters
        return parameters[..., which : which + 1]

    @property
    def reach(self) -> float | None:
        # A flat torus is a product of two circles, and its reach that of the smaller.
        return min(self.amplitudes) * math.sqrt(self.length / 2) if self.dim == 2 else None

    def _nearest_parameters(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if self.dim == 1:
            return super()._nearest_parameters(points)
        coefficients = torch.fft.rfft(points, dim=1)[:, list(self.harmonics)]
        # A sine of phase u has the Fourier coefficient exp(i u) / i up to a positive factor.
        phases = (coefficients * 1j).angle()
        return phases, (coefficients.abs() > self.medial_tolerance * self.length).all(1)


@dataclass(frozen=True)
class WeaveImages(Manifold):
    """Photographs of one cloth at every position: the weave of :func:`ssae.textures.weave`, both phases free.

    Points are flattened colour images, ``n = 3 size^2``; :meth:`images` gives them their shape. The
    parameters are the phases times pi. Moving the cloth by one thread both ways gives the same image, so each
    point has two parameters, which does no harm.

    Parameters
    ----------
    size : int
        Height and width in pixels.
    period, angle, contrast, tint : float
        The latent parameters that stay fixed, see :func:`ssae.textures.weave`.
    """

    size: int = 32
    period: float = 8.0
    angle: float = 0.12
    contrast: float = 0.8
    tint: float = 0.5
    dim = 2
    grid_size = 32

    @property
    def ambient_dim(self) -> int:  # type: ignore[override]
        return 3 * self.size**2

    def embed(self, parameters: Tensor) -> Tensor:
        # Imported here because the textures bring scikit-image along, which no other manifold needs.
        from ssae.textures import weave

        phases = parameters.reshape(-1, 2) / math.pi
        fixed = phases.new_tensor([self.period, self.angle, self.contrast, self.tint]).expand(len(phases), -1)
        images = weave(torch.cat([fixed[:, :2], phases, fixed[:, 2:]], dim=1), self.size)
        return images.reshape(*parameters.shape[:-1], self.ambient_dim)

    def images(self, points: Tensor) -> Tensor:
        """Give points ``(B, n)`` the shape of images ``(B, 3, size, size)``."""
        return points.reshape(-1, 3, self.size, self.size)
