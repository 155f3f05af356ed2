"""Base class of the objectives that compare latents with samples of the reference, without teacher or student."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from dmvae import config as configs
from dmvae.flow.guidance import Velocity
from dmvae.matching import Context, Log, Matching, Student, compared, require_gradient
from dmvae.ranges import BatchSize, Range
from dmvae.references import ReferenceConfig, draw
from dmvae.runtime import distributed
from dmvae.runtime.precision import full_precision
from dmvae.transport.classes import by_class
from dmvae.transport.views import View, pairs, random_convolution, tokens, whole

EACH = 4
"""Latents per class that a batch must have, on average, for matching class by class."""
VIEWS: dict[str, View] = {"whole": whole, "token": tokens, "pair": pairs}


@dataclass(frozen=True, kw_only=True)
class BetweenSamples(Matching):
    """Sum over views of a distance between two sets of vectors: the latents' and those of fresh reference samples."""

    needs_teacher: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    has_student: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    """Whether vectors are drawn with replacement where a view has more than `vectors`. Not where latents repel each
    other: a vector would be repelled by its own copy, at distance 0, alone, or by the slope of rounding there."""

    least: ClassVar[int] = 2
    """The fewest vectors of a set that `distance` takes."""

    views: tuple[Literal["whole", "token", "pair", "convolution"], ...] = ("whole", "token", "pair")
    """What is compared: whole latents, their tokens, pairs of neighbouring tokens, or the outputs of a random 3x3
    convolution, a new one in each update. The distances are added."""
    samples: BatchSize = 512
    """Samples of the reference per update, over all ranks."""
    vectors: BatchSize = 2048
    """The most vectors of a view that are compared, drawn at random: there are many tokens."""
    labels: bool = configs.added(False)
    """Compare the latents of each class with the reference's samples of that class; false compares all with all."""
    queue: Annotated[int, Range(0, 2**20)] = configs.added(0)
    """Latents of earlier updates that are compared together with the batch's, without gradient. A small batch then
    takes its own part of the reference, and does not spread over all of it. 0 is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.views:
            raise ValueError("views: give at least one of whole, token, pair, convolution")

    @property
    def needs_recent(self) -> int:
        return self.queue

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        """A scalar whose gradient at latents' vectors a [n, d] moves them towards the reference's b [m, d]."""
        raise NotImplementedError

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Student | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """sum over views v of distance(v(x), v(y)): x are the latents z [n, C, H, W] of all ranks and k of the queue, y
        fresh samples of the reference. The gradient reaches z alone. It is multiplied by (n + k) / n, so that a queue
        does not make it shorter. Raises ValueError without a reference in the context, for a queue without
        `context.recent`, and as `require_gradient`."""
        context, reference = compared(self.type, context, z, labels)
        require_gradient(z)
        rng, world = context.rng, distributed.world_size()
        y, y_labels = draw(reference, -(-self.samples // world), rng, z.device)
        # Distances are small differences of large numbers: latents of a trainer in bf16 are compared in float32.
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        # Every rank compares the whole batch, in the same directions, so that the number of ranks changes nothing.
        z, y = distributed.gather(z), distributed.gather(y.to(z.dtype))
        queue = self._remembered(context, z)
        if self.labels:
            labels, y_labels = distributed.gather(labels), distributed.gather(y_labels)
        total, log = z.new_zeros(()), Log()
        with full_precision(z):
            for name in self.views:
                if name == "pair" and z.shape[2] * z.shape[3] == 1:
                    continue
                # The same convolution for latents and samples, and for all classes.
                view = VIEWS[name] if name != "convolution" else random_convolution(z.shape[1], rng.shared)
                compare = partial(self._between, view, context)
                if self.labels:
                    distance = by_class(compare, z, labels, y, y_labels, self.least, queue)
                else:
                    distance = compare(z, y, queue[0])
                total = total + distance
                log[f"{self.type}/{name}"] = distance.detach()
        if not log:
            raise ValueError("views: latents with a single token have no pairs of neighbours; give whole or token too")
        return total, log

    def problems(self, batch_size: int, num_classes: int, reference: ReferenceConfig) -> Iterator[str]:
        for name, count in (("matching.batch_size", batch_size), ("matching.objective.samples", self.samples)):
            if count < self.least:
                yield f"{name}: {count}; {self.type} compares sets, so give at least {self.least}"
            elif self.labels and num_classes > 1 and count < EACH * num_classes:
                yield (
                    f"{name}: {count} for {num_classes} classes; matching class by class takes {EACH} of each in a "
                    f"turn: give at least {EACH * num_classes}, or set matching.objective.labels: false"
                )
        if self.labels and (num_classes < 2 or not reference.labelled):
            what = "the data have a single class" if num_classes < 2 else f"those of {reference.type!r} mean nothing"
            yield f"matching.objective.labels: {what}, so there are no classes to match one by one; set it to false"

    def _remembered(self, context: Context, z: Tensor) -> tuple[Tensor, Tensor]:
        """The queue's latents [k, C, H, W], as many as there are so far, and their labels [k]."""
        if not self.queue:
            return z[:0].detach(), torch.zeros(0, dtype=torch.int64)
        if context.recent is None:
            raise ValueError(
                f"queue: {self.queue}, but context.recent is None: the caller keeps the latents of earlier turns; give "
                "context=Context(..., recent=(latents [k, C, H, W], labels [k])), with k = 0 at first"
            )
        latents, labels = (x[: self.queue].detach().to(z.device) for x in context.recent)
        latents = latents.to(z.dtype)
        if latents.shape[1:] != z.shape[1:] or labels.shape != latents.shape[:1]:
            raise ValueError(
                f"recent: latents {list(latents.shape)} with labels {list(labels.shape)}, for latents {list(z.shape)}; "
                "give [k, ...] of the same shape, and a label to each"
            )
        return latents, labels

    def _between(self, view: View, context: Context, z: Tensor, y: Tensor, queue: Tensor) -> Tensor:
        rng = context.rng.shared
        a, b = (self._some(view(x), rng) for x in (z, y))
        if not len(queue):
            return self.distance(a, b, rng, context.progress)
        recent = self._some(view(queue), rng)
        distance = self.distance(torch.cat([a, recent]), b, rng, context.progress)
        # A distance's gradient at one vector falls with the number of vectors: without this a queue would weaken it.
        return distance + len(recent) / len(a) * (distance - distance.detach())

    def _some(self, vectors: Tensor, rng: torch.Generator) -> Tensor:
        if len(vectors) <= self.vectors:
            return vectors
        if self.repeats:
            chosen = torch.randint(len(vectors), (self.vectors,), generator=rng, device=rng.device)
        else:
            chosen = torch.randperm(len(vectors), generator=rng, device=rng.device)[: self.vectors]
        return vectors[chosen.to(vectors.device)]
