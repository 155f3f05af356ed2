"""Finished tokenizers of any origin: one file each. A source builds a network that maps images [n, c, h, w] in
[-1, 1] to latents [n, latent_channels, h / stride, w / stride] (`encode`) and back (`decode`), and says its
`.latent_channels` and `.stride`. `adapted.py` gives it the interface of our own Autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from dmvae.models.base import Distribution
from dmvae.registry import Registered


class Normalisation(NamedTuple):
    """What generators learn of latents z: (z - mean) / std in each channel, then times `whitening` if there is one."""

    mean: Tensor
    """float32 [C]."""
    std: Tensor
    """float32 [C]."""
    whitening: Tensor | None = None
    """float32 [C, C]."""


class Codec(nn.Module):
    """What `TokenizerSource.build` returns. A module with these attributes need not derive from it. A method `parts()`,
    which returns a `dmvae.models.base.Parts`, lets stages train it further."""

    latent_channels: int
    """C."""
    stride: int
    """Image pixels per latent, along each side."""
    has_spread: bool = False
    """Whether it has `posterior`."""

    def encode(self, images: Tensor) -> Tensor:
        """[n, c, h, w] in [-1, 1] -> [n, latent_channels, h / stride, w / stride]."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Latents, as `encode` gives them -> images [n, c, h, w], trained to lie in [-1, 1]."""
        raise NotImplementedError

    @property
    def normalisation(self) -> Normalisation | None:
        """How generators that come with it see its latents, for `latents.statistics: own`; None where nothing says."""
        return None

    def posterior(self, images: Tensor) -> Distribution:
        """A distribution with `mean`, `std` and `sample()`; `encode` returns its mean."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TokenizerSource(Registered):
    """Where a finished tokenizer comes from."""

    required: ClassVar[tuple[str, ...]] = ("build",)
    scaled: ClassVar[bool] = True
    """False: generators that come with it know its latents scaled, and nothing in it says how. A pipeline then asks for
    the numbers."""

    def resolve(self) -> TokenizerSource:
        """The source with the architecture, as its files say it, written into its fields. An artifact keeps this form,
        whose `build(pretrained=False)` reads no file. Raises ValueError for files that are not there."""
        return self

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Codec:
        """The network for `size` x `size` images of `channels` channels; with `pretrained`, its weights.

        Raises ValueError where the network does not take such images.
        """
        raise NotImplementedError
