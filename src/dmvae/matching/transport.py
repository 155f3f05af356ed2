"""Transport: latents move along the sliced Wasserstein distance to samples of the reference.

It needs no teacher and no student, and goes the same way from any start; distances between single vectors do not see
fine structure, which the views (whole latents, tokens, pairs of neighbours) share out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dmvae import config as configs
from dmvae.flow.guidance import Velocity
from dmvae.matching import Context, Log, Matching
from dmvae.registry import register
from dmvae.runtime import distributed
from dmvae.transport.sliced import MIXED, Along, sliced_wasserstein
from dmvae.transport.views import View, pairs, tokens, whole

VIEWS: dict[str, View] = {"whole": whole, "token": tokens, "pair": pairs}


@register("transport")
@dataclass(frozen=True, kw_only=True)
class Transport(Matching):
    """Sliced Wasserstein distance over whole latents, tokens and pairs of neighbouring tokens."""

    needs_teacher: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    has_student: ClassVar[bool] = False

    views: tuple[Literal["whole", "token", "pair"], ...] = ("whole", "token", "pair")
    """What is compared; their distances are added."""
    slices: int = 48
    """Directions a view and turn."""
    along: tuple[Along, ...] = MIXED
    """Kinds of directions, in equal shares: "random", "reference" (between two of its samples), "gap" (from a latent to
    a sample), "principal"."""
    samples: int = 512
    """Samples of the reference a turn, over all ranks."""
    vectors: int = 2048
    """Vectors of a view at most, drawn at random: tokens are many."""

    def __post_init__(self) -> None:
        configs.require_positive(self, "slices", "samples", "vectors")
        if not self.views:
            raise ValueError("views: give at least one of whole, token, pair")
        if self.slices < len(self.along) or not self.along:
            raise ValueError(f"slices: {self.slices} for {len(self.along)} kinds of directions; give each one")

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Any = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """sum over views v of mean over directions u of W2^2(u . v(z), u . v(y)), y fresh samples of the reference."""
        if context is None or context.reference is None:
            raise ValueError("transport compares latents with samples: give context.reference")
        rng, world = context.rng, distributed.world_size()
        y, _ = context.reference.sample(-(-self.samples // world), rng.on_cpu())
        # Ranks compare the whole batch, in the same directions: so that their number changes nothing.
        z, y = distributed.gather(z), distributed.gather(y.to(z.device))
        total, log = z.new_zeros(()), Log()
        for name in self.views:
            if name == "pair" and z.shape[2] * z.shape[3] == 1:
                continue
            a, b = (self._some(VIEWS[name](x), rng.shared) for x in (z, y))
            distance = sliced_wasserstein(a, b, rng.shared, self.slices, self.along)
            total = total + distance
            log[f"transport/{name}"] = distance.detach()
        return total, log

    def _some(self, vectors: Tensor, rng: torch.Generator) -> Tensor:
        if len(vectors) <= self.vectors:
            return vectors
        return vectors[
            torch.randint(len(vectors), (self.vectors,), generator=rng, device=rng.device).to(vectors.device)
        ]
