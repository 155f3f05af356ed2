"""Alignment of a flow model's tokens to a frozen encoder's features of the image without noise: REPA
(arXiv 2410.06940).

Tokens [n, h * w, d] behind some block of the network, for a noised latent; features f [n, F, h, w], one for each token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dmvae.encoders import EncoderConfig
from dmvae.models.dit import DiffusionTransformer
from dmvae.ranges import Depth, Weight, Width


@dataclass(frozen=True, kw_only=True)
class TokenAlignment:
    """Alignment of the generator's tokens to an encoder's features of the images: REPA (arXiv 2410.06940)."""

    target: EncoderConfig
    """The encoder, with its public weights. Its stride must be that of a token in pixels."""
    weight: Weight = 0.5
    """Weight of the mean of 1 - cosine, added to the flow-matching loss; 0.5 is REPA's."""
    depth: Depth | None = None
    """Blocks behind which tokens are taken; null is a third of them, rounded up (REPA: 8 of 28)."""
    width: Width = 2048
    """Hidden channels of the projector from tokens to features, of three layers."""


def depth_of(depth: int | None, flow: DiffusionTransformer, place: str) -> int:
    """Blocks behind which tokens are taken: `depth`, or a third of the flow's blocks, rounded up. Raises ValueError,
    naming the field `place`, for more blocks than there are."""
    blocks = len(flow.blocks)
    if depth is not None and depth > blocks:
        raise ValueError(f"{place}: {depth}, and the flow model has {blocks} blocks; give at most those")
    return -(-blocks // 3) if depth is None else depth


def away(projected: Tensor, features: Tensor) -> Tensor:
    """Mean over images and places of 1 - cos(h, f), the cosine over channels, for [n, F, h, w] each: a scalar from 0 to
    2."""
    return (1 - F.cosine_similarity(projected.float(), features, dim=1)).mean()
