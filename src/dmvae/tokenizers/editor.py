"""Latents that are edited samples of the reference.

An encoder that adds noise of its own to a mean cannot give latents any distribution that is asked for; one that is
handed a sample y of the reference and writes the image into it can: unchanged, y has the reference's distribution
already, from whatever tokenizer training starts. It then adds information about the image, under a loss that holds the
distribution. Knowing y, it can choose its change so that the sum keeps its law, as in coding with known interference
(Costa 1983, "writing on dirty paper"), which a mean with independent noise cannot.

Which y? Drawn at random it says nothing of the image, and most of z is y: a generator that is asked for a class finds
little to learn. Assigned by optimal transport it says what it can: each image gets the sample that its own latent is
nearest to, at prices that make every sample of the bank be taken as often as any other, so that y keeps its law.

Shapes: n images, d feature channels, C H W of a latent, K samples in the bank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.transport.sinkhorn import potentials, squares

FIRST, AGAIN = 50, 6
"""Iterations that find the prices at first, and those that follow the images' latents as they move."""
SHARP = 0.1
"""The transport plan's entropy, in standard deviations of what costs say of which sample suits an image."""
START = 0.1
"""The share of the encoder's own latent in z before training."""


class Editor(nn.Module):
    """z = y + a (mu - y) + MLP([features, mu, y]), for each place alone; in latents normalised by `mean` and `std`.

    a is learned for each channel, and the MLP's last layer starts at 0. The bank holds samples of the reference, from
    which y is taken after training: as `assign` says where `assigned`, else by a hash of the image.
    """

    bank: Tensor
    mean: Tensor
    std: Tensor
    prices: Tensor
    """[K], where y is assigned: what a sample is cheaper by for having been taken too seldom, mean squares."""

    def __init__(self, features: int, channels: int, grid: int, width: int, bank: int, assigned: bool = False) -> None:
        super().__init__()
        self.assigned = assigned
        self.share = nn.Parameter(torch.full((channels,), START))
        self.first = nn.Linear(features + 2 * channels, width)
        self.last = nn.Linear(width, channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("bank", torch.zeros(bank, channels, grid, grid))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        if assigned:
            self.register_buffer("prices", torch.zeros(bank))

    def forward(self, features: Tensor, latents: Tensor, y: Tensor) -> Tensor:
        """features [n, d, H, W], the bottleneck's raw latents and y, normalised, both [n, C, H, W] -> raw z."""
        mean, std = self.mean.view(1, -1, 1, 1), self.std.view(1, -1, 1, 1)
        mu = self.normalize(latents)
        tokens = torch.cat([features, mu, y.to(mu.dtype)], dim=1).movedim(1, -1)
        change = self.last(F.silu(self.first(tokens))).movedim(-1, 1)
        z = y + self.share.view(1, -1, 1, 1) * (mu - y) + change
        return z * std + mean

    def normalize(self, latents: Tensor) -> Tensor:
        """The bottleneck's raw latents in the reference's units: mu [n, C, H, W]."""
        return (latents - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)

    @torch.no_grad()
    def assign(self, mu: Tensor) -> Tensor:
        """The y of images with latents mu [n, C, H, W]: argmin_k mean |mu - y_k|^2 - price_k, each alone."""
        return self.bank[(self._costs(mu) - self.prices).argmin(1)]

    @torch.no_grad()
    def settle(self, mu: Tensor) -> None:
        """Set prices at which recent images, mu [n, C, H, W], take all samples alike: the dual variables of the optimal
        transport between them and the bank (semi-discrete where n is large), with a little entropy."""
        costs = self._costs(mu)
        both = costs - costs.mean(0) - costs.mean(1, keepdim=True) + costs.mean()
        eps = SHARP * float(both.std().clamp_min(1e-12))
        known = bool(self.prices.any())
        start = self.prices if known else None
        self.prices.copy_(potentials(costs, eps, AGAIN if known else FIRST, start)[1])

    def _costs(self, mu: Tensor) -> Tensor:
        """[n, K], in float32 under autocast too: the differences are small beside the squares."""
        with torch.autocast(mu.device.type, enabled=False):
            return squares(mu.float().flatten(1), self.bank.flatten(1)) / self.bank[0].numel()

    def take(self, x: Tensor) -> Tensor:
        """The y of images [n, c, h, w], by their content: so that an image is encoded alike in any batch and on any
        rank, and different images have y as if drawn at random."""
        values = ((x.detach().float() + 1) * 127.5).round().long().flatten(1)
        place = torch.arange(1, values.shape[1] + 1, device=x.device)
        mixed = ((values + 1) * (place * 2654435761 % 1000003)).sum(1) * 2654435761
        return self.bank[(mixed // 65536) % len(self.bank)]

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """y [n, C, H, W] at random."""
        index = torch.randint(len(self.bank), (n,), generator=rng, device=rng.device)
        return self.bank[index.to(self.bank.device)]
