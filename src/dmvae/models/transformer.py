"""The parts of diffusion transformers: LightningDiT's blocks and norms, and the embedders, attention and positions that
SiT (models/sit.py) has too.

Shapes: b batch, C latent channels, H W latent height and width, n tokens, d width, h heads, e head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from dmvae.runtime.precision import full_precision, kind


class Block(nn.Module):
    """x + gate * attention(modulated x), then the same with the MLP. The condition c is [b, 1 or n, d]: one for all
    tokens, or one for each."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qk_norm: bool):
        super().__init__()
        self.norm1 = RMSScale(width)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2 = RMSScale(width)
        self.mlp = SwiGLU(width, int(2 / 3 * int(width * mlp_ratio)))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_bnd: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation[1](c).chunk(6, dim=-1)
        x_bnd = torch.addcmul(x_bnd, gate1, self.attn(modulated(x_bnd, self.norm1(), scale1, shift1), cos, sin))
        return torch.addcmul(x_bnd, gate2, self.mlp(modulated(x_bnd, self.norm2(), scale2, shift2)))


class Attention(nn.Module):
    """Self-attention, its queries and keys RMS-normalised where `qk_norm` is set, and rotated where positions are
    given."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv = nn.Linear(width, 3 * width)
        if qk_norm:
            self.q_norm = RMSScale(width // heads)
            self.k_norm = RMSScale(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x_bnd: Tensor, *rotation: Tensor) -> Tensor:
        """x [b, n, d] and, for rotary positions, cos and sin of `rope_tables`."""
        # Queries and keys go through norm and rotation together: half as many operations, each on twice the values.
        qk, v = self.qkv(x_bnd).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=2)  # [b, n, 2 and 1, h, e]
        if self.qk_norm:
            # In their own precision: float32 weights would make float32 of bf16 queries and keys, at twice the memory.
            weight = torch.stack((self.q_norm(), self.k_norm()))[:, None].to(qk.dtype)
            qk = normalised(qk) * weight
        q, k = (rotate(qk, *rotation) if rotation else qk).unbind(2)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.squeeze(2).transpose(1, 2))
        return self.proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with a, b the halves of w12's output."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x_bnd: Tensor) -> Tensor:
        a, b = self.w12(x_bnd).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class RMSScale(nn.Module):
    """The learned scale of an RMSNorm, apart from `normalised`, so that callers can fold the scale into other factors.
    They call it rather than read `weight`, so that hooks which move weights to a device at each call (offloading)
    run."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self) -> Tensor:
        return self.weight


