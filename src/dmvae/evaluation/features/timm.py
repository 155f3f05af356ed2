"""Features of any model of the timm library, DINOv2 among them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data import resolve_model_data_config

from dmvae.encoders.timm import load_weights, nearest_model
from dmvae.evaluation.features import Extractor, FeaturesConfig
from dmvae.ranges import Pixels
from dmvae.registry import register
from dmvae.runtime.hashing import content_hash, weights_hash
from dmvae.runtime.hub import hub


@register("timm")
@dataclass(frozen=True, kw_only=True)
class TimmFeatures(FeaturesConfig):
    """Pooled features of any model of the timm library."""

    model: str
    """timm's name of the model, such as vit_base_patch14_dinov2.lvd142m."""
    resolution: Pixels = 224
    """Images are resized to this height and width, pixels."""
    pretrained: bool = True
    """true: public weights; false: random ones, always the same."""
    weights: Path | None = None
    """A file of weights for the model; null takes timm's, from the hub or its cache."""

    @property
    def name(self) -> str:
        if not self.pretrained:
            return f"{self.model}-random@{self.resolution}"
        # two files may share a name
        file = f"({self.weights.stem}-{content_hash([self.weights])[:8]})" if self.weights else ""
        return f"{self.model}{file}@{self.resolution}"

    def build(self) -> Extractor:
        if not timm.is_model(self.model):
            raise ValueError(f"timm has no model {self.model!r}{nearest_model(self.model)}")
        if self.weights is not None and not self.weights.is_file():
            raise ValueError(f"features {self.model}: no weights at {self.weights}; name a file that is there")
        published = self.pretrained and self.weights is None
        try:
            with torch.random.fork_rng(devices=[]), hub() if published else nullcontext():
                torch.default_generator.manual_seed(0)  # random weights must be the same each time, as the name is
                network = timm.create_model(self.model, pretrained=published, num_classes=0)
        except Exception as error:  # no network: each version of the hub client has a class of its own
            raise ValueError(
                f"the weights of timm model {self.model!r} could not be loaded ({type(error).__name__}: {error}). "
                "Run once where the network is reachable and carry the cache over (HF_HUB_CACHE), or name a file: "
                f"`--features {self.model}=FILE`, `weights: FILE` in a recipe"
            ) from error
        if self.pretrained and self.weights is not None:
            load_weights(network, self.weights)
        weights = weights_hash(network)  # before position embeddings are resampled, which rounds
        resize: Callable[..., object] | None = getattr(network, "set_input_size", None)
        if resize is not None:
            resize(img_size=(self.resolution, self.resolution))
        with torch.inference_mode():
            dim = network.eval()(torch.zeros(1, 3, self.resolution, self.resolution)).shape[1]
        data = resolve_model_data_config(network)
        return Extractor(network, dim, self.resolution, data["mean"], data["std"], name=self.name, weights=weights)


@register("dinov2")
@dataclass(frozen=True, kw_only=True)
class DINOv2(TimmFeatures):
    """The class token of DINOv2 ViT-L/14, in which the FDD of arXiv 2306.04675 is taken."""

    model: str = "vit_large_patch14_dinov2.lvd142m"
    """timm's name of the model."""

    @property
    def name(self) -> str:
        standard = type(self).model == self.model and self.pretrained and not self.weights
        return f"dinov2-vitl14@{self.resolution}" if standard else super().name
