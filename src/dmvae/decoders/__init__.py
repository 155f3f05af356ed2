"""Decoders: one file each. A decoder maps latents [n, C, H, W] to images [n, c, H stride, W stride]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from dmvae.config import Values
from dmvae.registry import Registered

OLD = ("decoder_width", "decoder_multipliers", "decoder_blocks", "decoder_attention")
"""Fields of version 0.1, which had the convolutional decoder alone."""


class Decoder(nn.Module):
    """What `DecoderConfig.build` returns. A module with these attributes need not derive from it. With a method
    `decode_tiled(z, tile)`, large images can be decoded in parts."""

    @property
    def last_layer(self) -> Tensor:
        """The weights of the layer that gives the image: the adaptive weight compares gradients at them."""
        raise NotImplementedError

    def compiled_parts(self) -> list[nn.Module]:
        """What `run.compile` compiles; nothing by default. The last layer must not be in it: the adaptive weight takes
        a gradient there, which would run the backward pass of everything compiled together with it."""
        return []

    if TYPE_CHECKING:

        def __call__(self, z: Tensor) -> Tensor:
            """z [n, C, H, W] -> images [n, c, H stride, W stride], trained to lie in [-1, 1] and not clamped."""
            ...

        def decode_tiled(self, z: Tensor, tile: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Registered):
    """Base class of decoders' configs. They have no fields in common."""

    required: ClassVar[tuple[str, ...]] = ("build",)

    def build(self, *, latent_channels: int, channels: int, stride: int) -> Decoder:
        """The `Decoder` from C latent channels to images of `channels` channels, `stride` times as high and wide."""
        raise NotImplementedError


def decoder_section(values: Mapping[str, object]) -> Values:
    """An autoencoder's section with its decoder_* fields, of version 0.1, moved into `decoder`.

    Raises ValueError where both spellings are there.
    """
    old = {name.removeprefix("decoder_"): values[name] for name in OLD if name in values}
    kept = {name: value for name, value in values.items() if name not in OLD}
    if old and "decoder" in kept:
        raise ValueError(f"decoder and decoder_{next(iter(old))}: two ways to say the same; keep `decoder: {{...}}`")
    return kept | ({"decoder": {"type": "conv"} | old} if old else {})
