"""Generator `flow`: a LightningDiT trained by flow matching; and what it shares with other transformers. Teacher and
student are the same kind of network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar

from dmvae.config import Values, added
from dmvae.generators import GeneratorConfig
from dmvae.models.dit import DiffusionTransformer, LightningDiT, published
from dmvae.ranges import Depth, Range, Width
from dmvae.registry import register

TransformerClass = type[DiffusionTransformer]
"""An alias, as `dmvae.generators.ModelClass` is."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(GeneratorConfig):
    """Base of diffusion transformers' configs, by `size` or by the fields below it. A derived one names its `network`,
    and may have fields whose values `arguments` adds."""

    network: ClassVar[TransformerClass]

    size: str | None = None
    """"Mini/1", "S/1", "B/1", "L/1", "XL/1", "1p0B/1" or "1p6B/1" (the number after / is the patch size); null:
    `width`, `depth`, `heads` and `patch_size` say."""
    width: Width = 384
    """Channels of a token."""
    depth: Depth = 12
    """Transformer blocks."""
    heads: Depth = 6
    """Attention heads."""
    patch_size: Annotated[int, Range(1, 256)] = 1
    """Latents along each side that a token holds, where `size` is null; more than 1 for pixels."""

    def __post_init__(self) -> None:
        if self.size is not None:
            published(self.size)
        elif self.width % (unit := 4 * self.heads):
            near = max(1, round(self.width / unit)) * unit
            raise ValueError(f"width {self.width} must be a multiple of 4 * heads, {unit}; use {near}")

    @property
    def patch(self) -> int:
        """Latents along each side that a token holds."""
        return self.patch_size if self.size is None else published(self.size)["patch_size"]

    def arguments(self) -> Values:
        """What the network takes beside the latents' shape and the number of classes."""
        numbers: Values = {"width": self.width, "depth": self.depth, "heads": self.heads, "patch_size": self.patch_size}
        return numbers if self.size is None else {**published(self.size)}

    def build(self, latent_shape: tuple[int, int, int], num_classes: int) -> DiffusionTransformer:
        """The network, with random weights, for latents (C, H, W). Raises ValueError unless H = W; warns where a token
        holds more values than the last layers have channels."""
        channels, side, other = latent_shape
        if side != other:
            raise ValueError(f"latents {list(latent_shape)}: this network takes square ones; bring one of your own")
        data = {"in_channels": channels, "input_size": side, "num_classes": num_classes}
        model = self.network(**self.arguments(), **data)
        held, wide = channels * model.config.patch_size**2, model.config.get("head_width") or model.config.width
        if wide < held:
            warnings.warn(
                f"a token of these latents holds {held} values, more than the {wide} channels of the flow model's last "
                f"layers, which then cannot express a velocity's noise (arXiv 2510.11690): {self.widened(held)}",
                stacklevel=2,
            )
        return model

    def widened(self, channels: int) -> str:
        """What to set so that the last layers have that many channels."""
        return f"use a network whose tokens have at least {channels} channels"


@register("flow")
@dataclass(frozen=True, kw_only=True)
class FlowModelConfig(TransformerConfig):
    """A LightningDiT, by `size` or by the fields below it."""

    network: ClassVar[TransformerClass] = LightningDiT

    head_width: Width | None = None
    """Channels of a wide shallow head on the network, a multiple of 4 * its attention heads, for latents with more
    channels than the network's tokens have (RAE, arXiv 2510.11690); null is none."""
    head_depth: Depth = 2
    """Transformer blocks of the head."""
    head_heads: Depth | None = added(None)
    """Attention heads of the head; null is as many as the network's. RAE's has 16 on 2048 channels, whatever the
    network has."""
    qk_norm: bool = added(True)
    """Whether attention normalises queries and keys, which keeps bf16 stable over long trainings; the networks released
    with LightningDiT do not."""

    def identity(self, values: Values) -> Values:
        """Without `type`: version 0.1 had no other generator, and its fingerprints stay valid."""
        return {name: value for name, value in values.items() if name != "type"}

    def arguments(self) -> Values:
        own = {name: getattr(self, name) for name in ("head_width", "head_depth", "qk_norm", "head_heads")}
        return super().arguments() | own

    def widened(self, channels: int) -> str:
        unit = 4 * (self.head_heads or self.arguments()["heads"])
        return f"set model.head_width to at least {-(-channels // unit) * unit}"
