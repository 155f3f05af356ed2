"""The tokenizer: encoder, bottleneck, decoder, and the statistics of its latents.

Shapes: n images, c image channels, h w image height and width, C latent channels, H W = h / stride, w / stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.encoders import EncoderConfig
from dmvae.models.base import Model
from dmvae.models.decoder import Decoder

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution


class PointDistribution:
    """A latent that is certain, with the interface of diffusers' DiagonalGaussianDistribution."""

    def __init__(self, mean: Tensor):
        self.mean = mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """[n] zeros: there is no spread to penalise."""
        return self.mean.new_zeros(len(self.mean))


@dataclass
class EncoderOutput(BaseOutput):
    latents: Tensor
    """[n, C, H, W], not normalised; the mean where the bottleneck is variational."""
    latent_dist: DiagonalGaussianDistribution | PointDistribution


@dataclass
class DecoderOutput(BaseOutput):
    sample: Tensor
    """[n, c, h, w], trained to lie in [-1, 1], not clamped."""


class Autoencoder(Model):  # type: ignore[misc]
    """`model.decode(model.encode(x).latents).sample`.

    encoder: an encoder config as a mapping, `{"type": "conv", ...}`. image_size: of the training images;
    a convolutional encoder takes others too. bottleneck_width: hidden width of the bottleneck, 0 for one
    linear layer. variational: the bottleneck gives a mean and a log-variance.

    `latent_mean` and `latent_std` [C] are 0 and 1 until a stage fills them in.
    """

    _supports_gradient_checkpointing = True
    encoder: Any
    latent_mean: Tensor
    latent_std: Tensor

    @register_to_config
    def __init__(
        self,
        *,
        encoder: dict[str, Any],
        image_size: int = 32,
        in_channels: int = 3,
        latent_channels: int = 16,
        bottleneck_width: int = 2048,
        decoder_width: int = 128,
        decoder_multipliers: Sequence[int] = (1, 2, 4, 4),
        decoder_blocks: int = 2,
        decoder_attention: bool = True,
        variational: bool = False,
    ):
        super().__init__()
        encoder_config = configs.read(EncoderConfig, dict(encoder), "encoder")
        self.encoder = encoder_config.build(size=image_size, channels=in_channels)
        self.bottleneck = bottleneck(
            self.encoder.channels, bottleneck_width, latent_channels * (2 if variational else 1)
        )
        self.decoder = Decoder(
            latent_channels,
            in_channels,
            width=decoder_width,
            multipliers=tuple(decoder_multipliers),
            blocks=decoder_blocks,
            stride=self.encoder.stride,
            attention=decoder_attention,
        )
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def __getattr__(self, name: str) -> Any:
        # diffusers looks names up in the config first, where `encoder` is the mapping and not the network.
        return nn.Module.__getattr__(self, name)

    @property
    def stride(self) -> int:
        """Image pixels per latent, along each side."""
        return self.encoder.stride

    @property
    def latent_size(self) -> int:
        """H = W of the latents of training images."""
        return self.config["image_size"] // self.stride

    def encode(self, x: Tensor) -> EncoderOutput:
        """x [n, c, h, w] in [-1, 1]; h and w must be multiples of the stride (ValueError)."""
        for name, length in zip(("height", "width"), x.shape[2:], strict=True):
            if length % self.stride:
                below = length // self.stride * self.stride
                near = f"{below} or {below + self.stride}" if below else f"{self.stride}"
                raise ValueError(
                    f"image {name} {length} is not a multiple of the tokenizer's stride {self.stride}; "
                    f"crop, pad or resize to {near}"
                )
        features = self.encoder(x)
        out = self.bottleneck(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.config["variational"]:
            # Imported here because it brings all of diffusers' networks, a second of start-up.
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            gaussian = DiagonalGaussianDistribution(out)
            return EncoderOutput(latents=gaussian.mean, latent_dist=gaussian)
        return EncoderOutput(latents=out, latent_dist=PointDistribution(out))

    def decode(self, z: Tensor) -> DecoderOutput:
        """z [n, C, H, W], not normalised -> images [n, c, h, w]."""
        return DecoderOutput(sample=self.decoder(z))

    def forward(self, x: Tensor) -> DecoderOutput:
        """x [n, c, h, w] -> its reconstruction."""
        return self.decode(self.encode(x).latents)

    def normalize(self, z: Tensor) -> Tensor:
        """(z - mean) / std per channel, for z [n, C, H, W]: what flow models see."""
        return (z - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def denormalize(self, z: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return z * self.latent_std[:, None, None] + self.latent_mean[:, None, None]


def bottleneck(channels: int, width: int, out_channels: int) -> nn.Sequential:
    """The same MLP for each token: [..., channels] -> [..., out_channels]."""
    if width == 0:
        return nn.Sequential(nn.Linear(channels, out_channels))
    return nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, out_channels))
