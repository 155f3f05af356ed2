"""What the convolutional networks share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.runtime.precision import kind


class GroupNorm(nn.GroupNorm):
    """torch's, which on a CPU goes through float32: in bf16 and channels_last it takes several times as long."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype is not torch.bfloat16 or kind(input.device) != "cpu":
            return super().forward(input)
        whole = F.group_norm(input.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return whole.to(input.dtype)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or the largest number that divides both 32 and the channels."""
    return GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Twice norm, SiLU and 3x3 convolution, plus a shortcut: [n, c, H, W] -> [n, out_channels, H, W]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.shortcut(x)

    def shortcut(self, x: Tensor) -> Tensor:
        return self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
