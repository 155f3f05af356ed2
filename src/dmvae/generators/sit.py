"""Generator `sit`: SiT's transformer (arXiv 2401.08740), which REPA and REPA-E train too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dmvae.generators.flow import TransformerClass, TransformerConfig
from dmvae.models.sit import SiT
from dmvae.registry import register


@register("sit")
@dataclass(frozen=True, kw_only=True)
class SiTConfig(TransformerConfig):
    """A SiT, by `size` or by the fields below it; "XL/2" is REPA's on latents of 32x32."""

    network: ClassVar[TransformerClass] = SiT
