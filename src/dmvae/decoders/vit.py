"""Decoder `vit`: a vision transformer on the latents' grid and a linear map from each token to its pixels, as in RAE
(arXiv 2510.11690) and in masked autoencoders (arXiv 2111.06377).

Shapes: n images, C latent channels, c image channels, H W the latents' grid, p the stride, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dmvae.decoders import Decoder, DecoderConfig
from dmvae.models.base import run_part
from dmvae.models.transformer import sincos_positions
from dmvae.ranges import Range, Width
from dmvae.registry import register
from dmvae.runtime.transfer import send


@register("vit")
@dataclass(frozen=True, kw_only=True)
class ViTDecoder(DecoderConfig):
    """A vision transformer. All its layers are on the latents' grid, so that it costs a fraction of a convolutional
    decoder of equal depth; but it must learn to join patches without visible borders."""

    width: Width = 768
    """Channels of a token; a multiple of 4 and of `heads`."""
    depth: Annotated[int, Range(1, 256)] = 12
    """Transformer blocks."""
    heads: Annotated[int, Range(1, 256)] = 12
    """Attention heads."""
    mlp_ratio: Annotated[float, Range(0.1, 64)] = 4.0
    """Hidden width of a block's MLP over `width`."""

    def __post_init__(self) -> None:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width: {self.width} must be a multiple of 4 and of heads ({self.heads})")

    def build(self, *, latent_channels: int, channels: int, stride: int) -> TransformerDecoder:
        return TransformerDecoder(latent_channels, channels, stride, self.width, self.depth, self.heads, self.mlp_ratio)


class TransformerDecoder(Decoder):
    """z [n, C, H, W] -> images [n, c, H p, W p], for any grid: positions are fixed sines and cosines, which do not
    depend on the size."""

    def __init__(
        self, latent_channels: int, out_channels: int, stride: int, width: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.stride = stride
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] | None = None
        self.embed = nn.Linear(latent_channels, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, out_channels * stride**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, z: Tensor) -> Tensor:
        height, width = z.shape[2:]
        x = self.embed(z.flatten(2).transpose(1, 2))
        x = x + send(positions(height, width, x.shape[-1]), x.device).to(x.dtype)
        for block in self.blocks:
            x = run_part(self, block, x)
        patches = self.head(self.norm(x)).transpose(1, 2).unflatten(2, (height, width))
        return nn.functional.pixel_shuffle(patches, self.stride)

    @property
    def last_layer(self) -> Tensor:
        return self.head.weight

    def compiled_parts(self) -> list[nn.Module]:
        return list(self.blocks)


def positions(height: int, width: int, channels: int) -> Tensor:
    """[height width, channels]: sines and cosines of the column, then of the row, in row-major order."""
    side = max(height, width)
    return sincos_positions(side, channels).unflatten(0, (side, side))[:height, :width].flatten(0, 1)
