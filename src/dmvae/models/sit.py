"""SiT: DiT's transformer (arXiv 2212.09748), trained to predict the velocity of latents (arXiv 2401.08740).

Shapes: b batch, C latent channels, n tokens, d width.

Parameter names and layouts are those of the published weights of SiT, REPA (arXiv 2410.06940) and REPA-E (arXiv
2504.10483), which `dmvae.interop.sit` reads. Beside LightningDiT: LayerNorm without weights, a plain MLP, and fixed
positions alone.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from dmvae.models.dit import DiffusionTransformer
from dmvae.models.transformer import Attention, Linear32
from dmvae.runtime.precision import full_precision


class SiT(DiffusionTransformer):
    """`velocity = model(z_t, t, labels)`.

    in_channels: C. input_size: H = W of the latents, a multiple of patch_size. num_classes: labels are
    0 .. num_classes - 1, and num_classes itself stands for "no label". mlp_ratio: hidden channels of the MLP as a
    multiple of the width.
    """

    __module__ = "dmvae"  # the name under which artifacts find the class, wherever this file moves
    _no_split_modules = cast("None", ["SiTBlock"])  # as ModelMixin declares it

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
        self.embed()
        self.blocks = nn.ModuleList(SiTBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.final_layer = SiTFinalLayer(width, patch_size**2 * in_channels)
        self.initialize()


class SiTBlock(nn.Module):
    """x + gate * attention(modulated x), then the same with the MLP; the condition c is [b, 1, d]."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attn = Attention(width, heads, qk_norm=False)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_bnd: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation[1](c).chunk(6, dim=-1)
        x_bnd = torch.addcmul(x_bnd, gate1, self.attn(modulated(x_bnd, scale1, shift1)))
        return torch.addcmul(x_bnd, gate2, self.mlp(modulated(x_bnd, scale2, shift2)))


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), with GELU's approximation by tanh."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_bnd: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_bnd), approximate="tanh"))


class SiTFinalLayer(nn.Module):
    """Modulated LayerNorm and a Linear to the values of each patch."""

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.linear = Linear32(width, out_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear32(width, 2 * width))

    def forward(self, x_bnd: Tensor, c: Tensor) -> Tensor:
        with full_precision(x_bnd):  # as LightningDiT's, for the same reason
            shift, scale = self.adaLN_modulation[1](c).chunk(2, dim=-1)
            return self.linear(modulated(x_bnd.float(), scale, shift))


def modulated(x_bnd: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift; eps 1e-6, no weights of its own."""
    return torch.addcmul(shift, F.layer_norm(x_bnd, x_bnd.shape[-1:], eps=1e-6), 1 + scale)
