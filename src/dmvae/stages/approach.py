"""How far latents are from their reference while they are matched: what is remembered for it, and what follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmvae.references import Reference
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.transport.arrival import multiples
from dmvae.transport.schedule import next_ratio

RECENT, REST = 1024, 256
"""Latents that are compared, and samples beyond twice as many that give directions."""
EVERY = 10
"""Turns between two measurements."""
IN_A_ROW = 3
"""Measurements at the target after which latents count as arrived: one may be luck."""


def measurements(turns: int, batch_size: int) -> int:
    """How often the distance is measured in so many turns: at every 10th, once enough latents are remembered."""
    first = -(-RECENT // batch_size) - 1  # turns are counted from 0, and a turn's own latents are among those
    return len(range(-(-first // EVERY) * EVERY, turns, EVERY))


class Recent(nn.Module):
    """The newest latents of all ranks, as buffers: checkpoints hold them."""

    recent: Tensor
    count: Tensor

    def __init__(self, latent_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("recent", torch.zeros(RECENT, *latent_shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """[n, C, H, W], newest first; n is at most `RECENT`."""
        return self.recent[: int(self.count)]

    @torch.no_grad()
    def remember(self, z: Tensor) -> None:
        """Take this rank's newest latents [n, C, H, W], normalised as the reference's samples."""
        z = distributed.gather(z.detach())[:RECENT]
        self.recent = torch.cat([z.to(self.recent.dtype), self.recent])[:RECENT]
        self.count += len(z)


class Approach(Recent):
    """The recent latents and the pull's strength."""

    ratio: Tensor
    multiple: Tensor
    near: Tensor

    def __init__(self, latent_shape: tuple[int, int, int], ratio: float, target: float) -> None:
        super().__init__(latent_shape)
        self.target = target
        self.register_buffer("ratio", torch.tensor(float(ratio)))
        self.register_buffer("multiple", torch.tensor(float("inf")))
        self.register_buffer("near", torch.zeros((), dtype=torch.int64))

    @property
    def arrived(self) -> bool:
        """Whether the distance has been at the target for a while."""
        return int(self.near) >= IN_A_ROW

    def measure(self, reference: Reference, rng: Random) -> dict[str, Tensor | float]:
        """Sliced distances as multiples of chance, to log; sets the ratio that the next turns pull with. Nothing
        before enough latents are remembered."""
        if int(self.count) < RECENT:
            return {}
        share = -(-(2 * RECENT + REST) // distributed.world_size())
        y, _ = reference.sample(share, rng.on_cpu())
        found = multiples(self.recent, distributed.gather(y.to(self.recent.device)), rng.shared)
        worst = max(found.values())
        self.multiple.fill_(worst)
        self.near.copy_(self.near + 1 if worst <= self.target else torch.zeros_like(self.near))
        self.ratio.fill_(next_ratio(float(self.ratio), worst, self.target))
        return {"distance/ratio": float(self.ratio), **{f"distance/{name}": value for name, value in found.items()}}
