"""Features of a tokenizer's encoder: your own measure, which need not have learnt ImageNet's classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from dmvae.evaluation.features import Extractor, FeaturesConfig
from dmvae.ranges import Pixels
from dmvae.registry import register
from dmvae.runtime.hashing import content_hash, weights_hash

FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@register("tokenizer")
@dataclass(frozen=True, kw_only=True)
class TokenizerFeatures(FeaturesConfig):
    """Features of a trained tokenizer's encoder, averaged over positions. Useful where ImageNet's classes mean little:
    the stage `encoder` trains one without labels on images like yours."""

    weights: Path
    """Folder of the tokenizer, such as RUN/VARIANT/tokenizer/autoencoder."""
    resolution: Pixels = 64
    """Images are resized to this height and width, pixels; best is the size that the encoder was trained on."""

    @property
    def name(self) -> str:
        return f"tokenizer-{self.fingerprint()[:8]}@{self.resolution}"

    def fingerprint(self) -> str:
        return content_hash(self.weights / name for name in FILES)

    def build(self) -> Extractor:
        """Raises ValueError for a folder without a tokenizer, or with one that has no encoder of ours."""
        from dmvae.tokenizers.adapted import load_tokenizer
        from dmvae.tokenizers.autoencoder import Autoencoder

        model = load_tokenizer(self.weights)
        if not isinstance(model, Autoencoder):
            raise ValueError(
                f"{self.weights}: holds {type(model).__name__}, and features are taken of the encoder that a recipe's "
                "`autoencoder` describes; give the tokenizer of such a run"
            )
        network = Pooled(model.encoder, model.config["in_channels"])
        half = (0.5,) * 3  # images in [-1, 1]
        return Extractor(
            network,
            model.encoder.channels,
            self.resolution,
            half,
            half,
            name=self.name,
            weights=weights_hash(model.encoder),
        )


class Pooled(nn.Module):
    """Images [n, 3, r, r] in [-1, 1] -> features [n, d], means over positions. channels: of the encoder's images."""

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder, self.channels = encoder, channels

    def forward(self, images: Tensor) -> Tensor:
        x = images if self.channels == images.shape[1] else images.mean(dim=1, keepdim=True)
        return self.encoder(x).mean(dim=(2, 3))
