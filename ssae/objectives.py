"""Training objectives of autoencoders, one signature for all of them.

An objective is a small frozen dataclass called as ``objective(model, clean, generator)``. It draws what it
needs at random from ``generator``, runs ``model`` and returns a scalar to be minimised. ``clean`` is a batch
of normal samples, ``(B, n)`` or ``(B, C, H, W)``; ``model`` maps a batch to a batch of the same shape.

Every objective but the masked one is a mean over the batch *and* over the ``n`` values of a sample. Dividing
by ``n`` leaves the minimisers alone, and makes weights comparable: a penalty of weight ``gamma`` here means
``(||r||^2 + gamma ||J||_F^2) / n``. The two terms of the masked objective are means over their own areas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]


class Corruption(Protocol):
    """Damages a clean batch and says where: ``corruption(clean, generator) -> (corrupted, mask)``.

    ``mask`` broadcasts to ``clean`` and lies in [0, 1]; 1 means corrupted.
    """

    def __call__(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


class Objective(Protocol):
    """Anything that can be minimised: ``objective(model, clean, generator) -> scalar``."""

    def __call__(self, model: Model, clean: Tensor, generator: torch.Generator) -> Tensor: ...


def masked_reconstruction(output: Tensor, clean: Tensor, mask: Tensor, weight: float) -> Tensor:
    r"""Squared error inside and outside a mask, each divided by its own mask mass.

    .. math::

        L = \frac{1-\lambda}{\|\bar M\|_1} \|\bar M \odot (f(\hat x) - x)\|_2^2
          + \frac{\lambda}{\|M\|_1} \|M \odot (f(\hat x) - x)\|_2^2, \qquad \bar M = 1 - M

    The formula is applied to each sample on its own and then averaged over the batch, so that a sample with a
    small defect counts as much as one with a large defect. A term whose mask is empty is zero: a sample
    without corruption contributes only its first term, a sample that is corrupted everywhere only its second.

    Parameters
    ----------
    output, clean : Tensor, ``(B, n)`` or ``(B, C, H, W)``
        Reconstruction of the corrupted batch and the target.
    mask : Tensor, broadcastable to ``clean``
        1 where corrupted, 0 where clean, in between on a soft border. A mask without channels, ``(B, 1, H,
        W)``, counts once for every channel.
    weight : float in [0, 1]
        Lambda, the share of the repair term.

    Returns
    -------
    Tensor, ``()``
        In float32 at least, also where ``output`` comes from a half-precision autocast region.

    Raises
    ------
    ValueError
        If ``weight`` is outside [0, 1] or ``output`` and ``clean`` differ in shape.

    Notes
    -----
    Paper A (arXiv 2206.11723), main objective. Explained in chapter 6.
    """
    _require_unit_interval("weight", weight)
    if output.shape != clean.shape:
        raise ValueError(
            f"output has shape {tuple(output.shape)}, clean {tuple(clean.shape)}; they must be equal"
        )
    # A sum over 256 x 256 x 3 values loses most of its digits in bfloat16.
    dtype = torch.promote_types(output.dtype, torch.float32)
    residual = output.to(dtype) - clean.to(dtype)
    mask = mask.to(dtype).expand_as(residual)
    keep = _masked_mean_square(residual, 1 - mask)
    repair = _masked_mean_square(residual, mask)
    return ((1 - weight) * keep + weight * repair).mean()


def _masked_mean_square(residual: Tensor, mask: Tensor) -> Tensor:
    """``||M r||^2 / ||M||_1`` of each sample, 0 where the mask is empty. Shape ``(B,)``."""
    dims = tuple(range(1, residual.ndim))
    energy = (mask * residual).square().sum(dims)
    # An empty mask has energy 0 and gradient 0, so any positive divisor gives the 0 that is wanted.
    return energy / mask.sum(dims).clamp_min(torch.finfo(residual.dtype).tiny)


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    """Mean of ``(output - target)^2`` over everything, accumulated in float32 at least. Shape ``()``."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    return (output.to(dtype) - target.to(dtype)).square().mean()


