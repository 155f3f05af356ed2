"""Latents that are edited samples of the reference.

An encoder that adds noise of its own to a mean cannot give latents any distribution that is asked for; one that is
handed a sample y of the reference and writes the image into it can: unchanged, y has the reference's distribution
already, from whatever tokenizer training starts. It then adds information about the image, under a loss that holds the
distribution. Knowing y, it can choose its change so that the sum keeps its law, as in coding with known interference
(Costa 1983, "writing on dirty paper"), which a mean with independent noise cannot.

Shapes: n images, d feature channels, C H W of a latent, K samples in the bank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

START = 0.1
"""The share of the encoder's own latent in z before training."""


class Editor(nn.Module):
    """z = y + a (mu - y) + MLP([features, mu, y]), for each place alone; in latents normalised by `mean` and `std`.

    a is learned for each channel, and the MLP's last layer starts at 0. The bank holds samples of the reference, from
    which y is taken after training.
    """

    bank: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, features: int, channels: int, grid: int, width: int, bank: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((channels,), START))
        self.first = nn.Linear(features + 2 * channels, width)
        self.last = nn.Linear(width, channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("bank", torch.zeros(bank, channels, grid, grid))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, features: Tensor, latents: Tensor, y: Tensor) -> Tensor:
        """features [n, d, H, W], the bottleneck's raw latents and y, normalised, both [n, C, H, W] -> raw z."""
        mean, std = self.mean.view(1, -1, 1, 1), self.std.view(1, -1, 1, 1)
        mu = (latents - mean) / std
        tokens = torch.cat([features, mu, y.to(mu.dtype)], dim=1).movedim(1, -1)
        change = self.last(F.silu(self.first(tokens))).movedim(-1, 1)
        z = y + self.share.view(1, -1, 1, 1) * (mu - y) + change
        return z * std + mean

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
