"""LightningDiT: a diffusion transformer that predicts the velocity of latents.

Shapes: b batch, C latent channels, H W latent height and width, n tokens, d width, h heads, e head width.

Parameter names and layouts are those of the published LightningDiT weights, so that these load as they
are. Source: "Reconstruction vs. Generation" (arXiv 2501.01423), whose block is DiT's (arXiv 2212.09748)
with RMSNorm, SwiGLU, normalised queries and keys, and rotary positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from dmvae.registry import nearest


@dataclass(frozen=True)
class Size:
    width: int
    depth: int
    heads: int


SIZES = {
    "Mini": Size(256, 6, 4),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "XL": Size(1152, 28, 16),
}


def lightningdit(size: str = "XL/1", *, in_channels: int, input_size: int, num_classes: int) -> LightningDiT:
    """The network of a published size: `"XL/1"` is the entry "XL" of `SIZES` with patches of 1.

    Raises ValueError for a name that is not `SIZE/PATCH`.
    """
    name, _, patch = size.partition("/")
    if name not in SIZES or not (patch or "1").isdecimal():
        raise ValueError(f"no network size is called {size!r}{nearest(size, [f'{known}/1' for known in SIZES])}")
    return LightningDiT(
        in_channels=in_channels,
        input_size=input_size,
        num_classes=num_classes,
        patch_size=int(patch or "1"),
        **vars(SIZES[name]),
    )


class LightningDiT(ModelMixin, ConfigMixin):
    """`velocity = model(z_t, t, labels)`.

    in_channels: C. input_size: H = W of the latents, a multiple of patch_size. num_classes: labels are
    0 .. num_classes - 1, and num_classes itself stands for "no label". mlp_ratio: the SwiGLU's hidden
    width is 2/3 of mlp_ratio * width, which costs as much as a plain MLP of mlp_ratio * width.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)

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
    ):
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"input_size {input_size} is not a multiple of patch_size {patch_size}")
        if width % heads or width // heads % 4:
            raise ValueError(f"width {width} must be a multiple of 4 * heads ({heads} heads)")
        side = input_size // patch_size
        self.gradient_checkpointing = False
        self.x_embedder = PatchEmbedder(in_channels, patch_size, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width)
        # Fixed, yet a parameter: the published weights hold it, and its size is part of their counts.
        self.pos_embed = nn.Parameter(sincos_positions(side, width)[None], requires_grad=False)
        cos, sin = rope_tables(side, width // heads)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        hidden = int(2 / 3 * int(width * mlp_ratio))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size**2 * in_channels)
        self.initialize()

    def initialize(self) -> None:
        """Xavier for every Linear; zero for modulations and the last layer: each block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.y_embedder.embedding_table):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.adaLN_modulation[1] for block in self.blocks), self.final_layer.adaLN_modulation[1]):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """z_t [b, C, H, W], t [b] in [0, 1] (0 noise, 1 data), labels [b] int64 -> velocity [b, C, H, W]."""
        x_bnd = self.x_embedder(z_t) + self.pos_embed
        # Every modulation starts with SiLU of the same condition: once here instead of in each block.
        c_bd = F.silu(self.t_embedder(t) + self.y_embedder(labels))
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_bnd = self._gradient_checkpointing_func(block, x_bnd, c_bd, self.rope_cos, self.rope_sin)
            else:
                x_bnd = block(x_bnd, c_bd, self.rope_cos, self.rope_sin)
        return self.unpatchify(self.final_layer(x_bnd, c_bd))

    def unpatchify(self, x_bno: Tensor) -> Tensor:
        """Tokens [b, n, p * p * C] (row, column, channel within a patch) -> [b, C, H, W]."""
        p, side = self.config.patch_size, self.config.input_size // self.config.patch_size
        x = x_bno.unflatten(-1, (p, p, -1)).unflatten(1, (side, side))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class Block(nn.Module):
    """x + gate * attention(modulated x), then the same with the MLP."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = Scale(width)
        self.attn = Attention(width, heads)
        self.norm2 = Scale(width)
        self.mlp = SwiGLU(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_bnd: Tensor, c_bd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation[1](c_bd)[:, None].chunk(6, dim=-1)
        x_bnd = torch.addcmul(x_bnd, gate1, self.attn(modulated(x_bnd, self.norm1.weight, scale1, shift1), cos, sin))
        return torch.addcmul(x_bnd, gate2, self.mlp(modulated(x_bnd, self.norm2.weight, scale2, shift2)))
