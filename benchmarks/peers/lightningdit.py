"""LightningDiT as its paper reads, from torch's own operations: `python -m benchmarks.models` sets ours beside it.

Source: arXiv 2501.01423, and DiT's block (arXiv 2212.09748): every formula as it stands, none folded into another.
Parameters have the names of `dmvae.models.dit.LightningDiT`, so one network's weights load into the other. Shapes:
b batch, n tokens, d width, h heads, e head width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.models.dit import LightningDiT
from dmvae.models.transformer import LabelEmbedder, PatchEmbedder, TimeEmbedder


class PlainLightningDiT(nn.Module):
    """The same function of the same weights as `model`, a published network (without a head)."""

    pos_embed: Tensor

    def __init__(self, model: LightningDiT):
        super().__init__()
        config = model.config
        width, patch, channels = config["width"], config["patch_size"], config["in_channels"]
        self.unpatchify = model.unpatchify
        self.x_embedder = PatchEmbedder(channels, patch, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(config["num_classes"], width)
        self.pos_embed = nn.Parameter(torch.empty_like(model.pos_embed), requires_grad=False)
        hidden = int(2 / 3 * int(width * config["mlp_ratio"]))
        self.blocks = nn.ModuleList(Block(width, config["heads"], hidden) for _ in range(config["depth"]))
        self.final_layer = FinalLayer(width, patch**2 * channels)
        self.load_state_dict(model.state_dict())
        self.angles = angles(config["input_size"] // patch, width // config["heads"])

    def forward(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        x = self.x_embedder(z_t) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(labels)
        cos, sin = self.angles.cos().to(x.device), self.angles.sin().to(x.device)
        for block in self.blocks:
            x = block(x, c, cos, sin)
        return cast(Tensor, self.unpatchify(self.final_layer(x, c)))

    def compiled_parts(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = SwiGLU(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, cos, sin)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [b, h, n, e] each
        q, k = turned(self.q_norm(q), cos, sin), turned(self.k_norm(k), cos, sin)
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return cast(Tensor, self.proj(out.transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, dim=-1)
        return cast(Tensor, self.w3(F.silu(a) * b))


class RMSNorm(nn.Module):
    """x / rms(x) in float32, brought back to the precision of x, times a learned scale."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype) * self.weight


class FinalLayer(nn.Module):
    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.norm_final, self.linear = RMSNorm(width), nn.Linear(width, out_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return cast(Tensor, self.linear(self.norm_final(x) * (1 + scale) + shift))


def angles(side: int, head_width: int) -> Tensor:
    """Rotary angles [n, e]: of a token's row in the first half of e, of its column in the second; one for each pair of
    neighbours, theta 10000."""
    frequencies = 10000.0 ** (-torch.arange(0, head_width // 2, 2) / (head_width // 2))
    line = (torch.arange(side)[:, None] * frequencies).repeat_interleave(2, dim=-1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for each pair of neighbours in x [b, h, n, e]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-b, a), dim=-1).flatten(-2) * sin
