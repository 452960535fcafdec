"""Convolutional autoencoders of the method: SDC-AE and SDC-CCM.

An encoder halves the resolution stage by stage, a neck of *stacked dilated convolutions* (SDC) looks far
around every position at the coarse resolution, and a decoder doubles the resolution again. In SDC-CCM each
decoder stage ends in a *convex combination module* (CCM), which decides position by position, channel by
channel, whether to take the encoder's detail or what the decoder rebuilt; SDC-AE has no such skips.

The stages, the parallel dilations and the place of the modules follow what is known of the paper (Bauer,
Nakajima, Müller, 2024). Every width, the number of stacked layers and all of the ``lite`` preset are the
book's own choice. A decoder stage has one convolution fewer than that of a public re-implementation of an
early version, and the dilations of ``full`` end at 16, where 32 is reported too. Explained in chapter 8.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ModelSettings:
    """Shape of a convolutional autoencoder.

    Parameters
    ----------
    channels
        Width of each encoder stage, finest first; each stage halves the resolution. The decoder mirrors them.
    dilations
        Rates of the parallel convolutions of one SDC layer. As many ones give a neck of the same cost
        without dilation.
    sdc_filters
        Filters for each rate; an SDC layer puts out ``len(dilations) * sdc_filters`` channels.
    sdc_layers
        Number of SDC layers in sequence.
    sdc_kernel
        Side of the square SDC kernels, odd.
    skip
        ``"ccm"`` for SDC-CCM, ``"none"`` for SDC-AE, ``"concat"`` for the plain skip of a U-Net (a baseline
        that may copy everything).
    ccm_kernel
        Side of the square kernels inside the convex combination modules, odd.
    unshuffle
        Space-to-depth factor in front of the encoder, undone at the output; 1 leaves the image as it is. A
        factor of 2 saves the costly layers at full resolution, at the price of detail.
    image_skip
        Whether one more convex combination module joins the (folded) input image and the decoded image.
    image_guide
        Whether that module also sees the features from which the image is decoded. Two images tell it where
        they differ; only the features tell whether that is a defect, or detail that the decoder has lost.
    image_channels
        Colour channels of the image.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    sdc_filters: int = 64
    sdc_layers: int = 4
    sdc_kernel: int = 5
    skip: Literal["ccm", "none", "concat"] = "ccm"
    ccm_kernel: int = 3
    unshuffle: int = 1
    image_skip: bool = False
    image_guide: bool = False
    image_channels: int = 3

    def __post_init__(self) -> None:
        if not self.channels or not self.dilations:
            raise ValueError("channels and dilations need at least one entry each")
        for name in ("sdc_kernel", "ccm_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(
                    f"{name} must be odd so that maps keep their size, got {getattr(self, name)}"
                )
        if self.sdc_layers < 1:
            raise ValueError(f"sdc_layers must be at least 1, got {self.sdc_layers}")
        if self.image_guide and not self.image_skip:
            raise ValueError("image_guide needs image_skip: it guides the convex combination of images")
        if self.skip not in ("ccm", "none", "concat"):
            raise ValueError(f"skip must be 'ccm', 'none' or 'concat', got {self.skip!r}")

    @property
    def stride(self) -> int:
        """Image height and width must be multiples of this."""
        return self.unshuffle * 2 ** len(self.channels)

    def nearest_side(self, side: int) -> int:
        """The image side nearest to ``side`` that the model takes, in pixels."""
        return max(1, round(side / self.stride)) * self.stride


PRESETS: dict[str, ModelSettings] = {
    "lite": ModelSettings(
        channels=(16, 32),
        dilations=(1, 2, 4, 8),
        sdc_filters=32,
        sdc_layers=3,
        sdc_kernel=3,
        ccm_kernel=1,
        unshuffle=2,
        image_skip=True,
        image_guide=True,
    ),
    "full": ModelSettings(),
}


