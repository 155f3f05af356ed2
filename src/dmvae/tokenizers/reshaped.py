"""Tokenizer `reshaped`: a finished tokenizer and a bijection of its latents, which the stage `matching` trains.

The decoder undoes the bijection. So every reconstruction stays the same up to rounding, and a generator on the latents
shows the effect of their distribution alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from dmvae.models.base import Parts, Tokenizer
from dmvae.models.coupling import CouplingFlow
from dmvae.ranges import Count, Width
from dmvae.registry import register
from dmvae.tokenizers import Codec, TokenizerSource
from dmvae.tokenizers.adapted import AdaptedTokenizer, adapt_resolved, innermost, normalisation_of


class Reshaped(Codec):
    """encode: T(normalised latents of `inner`); decode: the decoder of `inner` after the inverse of T. T is a
    `CouplingFlow`, the identity at first. Only T trains, and the decoder of `inner` in stages that train decoders."""

    def __init__(self, inner: AdaptedTokenizer, layers: int, width: int):
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self._known.whiten(None)  # `latents.whitening` is for latents behind the bijection
        self.latent_channels, self.stride = inner.config["latent_channels"], inner.stride
        self.flow = CouplingFlow(self.latent_channels, layers, width)

    @property
    def _known(self) -> Tokenizer:
        """The tokenizer with the latents' mean and standard deviation: `inner`, or one of ours that it adapts."""
        return innermost(self.inner)

    def encode(self, images: Tensor) -> Tensor:
        return self.carry(self.inner.encode(images).latents)

    def carry(self, z: Tensor) -> Tensor:
        """T of raw latents z [n, C, H, W] of `inner`."""
        return self.flow(self._known.normalize(z))

    def decode(self, z: Tensor) -> Tensor:
        return self.inner.decode(self._known.denormalize(self.flow(z, inverse=True))).sample

    def parts(self) -> Parts:
        """Raises ValueError where `inner` can only be used as it is."""
        of = self._known.parts()
        return Parts([], [self.flow], of.decoder, of.last_layer, undone=True)


@register("reshaped")
@dataclass(frozen=True, kw_only=True)
class ReshapedTokenizer(TokenizerSource):
    """Another distribution of a tokenizer's latents, with the same reconstructions."""

    source: TokenizerSource
    """The tokenizer, by `type`, as `pretrained` takes it."""
    layers: Count = 8
    """Coupling layers. Each changes half of the channels, after a rotation of its own."""
    width: Width = 192
    """Channels of the convolutions in a layer."""

    def resolve(self) -> ReshapedTokenizer:
        return dataclasses.replace(self, source=self.source.resolve())

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Reshaped:
        inner = adapt_resolved(self.source, size=size, channels=channels, pretrained=pretrained)
        ours = innermost(inner)
        if pretrained and ours is not inner and (known := normalisation_of(inner)) is not None:
            ours.set_statistics(known.mean, known.std)  # an adapter around it may have later ones
        return Reshaped(inner, self.layers, self.width)
