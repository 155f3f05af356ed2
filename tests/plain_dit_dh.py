"""DiT-DH as RAE's paper and its authors' files have it, in plain torch: what our own is held against."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from plain_sit import positions


def table(side, width):
    """Angles [side * side, width] of the row in the first half and of the column in the second, each of them twice."""
    speeds = [10000 ** (-2 * i / (width // 2)) for i in range(width // 4)]
    rows = [[at * speed for at in (place // side, place % side) for speed in speeds] for place in range(side * side)]
    return torch.tensor(rows).repeat_interleave(2, dim=1)


class Rope(nn.Module):
    def __init__(self, side, width):
        super().__init__()
        self.register_buffer("freqs_cos", table(side, width).cos())
        self.register_buffer("freqs_sin", table(side, width).sin())

    def forward(self, x):
        other = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * self.freqs_cos + other * self.freqs_sin


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, hidden = heads, int(2 / 3 * 4 * width)
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.w12, self.mlp.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c, rope):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        qkv = self.attn.qkv(self.norm1(x) * (1 + scale1) + shift1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        seen = F.scaled_dot_product_attention(rope(q), rope(k), v).transpose(1, 2).flatten(2)
        x = x + gate1 * self.attn.proj(seen)
        a, b = self.mlp.w12(self.norm2(x) * (1 + scale2) + shift2).chunk(2, dim=-1)
        return x + gate2 * self.mlp.w3(F.silu(a) * b)


class PlainDiTDH(nn.Module):
    """noise - data of z [b, C, H, H] at times t [b], 0 at data and 1 at noise, with labels y [b]."""

    def __init__(self, channels=6, side=4, width=48, depth=3, heads=3, head=64, head_depth=2, head_heads=4, classes=5):
        super().__init__()
        self.depth = depth
        self.s_embedder, self.x_embedder = nn.Module(), nn.Module()
        self.s_embedder.proj, self.x_embedder.proj = nn.Conv2d(channels, width, 1), nn.Conv2d(channels, head, 1)
        self.s_projector = nn.Linear(width, head)
        self.t_embedder, self.y_embedder, self.final_layer = nn.Module(), nn.Module(), nn.Module()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(512, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder.embedding_table = nn.Embedding(classes + 1, width)
        blocks = [Block(width, heads) for _ in range(depth)] + [Block(head, head_heads) for _ in range(head_depth)]
        self.blocks = nn.ModuleList(blocks)
        self.final_layer.norm_final = Norm(head)
        self.final_layer.linear = nn.Linear(head, channels)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(head, 2 * head))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.t_embedder.W = nn.Parameter(torch.randn(256), requires_grad=False)
        self.pos_embed = nn.Parameter(positions(side, width), requires_grad=False)
        self.enc_feat_rope, self.dec_feat_rope = Rope(side, width // heads), Rope(side, head // head_heads)

    def forward(self, z, t, y):
        angles = 2 * math.pi * t[:, None] * self.t_embedder.W
        t = self.t_embedder.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))
        c = F.silu(t + self.y_embedder.embedding_table(y))[:, None]
        s = self.s_embedder.proj(z).flatten(2).mT + self.pos_embed
        for block in self.blocks[: self.depth]:
            s = block(s, c, self.enc_feat_rope)
        s = self.s_projector(F.silu(t[:, None] + s))
        x = self.x_embedder.proj(z).flatten(2).mT
        for block in self.blocks[self.depth :]:
            x = block(x, s, self.dec_feat_rope)
        shift, scale = self.final_layer.adaLN_modulation(s).chunk(2, dim=-1)
        x = self.final_layer.linear(self.final_layer.norm_final(x) * (1 + scale) + shift)
        return x.mT.unflatten(2, z.shape[2:])
