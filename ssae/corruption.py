"""Partial corruption of images: soft-edged blobs filled with something that does not belong there.

For each image a few blobs are drawn; each is a disk that fades outwards, stretched, turned and warped by a
smooth random field. What goes inside is one of four fills: the image itself, elastically deformed; another
place of another normal image; a foreign texture; a uniform stain. Everything outside the blobs stays as it
is, to the bit: that is what makes the corruption *partial*.

All of it works on whole batches, on the device of the images, without a loop over images. Shape, fills and
opacity follow what is known of the papers (A: arXiv 2206.11723, B: arXiv 2511.07233); the ranges are the
book's own choice. Explained in chapter 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

FILLS = ("elastic", "elsewhere", "texture", "stain")

# Side of the square template in which a blob is warped before it is pasted; its soft edge needs no finer
# grid.
TEMPLATE = 48


@dataclass(frozen=True)
class CorruptionSettings:
    """Ranges from which a partial corruption is drawn.

    Parameters
    ----------
    blobs
        Least and greatest number of blobs in a corrupted image.
    side
        Range of a blob's mean side, as a share of the image side; drawn log-uniformly, so that small defects
        are as common as large.
    elongation
        Greatest ratio of a blob's long to short side; drawn log-uniformly from 1, so that some blobs are
        scratches.
    warp
        Strength of the smooth random field that bends the disk, as a share of the blob's side.
    fade
        Width of the soft border, as a share of the blob's side.
    fills
        Probability of each fill, in the order of ``FILLS``.
    elastic
        Standard deviation of the displacement of an elastic fill, as a share of the image side.
    grey_share
        Share of textures and stains that lose their colour: on a grey part, colour alone would give every
        defect away.
    opacity
        Range of the fill's opacity. ``(1, 1)`` is paper A's; paper B also varies the opacity.
    clean_share
        Share of images left without corruption.
    """

    blobs: tuple[int, int] = (1, 3)
    side: tuple[float, float] = (0.06, 0.4)
    elongation: float = 4.0
    warp: float = 0.12
    fade: float = 0.15
    fills: tuple[float, float, float, float] = (0.35, 0.2, 0.3, 0.15)
    elastic: tuple[float, float] = (0.02, 0.08)
    grey_share: float = 0.5
    opacity: tuple[float, float] = (0.3, 1.0)
    clean_share: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.blobs[0] <= self.blobs[1]:
            raise ValueError(f"blobs must be a range of at least 1, got {self.blobs}")
        if not 0 < self.side[0] <= self.side[1]:
            raise ValueError(f"side must be a range above 0, got {self.side}")
        if self.elongation < 1:
            raise ValueError(f"elongation must be at least 1, got {self.elongation}")
        if not 0 <= self.opacity[0] <= self.opacity[1] <= 1:
            raise ValueError(f"opacity must be a range within [0, 1], got {self.opacity}")
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share must lie in [0, 1], got {self.clean_share}")
        if len(self.fills) != len(FILLS) or min(self.fills) < 0 or sum(self.fills) <= 0:
            raise ValueError(f"fills needs a probability for each of {FILLS}, got {self.fills}")


@dataclass(frozen=True)
class PartialCorruption:
    """Draw partially corrupted copies of normal images.

    Parameters
    ----------
    settings
        Ranges to draw from.
    textures
        Foreign textures ``(T, C, h, w)`` in [0, 1], for instance :func:`procedural_textures`; needed if the
        texture fill can occur.

    Notes
    -----
    Called as ``corruption(clean, generator)`` with ``clean`` ``(B, C, H, W)`` in [0, 1] and a generator on
    its device; returns the corrupted images, of the same shape, and the mask ``(B, 1, H, W)`` in [0, 1], 1
    where corrupted. With ``y`` the fill, ``M`` the mask and ``a`` the opacity, ``corrupted = clean + a M (y -
    clean)``. The same seed gives the same batch. Explained in chapter 9.
    """

    settings: CorruptionSettings = field(default_factory=CorruptionSettings)
    textures: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.textures is None and self.settings.fills[FILLS.index("texture")] > 0:
            raise ValueError(
                "the texture fill needs textures; pass procedural_textures(...) or give it probability 0"
            )

    def __call__(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt a batch; see the class."""
        s = self.settings
        batch = clean.shape[0]
        mask = blob_masks(batch, clean.shape[-2:], s, generator)
        alpha = uniform((batch, 1, 1, 1), *s.opacity, generator)
        opacity = alpha * mask
        fill = self.fill(clean, generator)
        # lerp with weight 0 returns the clean value itself, so what lies outside the blobs is untouched to
        # the bit.
        return torch.lerp(clean, fill, opacity.expand_as(clean)), mask

    def fill(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """What would show through a mask that is 1 everywhere, ``(B, C, H, W)`` in [0, 1].

        Three of the four fills are one operation: read some source image through a moved and bent grid.
        """
        s = self.settings
        batch, channels = clean.shape[:2]
        device = generator.device
        kind = torch.multinomial(
            torch.tensor(s.fills, device=device), batch, replacement=True, generator=generator
        )
        kind = kind.view(batch, 1, 1, 1)
        elastic, elsewhere, texture, stain = (kind == k for k in range(len(FILLS)))

        source = torch.where(elsewhere, shuffled(clean, generator), clean)
        if self.textures is not None:
            source = torch.where(texture, self._draw_textures(clean, generator), source)
        moved = random_affine(batch, generator)
        still = torch.eye(2, 3, device=device).expand(batch, 2, 3)
        affine = torch.where((elsewhere | texture).view(batch, 1, 1), moved, still)
        grid = F.affine_grid(affine, list(clean.shape), align_corners=False)
        # grid_sample's coordinates span 2 across the image, hence the factor.
        amount = 2 * uniform((batch, 1, 1, 1), *s.elastic, generator) * elastic
        grid = grid + amount * smooth_field(batch, clean.shape[-2:], 5, generator).permute(0, 2, 3, 1)
        read = F.grid_sample(
            source, grid.to(clean.dtype), mode="bilinear", padding_mode="reflection", align_corners=False
        )

        # Stains are either any colour or a lighter or darker tone of the image's own mean: both are common on
        # real parts.
        own = clean.mean((2, 3), keepdim=True) + uniform((batch, 1, 1, 1), -0.4, 0.4, generator)
        any_colour = uniform((batch, channels, 1, 1), 0, 1, generator)
        colour = torch.where(uniform((batch, 1, 1, 1), 0, 1, generator) < 0.5, own, any_colour).clamp(0, 1)
        filled = torch.where(stain, colour.to(clean.dtype), read)
        grey = (texture | stain) & (uniform((batch, 1, 1, 1), 0, 1, generator) < s.grey_share)
        return torch.where(grey, filled.mean(1, keepdim=True), filled)

    def _draw_textures(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        assert self.textures is not None
        batch = clean.shape[0]
        index = torch.randint(len(self.textures), (batch,), generator=generator, device=generator.device)
        drawn = self.textures.to(clean.device)[index].to(clean.dtype)
        if drawn.shape[-2:] != clean.shape[-2:]:
            drawn = F.interpolate(drawn, size=clean.shape[-2:], mode="bilinear", antialias=True)
        return drawn.expand_as(clean)


def blob_masks(
    batch: int, size: tuple[int, int] | torch.Size, settings: CorruptionSettings, generator: torch.Generator
) -> Tensor:
    """Union of soft-edged, warped blobs for each image, ``(batch, 1, H, W)`` in [0, 1] on the generator's
    device.

    A share ``settings.clean_share`` of the masks is empty. Explained in chapter 9.
    """
    most = settings.blobs[1]
    count = torch.randint(
        settings.blobs[0], most + 1, (batch, 1), generator=generator, device=generator.device
    )
    count = count * (uniform((batch, 1), 0, 1, generator) >= settings.clean_share)
    owner, _ = torch.nonzero(torch.arange(most, device=generator.device) < count, as_tuple=True)
    blobs = len(owner)

    side = log_uniform((blobs, 1), *settings.side, generator)
    stretch = log_uniform((blobs, 1), 1, settings.elongation, generator).sqrt()
    # Stretching keeps the area; a side beyond the image would only hide the blob's shape.
    extent = torch.cat([side * stretch, side / stretch], dim=1)
    centre = uniform((blobs, 2), -1, 1, generator)
    templates = blob_templates(blobs, settings, generator)
    pasted = F.grid_sample(
        templates,
        F.affine_grid(paste_affine(centre, extent, generator), [blobs, 1, *size], align_corners=False),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    union = torch.zeros((batch, 1, *size), device=generator.device)
    return union.scatter_reduce_(0, owner.view(-1, 1, 1, 1).expand_as(pasted), pasted, "amax")


def blob_templates(blobs: int, settings: CorruptionSettings, generator: torch.Generator) -> Tensor:
    """Warped soft disks on a grid of their own, ``(blobs, 1, TEMPLATE, TEMPLATE)`` in [0, 1], 0 on the
    border.
    """
    axis = torch.linspace(-1, 1, TEMPLATE, device=generator.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    field_ = 2 * settings.warp * smooth_field(blobs, (TEMPLATE, TEMPLATE), 5, generator)
    radius = torch.hypot(x + field_[:, 0], y + field_[:, 1])
    fade = 2 * settings.fade
    soft = ((1 - fade / 2 - radius) / fade + 0.5).clamp(0, 1)
    # The warp may push the disk over the template's border, where pasting would cut it off with a hard edge.
    margin = ((1 - torch.maximum(x.abs(), y.abs())) / 0.15).clamp(0, 1)
    soft = soft * margin
    return (soft * soft * (3 - 2 * soft)).unsqueeze(1)


def smooth_field(
    batch: int, size: tuple[int, int] | torch.Size, cells: int, generator: torch.Generator
) -> Tensor:
    """Random vector field ``(batch, 2, H, W)`` of about unit variance that bends over a ``cells``-th of the
    image.
    """
    coarse = torch.randn((batch, 2, cells, cells), generator=generator, device=generator.device)
    return F.interpolate(coarse, size=tuple(size), mode="bicubic", align_corners=True)


def paste_affine(centre: Tensor, extent: Tensor, generator: torch.Generator) -> Tensor:
    """Map image coordinates to a template's: move to ``centre`` ``(N, 2)``, turn at random, divide by
    ``extent`` ``(N, 2)``.
    """
    angle = uniform((len(centre), 1), 0, 2 * math.pi, generator)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], dim=1)
    linear = turn / extent.unsqueeze(-1)
    return torch.cat([linear, -linear @ centre.unsqueeze(-1)], dim=2)


def random_affine(batch: int, generator: torch.Generator) -> Tensor:
    """Turn by any angle, scale by 0.7 to 1.4, shift by up to half an image: ``(batch, 2, 3)`` for
    ``affine_grid``.
    """
    angle = uniform((batch, 1), 0, 2 * math.pi, generator)
    scale = log_uniform((batch, 1), 0.7, 1.4, generator)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], dim=1)
    return torch.cat([linear, uniform((batch, 2, 1), -1, 1, generator)], dim=2)


def shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch in a random order: to each image another one (itself now and then, which is harmless)."""
    return images[torch.randperm(len(images), generator=generator, device=generator.device)]


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform draws from [low, high) on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def log_uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draws from [low, high) whose logarithm is uniform."""
    return torch.exp(uniform(shape, math.log(low), math.log(high), generator))


def procedural_textures(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Foreign textures made from nothing, ``(count, 3, size, size)`` in [0, 1]: filtered noise, stripes,
    checks, cells.

    A substitute for the Describable Textures Dataset, so that the method needs no download. Explained in
    chapter 9.
    """
    if count < 1 or size < 8:
        raise ValueError(f"need count >= 1 and size >= 8, got count {count} and size {size}")
    device = generator.device
    axis = torch.arange(size, device=device) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def shape1(low: float, high: float) -> Tensor:
        return uniform((count, 1, 1), low, high, generator)

    angle, period = shape1(0, math.pi), torch.exp(shape1(math.log(4), math.log(32)))
    bend = 0.05 * smooth_field(count, (size, size), 6, generator)
    u = (x + bend[:, 0]) * angle.cos() + (y + bend[:, 1]) * angle.sin()
    v = (y + bend[:, 1]) * angle.cos() - (x + bend[:, 0]) * angle.sin()
    stripes = torch.sin(2 * math.pi * period * u)
    checks = stripes * torch.sin(2 * math.pi * period * v)
    octaves = [
        F.interpolate(
            torch.randn((count, 1, cells, cells), generator=generator, device=device),
            size=(size, size),
            mode="bicubic",
            align_corners=True,
        ).squeeze(1)
        for cells in (4, 8, 16, 32, 64)
    ]
    gains = torch.softmax(3 * torch.randn((count, len(octaves)), generator=generator, device=device), dim=1)
    noise = 1.5 * sum(gain.view(-1, 1, 1) * octave for gain, octave in zip(gains.T, octaves, strict=True))
    points = torch.rand((count, 24, 2, 1, 1), generator=generator, device=device)
    distance = torch.hypot(x - points[:, :, 0], y - points[:, :, 1]).amin(1)
    cells_ = 6 * distance * period.sqrt() / 2 - 1

    pick = torch.randint(4, (count, 1, 1), generator=generator, device=device)
    tone = torch.where(
        pick == 0, noise, torch.where(pick == 1, stripes, torch.where(pick == 2, checks, cells_))
    )
    tone = torch.sigmoid(3 * tone + 0.5 * noise).unsqueeze(1)
    dark, light = torch.rand((2, count, 3, 1, 1), generator=generator, device=device)
    return torch.lerp(
        dark.expand(-1, -1, size, size), light.expand(-1, -1, size, size), tone.expand(-1, 3, -1, -1)
    )
