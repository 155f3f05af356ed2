"""Reference `timm`: features of any vision model of the timm library, self-supervised or supervised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dmvae.encoders.timm import TimmEncoder
from dmvae.ranges import Pixels
from dmvae.references import Surroundings
from dmvae.references.data import DataConfig
from dmvae.references.reduction import AtResolution
from dmvae.registry import register
from dmvae.runtime.hashing import content_hash


@register("timm")
@dataclass(frozen=True, kw_only=True)
class TimmReference(DataConfig):
    """Features of the training images in a timm model: DINOv2, DINOv3, MAE, SigLIP's image half, classifiers."""

    model: str
    """timm's name of the model, such as vit_base_patch14_dinov2.lvd142m."""
    resolution: Pixels | None = None
    """Images are resized to this height and width, pixels; null leaves them as they are. A vision transformer gives
    resolution / patch size features along each side; where that is not the latents' grid, they are resized to it."""
    patch_size: Pixels | None = None
    """Patch size to run a vision transformer at; its embeddings are resampled."""
    pretrained: bool = True
    """The model's public weights; random ones otherwise."""
    checkpoint: str | None = None
    """Local weights instead: a .safetensors file, or one that torch.save wrote."""

    def network(self, inputs: Surroundings) -> nn.Module:
        checkpoint = Path(self.checkpoint).expanduser() if self.checkpoint is not None else None
        encoder = TimmEncoder(
            model=self.model, patch_size=self.patch_size, pretrained=self.pretrained, checkpoint=checkpoint
        )
        data = inputs.data
        size = self.resolution or data.size
        network = encoder.build(size=size, channels=data.channels, pretrained=True)
        if getattr(network.model, "patch_embed", None) is not None and size % network.stride:
            below = size // network.stride * network.stride
            raise ValueError(
                f"resolution: images of {size} pixels are not whole patches of {network.stride}; set it to "
                f"{f'{below} or ' if below else ''}{below + network.stride}"
            )
        return AtResolution(network, size)

    def fingerprint(self) -> str:
        """A hash of the checkpoint's content; "" without one."""
        return "" if self.checkpoint is None else content_hash([Path(self.checkpoint).expanduser()])