class SDCLayer(nn.Module):
    """Dilated convolutions in parallel on one input, outputs concatenated, then batch norm and ReLU.

    Schuster et al., "SDC - Stacked Dilated Convolution", CVPR 2019. Explained in chapter 8.
    """

    def __init__(self, in_channels: int, filters: int, dilations: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, filters, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
            for rate in dilations
        )
        self.norm: nn.Module = nn.BatchNorm2d(filters * len(dilations))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, filters * len(dilations), H, W)``."""
        return F.relu(self.norm(torch.cat([branch(x) for branch in self.branches], dim=1)))


class ConvexCombination(nn.Module):
    """Mix encoder detail and decoder content: ``beta * skip + (1 - beta) * below`` with ``beta`` in (0, 1)
    learned from both.

    The squared difference tells the module where the two disagree, which is where something was repaired. A
    guide, other features ``(B, guide_channels, H, W)``, may tell it more. Explained in chapter 8.
    """

    def __init__(self, channels: int, kernel: int, guide_channels: int = 0) -> None:
        super().__init__()
        width = max(channels, guide_channels)
        self.reduce = conv_norm_relu(3 * channels + guide_channels, width, kernel)
        self.weigh = conv_norm(width, channels, kernel)

    def coefficients(self, skip: Tensor, below: Tensor, *guide: Tensor) -> Tensor:
        """Share ``beta`` of the encoder's detail, ``(B, C, H, W)`` in (0, 1)."""
        evidence = torch.cat([skip, below, (skip - below) ** 2, *guide], dim=1)
        return torch.sigmoid(self.weigh(self.reduce(evidence)))

    def forward(self, skip: Tensor, below: Tensor, *guide: Tensor) -> Tensor:
        """Two maps ``(B, C, H, W)`` to one of the same shape."""
        beta = self.coefficients(skip, below, *guide)
        # Under autocast the image is float32 and what was decoded is not; lerp takes one type only.
        dtype = torch.promote_types(skip.dtype, below.dtype)
        return torch.lerp(below.to(dtype), skip.to(dtype), beta.to(dtype))


class ConcatSkip(nn.Module):
    """The plain skip of a U-Net: concatenate and convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = conv_norm_relu(2 * channels, channels)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Two maps ``(B, C, H, W)`` to one of the same shape."""
        return self.merge(torch.cat([skip, below], dim=1))


