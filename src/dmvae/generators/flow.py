"""Generator `flow`: a LightningDiT trained by flow matching; teacher and student are the same kind of network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar

from dmvae.config import Values, added
from dmvae.generators import GeneratorConfig, ModelClass
from dmvae.models.dit import LightningDiT, published
from dmvae.ranges import Depth, Range, Width
from dmvae.registry import register


@register("flow")
@dataclass(frozen=True, kw_only=True)
class FlowModelConfig(GeneratorConfig):
    """A LightningDiT, by `size` or by the fields below it."""

    network: ClassVar[ModelClass] = LightningDiT

    size: str | None = None
    """"Mini/1", "S/1", "B/1", "L/1" or "XL/1" (the number is the patch size); null: `width`, `depth`, `heads` and
    `patch_size` say."""
    width: Width = 384
    """Channels of a token."""
    depth: Depth = 12
    """Transformer blocks."""
    heads: Depth = 6
    """Attention heads."""
    patch_size: Annotated[int, Range(1, 256)] = 1
    """Latents along each side that a token holds, where `size` is null; more than 1 for pixels."""
    head_width: Width | None = None
    """Channels of a wide shallow head on the network, a multiple of 4 * heads, for latents with more channels than
    the network's tokens have (RAE, arXiv 2510.11690); null is none."""
    head_depth: Depth = 2
    """Transformer blocks of the head."""
    qk_norm: bool = added(True)
    """Whether attention normalises queries and keys, which keeps bf16 stable over long trainings; the networks released
    with LightningDiT do not."""

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

    def identity(self, values: Values) -> Values:
        """Without `type`: version 0.1 had no other generator, and its fingerprints stay valid."""
        return {name: value for name, value in values.items() if name != "type"}

    def build(self, latent_shape: tuple[int, int, int], num_classes: int) -> LightningDiT:
        """The network, with random weights, for latents (C, H, W). Raises ValueError unless H = W; warns where a token
        holds more values than the last layers have channels."""
        channels, side, other = latent_shape
        if side != other:
            raise ValueError(f"latents {list(latent_shape)}: this network takes square ones; bring one of your own")
        numbers: Values = {"width": self.width, "depth": self.depth, "heads": self.heads, "patch_size": self.patch_size}
        model = LightningDiT(
            **(numbers if self.size is None else published(self.size)),
            in_channels=channels,
            input_size=side,
            num_classes=num_classes,
            head_width=self.head_width,
            head_depth=self.head_depth,
            qk_norm=self.qk_norm,
        )
        shape = model.config
        held, wide = channels * shape.patch_size**2, shape.head_width or shape.width
        if wide < held:
            warnings.warn(
                f"a token of these latents holds {held} values, more than the {wide} channels of the flow model's last "
                "layers, which then cannot express a velocity's noise (arXiv 2510.11690): "
                f"set model.head_width to at least {-(-held // (4 * shape.heads)) * 4 * shape.heads}",
                stacklevel=2,
            )
        return model
