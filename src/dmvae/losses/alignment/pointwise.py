"""Alignment `pointwise`: each latent vector is pulled towards the feature vector at its place (VA-VAE).

z' = projection(z) [n, F, H, W] is a linear map of each latent to the features' width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.losses.alignment import AlignmentConfig
from dmvae.ranges import Range
from dmvae.registry import register
from dmvae.runtime.random import Random


@register("pointwise")
@dataclass(frozen=True, kw_only=True)
class Pointwise(AlignmentConfig):
    """Each latent vector is pulled towards the feature vector at its place."""

    kind: Literal["vf", "l2"] = "vf"
    """"vf": cosine and distance-matrix losses with margins (VA-VAE, arXiv 2501.01423). "l2": mean squared
    difference (DMVAE, arXiv 2512.07778, eq. 4)."""
    m1: Annotated[float, Range(0, 2)] = 0.5
    """Margin of the cosine loss: a cosine of 1 - m1 is close enough; 2 turns the loss off."""
    m2: Annotated[float, Range(0, 2)] = 0.25
    """Margin of the distance-matrix loss: a difference of m2 between two cosines is small enough; 2 turns it off."""
    pairs: Literal["latents", "projected"] = configs.added("latents")
    """Whose angles between places the distance-matrix loss compares with the features': the latents', as VA-VAE's paper
    has it, or those of their projection, as its code does."""

    def projection(self, latent_shape: tuple[int, int, int], num_classes: int, width: int) -> nn.Module:
        # A bias would let every latent reach a good cosine by the features' mean alone; a squared difference needs it.
        return nn.Conv2d(latent_shape[0], width, 1, bias=self.kind == "l2")

    def losses(
        self, projection: nn.Module, z: Tensor, labels: Tensor, features: Tensor, rng: Random
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The same loss for latents and projection."""
        projected = projection(z).float()
        if self.kind == "l2":
            loss = F.mse_loss(projected, features)
            return loss, loss, {"alignment/l2": loss.detach()}
        cosine = marginal_cosine(projected, features, self.m1)
        distance = marginal_distance(projected if self.pairs == "projected" else z, features, self.m2)
        loss = cosine + distance
        return loss, loss, {"alignment/cosine": cosine.detach(), "alignment/distance": distance.detach()}


def marginal_cosine(projected: Tensor, features: Tensor, margin: float) -> Tensor:
    """Mean over images and places of max(0, 1 - margin - cos(z', f)): a scalar (arXiv 2501.01423, eq. 3). Both are
    [n, F, H, W]."""
    return F.relu(1 - margin - F.cosine_similarity(projected, features, dim=1)).mean()


def marginal_distance(z: Tensor, features: Tensor, margin: float) -> Tensor:
    """Mean over images and all pairs i, j of an image's places of max(0, |cos(z_i, z_j) - cos(f_i, f_j)| - margin): a
    scalar (arXiv 2501.01423, eq. 4). z [n, C, H, W], f [n, F, H, W]: only angles within each are compared, so C and F
    may differ."""
    return F.relu((cosines(z) - cosines(features)).abs() - margin).mean()


def cosines(x_bchw: Tensor) -> Tensor:
    """Cosines of all pairs of an image's N = H * W vectors: [n, C, H, W] -> [n, N, N]."""
    unit_bnc = F.normalize(x_bchw.flatten(2), dim=1).transpose(1, 2)
    return unit_bnc @ unit_bnc.transpose(1, 2)
