"""Alignment: each latent vector is pulled towards a frozen encoder's feature vector at its place.

Latents z [n, C, H, W], the frozen encoder's features f [n, F, H, W] at the same places, and z' = projection(z)
[n, F, H, W], a linear map of each latent to the features' width that trains along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.encoders import EncoderConfig
from dmvae.ranges import Range, Weight


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Pointwise alignment of the latents to the self-supervised or public features of an encoder that stays frozen."""

    target: EncoderConfig | None = configs.added(None)
    """The encoder whose features latents are aligned to, with its public weights: a large one, as VA-VAE has, where the
    tokenizer's own is small. Its stride must be the tokenizer's. null: the tokenizer's own encoder, as it was before
    this stage."""

    kind: Literal["vf", "l2"] = "vf"
    """"vf": cosine and distance-matrix losses with margins (VA-VAE, arXiv 2501.01423). "l2": mean squared
    difference (DMVAE, arXiv 2512.07778, eq. 4)."""
    weight: Weight = 0.1
    """Weight of the alignment loss."""
    m1: Annotated[float, Range(0, 2)] = 0.5
    """Margin of the cosine loss: a cosine of 1 - m1 is close enough."""
    m2: Annotated[float, Range(0, 2)] = 0.25
    """Margin of the distance-matrix loss: so large a difference of two cosines is small enough."""
    balance: Literal["fixed", "gradient"] = "gradient"
    """"gradient": the weight is the ratio of the alignment gradient's norm to the reconstruction gradient's. The
    paper takes both norms at the encoder's last layer; here it is at the latents, where they cost nothing.
    "fixed": loss = reconstruction + weight * alignment."""

    def new_projection(self, channels: int, width: int) -> nn.Module:
        """The map z -> z' from C = `channels` to F = `width`."""
        # A bias would let every latent reach a good cosine by the features' mean alone; a squared difference needs it.
        return nn.Conv2d(channels, width, 1, bias=self.kind == "l2")

    def loss(self, z: Tensor, projected: Tensor, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The unweighted loss, a scalar, and its terms to log."""
        if self.kind == "l2":
            loss = squared_difference(projected, features)
            return loss, {"alignment/l2": loss.detach()}
        cosine = marginal_cosine(projected, features, self.m1)
        distance = marginal_distance(z, features, self.m2)
        return cosine + distance, {"alignment/cosine": cosine.detach(), "alignment/distance": distance.detach()}


def marginal_cosine(projected: Tensor, features: Tensor, margin: float) -> Tensor:
    """mean over images and places of max(0, 1 - margin - cos(z', f)): a scalar (arXiv 2501.01423, eq. 3)."""
    return F.relu(1 - margin - F.cosine_similarity(projected, features, dim=1)).mean()


def marginal_distance(z: Tensor, features: Tensor, margin: float) -> Tensor:
    """mean over images and pairs i, j of an image's places of max(0, |cos(z_i, z_j) - cos(f_i, f_j)| - margin): a
    scalar (arXiv 2501.01423, eq. 4). It compares two geometries, so z and f may differ in width and orientation."""
    return F.relu((cosines(z) - cosines(features)).abs() - margin).mean()


def squared_difference(projected: Tensor, features: Tensor) -> Tensor:
    """mean (z' - f)^2 over everything: a scalar (arXiv 2512.07778, eq. 4)."""
    return F.mse_loss(projected, features)


def cosines(x_bchw: Tensor) -> Tensor:
    """Cosine of every two of an image's N = H * W vectors: [n, C, H, W] -> [n, N, N]."""
    unit_bnc = F.normalize(x_bchw.flatten(2), dim=1).transpose(1, 2)
    return unit_bnc @ unit_bnc.transpose(1, 2)
