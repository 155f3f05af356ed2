"""From a flow model's tokens to the features of another network, as REPA has it (arXiv 2410.06940)."""

from __future__ import annotations

from typing import cast

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from dmvae.models.base import Model


class Projector(Model):
    """Tokens [n, h * w, width] of a square grid, h = w -> features [n, out, h, w]: a 3-layer MLP on each token."""

    _no_split_modules = cast("None", ["Linear"])  # as ModelMixin declares it

    @register_to_config
    def __init__(self, *, width: int, hidden: int, out: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)
        )

    def forward(self, tokens_bnd: Tensor) -> Tensor:
        side = round(tokens_bnd.shape[1] ** 0.5)
        features: Tensor = self.layers(tokens_bnd).transpose(1, 2).unflatten(2, (side, side))
        return features

    def compiled_parts(self) -> list[nn.Module]:
        """None: compiling three matrix products gains nothing."""
        return []