def _corrupt(corruption: Corruption, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``corruption(clean, generator)``, computed as precisely as without autocast."""
    # Autocast is for the model. Three digits are few for a place in an image.
    with torch.autocast(clean.device.type, enabled=False):
        return corruption(clean, generator)


def _noise_like(clean: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    # Drawn where the generator lives: one seed then gives one sequence, whatever device the batch is on.
    noise = torch.randn(clean.shape, generator=generator, device=generator.device, dtype=clean.dtype)
    return sigma * noise.to(clean.device)


def _require_unit_interval(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must lie in [0, 1]")


def _require_non_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} is {value}; it must not be negative")


@dataclass(frozen=True)
class Reconstruction:
    """Plain autoencoder: ``||f(x) - x||^2 / n``. Explained in chapter 2."""

    def __call__(self, model: Model, clean: Tensor, generator: torch.Generator) -> Tensor:
        return mean_square(model(clean), clean)


@dataclass(frozen=True)
class Denoising:
    """Denoising autoencoder: ``||f(x + e) - x||^2 / n`` with ``e ~ N(0, sigma^2 I)``. Explained in chapter 4.

    Parameters
    ----------
    sigma : float, >= 0
        Standard deviation of the noise, in the units of the data.
    """

    sigma: float

    def __post_init__(self) -> None:
        _require_non_negative("sigma", self.sigma)

    def __call__(self, model: Model, clean: Tensor, generator: torch.Generator) -> Tensor:
        return mean_square(model(clean + _noise_like(clean, self.sigma, generator)), clean)


@dataclass(frozen=True)
class Masked:
    """Repair of partially corrupted samples, the objective this book is about. Explained in chapters 6 and 7.

    ``corruption`` damages the clean batch; the model is asked for the clean batch back, scored by
    :func:`masked_reconstruction`.

    Parameters
    ----------
    corruption : Corruption
        ``corruption(clean, generator) -> (corrupted, mask)``.
    weight : float in [0, 1], default 0.5
        Lambda, the share of the repair term. The papers' value is not known to us; this is the book's own
        choice.
    noise : float, >= 0, default 0
        Standard deviation of Gaussian noise that is added to the input *and kept in the target* (paper B,
        arXiv 2511.07233): the model learns to let small unstructured variation pass.
    """

    corruption: Corruption
    weight: float = 0.5
    noise: float = 0.0

    def __post_init__(self) -> None:
        _require_unit_interval("weight", self.weight)
        _require_non_negative("noise", self.noise)

    def __call__(self, model: Model, clean: Tensor, generator: torch.Generator) -> Tensor:
        corrupted, mask = _corrupt(self.corruption, clean, generator)
        if self.noise > 0:
            kept = _noise_like(clean, self.noise, generator)
            corrupted, clean = corrupted + kept, clean + kept
        return masked_reconstruction(model(corrupted), clean, mask, self.weight)


@dataclass(frozen=True)
class Sparse:
    """Sparse codes: ``(||f(x) - x||^2 + weight ||encode(x)||_1) / n``. Explained in chapter 2.

    The penalty is not scale-free: a decoder with larger weights allows smaller codes at the same
    reconstruction. Weight decay on the decoder, or comparing zeros rather than sizes, removes the ambiguity.

    Parameters
    ----------
    weight : float, >= 0
        Weight of the L1 norm of the code.
    """

    weight: float

    def __post_init__(self) -> None:
        _require_non_negative("weight", self.weight)

    def __call__(self, model: Model, clean: Tensor, generator: torch.Generator) -> Tensor:
        encode, decode = _halves(model)
        code = encode(clean)
        return mean_square(decode(code), clean) + self.weight * code.abs().sum() / clean.numel()


@dataclass(frozen=True)
class Contractive:
    """Contractive autoencoder: ``(||f(x) - x||^2 + weight ||J_encode(x)||_F^2) / n``.

    Source: Rifai et al., "Contractive auto-encoders" (ICML 2011). Explained in chapter 3.

    Parameters
    ----------
    weight : float, >= 0
        Weight of the squared Jacobian norm of the encoder.
    probes : int, optional
        Number of random probes of the norm; without it the norm is exact. See :func:`squared_jacobian_norm`.
    """

    weight: float
    probes: int | None = None

    def __post_init__(self) -> None:
        _require_non_negative("weight", self.weight)

    def __call__(self, model: Model, clean: Tensor, generator: torch.Generator) -> Tensor:
        encode, decode = _halves(model)
        with torch.enable_grad():
            inputs = clean.detach().requires_grad_()
            code = encode(inputs)
            norm = squared_jacobian_norm(code, inputs, self.probes, generator)
        return mean_square(decode(code), clean) + self.weight * norm.sum() / clean.numel()


@dataclass(frozen=True)
class ReconstructionContractive:
    """Reconstruction contractive autoencoder (RCAE): ``(||f(x) - x||^2 + weight ||J_f(x)||_F^2) / n``.

    Source: Alain and Bengio, "What regularized auto-encoders learn from the data-generating distribution"
    (JMLR 2014). Explained in chapter 3.

    Parameters
    ----------
    weight : float, >= 0
        Weight of the squared Jacobian norm of the whole reconstruction.
    probes : int, optional
        Number of random probes of the norm; without it the norm is exact. See :func:`squared_jacobian_norm`.
    """

    weight: float
    probes: int | None = None

    def __post_init__(self) -> None:
        _require_non_negative("weight", self.weight)

    def __call__(self, model: Model, clean: Tensor, generator: torch.Generator) -> Tensor:
        with torch.enable_grad():
            inputs = clean.detach().requires_grad_()
            output = model(inputs)
            norm = squared_jacobian_norm(output, inputs, self.probes, generator)
        return mean_square(output, clean) + self.weight * norm.sum() / clean.numel()


@dataclass(frozen=True)
class Idempotent:
    """Any objective plus a penalty for moving a second time: ``base + weight ||f(f(z)) - f(z)||^2 / n``.

    The penalty is taken at corrupted samples ``z``: on clean ones a good reconstruction has it for free.
    Paper C (arXiv 2606.15280) is reported to use a regulariser of this kind; its exact form is not known to
    us, this one is the book's own choice. Explained in chapter 6.

    Parameters
    ----------
    base : Objective
        What is trained besides; without one, the identity would be a minimiser.
    corruption : Corruption
        ``corruption(clean, generator) -> (corrupted, mask)``; the mask is not used.
    weight : float, >= 0
    """

    base: Objective
    corruption: Corruption
    weight: float

    def __post_init__(self) -> None:
        _require_non_negative("weight", self.weight)

    def __call__(self, model: Model, clean: Tensor, generator: torch.Generator) -> Tensor:
        corrupted, _ = _corrupt(self.corruption, clean, generator)
        once = model(corrupted)
        return self.base(model, clean, generator) + self.weight * mean_square(model(once), once)


def squared_jacobian_norm(
    outputs: Tensor, inputs: Tensor, probes: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    r"""``||J||_F^2`` of each sample's map from ``inputs`` to ``outputs``, differentiable itself.

    Exactly, by one backward pass for each output value (vectorised); or by Hutchinson's estimator, the mean
    of ``||J^T v||^2`` over random signs ``v``, whose expectation is ``||J||_F^2`` because :math:`E[v v^T] =
    I`.

    Parameters
    ----------
    outputs : Tensor, ``(B, ...)``
        Computed from ``inputs`` with gradients enabled, sample by sample: no batch norm in training mode.
    inputs : Tensor, ``(B, ...)``
        Must require gradients.
    probes : int, optional
        Number of probes ``v`` of each sample. Without it the norm is exact, at the cost of as many backward
        passes as a sample has output values.
    generator : torch.Generator, optional
        Source of the probes; needed with ``probes``.

    Returns
    -------
    Tensor, ``(B,)``

    Raises
    ------
    ValueError
        If ``probes`` is less than 1 or comes without ``generator``.

    Notes
    -----
    Explained in chapter 3. One probe of an ``m x n`` Jacobian has variance ``2 sum_{i != j} (J J^T)_{ij}^2``.
    """
    batch, size = outputs.shape[0], outputs[0].numel()
    if probes is None:
        basis = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
        directions = basis[:, None].expand(size, batch, size)
    else:
        if probes < 1 or generator is None:
            raise ValueError(
                f"probes is {probes} and generator {generator}; random probes need at least 1 and one"
            )
        signs = torch.randint(2, (probes, batch, size), generator=generator, device=generator.device)
        directions = (2 * signs - 1).to(outputs)
    (rows,) = torch.autograd.grad(
        outputs.flatten(1), inputs, directions, create_graph=True, is_grads_batched=True
    )
    squares = rows.flatten(2).square().sum((0, 2))
    return squares if probes is None else squares / probes


def _halves(model: Model) -> tuple[Model, Model]:
    try:
        return model.encode, model.decode  # type: ignore[attr-defined]
    except AttributeError:
        name = type(model).__name__
        raise TypeError(f"{name} has no encode and decode, which an objective on codes needs") from None
