"""SiT as its paper and its authors' files have it, of timm's parts and plain torch: what our own is held against."""

import math

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.mlp = Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=2)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class PlainSiT(nn.Module):
    """Velocity of z [b, C, H, H] at times t [b] with labels y [b]: in SiT's own code (`repa` false) time is 0 at noise
    and the last layer has twice the channels; in REPA's it is 0 at data, the velocity is noise - data, and the files
    have projectors and, in REPA-E's, statistics."""

    def __init__(self, channels=4, side=4, patch=2, width=48, depth=3, heads=3, classes=5, repa=False):
        super().__init__()
        self.channels, self.patch, self.repa = channels, patch, repa
        self.x_embedder = PatchEmbed(side, patch, channels, width)
        self.t_embedder, self.y_embedder = nn.Module(), nn.Module()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder.embedding_table = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(width, patch**2 * channels * (1 if repa else 2))
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.pos_embed = nn.Parameter(positions(side // patch, width), requires_grad=False)
        if repa:
            self.projectors = nn.ModuleList([nn.Linear(width, 7)])
            self.bn = nn.BatchNorm2d(channels, affine=False)
            self.bn.running_mean += torch.arange(channels)
            self.bn.running_var *= 4
        else:
            values = self.final_layer.linear.weight.data.view(patch**2, 2, channels, width)
            values[:, 1] = 0
            self.final_layer.linear.bias.data.view(patch**2, 2, channels)[:, 1] = 0

    def forward(self, z, t, y):
        x = self.x_embedder(z) + self.pos_embed
        frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        angles = t[:, None] * frequencies[None]
        c = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.y_embedder.embedding_table(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
        x = self.final_layer.linear(nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        n, p = z.shape[2] // self.patch, self.patch
        x = torch.einsum("bhwpqc->bchpwq", x.view(len(z), n, n, p, p, -1)).reshape(len(z), -1, n * p, n * p)
        return x if self.repa else x.chunk(2, dim=1)[0]


def positions(side, width):
    """[1, side * side, width]: a quarter of the width each for sine and cosine of the column, then of the row."""
    found = torch.zeros(1, side * side, width)
    quarter = width // 4
    for place in range(side * side):
        for axis, at in enumerate((place % side, place // side)):
            for i in range(quarter):
                angle = at / 10000 ** (i / quarter)
                found[0, place, 2 * axis * quarter + i] = math.sin(angle)
                found[0, place, (2 * axis + 1) * quarter + i] = math.cos(angle)
    return found
