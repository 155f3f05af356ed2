"""Generator `dit_dh`: DiT-DH, which RAE's authors train (arXiv 2510.11690)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dmvae.config import Values
from dmvae.generators.flow import TransformerClass, TransformerConfig
from dmvae.models.dit_dh import DiTDH
from dmvae.ranges import Depth, Width
from dmvae.registry import register


@register("dit_dh")
@dataclass(frozen=True, kw_only=True)
class DiTDHConfig(TransformerConfig):
    """A DiT-DH, by `size` or by the fields below it; "XL/1" is RAE's on latents of 768x16x16."""

    network: ClassVar[TransformerClass] = DiTDH

    head_width: Width = 2048
    """Channels of the head behind the network's blocks, a multiple of 4 * head_heads."""
    head_depth: Depth = 2
    """Transformer blocks of the head."""
    head_heads: Depth = 16
    """Attention heads of the head."""

    def arguments(self) -> Values:
        return super().arguments() | {name: getattr(self, name) for name in ("head_width", "head_depth", "head_heads")}

    def widened(self, channels: int) -> str:
        unit = 4 * self.head_heads
        return f"set model.head_width to at least {-(-channels // unit) * unit}"
