"""Partial corruption of images: soft-edged blobs filled with something that does not belong there.

For each image a few blobs are drawn; each is a disk that fades outwards, stretched, turned and warped by a
smooth random field. What goes inside is one of four fills: the image itself, elastically deformed; another
place of another normal image; a foreign texture; a uniform stain. Everything outside the blobs stays as it
is, to the bit: that is what makes the corruption *partial*.

All of it works on whole batches, on the device of the images, without a loop over images, and only on the
pixels under a blob, about one in twenty: the cost does not grow with what stays as it is. Shape, fills and
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
    side: tuple[float, float] = (0.06, 0.6)
    elongation: float = 4.0
    warp: float = 0.12
    fade: float = 0.15
    fills: tuple[float, float, float, float] = (0.35, 0.25, 0.25, 0.15)
    elastic: tuple[float, float] = (0.02, 0.08)
    grey_share: float = 0.5
    opacity: tuple[float, float] = (0.5, 1.0)
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
        batch, _, height, width = clean.shape
        # Nine pixels in ten stay as they are: only the others are worked on.
        mask, image, y, x = draw_blobs(batch, (height, width), self.settings, generator)
        alpha = uniform((batch,), *self.settings.opacity, generator)
        opacity = take(alpha, image) * take(mask, (image * height + y) * width + x)
        corrupted = clean.clone()
        fill = self._fill_at(corrupted, image, y, x, generator)
        memory, where = _memory(corrupted), _places(corrupted, image, y, x)
        blended = torch.lerp(take(memory, where), fill, opacity.to(clean.dtype))
        # A pixel under two blobs is written twice, with the same value.
        memory.index_copy_(0, where.view(-1), blended.view(-1))
        return corrupted, mask

    def fill(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """What would show through a mask that is 1 everywhere, ``(B, C, H, W)`` in [0, 1]."""
        batch, channels, height, width = clean.shape
        every = torch.ones((batch, height, width), dtype=torch.bool, device=clean.device)
        image, y, x = every.nonzero(as_tuple=True)
        values = self._fill_at(clean.contiguous(), image, y, x, generator)
        return values.view(channels, batch, height, width).transpose(0, 1).contiguous()

    def _fill_at(
        self, clean: Tensor, image: Tensor, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The fill of some pixels, given by image, row and column ``(P,)`` each: ``(C, P)``."""
        s = self.settings
        batch, channels = clean.shape[:2]
        size = (clean.shape[2], clean.shape[3])
        device = generator.device
        shares = torch.tensor(s.fills, device=device)
        kind = torch.multinomial(shares, batch, replacement=True, generator=generator)
        elastic, elsewhere, texture, stain = (kind == k for k in range(len(FILLS)))

        other = torch.randperm(batch, generator=generator, device=device)
        textures, pick = self._draw_textures(clean, generator)
        affine = random_affine(batch, generator)
        amount = uniform((batch, 1, 1, 1), *s.elastic, generator)
        coarse = torch.randn((batch, 2, 5, 5), generator=generator, device=device)

        # Stains are either any colour or a lighter or darker tone of the image's own mean: both are common on
        # real parts. The mean is taken where it is needed only.
        mean = torch.zeros((batch, channels), device=device)
        mean[stain] = clean[stain].mean((2, 3)).to(mean.dtype)
        tone = mean + uniform((batch, 1), -0.4, 0.4, generator)
        any_colour = uniform((batch, channels), 0, 1, generator)
        colour = torch.where(uniform((batch, 1), 0, 1, generator) < 0.5, tone, any_colour).clamp(0, 1)
        values = colour.to(clean.dtype).T.contiguous().index_select(1, image)

        # The other fills read some image elsewhere than where they stand.
        for chosen in (elastic, elsewhere, texture):
            at = take(chosen, image).nonzero().squeeze(1)
            owner, row, column = take(image, at), take(y, at), take(x, at)
            down, across = (2 * row + 1) / size[0] - 1, (2 * column + 1) / size[1] - 1
            source, index = clean, owner
            if chosen is elastic:
                # Coordinates run from -1 to 1, so a displacement by the whole side is 2.
                push_x, push_y = field_at(2 * amount * coarse, size, owner, row, column)
                across, down = across + push_x, down + push_y
            else:
                across, down = transform(affine, owner, across, down)
                source, index = (
                    (textures, take(pick, owner)) if chosen is texture else (clean, take(other, owner))
                )
            read = read_images(source, index, down, across)
            values.index_copy_(1, at, read.to(clean.dtype).expand(channels, -1))
        grey = (texture | stain) & (uniform((batch,), 0, 1, generator) < s.grey_share)
        return torch.where(take(grey, image), values.mean(0), values)

    def _draw_textures(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Textures of the size of the images, and which of them each image gets ``(B,)``."""
        batch = len(clean)
        if self.textures is None:
            return clean, torch.zeros(batch, dtype=torch.long, device=clean.device)
        index = torch.randint(len(self.textures), (batch,), generator=generator, device=generator.device)
        textures = self.textures.to(clean.device).contiguous()
        if textures.shape[-2:] == clean.shape[-2:]:
            return textures, index
        drawn = F.interpolate(textures[index], size=clean.shape[-2:], mode="bilinear", antialias=True)
        return drawn, torch.arange(batch, device=clean.device)


def blob_masks(
    batch: int, size: tuple[int, int] | torch.Size, settings: CorruptionSettings, generator: torch.Generator
) -> Tensor:
    """Union of soft-edged, warped blobs for each image, ``(batch, 1, H, W)`` in [0, 1] on the generator's
    device.

    A share ``settings.clean_share`` of the masks is empty. Explained in chapter 9.
    """
    return draw_blobs(batch, size, settings, generator)[0]


def draw_blobs(
    batch: int, size: tuple[int, int] | torch.Size, settings: CorruptionSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`blob_masks`, and image, row and column ``(P,)`` of each pixel that is not 0 in them.

    A pixel under several blobs is listed several times.
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
    blob, y, x, v, u = template_pixels(paste_affine(centre, extent, generator), size)
    pasted = read_images(templates, blob, v, u).squeeze(0)
    drawn = pasted.nonzero().squeeze(1)
    image, y, x = take(owner, take(blob, drawn)), take(y, drawn), take(x, drawn)
    mask = torch.zeros((batch, 1, *size), device=generator.device)
    mask.view(-1).scatter_reduce_(0, (image * size[0] + y) * size[1] + x, take(pasted, drawn), "amax")
    return mask, image, y, x


def template_pixels(
    affine: Tensor, size: tuple[int, int] | torch.Size
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The pixels of an image that fall into a template, for each map ``(N, 2, 3)`` from image to it.

    Returns template, row and column of each pixel, and its place in the template, down and across, within
    (-1, 1); all ``(P,)``.
    """
    height, width = size
    linear, offset = affine[:, :, :2], affine[:, :, 2]
    # How far the template reaches down the image, and from there its rows.
    back = torch.linalg.inv(linear)
    centre, reach = -(back[:, 1] * offset).sum(1), back[:, 1].abs().sum(1)
    first = (((centre - reach + 1) * height - 1) / 2).ceil().clamp_min(0).long()
    last = (((centre + reach + 1) * height - 1) / 2).floor().clamp_max(height - 1).long()
    template, y = _count_up((last - first + 1).clamp_min(0))
    y = y + take(first, template)
    # Along a row the place in the template is start + step * x: solve for the x at which it enters and
    # leaves.
    step = (linear[:, :, 0] * (2 / width)).index_select(0, template)
    down = (2 * y + 1) / height - 1
    start = (offset + linear[:, :, 0] * (1 / width - 1)).index_select(0, template)
    start = start + linear[:, :, 1].index_select(0, template) * down.unsqueeze(1)
    ends = torch.stack([(-1 - start) / step, (1 - start) / step])
    enters = ends.amin(0).amax(1).ceil().clamp(0, width)
    leaves = ends.amax(0).amin(1).floor().clamp(-1, width - 1)
    line, x = _count_up((leaves - enters + 1).clamp_min(0).long())
    x = x + take(enters.long(), line)
    start, step = start.T.contiguous().index_select(1, line), step.T.contiguous().index_select(1, line)
    across, down = torch.addcmul(start, step, x.to(start.dtype)).unbind(0)
    return take(template, line), take(y, line), x, down, across


def _count_up(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Count from 0 to n - 1 for each n of `lengths`, one after the other: the n's place, and the count."""
    place = torch.repeat_interleave(lengths)
    first = lengths.cumsum(0) - lengths
    return place, torch.arange(len(place), device=lengths.device) - take(first, place)


def transform(affine: Tensor, index: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Apply to each point ``(x[p], y[p])`` the map ``affine[index[p]]``, out of ``(N, 2, 3)``."""
    xx, xy, x0, yx, yy, y0 = affine.flatten(1).T.contiguous().index_select(1, index)
    return xx * x + xy * y + x0, yx * x + yy * y + y0


def read_images(images: Tensor, index: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Read images ``(N, C, H, W)`` bilinearly between their pixels: ``(C, P)``.

    Point ``p`` lies in image ``index[p]`` at ``(y[p], x[p])``, coordinates from -1 to 1 across the image;
    beyond, the image is reflected. It is `torch.nn.functional.grid_sample` for scattered points.
    """
    height, width = images.shape[-2:]
    memory, below, beside = _memory(images), images.stride(2), images.stride(3)
    top, down = _between_pixels(y, height)
    left, across = _between_pixels(x, width)
    across, down = across.to(images.dtype), down.to(images.dtype)
    corner = _places(images, index, top, left)
    upper = torch.lerp(take(memory, corner), take(memory, corner + beside), across)
    corner = corner + below
    lower = torch.lerp(take(memory, corner), take(memory, corner + beside), across)
    return torch.lerp(upper, lower, down)


def _between_pixels(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The pixel before a coordinate from -1 to 1, reflected at the borders, and the share of the next."""
    # Reflection at both borders is a triangular wave of period 4: the distance to the nearest multiple of it.
    turns = (coordinate + 1) / 4
    position = ((turns - turns.round()).abs() * (2 * size) - 0.5).clamp(0, size - 1)
    before = position.floor().clamp_max(size - 2)
    return before.long(), position - before


def _memory(images: Tensor) -> Tensor:
    """The memory of dense images as a vector; their channels may come last in it."""
    return images.as_strided((images.numel(),), (1,))


def _places(images: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Where pixels ``(P,)`` of dense images ``(N, C, H, W)`` lie in memory, for every channel: ``(C, P)``."""
    a, c, b, d = images.stride()
    return image * a + y * b + x * d + c * torch.arange(images.shape[1], device=image.device).unsqueeze(1)


def take(values: Tensor, places: Tensor) -> Tensor:
    """The flattened `values` at `places`, in the shape of `places`."""
    # On a CPU several times as fast as indexing with a tensor, and faster than torch.take.
    return values.reshape(-1).index_select(0, places.reshape(-1)).view(places.shape)


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
    down, across = bicubic_weights(cells, size, coarse.device)
    rows = (coarse.unsqueeze(-1) * across).sum(-2)
    return (down.unsqueeze(-1) * rows.unsqueeze(-2)).sum(-3)


def field_at(
    coarse: Tensor, size: tuple[int, int] | torch.Size, index: Tensor, y: Tensor, x: Tensor
) -> Tensor:
    """The smooth fields that `smooth_field` makes from coarse ones ``(N, 2, cells, cells)``, at the pixels
    ``(y[p], x[p])`` of field ``index[p]`` only: ``(2, P)``.
    """
    cells = coarse.shape[-1]
    down, across = bicubic_weights(cells, size, coarse.device)
    rows = (down.view(cells, 1, 1, 1, -1) * coarse.permute(2, 1, 3, 0).unsqueeze(-1)).sum(0)
    rows = rows.reshape(2 * cells, -1).index_select(1, index * size[0] + y)
    return (rows.view(2, cells, -1) * across.index_select(1, x)).sum(1)


def bicubic_weights(
    cells: int, size: tuple[int, int] | torch.Size, device: torch.device
) -> tuple[Tensor, Tensor]:
    """How much each of the cells counts at each row ``(cells, H)`` and at each column ``(cells, W)``.

    Bicubic interpolation is linear, and first down then across is the same as both at once. So the
    interpolated unit vectors are all there is to know, and sums of ``2 * cells`` products replace sixteen
    for each pixel.
    """
    unit = torch.eye(cells, device=device).view(1, cells, cells, 1)
    down, across = (
        F.interpolate(unit, size=(side, 1), mode="bicubic", align_corners=True).view(cells, side)
        for side in size
    )
    return down, across


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
