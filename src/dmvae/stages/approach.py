"""How far latents are from their reference during matching: the latents remembered to measure it, and the strength of
the matching loss that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmvae.matching import Matching
from dmvae.references import Reference
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.runtime.transfer import waits
from dmvae.runtime.words import counted
from dmvae.transport.arrival import details, multiples
from dmvae.transport.schedule import next_ratio

RECENT, REST = 1024, 256
"""Recent latents that are compared with 2 RECENT samples of the reference, and REST more samples for directions."""
EVERY = 10
"""Tokenizer updates between two measurements."""
SELDOM = 100
"""The same where nothing depends on what is measured, and it is told alone: 3 to 5 % of the demo's time."""
IN_A_ROW = 3
"""So many measurements in a row must be at most the target, since a single one may be by chance."""


def until_told(turn: int) -> int:
    """Tokenizer updates after this one until the next of the rare measurements; 0 at one."""
    return SELDOM - 1 - turn % SELDOM


def measurements(turns: int, batch_size: int) -> int:
    """How often the distance is measured in so many turns: at every 10th, once enough latents are remembered."""
    first = -(-RECENT // batch_size) - 1  # turns are counted from 0, and a turn's own latents are among those
    return len(range(-(-first // EVERY) * EVERY, turns, EVERY))


def unmeasured(objective: Matching, until: str | None, steps: int, turns: int, batch_size: int) -> Iterator[str]:
    """What asks for more measurements than so many steps, with so many turns of the tokenizer, leave room for."""
    found = measurements(turns, batch_size)
    room = f"{counted(steps, 'step')} leave room for {counted(found, 'measurement')} of the distance"
    if until is not None and found < IN_A_ROW:
        yield f"matching.until: {room}, and arrival is {IN_A_ROW} in a row; raise steps, or set until to null"
    if objective.needs_distance and not found:
        yield f"matching.objective: {room}, by which {objective.type!r} goes; raise steps or batch_size"


def hard_to_follow(say: Callable[[str], None], turns: int, batch_size: int, images: int) -> None:
    """Tell of `balance: distance` where the training ends before its first measurement, as a short trial may, and where
    so few images repeat among the recent latents, which then look farther than they are."""
    if not measurements(turns, batch_size):
        say(f"matching.weight stays as it is: the distance is first measured after {counted(RECENT, 'image')}")
    elif images < RECENT:
        say(
            f"the distance is measured on {RECENT:,} latents, of {counted(images, 'image')} that repeat among them: it "
            "does not come down to 1, and matching.weight grows too far"
        )


class Recent(nn.Module):
    """The newest latents of all ranks, `RECENT` or `size` of them, as buffers, so that checkpoints hold them."""

    recent: Tensor
    count: Tensor
    labels: Tensor
    """int64 [size]; -1 where none were given. Only `with_labels` does a checkpoint hold them."""

    def __init__(self, latent_shape: tuple[int, int, int], size: int | None = None, with_labels: bool = False) -> None:
        super().__init__()
        self.size = RECENT if size is None else size
        self.register_buffer("recent", torch.zeros(self.size, *latent_shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("labels", torch.full((self.size,), -1), persistent=with_labels)

    @property
    @waits("noise: assigned")
    def filled(self) -> Tensor:
        """[n, C, H, W], newest first; n is at most `size`."""
        return self.recent[: int(self.count)]

    def newest(self, n: int) -> tuple[Tensor, Tensor]:
        """The newest n latents [n, C, H, W] and their labels [n], or as many as there is room for. Who knows how many
        were remembered says it: to ask `count` a device would make every turn wait."""
        return self.recent[:n], self.labels[:n]

    @torch.no_grad()
    def remember(self, z: Tensor, labels: Tensor | None = None) -> None:
        """Take this rank's newest latents [n, C, H, W], normalised as the reference's samples, and their labels."""
        z = distributed.gather(z.detach())[: self.size]
        of = self.labels.new_full((len(z),), -1) if labels is None else distributed.gather(labels)[: self.size]
        self.recent = torch.cat([z.to(self.recent.dtype), self.recent])[: self.size]
        self.labels = torch.cat([of, self.labels])[: self.size]
        self.count += len(z)


class Approach(Recent):
    """The recent latents, and the strength of the matching loss."""

    ratio: Tensor
    multiple: Tensor
    near: Tensor

    def __init__(
        self, latent_shape: tuple[int, int, int], ratio: float, target: float, distance: float = math.inf
    ) -> None:
        """distance: what it is taken for until it is measured."""
        super().__init__(latent_shape, with_labels=True)
        self.target = target
        self._near: int | None = 0
        self._multiple: float | None = distance
        """What `near` and `multiple` hold; None where they have to be asked, for which a device would make every step
        wait."""
        self.register_buffer("ratio", torch.tensor(float(ratio)))
        self.register_buffer("multiple", torch.tensor(float(distance)))
        self.register_buffer("near", torch.zeros((), dtype=torch.int64))

    @property
    def arrived(self) -> bool:
        """Whether the last measurements were all at most the target."""
        if self._near is None:
            self._near = int(self.near)
        return self._near >= IN_A_ROW

    @property
    def distance(self) -> float:
        """The largest sliced distance as last measured, a multiple of chance; infinity before."""
        if self._multiple is None:
            self._multiple = float(self.multiple)
        return self._multiple

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._near = self._multiple = None
        super()._load_from_state_dict(*args, **kwargs)

    def _samples(self, reference: Reference, rng: Random) -> tuple[Tensor, Tensor]:
        """Enough of the reference to compare the recent latents with, and their labels; alike on all ranks."""
        share = -(-(2 * RECENT + REST) // distributed.world_size())
        y, of = (distributed.gather(x.to(self.recent.device)) for x in reference.sample(share, rng.on_cpu()))
        return y, of

    @waits("the distance, told")
    def tell(self, reference: Reference, rng: Random, classes: Sequence[str], whole: bool) -> dict[str, Tensor | float]:
        """What `measure` leaves out, to log, each of `classes` (the labels' names; none where labels mean nothing)
        too; whole: what that measures as well. It moves nothing. Empty until enough latents are remembered."""
        if int(self.count) < RECENT:
            return {}
        y, of = self._samples(reference, rng)
        known = len(classes) > 1 and bool((self.labels >= 0).all())
        found = multiples(self.recent, y, rng.shared) if whole else {}
        found |= details(self.recent, y, (self.labels, of) if known else None)
        parts = (key.partition("/") for key in found)
        names = ["/".join(["distance", kind, *([classes[int(label)]] if label else [])]) for kind, _, label in parts]
        return dict(zip(names, found.values(), strict=True))

    @waits("the distance, measured")
    def measure(self, reference: Reference, rng: Random, follow: bool = True) -> dict[str, Tensor | float]:
        """Sliced distances as multiples of chance, to log. Empty until enough latents are remembered. follow: it sets
        the ratio of gradients for the next updates. Raises FloatingPointError for latents that are not finite."""
        if int(self.count) < RECENT:
            return {}
        y, _ = self._samples(reference, rng)
        found = multiples(self.recent, y, rng.shared)
        # Alike on all ranks to the last digit: it decides what they do together.
        values = distributed.average(torch.tensor(list(found.values()), dtype=torch.float64, device=y.device))
        found = dict(zip(found, values.tolist(), strict=True))
        if not all(map(math.isfinite, found.values())):
            raise FloatingPointError(f"the distance to the reference is not finite: {found}")
        worst = max(found.values())
        self.multiple.fill_(max(value for name, value in found.items() if name != "told"))
        self._multiple = float(self.multiple)  # the buffer's own digits, which a run that goes on finds
        self.near.copy_(self.near + 1 if worst <= self.target else torch.zeros_like(self.near))
        self._near = int(self.near)
        figures: dict[str, Tensor | float] = {f"distance/{name}": value for name, value in found.items()}
        if not follow:
            return figures
        self.ratio.fill_(next_ratio(float(self.ratio), worst, self.target))
        return {"distance/ratio": float(self.ratio)} | figures
