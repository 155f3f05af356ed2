"""Encoder `conv`: a small residual network for small images, trained here from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from dmvae.encoders import Encoder, EncoderConfig
from dmvae.models.layers import ResidualBlock, group_norm
from dmvae.ranges import Range, Width
from dmvae.registry import register


@register("conv")
@dataclass(frozen=True, kw_only=True)
class ConvEncoder(EncoderConfig):
    """Residual convolutional encoder, with GroupNorm, so that no image's features depend on another's."""

    width: Width = 64
    """Channels after the first convolution."""
    multipliers: tuple[Annotated[int, Range(1, 64)], ...] = (1, 2)
    """Channels of each level, as multiples of width; every level after the first halves the resolution."""
    blocks: Annotated[int, Range(0, 64)] = 1
    """Residual blocks per level."""
    out_channels: Width = 256
    """Channels of the features."""
    stride: Annotated[int, Range(1, 1024)] = 8
    """Image pixels per feature, along each side. The first convolution has the stride that the levels do not reach."""

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ValueError("multipliers: give at least one")
        halvings = 2 ** (len(self.multipliers) - 1)
        if self.stride < halvings or self.stride % halvings:
            raise ValueError(
                f"stride {self.stride} must be a multiple of {halvings}, which {len(self.multipliers)} levels reach; "
                "change stride or the number of multipliers"
            )

    @property
    def starts_random(self) -> bool:
        return True

    def check(self, *, size: int) -> None:
        """As for every encoder. A group norm over a single value gives a constant, its shift."""
        channels = self.width * self.multipliers[-1]
        if size == self.stride and group_norm(channels).num_groups == channels:
            raise ValueError(
                f"encoder: one feature for an image of {size} pixels (stride {self.stride}), and {channels} channels "
                f"of the last level (width {self.width} times {self.multipliers[-1]}), each normalised by itself, give "
                f"all images the same features; give a width with more than 32 channels there, or a stride below {size}"
            )

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> ConvNet:
        return ConvNet(self, channels)


class ConvNet(Encoder):
    """images [n, c, h, w] in [-1, 1] -> features [n, channels, h / stride, w / stride]."""

    def __init__(self, config: ConvEncoder, in_channels: int):
        super().__init__()
        self.channels, self.stride = config.out_channels, config.stride
        widths = [config.width * multiplier for multiplier in config.multipliers]
        # High resolutions take nearly all of the time, so the first convolution leaves them at once.
        first = config.stride // 2 ** (len(widths) - 1)
        kernel = max(3, 2 * first - 1)
        parts: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], kernel, stride=first, padding=kernel // 2)]
        for level, width in enumerate(widths):
            if level > 0:
                parts += [group_norm(widths[level - 1]), nn.SiLU()]
                parts += [nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1)]
            parts += [ResidualBlock(width, width) for _ in range(config.blocks)]
        parts += [group_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], self.channels, 1)]
        self.layers = nn.Sequential(*parts)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.contiguous(memory_format=torch.channels_last))
