"""Tokenizer `identity`: pixels as latents, for a generator of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from dmvae.ranges import Range
from dmvae.registry import register
from dmvae.tokenizers import Codec, TokenizerSource


@register("identity")
@dataclass(frozen=True, kw_only=True)
class IdentityTokenizer(TokenizerSource):
    """No tokenizer: latents are the pixels, rearranged."""

    patch: Annotated[int, Range(1, 256)] = 1
    """Pixels along each side that one latent holds: the stride; latents have channels * patch ** 2 channels."""

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> SpaceToDepth:
        if size % self.patch:
            raise ValueError(f"image size {size} is not a multiple of the patch {self.patch}; set pretrained.patch")
        return SpaceToDepth(channels, self.patch)


class SpaceToDepth(Codec):
    """[n, c, h, w] <-> [n, c * patch ** 2, h / patch, w / patch]: channel, then row and column in the patch."""

    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.stride = patch
        self.latent_channels = channels * patch**2

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.stride)

    def decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, self.stride)
