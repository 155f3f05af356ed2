"""What references given as formulas have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dmvae.references import ReferenceConfig, Surroundings
from dmvae.references.data import initial_latents


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(ReferenceConfig):
    """Fields of every synthetic reference."""

    scale: Literal["initial", "raw"] = "initial"
    """Which latents are matched to the reference. "initial": latents normalised by the mean and standard deviation per
    channel that the tokenizer's latents have before matching; "raw": the tokenizer's raw latents."""

    def statistics(self, inputs: Surroundings) -> tuple[Tensor, Tensor]:
        """The reference's (mean, std), float32 [C] each."""
        if self.scale == "raw":
            channels = inputs.latent_shape[0]
            return torch.zeros(channels), torch.ones(channels)
        initial = initial_latents(inputs)
        return initial.mean, initial.std
