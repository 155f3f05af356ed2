"""A finished tokenizer of any origin with the interface and the artifact format of our own.

Shapes: n images, c channels, h w height and width, C latent channels, H W = h / stride, w / stride.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from dmvae import config as configs
from dmvae.config import Values
from dmvae.models.artifact import artifact_class
from dmvae.models.base import DecoderOutput, EncoderOutput, PointDistribution, Tokenizer, full_precision
from dmvae.tokenizers import Codec, TokenizerSource
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.tokenizers.files import load_strictly


class AdaptedTokenizer(Tokenizer):
    """`model.decode(model.encode(x).latents).sample`, as our Autoencoder.

    source: a resolved TokenizerSource as a mapping. image_size, in_channels: of the images. latent_channels is the
    network's, whatever is given. The artifact holds the foreign network's config and weights: it needs no other
    file.
    """

    __module__ = "dmvae"  # the name under which artifacts find the class
    network: Codec

    @register_to_config
    def __init__(
        self,
        *,
        source: Values,
        image_size: int = 32,
        in_channels: int = 3,
        latent_channels: int | None = None,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        self.network = configs.read(TokenizerSource, dict(source), "source").build(
            size=image_size, channels=in_channels
        )
        self.register_to_config(latent_channels=self.network.latent_channels)
        self.register_statistics(self.network.latent_channels)

    @property
    def stride(self) -> int:
        """Image pixels per latent, along each side."""
        return self.network.stride

    @apply_forward_hook
    def encode(self, x: Tensor) -> EncoderOutput:
        self.check_images(x)
        z = self.network.encode(x)
        return EncoderOutput(latents=z, latent_dist=PointDistribution(z))

    @apply_forward_hook
    def decode(self, z: Tensor) -> DecoderOutput:
        self.check_latents(z)
        if torch.is_grad_enabled():
            return DecoderOutput(sample=self.network.decode(z))
        with full_precision(z):  # as our Autoencoder's, or figures would not compare
            return DecoderOutput(sample=self.network.decode(z.to(self.dtype)))


ARTIFACTS: tuple[type[Tokenizer], ...] = (Autoencoder, AdaptedTokenizer)


def adapt(source: TokenizerSource, *, size: int, channels: int, pretrained: bool) -> AdaptedTokenizer:
    """The source's tokenizer for `size` x `size` images; with `pretrained`, its weights, else random ones.

    Raises ValueError where files are missing or images do not fit.
    """
    source = source.resolve()
    model = AdaptedTokenizer(source=configs.plain(source), image_size=size, in_channels=channels)
    if pretrained:
        model.network = source.build(size=size, channels=channels, pretrained=True)
    return model


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The Autoencoder or AdaptedTokenizer in an artifact's folder, in evaluation mode.

    Raises ValueError for a folder that holds neither, or weights that are not its config's.
    """
    return load_strictly(tokenizer_class(folder), folder)


def tokenizer_class(folder: str | Path) -> type[Tokenizer]:
    """Autoencoder or AdaptedTokenizer, as the folder's config.json says; ValueError where it is neither."""
    try:
        return artifact_class(folder, ARTIFACTS, "tokenizer")
    except ValueError as error:
        hint = "; a recipe takes autoencoders of diffusers under pretrained: {type: diffusers, path: FOLDER}"
        raise ValueError(f"{error}{hint if ' holds ' in str(error) else ''}") from error
