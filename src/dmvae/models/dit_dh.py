"""DiT-DH, the network of RAE's authors: a LightningDiT with a wide head (arXiv 2510.11690).

Shapes: b batch, C latent channels, n tokens, d width.

`dmvae.interop.dit_dh` reads its published weights. Beside `LightningDiT` with a `head_width`: time by random Fourier
features, and a head that gets the backbone's tokens as they are, with the time and without the label.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from dmvae.models.dit import DiffusionTransformer, require_heads
from dmvae.models.transformer import Block, CastingLinear, FinalLayer, PatchEmbedder, rope_tables


class DiTDH(DiffusionTransformer):
    """`velocity = model(z_t, t, labels)`.

    in_channels: C. input_size: H = W of the latents, a multiple of patch_size. num_classes: labels are
    0 .. num_classes - 1, and num_classes itself stands for "no label". width, depth, heads: of the backbone.
    head_width, head_depth, head_heads: the same of the head. mlp_ratio: as LightningDiT's, of both.
    """

    __module__ = "dmvae"  # the name under which artifacts find the class, wherever this file moves
    _no_split_modules = cast("None", ["Block"])  # as ModelMixin declares it
    rope_cos: Tensor
    rope_sin: Tensor
    head_cos: Tensor
    head_sin: Tensor

    @register_to_config
    def __init__(
        self,
        *,
        in_channels: int,
        input_size: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int,
        patch_size: int = 1,
        mlp_ratio: float = 4.0,
        head_width: int = 2048,
        head_depth: int = 2,
        head_heads: int = 16,
    ):
        super().__init__()
        side = self.embed()
        require_heads("head_width", head_width, "head_heads", head_heads)
        for name, wide in (("rope", width // heads), ("head", head_width // head_heads)):
            for kind, table in zip(("cos", "sin"), rope_tables(side, wide), strict=True):
                self.register_buffer(f"{name}_{kind}", table, persistent=False)
        self.t_embedder = FourierTimes(width)  # in place of the base's
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, qk_norm=False) for _ in range(depth))
        self.projection = nn.Linear(width, head_width)
        self.head_embedder = PatchEmbedder(in_channels, patch_size, head_width)
        self.head_blocks = nn.ModuleList(
            Block(head_width, head_heads, mlp_ratio, qk_norm=False) for _ in range(head_depth)
        )
        self.final_layer = FinalLayer(head_width, patch_size**2 * in_channels)
        self.initialize()

    @property
    def rotation(self) -> tuple[Tensor, ...]:
        return self.rope_cos, self.rope_sin

    def condition(self, embedded: Tensor) -> Tensor:
        return F.silu(F.silu(embedded))  # their blocks apply one to what has had one

    def last(self, x_bnd: Tensor, time_b1d: Tensor, c_b1d: Tensor, z_t: Tensor) -> Tensor:
        c_bnd = F.silu(self.projection(F.silu(x_bnd + time_b1d)))
        x_bnd = self._run(self.head_blocks, self.head_embedder(z_t), c_bnd, self.head_cos, self.head_sin)
        return super().last(x_bnd, time_b1d, c_bnd, z_t)

    def compiled_parts(self) -> list[nn.Module]:
        return [*self.head_blocks, *super().compiled_parts()]


class FourierTimes(nn.Module):
    """MLP of 256 sines and 256 cosines of t in [0, 1], of frequencies that are drawn once."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(CastingLinear(512, width), nn.SiLU(), nn.Linear(width, width))
        # a parameter, so that it is averaged, sharded and counted as the published weights hold it
        self.frequencies = nn.Parameter(torch.randn(256), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = 2 * math.pi * t.float()[:, None] * self.frequencies.float()
        return self.mlp(torch.cat((angles.sin(), angles.cos()), dim=-1))
