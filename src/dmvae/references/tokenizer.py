"""Reference `tokenizer`: the latents of another, finished tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dmvae.models.base import Tokenizer
from dmvae.ranges import Pixels
from dmvae.references import Surroundings
from dmvae.references.data import DataConfig
from dmvae.references.reduction import AtResolution
from dmvae.registry import register
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import adapt


@register("tokenizer")
@dataclass(frozen=True, kw_only=True)
class TokenizerReference(DataConfig):
    """Latents of the training images in any finished tokenizer."""

    source: TokenizerSource
    """The tokenizer, by `type`, as `pretrained` takes it."""
    resolution: Pixels | None = None
    """Images are resized to this height and width, pixels; null leaves them as they are."""

    def network(self, inputs: Surroundings) -> nn.Module:
        data = inputs.data
        size = self.resolution or data.size
        network = adapt(self.source, size=size, channels=data.channels, pretrained=True)
        return AtResolution(Encode(network), size)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class Encode(nn.Module):
    """A tokenizer's encoder as a feature network: its means, or samples where these are its latents."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images).latents
