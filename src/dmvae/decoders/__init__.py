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
    """What `DecoderConfig.build` returns; a module that has all this without deriving from it does too. Where it also
    has `decode_tiled(z, tile)`, large images can be decoded in parts."""

    @property
    def last_layer(self) -> Tensor:
        """The weights that make the image, at which the adversary's weight compares gradients."""
        raise NotImplementedError

    def compiled_parts(self) -> list[nn.Module]:
        """What `run.compile` compiles: modules that come before the last layer, and none with it, for a gradient at the
        last layer would run the backward pass of all that is compiled together with it. None of it unless a member says
        so."""
        return []

    if TYPE_CHECKING:

        def __call__(self, z: Tensor) -> Tensor:
            """z [n, C, H, W] -> images [n, c, H stride, W stride], trained to lie in [-1, 1] and not clamped."""
            ...

        def decode_tiled(self, z: Tensor, tile: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Registered):
    """A decoder has no field in common with the others."""

    required: ClassVar[tuple[str, ...]] = ("build",)

    def build(self, *, latent_channels: int, channels: int, stride: int) -> Decoder:
        """The `Decoder` from C latent channels to images of `channels` channels, `stride` times as high and wide."""
        raise NotImplementedError


def decoder_section(values: Mapping[str, object]) -> Values:
    """An autoencoder's section whose decoder_* fields of version 0.1 stand under `decoder`.

    Raises ValueError where both spellings are there.
    """
    old = {name.removeprefix("decoder_"): values[name] for name in OLD if name in values}
    kept = {name: value for name, value in values.items() if name not in OLD}
    if old and "decoder" in kept:
        raise ValueError(f"decoder and decoder_{next(iter(old))}: two ways to say the same; keep `decoder: {{...}}`")
    return kept | ({"decoder": {"type": "conv"} | old} if old else {})
