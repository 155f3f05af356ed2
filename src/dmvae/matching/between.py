"""Base class of the objectives that compare latents with samples of the reference, without teacher or student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.matching import Context, Log, Matching
from dmvae.ranges import BatchSize
from dmvae.runtime import distributed
from dmvae.runtime.transfer import send
from dmvae.transport.views import View, pairs, tokens, whole

VIEWS: dict[str, View] = {"whole": whole, "token": tokens, "pair": pairs}


@dataclass(frozen=True, kw_only=True)
class BetweenSamples(Matching):
    """Sum over views of a distance between two sets of vectors: the latents' and those of fresh reference samples."""

    needs_teacher: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    has_student: ClassVar[bool] = False

    views: tuple[Literal["whole", "token", "pair"], ...] = ("whole", "token", "pair")
    """What is compared: whole latents, their tokens, pairs of neighbouring tokens. The distances are added."""
    samples: BatchSize = 512
    """Samples of the reference per update, over all ranks."""
    vectors: BatchSize = 2048
    """At most so many vectors of a view are compared, drawn at random, since there are many tokens."""

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError("views: give at least one of whole, token, pair")

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        """A scalar whose gradient at latents' vectors a [n, d] moves them towards the reference's b [m, d]."""
        raise NotImplementedError

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Any = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """sum over views v of distance(v(z), v(y)), y fresh samples of the reference."""
        if context is None or context.reference is None:
            raise ValueError(f"{self.type} compares latents with samples: give context.reference")
        rng, world = context.rng, distributed.world_size()
        y, _ = context.reference.sample(-(-self.samples // world), rng.on_cpu())
        # Every rank compares the whole batch, in the same directions, so that the number of ranks changes nothing.
        z, y = distributed.gather(z), distributed.gather(send(y, z.device))
        total, log = z.new_zeros(()), Log()
        for name in self.views:
            if name == "pair" and z.shape[2] * z.shape[3] == 1:
                continue
            a, b = (self._some(VIEWS[name](x), rng.shared) for x in (z, y))
            distance = self.distance(a, b, rng.shared, context.progress)
            total = total + distance
            log[f"{self.type}/{name}"] = distance.detach()
        return total, log

    def _some(self, vectors: Tensor, rng: torch.Generator) -> Tensor:
        if len(vectors) <= self.vectors:
            return vectors
        chosen = torch.randint(len(vectors), (self.vectors,), generator=rng, device=rng.device)
        return vectors[chosen.to(vectors.device)]
