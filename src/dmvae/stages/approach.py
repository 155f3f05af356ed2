"""The distance of latents to their reference during matching: the recent latents on which it is measured, and the
strength of the matching loss that follows it."""

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
"""The same where a measurement is only logged: 3 to 5 % of the demo's time."""
IN_A_ROW = 3
"""Measurements in a row that must be at most the target, because a single one may be so by chance."""


def until_told(turn: int) -> int:
    """Tokenizer updates from this one, number `turn`, to the next of those every `SELDOM`; 0 where it is one."""
    return SELDOM - 1 - turn % SELDOM


def measurements(turns: int, batch_size: int) -> int:
    """How often the distance is measured in `turns` tokenizer updates: at every 10th, once `RECENT` latents are
    there."""
    first = -(-RECENT // batch_size) - 1  # turns count from 0, and a turn's own latents are already there
    return len(range(-(-first // EVERY) * EVERY, turns, EVERY))


def unmeasured(objective: Matching, until: str | None, steps: int, turns: int, batch_size: int) -> Iterator[str]:
    """Messages for settings that need more measurements than `steps` steps with `turns` tokenizer updates have."""
    found = measurements(turns, batch_size)
    room = f"{counted(steps, 'step')} leave room for {counted(found, 'measurement')} of the distance"
    if until is not None and found < IN_A_ROW:
        yield f"matching.until: {room}, and arrival is {IN_A_ROW} in a row; raise steps, or set until to null"
    if objective.needs_distance and not found:
        yield f"matching.objective: {room}, by which {objective.type!r} goes; raise steps or batch_size"


def hard_to_follow(say: Callable[[str], None], turns: int, batch_size: int, images: int) -> None:
    """Print a warning for `balance: distance` where training ends before the first measurement, as a short trial may,
    and where there are so few images that they repeat among the recent latents, which then look farther than they
    are."""
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
    """int64 [size]; -1 where none were given. A checkpoint holds them only with `with_labels`."""

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
        """The newest n latents [n, C, H, W] and their labels [n], at most `size`. The caller says how many were
        remembered so far: reading `count` from a device would make every update wait."""
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
        """ratio: the first ratio of gradients. target: see `measure`. distance: the value until the first
        measurement."""
        super().__init__(latent_shape, with_labels=True)
        self.target = target
        self._near: int | None = 0
        self._multiple: float | None = distance
        """Copies of the buffers `near` and `multiple`, since reading these from a device would make every step wait;
        None after loading, until they are read once."""
        self.register_buffer("ratio", torch.tensor(float(ratio)))
        self.register_buffer("multiple", torch.tensor(float(distance)))
        self.register_buffer("near", torch.zeros((), dtype=torch.int64))

    @property
    def arrived(self) -> bool:
        """Whether the last `IN_A_ROW` measurements were all at most the target."""
        if self._near is None:
            self._near = int(self.near)
        return self._near >= IN_A_ROW

    @property
    def distance(self) -> float:
        """The largest sliced distance of the last measurement, as a multiple of chance; infinity before the first."""
        if self._multiple is None:
            self._multiple = float(self.multiple)
        return self._multiple

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._near = self._multiple = None
        super()._load_from_state_dict(*args, **kwargs)

    def _samples(self, reference: Reference, rng: Random) -> tuple[Tensor, Tensor]:
        """Samples to compare the recent latents with, and their labels; the same on all ranks."""
        share = -(-(2 * RECENT + REST) // distributed.world_size())
        y, of = (distributed.gather(x.to(self.recent.device)) for x in reference.sample(share, rng.on_cpu()))
        return y, of

    @waits("the distance, told")
    def tell(self, reference: Reference, rng: Random, classes: Sequence[str], whole: bool) -> dict[str, Tensor | float]:
        """Figures to log that `measure` leaves out, in all and for each of `classes` (the labels' names; none where
        labels mean nothing). whole: with the figures of `measure` too. Changes no state. Empty until `RECENT` latents
        are there."""
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
        """The figures of `dmvae.transport.arrival.multiples`, to log. Empty until `RECENT` latents are there. follow:
        set the ratio of gradients for the next updates. Raises FloatingPointError for figures that are not finite."""
        if int(self.count) < RECENT:
            return {}
        y, _ = self._samples(reference, rng)
        found = multiples(self.recent, y, rng.shared)
        # Equal on all ranks to the last digit, because ranks decide by it what they do together.
        values = distributed.average(torch.tensor(list(found.values()), dtype=torch.float64, device=y.device))
        found = dict(zip(found, values.tolist(), strict=True))
        if not all(map(math.isfinite, found.values())):
            raise FloatingPointError(f"the distance to the reference is not finite: {found}")
        worst = max(found.values())
        self.multiple.fill_(max(value for name, value in found.items() if name != "told"))
        self._multiple = float(self.multiple)  # rounded as the buffer is, which a resumed run reads
        self.near.copy_(self.near + 1 if worst <= self.target else torch.zeros_like(self.near))
        self._near = int(self.near)
        figures: dict[str, Tensor | float] = {f"distance/{name}": value for name, value in found.items()}
        if not follow:
            return figures
        self.ratio.fill_(next_ratio(float(self.ratio), worst, self.target))
        return {"distance/ratio": float(self.ratio)} | figures
