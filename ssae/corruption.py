"""Partial corruption of images: soft-edged blobs filled with something that does not belong there.

For each image a few blobs are drawn; each is a disk that fades outwards, stretched, turned and warped by a
smooth random field. What goes inside is one of four fills: the image itself, elastically deformed; another
place of another normal image; a foreign texture; a uniform stain. Everything outside the blobs stays as it
is, to the bit: that is what makes the corruption *partial*.

All of it works on whole batches, on the device of the images, without a loop over images, and only on the
pixels under a blob, a quarter of them by default: the cost does not grow with what stays as it is. The
warped disk, three of the fills and opacity follow what is known of the papers (A: arXiv 2206.11723, B: arXiv
2511.07233); the fill from elsewhere, stretching and all ranges are the book's own choice. Explained in
chapter 9.
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
        Standard deviation of the displacement of an elastic fill at the nodes of its grid, as a share of the
        image side; between them it is less, see :func:`smooth_field`.
    upright
        Share of the fills from elsewhere that are only moved, neither turned nor scaled: what stands in the
        wrong place, or is missing so that the ground beside it goes on, is seldom turned as well.
    grey_share
        Share of textures and stains that lose their colour: on a grey part, colour alone would give every
        defect away.
    opacity
        Range of the fill's opacity. ``(1, 1)`` is paper A's; paper B also varies the opacity.
    clean_share
        Share of images left without corruption.
    """

    blobs: tuple[int, int] = (1, 3)
    side: tuple[float, float] = (0.06, 1.5)
    elongation: float = 4.0
    warp: float = 0.12
    fade: float = 0.15
    fills: tuple[float, float, float, float] = (0.35, 0.25, 0.25, 0.15)
    elastic: tuple[float, float] = (0.02, 0.08)
    upright: float = 0.5
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
        if self.fade <= 0:
            raise ValueError(f"fade must be above 0, got {self.fade}")
        for name in ("upright", "grey_share", "clean_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
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
        owner, affine, templates = draw_templates(batch, self.settings, generator)
        alpha = uniform((batch,), *self.settings.opacity, generator)
        kind = self._draw_kinds(batch, generator)
        # Blobs of one fill follow one another, so that their pixels are slices of the list.
        order = take(kind, owner).argsort(stable=True)
        # Most pixels stay as they are: only the others are worked on.
        mask, image, y, x = paste_blobs(owner[order], affine[order], templates[order], batch, (height, width))
        opacity = take(alpha, image).mul_(take(mask, _places(mask, image, y, x)))
        corrupted = clean.clone()
        fill = self._fill_at(corrupted, kind, image, y, x, generator)
        memory, opacity = _memory(corrupted), opacity.to(clean.dtype)
        where = _places(corrupted, image, y, x).long()
        for channel, new in enumerate(fill):
            plane = memory[channel * corrupted.stride(1) :]
            # A pixel under two blobs is written twice, with the same value.
            plane.index_copy_(0, where, take(plane, where).lerp_(new, opacity))
        return corrupted, mask

    def fill(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """What would show through a mask that is 1 everywhere, ``(B, C, H, W)`` in [0, 1]."""
        batch, channels, height, width = clean.shape
        kind = self._draw_kinds(batch, generator)
        order = kind.argsort()
        every = torch.ones((batch, height, width), dtype=torch.bool, device=clean.device)
        image, y, x = every.nonzero(as_tuple=True)
        values = self._fill_at(clean.contiguous(), kind, take(order, image), y, x, generator)
        filled = torch.empty_like(clean, memory_format=torch.contiguous_format)
        filled[order] = values.view(channels, batch, height, width).transpose(0, 1)
        return filled

    def _draw_kinds(self, batch: int, generator: torch.Generator) -> Tensor:
        """Which of ``FILLS`` each image gets, ``(B,)``."""
        shares = torch.tensor(self.settings.fills, dtype=torch.float32, device=generator.device)
        return torch.multinomial(shares, batch, replacement=True, generator=generator)

    def _fill_at(
        self, clean: Tensor, kind: Tensor, image: Tensor, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The fill of some pixels, given by image, row and column ``(P,)`` each: ``(C, P)``.

        They are sorted by the `kind` of their image.
        """
        s = self.settings
        batch, channels = clean.shape[:2]
        size = (clean.shape[2], clean.shape[3])
        device = generator.device
        elsewhere, texture, stain = (kind == FILLS.index(name) for name in ("elsewhere", "texture", "stain"))

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
        grey = (texture | stain) & (uniform((batch,), 0, 1, generator) < s.grey_share)
        colour = torch.where(grey.unsqueeze(1), colour.mean(1, keepdim=True), colour).to(clean.dtype)
        upright = elsewhere & (uniform((batch,), 0, 1, generator) < s.upright)
        affine = torch.where(upright.view(-1, 1, 1), only_moved(affine), affine)

        ends = torch.searchsorted(take(kind, image), torch.arange(1, len(FILLS), device=device)).tolist()
        parts = []
        for name, *pixels in zip(FILLS, *(of.tensor_split(ends) for of in (image, y, x)), strict=True):
            owner, row, column = pixels
            if name == "stain":
                parts.append(colour.T.contiguous().index_select(1, owner))
                continue
            # The other fills read some image elsewhere than where they stand.
            down, across = _centre(row, size[0]), _centre(column, size[1])
            source, index = clean, owner
            if name == "elastic":
                # Coordinates run from -1 to 1, so a displacement by the whole side is 2.
                push_x, push_y = field_at(2 * amount * coarse, size, owner, row, column)
                across, down = across + push_x, down + push_y
            else:
                across, down = transform(affine, owner, across, down)
                source, index = (
                    (textures, take(pick, owner)) if name == "texture" else (clean, take(other, owner))
                )
            read = read_images(source, index, down, across)
            if name == "texture":
                read = torch.where(take(grey, owner), read.mean(0), read)
            parts.append(read.to(clean.dtype).expand(channels, -1))
        return torch.cat(parts, dim=1)

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
    return paste_blobs(*draw_templates(batch, settings, generator), batch, size)


def draw_templates(
    batch: int, settings: CorruptionSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The blobs of a batch: image of each ``(N,)``, map from image to template ``(N, 2, 3)`` and template."""
    most = settings.blobs[1]
    count = torch.randint(
        settings.blobs[0], most + 1, (batch, 1), generator=generator, device=generator.device
    )
    count = count * (uniform((batch, 1), 0, 1, generator) >= settings.clean_share)
    owner, _ = torch.nonzero(torch.arange(most, device=generator.device) < count, as_tuple=True)
    blobs = len(owner)

    side = log_uniform((blobs, 1), *settings.side, generator)
    stretch = log_uniform((blobs, 1), 1, settings.elongation, generator).sqrt()
    # Stretching keeps the area.
    extent = torch.cat([side * stretch, side / stretch], dim=1)
    centre = uniform((blobs, 2), -1, 1, generator)
    templates = blob_templates(blobs, settings, generator)
    return owner, paste_affine(centre, extent, generator), templates


def paste_blobs(
    owner: Tensor, affine: Tensor, templates: Tensor, batch: int, size: tuple[int, int] | torch.Size
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `draw_blobs` returns, from what `draw_templates` drew; pixels come in the order of the blobs."""
    blob, y, x, v, u = template_pixels(affine, size, octagons(templates))
    pasted = read_images(templates, blob, v, u).squeeze(0)
    drawn = pasted.nonzero().squeeze(1)
    image, y, x = take(owner.int(), take(blob, drawn)), take(y, drawn), take(x, drawn)
    mask = torch.zeros((batch, 1, *size), device=templates.device)
    mask.view(-1).scatter_reduce_(0, _places(mask, image, y, x).long(), take(pasted, drawn), "amax")
    return mask, image, y, x


def template_pixels(
    affine: Tensor, size: tuple[int, int] | torch.Size, octagon: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The pixels of an image that fall into a template, for each map ``(N, 2, 3)`` from image to it.

    With an `octagon` (see `octagons`) only those that fall into it. Returns template, row and column of each
    pixel, and its place in the template, down and across, within (-1, 1); all ``(P,)``.
    """
    height, width = size
    linear, offset = affine[:, :, :2], affine[:, :, 2]
    # How far the template reaches down the image, and from there its rows.
    back = torch.linalg.inv(linear)
    centre, reach = -(back[:, 1] * offset).sum(1), back[:, 1].abs().sum(1)
    first = (((centre - reach + 1) * height - 1) / 2).ceil().clamp_min(0).int()
    last = (((centre + reach + 1) * height - 1) / 2).floor().clamp_max(height - 1).int()
    template, y = _count_up(first, last)
    # Along a row the place in the template is start + step * x: solve for the x at which it enters and
    # leaves each pair of sides.
    step = (linear[:, :, 0] * (2 / width)).index_select(0, template)
    start = (offset + linear[:, :, 0] * (1 / width - 1)).index_select(0, template)
    start = start + linear[:, :, 1].index_select(0, template) * _centre(y, height).unsqueeze(1)
    ends = torch.stack([(-1 - start) / step, (1 - start) / step])
    if octagon is not None:
        low, high = (side.index_select(0, template) for side in octagon)
        begin, slope = _slants(*start.unbind(1)).T, _slants(*step.unbind(1)).T
        ends = torch.cat([ends, torch.stack([(low - begin) / slope, (high - begin) / slope])], dim=2)
    enters = ends.amin(0).amax(1).ceil().clamp(0, width).int()
    leaves = ends.amax(0).amin(1).floor().clamp(-1, width - 1).int()
    line, x = _count_up(enters, leaves)
    column = x.to(start.dtype)
    across, down = (take(start[:, axis], line).addcmul_(take(step[:, axis], line), column) for axis in (0, 1))
    return take(template, line), take(y, line), x, down, across


def octagons(templates: Tensor) -> tuple[Tensor, Tensor]:
    """Between which least and greatest x, y, x + y and x - y templates ``(N, 1, h, w)`` are not 0: ``(N, 4)``
    each.

    A disk lies in an octagon that is a fifth smaller than its square: fewer pixels to look at.
    """
    height, width = templates.shape[-2:]
    down, across = (_centre(torch.arange(side, device=templates.device), side) for side in (height, width))
    y, x = torch.meshgrid(down, across, indexing="ij")
    places = _slants(x, y).flatten(1) * (templates.view(-1, 1, height * width) > 0)
    # Between pixels a template fades to 0 over the distance of one, 2 / width across and 2 / height down.
    margin = 2 / width + 2 / height
    return places.amin(2) - margin, places.amax(2) + margin


def _slants(x: Tensor, y: Tensor) -> Tensor:
    """x, y, x + y and x - y: how far a point lies in the directions of an octagon's sides."""
    return torch.stack([x, y, x + y, x - y])


def _count_up(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Count from each of `first` to its `last`, one after the other: the pair's place, and the count."""
    lengths = (last - first + 1).clamp_min(0)
    place = torch.repeat_interleave(lengths)
    before = lengths.cumsum(0, dtype=lengths.dtype) - lengths
    count = torch.arange(len(place), dtype=lengths.dtype, device=lengths.device)
    return place, count.sub_(take(before - first, place))


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
    memory, (_, channel, below, beside) = _memory(images), images.stride()
    top, down = _between_pixels(y, height)
    left, across = _between_pixels(x, width)
    across, down = across.to(images.dtype), down.to(images.dtype)
    corner = _places(images, index, top, left)
    # The neighbours of all points lie equally far from them: the same places, counted from further on.
    read = []
    for start in (channel * number for number in range(images.shape[1])):
        upper = take(memory[start:], corner).lerp_(take(memory[start + beside :], corner), across)
        start += below
        lower = take(memory[start:], corner).lerp_(take(memory[start + beside :], corner), across)
        read.append(upper.lerp_(lower, down))
    return torch.stack(read)


def _between_pixels(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The pixel before a coordinate from -1 to 1, reflected at the borders, and the share of the next."""
    # Reflection at both borders is a triangular wave of period 4: the distance to the nearest multiple of it.
    turns = (coordinate + 1).div_(4)
    position = turns.sub_(turns.round()).abs_().mul_(2 * size).sub_(0.5).clamp_(0, size - 1)
    before = position.int().clamp_max_(size - 2)
    return before, position.sub_(before)


def _memory(images: Tensor) -> Tensor:
    """The memory of dense images as a vector; their channels may come last in it."""
    return images.as_strided((images.numel(),), (1,))


def _places(images: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Where pixels ``(P,)`` of dense images ``(N, C, H, W)`` lie in memory, in the first channel."""
    a, _, b, d = images.stride()
    # Integers of four bytes, where they suffice, are twice as fast.
    integer = torch.int32 if images.numel() < 2**31 else torch.int64
    return (image.to(integer) * a).add_(y, alpha=b).add_(x, alpha=d)


def _centre(place: Tensor, size: int) -> Tensor:
    """The coordinate, from -1 to 1 across the image, of the centre of a row or column."""
    return place.float().mul_(2).add_(1).div_(size).sub_(1)


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
    """Random vector field ``(batch, 2, H, W)``: independent unit normals at ``cells`` by ``cells`` nodes, the
    corners among them, with bicubic interpolation between.

    Its variance is 1 at the nodes and less between them: with five nodes a side 0.35 at the least and 0.66 on
    average.
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
    return rows.view(2, cells, -1).mul_(across.index_select(1, x)).sum(1)


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


def only_moved(affine: Tensor) -> Tensor:
    """The same maps ``(N, 2, 3)`` with their shifts alone, neither turned nor scaled."""
    return torch.cat([torch.eye(2, device=affine.device).expand(len(affine), 2, 2), affine[:, :, 2:]], dim=2)


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
