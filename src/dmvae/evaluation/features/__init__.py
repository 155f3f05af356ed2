"""Feature extractors: uint8 images in, float32 vectors out. One file per kind.

Shapes: n images, d features. Every number reported from features carries the extractor's name, resolution included:
distances in different feature spaces do not compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.config import Values
from dmvae.registry import Registered, is_ours, names
from dmvae.runtime.hashing import code_of, content_of
from dmvae.runtime.precision import exact, full_precision
from dmvae.spelling import close, nearest

# Convolution kernels are chosen by batch size and round differently. So networks always see this many images at once,
# and an image's features do not depend on the caller's batches.
CHUNK = 32
RESIZE = "antialiased bicubic (torch)"
"""How `Extractor.prepare` resizes. It is part of the key of kept features: change it when you change that method."""
POOL, LOGITS, SPATIAL = "pool", "logits", "spatial"
"""Heads: the vector of an image that every extractor gives, for distances; and two that Inception adds."""


class Extractor(nn.Module):
    """uint8 images [n, C, h, w], C = 1 (repeated to 3) or 3 -> float32 features [n, dim], on the extractor's device.

    `network` maps float images [CHUNK, 3, r, r], resized to `resolution` (None: left as they are) and normalised
    as (x / 255 - mean) / std, to features [CHUNK, dim]. A network with further outputs names them, with their
    widths, in `more`: it then returns all outputs concatenated, [CHUNK, dim + ...], and `heads` splits them.
    `name`, `weights` (a hash) and `code` (set by `extractor_of`) go into manifests. Raises ValueError for images of
    another type or shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        dim: int,
        resolution: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        name: str = "",
        weights: str = "",
        more: dict[str, int] | None = None,
    ):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.dim, self.resolution = dim, resolution
        self.widths = {POOL: dim} | (more or {})
        self.name, self.weights, self.code = name, weights, ""
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Extractor:
        """The network stays in evaluation mode, also if the extractor is part of a module that trains."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.heads(images)[POOL]

    @torch.inference_mode()
    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Every output by name, float32 [n, width]."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"features are taken of uint8 images [n, 1 or 3, h, w], not {images.dtype} {[*images.shape]}"
            )
        features = in_chunks(lambda part: self.network(self.prepare(part)), images.to(self.mean.device))
        return dict(zip(self.widths, features.split(list(self.widths.values()), dim=1), strict=True))

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [n, C, h, w] -> float32 [n, 3, r, r], normalised: antialiased bicubic, as Pillow resizes."""
        x = images.float()
        r = self.resolution
        if r is not None and x.shape[2:] != (r, r):
            x = F.interpolate(x, (r, r), mode="bicubic", antialias=True).clamp(0, 255)
        x = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def manifest(self) -> Values:
        """Everything that changes the numbers measured in these features."""
        prepared = {
            "resolution": self.resolution,
            "resize": "none" if self.resolution is None else RESIZE,
            "mean": [round(value, 4) for value in self.mean.flatten().tolist()],
            "std": [round(value, 4) for value in self.std.flatten().tolist()],
        }
        code = {"code": self.code} if self.code else {}
        return {"name": self.name, "weights": self.weights, "dtype": "float32"} | prepared | code


def in_chunks(network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """network(*inputs) for inputs of rows [n, ...], on their device: always CHUNK rows at a time, padded, in float32.
    So a row depends neither on n nor on an autocast around the call."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with full_precision(inputs[0]), exact():
            parts = zip(*(x.split(CHUNK) for x in inputs), strict=True)
            rows = [network(*map(padded, part))[: len(part[0])] for part in parts]
    finally:
        cudnn.benchmark, cudnn.deterministic = before
    return torch.cat(rows)


def padded(x: Tensor) -> Tensor:
    """Rows [n, ...], n <= CHUNK -> [CHUNK, ...], padded with zeros."""
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, CHUNK - len(x)))


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Registered):
    """A feature space to measure distances in."""

    required: ClassVar[tuple[str, ...]] = ("build", "name")

    @property
    def name(self) -> str:
        """The name that metrics carry: it contains everything that changes the numbers."""
        raise NotImplementedError

    def build(self) -> Extractor:
        """The extractor. Raises ValueError, with the fix, when its package or weights are missing."""
        raise NotImplementedError


def extractor_of(config: FeaturesConfig) -> Extractor:
    """What `build` returns. For a class that is not ours, its code and files count for kept features too: after an edit
    they are computed anew."""
    extractor = config.build()
    if not is_ours(type(config)):
        extractor.code = code_of(type(config)) + content_of(config)
    return extractor


def parse_features(text: str) -> FeaturesConfig:
    """`NAME[@RESOLUTION][=WEIGHTS]` -> a config; NAME is a registered kind or a model of timm.

    Raises ValueError for an unknown name, or for a part that the kind does not have.
    """
    import timm

    from dmvae import config as configs

    head, _, weights = text.partition("=")
    name, _, resolution = head.partition("@")
    values: Values = {"type": name}
    if name not in names(FeaturesConfig):
        if not timm.is_model(name):
            known = [*names(FeaturesConfig), *timm.list_models()]
            told = nearest(name, known if close(name, known) else names(FeaturesConfig))
            raise ValueError(f"--features {text}: neither a kind of features nor a timm model{told}")
        values = {"type": "timm", "model": name}
    if resolution:
        if not resolution.isdecimal() or int(resolution) < 1:
            raise ValueError(f"--features {text}: the resolution after @ is a number of pixels, not {resolution!r}")
        values["resolution"] = int(resolution)
    if weights:
        values["weights"] = weights
    try:
        return configs.read(FeaturesConfig, values, f"--features {text}")
    except configs.FieldMissing as error:
        raise ValueError(f"--features {text}: it needs a file or folder: {head}=PATH") from error
