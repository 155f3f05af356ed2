"""A tokenizer source of your own: a finished tokenizer whose latents are whitened in part, a plugin of a recipe.

z -> C^(-w / 2) z for each token, C the covariance of the tokens: w = 0 leaves the latents as they are, 1 makes all
directions vary alike, and below 0 the wide ones become wider. The decoder undoes it, so every reconstruction stays what
it was. whitened.yaml sets some w beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dmvae.registry import register
from dmvae.tokenizers import Codec, TokenizerSource
from dmvae.tokenizers.adapted import AdaptedTokenizer, adapt, innermost

MEASURED, THINNEST = 8000, 1e-4
"""Latents that the covariance is measured on, and the least share of the widest direction's variance that one has."""


class Whitened(Codec):
    """The matrix is a buffer, so that the artifact of a run holds it and needs the latents no more."""

    power: Tensor
    """[C, C], C^(-w / 2)."""

    def __init__(self, inner: AdaptedTokenizer, power: Tensor):
        super().__init__()
        self.inner = inner
        self.latent_channels, self.stride = inner.config["latent_channels"], inner.stride
        self.register_buffer("power", power)

    def encode(self, images: Tensor) -> Tensor:
        z = innermost(self.inner).normalize(self.inner.encode(images).latents)
        return torch.einsum("dc,nchw->ndhw", self.power, z)

    def decode(self, z: Tensor) -> Tensor:
        z = torch.einsum("dc,nchw->ndhw", torch.linalg.inv(self.power), z)
        return self.inner.decode(innermost(self.inner).denormalize(z)).sample


@register("whitened")
@dataclass(frozen=True, kw_only=True)
class WhitenedTokenizer(TokenizerSource):
    source: TokenizerSource
    """The tokenizer, by `type`."""
    latents: Path
    """The folder with shards of its latents, which the stage `latents` has written: RUN/VARIANT/latents/latents."""
    amount: float = 0.0
    """w, how far they are whitened."""

    def resolve(self) -> WhitenedTokenizer:
        return replace(self, source=self.source.resolve())

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Whitened:
        inner = adapt(self.source, size=size, channels=channels, pretrained=pretrained)
        power = torch.eye(inner.config["latent_channels"])
        if pretrained:
            shards = sorted(self.latents.glob("latents-*.safetensors"))
            if not shards:
                raise ValueError(f"pretrained.latents: no shards of latents in {self.latents}")
            z = innermost(inner).normalize(load_file(shards[0])["latents"][:MEASURED].float())
            values, directions = torch.linalg.eigh(torch.cov(z.movedim(1, -1).flatten(0, 2).double().T))
            values = values.clamp_min(THINNEST * values.max())
            power = (directions * values ** (-self.amount / 2) @ directions.T).float()
        return Whitened(inner, power)