class NoSkip(nn.Module):
    """Drop the encoder's detail: everything passes through the neck."""

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Return ``below``."""
        return below


class SDCAutoencoder(nn.Module):
    """Autoencoder with stacked dilated convolutions; SDC-CCM or SDC-AE by its settings.

    Parameters
    ----------
    settings
        Shape of the network, see :class:`ModelSettings`; ``PRESETS`` holds ``lite`` and ``full``.

    Notes
    -----
    Fully convolutional: any image whose sides are multiples of ``settings.stride`` is taken. The output has
    no activation. Source: Bauer, Nakajima, Müller (2024). Explained in chapter 8.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        folded = settings.image_channels * settings.unshuffle**2
        widths = settings.channels

        self.encoder = nn.ModuleList(
            nn.Sequential(conv_norm_relu(before, width), conv_norm_relu(width, width))
            for before, width in zip((folded, *widths[:-1]), widths, strict=True)
        )
        neck_width = settings.sdc_filters * len(settings.dilations)
        self.neck = nn.Sequential(
            *(
                SDCLayer(before, settings.sdc_filters, settings.dilations, settings.sdc_kernel)
                for before in (widths[-1], *[neck_width] * (settings.sdc_layers - 1))
            )
        )
        coarse_to_fine = widths[::-1]
        self.decoder = nn.ModuleList(
            nn.Sequential(UpConv(before, width), conv_norm_relu(width, width))
            for before, width in zip((neck_width, *coarse_to_fine[:-1]), coarse_to_fine, strict=True)
        )
        self.skips = nn.ModuleList(build_skip(settings, width) for width in coarse_to_fine)
        self.to_image = nn.Conv2d(widths[0], folded, 1)
        guide_channels = widths[0] if settings.image_guide else 0
        self.image_skip = (
            ConvexCombination(folded, settings.ccm_kernel, guide_channels)
            if settings.image_skip
            else NoSkip()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct a batch.

        Parameters
        ----------
        images
            ``(B, image_channels, H, W)`` in [0, 1]; H and W multiples of ``settings.stride``.

        Returns
        -------
        Tensor
            ``(B, image_channels, H, W)``, near [0, 1] once trained.

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        self._check(images)
        x = folded = F.pixel_unshuffle(images, self.settings.unshuffle)
        details = []
        for stage in self.encoder:
            x = stage(x)
            details.append(x)
            x = F.max_pool2d(x, 2)
        x = self.neck(x)
        for stage, skip in zip(self.decoder, self.skips, strict=True):
            x = skip(details.pop(), stage(x))
        guide = (x,) if self.settings.image_guide else ()
        return F.pixel_shuffle(self.image_skip(folded, self.to_image(x), *guide), self.settings.unshuffle)

    def _check(self, images: Tensor) -> None:
        stride, channels = self.settings.stride, self.settings.image_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"expected images (B, {channels}, H, W), got shape {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height % stride or width % stride:
            near = [self.settings.nearest_side(side) for side in (height, width)]
            raise ValueError(
                f"image height and width must be multiples of {stride}, got {height} x {width}; "
                f"resize or crop to {near[0]} x {near[1]}"
            )


class UpConv(nn.Module):
    """Double the resolution with a transposed 3 x 3 convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, out_channels, 2H, 2W)``."""
        return F.relu(self.norm(self.conv(x)))


def conv_norm(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size and batch norm, whose shift makes a bias of the convolution useless."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """Convolution that keeps the size, batch norm and ReLU."""
    return nn.Sequential(*conv_norm(in_channels, out_channels, kernel), nn.ReLU())


def build_skip(settings: ModelSettings, channels: int) -> nn.Module:
    """Module that joins encoder detail and decoder content at one resolution."""
    if settings.skip == "ccm":
        return ConvexCombination(channels, settings.ccm_kernel)
    return ConcatSkip(channels) if settings.skip == "concat" else NoSkip()


def preset_settings(preset: str) -> ModelSettings:
    """Shape of the network that a preset's name (``"lite"``, ``"full"``) stands for."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    return PRESETS[preset]


def build(preset: str | ModelSettings) -> SDCAutoencoder:
    """Build a model from a preset's name (``"lite"``, ``"full"``) or from settings."""
    return SDCAutoencoder(preset if isinstance(preset, ModelSettings) else preset_settings(preset))


@torch.no_grad()
def folded(model: nn.Module) -> nn.Module:
    """A copy of a model whose batch norms are folded into the convolutions before them, to be applied only.

    In evaluation mode a batch norm scales and shifts each channel by fixed numbers, which the convolution can
    do as well. The function is the same, to rounding; a pass over memory is saved at every norm. What is no
    part of this module is copied as it is.

    Raises
    ------
    ValueError
        If the model is in training mode, in which a batch norm depends on the batch.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be folded; call model.eval() first")
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, SDCLayer):
            _fold(list(module.branches), module.norm)
            module.norm = nn.Identity()
        elif isinstance(module, UpConv):
            _fold([module.conv], module.norm)
            module.norm = nn.Identity()
        elif isinstance(module, nn.Sequential):
            for place in range(1, len(module)):
                if isinstance(module[place], nn.BatchNorm2d) and isinstance(module[place - 1], nn.Conv2d):
                    _fold([module[place - 1]], module[place])
                    module[place] = nn.Identity()
    return model


def portable(model: M) -> M:
    """A copy of a model to be applied by other programs: float32, on the CPU, in the common memory layout."""
    return copy.deepcopy(model).float().cpu().to(memory_format=torch.contiguous_format).eval()


def _fold(convolutions: list[nn.Module], norm: nn.Module) -> None:
    """Fold a batch norm into the convolutions whose outputs, one after the other, it normalises."""
    assert isinstance(norm, nn.BatchNorm2d)
    numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    each = [of.chunk(len(convolutions)) for of in numbers if of is not None]
    for conv, mean, variance, weight, bias in zip(convolutions, *each, strict=True):
        assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
        across = isinstance(conv, nn.ConvTranspose2d)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, variance, norm.eps, weight, bias, transpose=across
        )


class Tiled(nn.Module):
    """A model that was trained on crops, applied to larger images in tiles of that side.

    Fully convolutional is not the same everywhere: in a crop nearly every position is so near to a border
    that some taps of the dilated convolutions fall on the padding. In the middle of a larger image they see
    something, which the network has never met, and some networks take that badly (chapter 12). Tiles overlap
    by half or more, and each counts the less, the nearer to its border.

    Parameters
    ----------
    model
        ``(B, C, side, side)`` to the same shape.
    side
        Height and width in pixels of what it was trained on.
    """

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)``, neither side less than that of a tile, to the same shape."""
        height, width = images.shape[-2:]
        side = self.side
        down, across = tile_starts(height, side), tile_starts(width, side)
        ramp = torch.arange(1, side + 1, dtype=images.dtype, device=images.device)
        ramp = torch.minimum(ramp, ramp.flip(0))
        weight = ramp[:, None] * ramp
        total = images.new_zeros(())
        for y in down:
            for x in across:
                tile = self.model(images[..., y : y + side, x : x + side])
                total = total + F.pad(tile * weight, (x, width - side - x, y, height - side - y))
        # Every row of tiles begins at the same places, so the sum of the weights is a product of two.
        rows = torch.stack([F.pad(ramp, (y, height - side - y)) for y in down]).sum(0)
        columns = torch.stack([F.pad(ramp, (x, width - side - x)) for x in across]).sum(0)
        return total / rows[:, None] / columns


def tile_starts(length: int, side: int) -> list[int]:
    """Where tiles of ``side`` begin that cover ``length`` evenly and overlap by half or more.

    Raises
    ------
    ValueError
        If not even one fits.
    """
    if length < side:
        raise ValueError(f"a side of {length} pixels is less than that of a tile, {side}")
    steps = math.ceil((length - side) / max(1, side // 2))
    return [round(index * (length - side) / max(1, steps)) for index in range(steps + 1)]


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