class PatchEmbedder(nn.Module):
    """[b, C, H, W] -> one token per patch, in row-major order: [b, n, d]."""

    def __init__(self, in_channels: int, patch_size: int, width: int):
        super().__init__()
        self.proj = CastingConv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, z_bchw: Tensor) -> Tensor:
        return self.proj(z_bchw).flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """MLP of 128 cosines and 128 sines of t in [0, 1]; t is not scaled up to a thousand steps."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(CastingLinear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        # In float32 whatever the weights are: bf16 would round t to 1/256, by which noise levels near data differ. So
        # frequencies are no buffer, which would be rounded with the weights.
        angles = t.float()[:, None] * time_frequencies(t.device)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


def time_frequencies(device: torch.device) -> Tensor:
    """[128], float32, of `TimeEmbedder`: from 1 towards 1e-4."""
    return 10000.0 ** (-torch.arange(128, device=device) / 128)


class LabelEmbedder(nn.Module):
    """A row for each class and a last one for "no label"."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    """Modulated RMSNorm and a Linear to the values of each patch."""

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.norm_final = RMSScale(width)
        self.linear = Linear32(width, out_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear32(width, 2 * width))

    def forward(self, x_bnd: Tensor, c: Tensor) -> Tensor:
        # float32 under autocast too: guidance multiplies the difference of two nearly equal outputs, and their
        # rounding with it. At scale 5 this reduces the error of bf16 from 2e-2 to 2e-3, and the layer is small.
        with full_precision(x_bnd):
            shift, scale = self.adaLN_modulation[1](c).chunk(2, dim=-1)
            return self.linear(modulated(x_bnd.float(), self.norm_final().float(), scale, shift))


class Linear32(nn.Linear):
    """A Linear that computes in float32, whatever the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class CastingLinear(nn.Linear):
    """A Linear that takes inputs of any dtype and computes in that of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class CastingConv2d(nn.Conv2d):
    """A convolution that takes inputs of any dtype and computes in that of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def attend(q_bhne: Tensor, k_bhne: Tensor, v_bhne: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(e)) v, [b, h, n, e]."""
    n = q_bhne.shape[2]
    # On a CPU the fused kernel is slower than two batched products in bf16 (by a third, forward and backward, at 256
    # tokens) and on few tokens. It saves the memory of n x n weights, which matters where there are many.
    if kind(q_bhne.device) == "cpu" and n <= (512 if q_bhne.dtype is torch.bfloat16 else 64):
        weights = (q_bhne * q_bhne.shape[-1] ** -0.5) @ k_bhne.transpose(-1, -2)
        return torch.softmax(weights, -1, dtype=weights.dtype) @ v_bhne
    return F.scaled_dot_product_attention(q_bhne, k_bhne, v_bhne)


def normalised(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, in the dtype of x; the mean square is computed in float32 at least."""
    return _Normalised.apply(x)[0]


class _Normalised(torch.autograd.Function):
    """With its gradient in closed form, r (g - y mean(g y)) for r = 1 / rms(x) and y = r x: fewer passes over memory
    than autograd's, and than F.rms_norm's on a CPU."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        r = (norm.square() / x.shape[-1] + 1e-6).rsqrt().to(x.dtype)
        y = x * r
        ctx.save_for_backward(y, r)  # both are outputs, so that the gradient has one too
        ctx.set_materialize_grads(False)
        return y, r

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_r: Tensor | None) -> Tensor | None:
        y, r = ctx.saved_tensors
        own = None if g is None else torch.addcmul(g, y, (g * y).mean(-1, keepdim=True), value=-1) * r
        if g_r is None:
            return own
        of_r = -g_r * r.square() * y / y.shape[-1]
        return of_r if own is None else own + of_r


def modulated(x_bnd: Tensor, weight_d: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """RMSNorm(x) * (1 + scale) + shift, with both factors joined while they are small."""
    return torch.addcmul(shift, normalised(x_bnd), weight_d * (1 + scale))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[2i], x[2i + 1]) of x [b, n, ..., e] by its position's angle; cos, sin from `rope_tables`."""
    # Members of a pair are swapped, rather than x split into two strided halves, which are slow to read and to write.
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))


def rope_tables(side: int, head_width: int) -> tuple[Tensor, Tensor]:
    """cos and sin [side * side, 1, 1, head_width] of the row's angles, then of the column's; theta 10000. Each angle
    stands twice, once for each member of a pair; its sine has the signs -, + by which `rotate` multiplies the other
    member."""
    frequencies = 10000.0 ** (-torch.arange(0, head_width // 2, 2) / (head_width // 2))
    angles = torch.arange(side)[:, None] * frequencies
    both = torch.cat((angles.repeat_interleave(side, 0), angles.repeat(side, 1)), dim=-1)[:, None, None, :, None]
    return both.cos().expand(*both.shape[:-1], 2).flatten(-2), (both.sin() * torch.tensor([-1, 1])).flatten(-2)


def sincos_positions(side: int, width: int) -> Tensor:
    """[side * side, width]: sines and cosines of the column, then of the row."""
    angles = torch.arange(side)[:, None] * 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
    return torch.cat((waves.repeat(side, 1), waves.repeat_interleave(side, 0)), dim=-1)
