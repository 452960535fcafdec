"""Partial corruption of vectors: windows of a signal, blocks of a small image flattened to a vector.

A corruption is called as ``corruption(clean, generator) -> (corrupted, mask)`` with ``clean`` of shape
``(B, n)``. It fills a random place with random content: ``corrupted = clean + mask * opacity * (fill -
clean)``. Images have richer corruptions in :mod:`ssae.corruption`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Fill = Literal["constant", "white", "smooth"]


@dataclass(frozen=True)
class WindowCorruption:
    """Replaces one window of consecutive values of each signal. Explained in chapter 6.

    All default values are the book's own choice.

    Parameters
    ----------
    length : (int, int), default (6, 20)
        Smallest and largest window, in samples; drawn uniformly, as is the position.
    opacity : (float, float), default (0.3, 1)
        Range of the share of the fill in the window; 1 hides the signal altogether.
    fills : tuple of {"constant", "white", "smooth"}
        One is drawn for each signal: a constant level, white noise, or noise smoothed over ``smoothing``
        samples.
    centre, scale : float, default 0 and 0.4
        Mean and standard deviation of the fill over many draws, in the units of the signal; the defaults suit
        signals of mean 0 and amplitude about 1.
    smoothing : float, default 2
        Standard deviation of the Gaussian that smooths the third fill, in samples.
    clean_share : float in [0, 1], default 0
        Share of the signals left as they are, with an empty mask.

    Raises
    ------
    ValueError
        If a range is empty or out of bounds, or when called with signals shorter than the largest window.
    """

    length: tuple[int, int] = (6, 20)
    opacity: tuple[float, float] = (0.3, 1.0)
    fills: tuple[Fill, ...] = ("constant", "white", "smooth")
    centre: float = 0.0
    scale: float = 0.4
    smoothing: float = 2.0
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        _require_range("length", self.length, 1, math.inf)
        _require_range("opacity", self.opacity, 0, 1)
        _require_range("clean_share", (self.clean_share, 1), 0, 1)
        if not self.fills or not set(self.fills) <= set(get_args(Fill)):
            raise ValueError(f"fills is {self.fills}; choose among {', '.join(get_args(Fill))}")
        if not 0 < self.smoothing < math.inf or not 0 <= self.scale < math.inf:
            raise ValueError(
                f"smoothing must be positive and scale not negative, got {self.smoothing} and {self.scale}"
            )

    def __call__(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt a batch.

        Parameters
        ----------
        clean : Tensor, ``(B, n)``
        generator : torch.Generator

        Returns
        -------
        corrupted : Tensor, ``(B, n)``
        mask : Tensor, ``(B, n)``
            1 inside the window, 0 outside, in the dtype of ``clean``.
        """
        batch, size = clean.shape
        if size < self.length[1]:
            raise ValueError(
                f"clean has length {size}, less than the largest window of {self.length[1]}; lower `length`"
            )
        mask = _interval(batch, size, self.length, generator)
        mask = mask * (_uniform((batch, 1), (0, 1), generator) >= self.clean_share)
        opacity = _uniform((batch, 1), self.opacity, generator)
        candidates = torch.stack([self._fill(kind, batch, size, generator) for kind in self.fills])
        chosen = torch.randint(len(self.fills), (batch,), generator=generator, device=generator.device)
        fill = self.centre + self.scale * candidates[chosen, torch.arange(batch, device=chosen.device)]
        return _blend(clean, fill, mask, opacity)

    def _fill(self, kind: Fill, batch: int, size: int, generator: torch.Generator) -> Tensor:
        """Fill of mean 0 and standard deviation 1, ``(batch, size)``."""
        if kind == "constant":
            return _normal((batch, 1), generator).expand(batch, size)
        if kind == "white":
            return _normal((batch, size), generator)
        reach = math.ceil(3 * self.smoothing)
        offsets = torch.arange(-reach, reach + 1, device=generator.device)
        kernel = torch.exp(-0.5 * (offsets / self.smoothing) ** 2)
        # Unit energy rather than unit sum: the smoothed noise keeps the variance of the white one.
        kernel = kernel / kernel.square().sum().sqrt()
        return F.conv1d(_normal((batch, 1, size + 2 * reach), generator), kernel[None, None])[:, 0]


@dataclass(frozen=True)
class BlockCorruption:
    """Replaces one rectangle of each small square image, given as a vector of grey levels in [0, 1].

    The fill is one grey level for the rectangle or one for each pixel, either with probability 1/2, uniform
    in [0, 1]. Explained in chapter 6; all default values are the book's own choice.

    Parameters
    ----------
    side : (int, int), default (2, 4)
        Smallest and largest side of the rectangle, in pixels; height and width are drawn on their own.
    opacity : (float, float), default (0.3, 1)
        Range of the share of the fill in the rectangle.
    clean_share : float in [0, 1], default 0
        Share of the images left as they are, with an empty mask.

    Raises
    ------
    ValueError
        If a range is empty or out of bounds, or when called with vectors that are no square image or too
        small.
    """

    side: tuple[int, int] = (2, 4)
    opacity: tuple[float, float] = (0.3, 1.0)
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        _require_range("side", self.side, 1, math.inf)
        _require_range("opacity", self.opacity, 0, 1)
        _require_range("clean_share", (self.clean_share, 1), 0, 1)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt a batch ``(B, side * side)``; returns ``corrupted`` and a 0/1 ``mask`` of its shape."""
        batch, size = clean.shape
        side = math.isqrt(size)
        if side * side != size or side < self.side[1]:
            raise ValueError(
                f"clean has length {size}; it must be a square image of side {self.side[1]} or more"
            )
        rows = _interval(batch, side, self.side, generator)
        columns = _interval(batch, side, self.side, generator)
        mask = (rows[:, :, None] * columns[:, None, :]).flatten(1)
        mask = mask * (_uniform((batch, 1), (0, 1), generator) >= self.clean_share)
        opacity = _uniform((batch, 1), self.opacity, generator)
        level = _uniform((batch, 1), (0, 1), generator)
        speckle = _uniform((batch, size), (0, 1), generator)
        flat = _uniform((batch, 1), (0, 1), generator) < 0.5
        return _blend(clean, torch.where(flat, level, speckle), mask, opacity)


def _blend(clean: Tensor, fill: Tensor, mask: Tensor, opacity: Tensor) -> tuple[Tensor, Tensor]:
    fill, mask, opacity = fill.to(clean), mask.to(clean), opacity.to(clean)
    return clean + mask * opacity * (fill - clean), mask


def _interval(batch: int, size: int, lengths: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Indicator of one random interval inside ``0..size-1`` for each row, ``(batch, size)``."""
    shape, device = (batch, 1), generator.device
    length = torch.randint(lengths[0], lengths[1] + 1, shape, generator=generator, device=device)
    start = (torch.rand(shape, generator=generator, device=device) * (size - length + 1)).long()
    position = torch.arange(size, device=device)
    return ((position >= start) & (position < start + length)).float()


def _uniform(shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _require_range(name: str, bounds: tuple[float, float], low: float, high: float) -> None:
    if not low <= bounds[0] <= bounds[1] <= high:
        raise ValueError(f"{name} is {bounds}; it must satisfy {low} <= smallest <= largest <= {high}")
