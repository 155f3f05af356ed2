"""The convolutional decoder: latents [n, C, H, W] -> images [n, c, H * stride, W * stride].

Structure and parameter names are those of the Flux autoencoder's decoder (itself VQGAN's, arXiv
2012.09841), so that published weights load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.decoders import Decoder, DecoderConfig
from dmvae.decoders.tiling import decode_tiled
from dmvae.models.base import run_part
from dmvae.models.layers import ResidualBlock, group_norm
from dmvae.ranges import Range, Width
from dmvae.registry import register


@register("conv")
@dataclass(frozen=True, kw_only=True)
class ConvDecoder(DecoderConfig):
    """The convolutional decoder of Flux's autoencoder, in any width and depth."""

    width: Width = 128
    """Channels at full resolution."""
    multipliers: tuple[Annotated[int, Range(1, 64)], ...] = (1, 2, 4, 4)
    """Channel multipliers from full resolution down."""
    blocks: Annotated[int, Range(0, 64)] = 2
    """Residual blocks per resolution, besides the one that every resolution has."""
    attention: bool = True
    """Self-attention at the lowest resolution."""

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ValueError("multipliers: give at least one")

    def build(self, *, latent_channels: int, channels: int, stride: int) -> ConvolutionalDecoder:
        return ConvolutionalDecoder(
            latent_channels, channels, self.width, self.multipliers, self.blocks, stride, self.attention
        )


class ConvolutionalDecoder(Decoder):
    """Residual blocks from the deepest level up, each level but the last followed by an upsampling.

    width: channels at full resolution; multipliers: of width, from full resolution down; every level has
    blocks + 1 residual blocks. The levels upsample by 2 ** (len(multipliers) - 1) at most; factors of 2
    beyond that come before the first level, and a stride that is not a power of two is reached by going
    one factor further and resizing the image down. attention: self-attention at the deepest level.
    The output is unbounded: [-1, 1] is what it is trained to, and nothing clamps it.
    """

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        stride: int = 16,
        attention: bool = True,
    ):
        super().__init__()
        self.stride = stride
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] | None = None
        doublings = math.ceil(math.log2(stride))
        inner = min(doublings, len(multipliers) - 1)
        self.resizes = stride != 2**doublings

        channels = width * multipliers[-1]
        before = [Upsample(latent_channels) for _ in range(doublings - inner)]
        last = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.conv_in = nn.Sequential(*before, last) if before else last
        self.mid = nn.Module()
        self.mid.block_1 = ResidualBlock(channels, channels)
        if attention:
            self.mid.attn_1 = SpatialAttention(channels)
        self.mid.block_2 = ResidualBlock(channels, channels)
        levels = []
        for level in reversed(range(len(multipliers))):
            levels.append(Level(channels, width * multipliers[level], blocks + 1, upsample=0 < level <= inner))
            channels = width * multipliers[level]
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z [n, C, H, W] -> [n, out_channels, H * stride, W * stride]."""
        x = self.deepest(z)
        for level in reversed(self.up):
            x = run_part(self, level, x)
        return self.fit(self.conv_out(F.silu(self.norm_out(x))), z)

    @property
    def last_layer(self) -> Tensor:
        return self.conv_out.weight

    def compiled_parts(self) -> list[nn.Module]:
        """The middle blocks and the levels. The last norm and convolution are not compiled: so the two gradients at
        `last_layer` for the adaptive weight cost a backward pass of that convolution, and not of the whole decoder."""
        return [*self.mid.children(), *self.up]

    def decode_tiled(self, z: Tensor, tile: int) -> Tensor:
        """`forward` in tiles of tile x tile latents, without gradient."""
        return decode_tiled(self, z, tile)

    def deepest(self, z: Tensor) -> Tensor:
        """z [n, C, H, W] -> activations before the first level, on a grid of H x W times the upsampling before it."""
        x = self.conv_in(z)
        for part in self.mid.children():
            x = run_part(self, part, x)
        return x

    def levels(self) -> list[tuple[list[ResidualBlock], nn.Module]]:
        """(residual blocks, the step to the next level) from the deepest level on."""
        levels = [level for level in reversed(self.up) if isinstance(level, Level)]
        return [([b for b in level.block if isinstance(b, ResidualBlock)], level.upsample) for level in levels]

    def fit(self, x: Tensor, z: Tensor) -> Tensor:
        """Images x resized to z's size times the stride, where powers of two do not reach it."""
        if self.resizes:
            size = (z.shape[2] * self.stride, z.shape[3] * self.stride)
            # float32, because a CPU has no kernel for bfloat16.
            x = F.interpolate(x.float(), size, mode="bilinear", antialias=True).to(x.dtype)
        return x


class Level(nn.Module):
    """Residual blocks at one resolution, then the step to the next."""

    def __init__(self, in_channels: int, channels: int, blocks: int, upsample: bool):
        super().__init__()
        self.block = nn.Sequential(
            *(ResidualBlock(in_channels if i == 0 else channels, channels) for i in range(blocks))
        )
        self.upsample = Upsample(channels) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.block(x))


class Upsample(nn.Module):
    """Twice the height and width by repetition, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SpatialAttention(nn.Module):
    """x + self-attention with one head over the positions of x [n, c, H, W]."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (f(normed).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(out.transpose(1, 2).unflatten(2, x.shape[2:]))
