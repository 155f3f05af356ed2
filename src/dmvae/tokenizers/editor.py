"""Latents that are edited samples of the reference.

An encoder that adds noise of its own to a mean cannot give latents any distribution that is asked for; one that is
handed a sample y of the reference and writes the image into it can: unchanged, y has the reference's distribution
already, from whatever tokenizer training starts. It then adds information about the image, under a loss that holds the
distribution. Knowing y, it can choose its change so that the sum keeps its law, as in coding with known interference
(Costa 1983, "writing on dirty paper"), which a mean with independent noise cannot.

Which y? Drawn at random it says nothing of the image, and most of z is y: a generator that is asked for a class finds
little to learn. Assigned by optimal transport it says what it can: each image gets the sample that its own latent is
nearest to, at prices that make every sample of the bank be taken as often as any other, so that y keeps its law.
Between the two lie groups: images and samples are divided among the same centres, each into parts of one size, and an
image gets a sample drawn from its centre's part. So y tells the kind of image, and is as random as the law asks.

Shapes: n images, d feature channels, C H W of a latent, K samples in the bank, G groups of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.models.drawing import content_hashes
from dmvae.runtime import distributed
from dmvae.runtime.precision import full_precision
from dmvae.runtime.transfer import waits
from dmvae.transport.sinkhorn import balanced_assignment, potentials, squares

FIRST, AGAIN = 50, 6
"""Iterations that find the prices at first, and those that follow the images' latents as they move."""
LLOYD = 2
"""Steps of k-means that centres of groups make each time."""
SHARP = 0.1
"""Entropic regularisation eps of the transport plan, in standard deviations of the double-centred costs."""
START = 0.1
"""The share of the encoder's own latent in z before training."""


class Editor(nn.Module):
    """z = y + a (mu - y) + MLP([features, mu, y]), for each place alone; in latents normalised by `mean` and `std`.

    a is learned for each channel, and the MLP's last layer starts at 0. The bank holds samples of the reference, from
    which y is taken after training. assigned: y suits the image, as one of `groups` parts of the bank, which divide it
    evenly; None for each sample alone. Else any y.
    """

    bank: Tensor
    mean: Tensor
    std: Tensor
    prices: Tensor
    """[G], where y is assigned: what a group is cheaper by for having been taken too seldom, mean squares."""
    centres: Tensor
    """[G, C, H, W], of the images and the samples of each group."""
    members: Tensor
    """[G, K / G], the samples of each group."""

    def __init__(
        self,
        features: int,
        channels: int,
        grid: int,
        width: int,
        bank: int,
        assigned: bool = False,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        if groups is not None and (groups < 1 or bank % groups):
            raise ValueError(f"{groups} groups of a bank of {bank} samples: give a number that divides it")
        self.assigned = assigned
        self.share = nn.Parameter(torch.full((channels,), START))
        self.first = nn.Linear(features + 2 * channels, width)
        self.last = nn.Linear(width, channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("bank", torch.zeros(bank, channels, grid, grid))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.grouped = assigned and groups is not None
        if assigned:
            self.register_buffer("prices", torch.zeros(groups or bank))
        if self.grouped:
            assert groups is not None
            self.register_buffer("centres", torch.zeros(groups, channels, grid, grid))
            self.register_buffer("members", torch.arange(bank).view(groups, -1))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        members = state.get(prefix + "members")
        if members is not None and not members.is_meta and not 0 <= members.min() <= members.max() < len(self.bank):
            raise ValueError(
                f"{prefix}members: samples {members.min()} to {members.max()} of {len(self.bank)}, which begin at 0; "
                "these weights are damaged, or not of this tokenizer: take others"
            )
        super()._load_from_state_dict(state, prefix, *args)

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

    def take(self, x: Tensor, mu: Tensor) -> Tensor:
        """The y of images x [n, c, h, w] with latents mu [n, C, H, W]; by their content where there is a choice, so
        that an image is encoded alike in any batch and on any rank, and different images have y as if drawn."""
        return self._chosen(mu, content_hashes(x) % self._choice)

    def draw(self, mu: Tensor, rng: torch.Generator, even: bool = False) -> Tensor:
        """The y of images with latents mu [n, C, H, W]; at random where there is a choice. even: groups share these
        images and those of the other ranks out evenly, so that a batch has no more of one part of the reference than of
        another."""
        number = torch.randint(self._choice, (len(mu),), generator=rng, device=rng.device)
        return self._chosen(mu, number.to(mu.device), even)

    @property
    def _choice(self) -> int:
        """Samples that an image may get."""
        return len(self.bank) // len(self.prices) if self.assigned else len(self.bank)

    @torch.no_grad()
    def _chosen(self, mu: Tensor, number: Tensor, even: bool = False) -> Tensor:
        if not self.assigned:
            return self.bank[number]
        if not self.grouped:
            return self.bank[self.assign(mu)]
        if not even:
            return self.bank[self.members[self.assign(mu), number]]
        with waits("noise: assigned"):  # images choose one after the other, those of all ranks
            groups = balanced_assignment(distributed.gather(self._costs(mu) - self.prices))
            own = groups[distributed.rank() * len(mu) : (distributed.rank() + 1) * len(mu)]
            return self.bank[self.members[own, number]]

    @torch.no_grad()
    def assign(self, mu: Tensor) -> Tensor:
        """[n], the groups of images with latents mu [n, C, H, W], each image alone: argmin_g mean |mu - c_g|^2 -
        price_g. The centres c_g are the samples themselves where each is a group."""
        return (self._costs(mu) - self.prices).argmin(1)

    @torch.no_grad()
    @waits("noise: assigned")
    def settle(self, mu: Tensor) -> None:
        """Set prices at which recent images, mu [n, C, H, W], take all groups alike: the dual variables of the optimal
        transport between them and the centres (semi-discrete where n is large), with a little entropy. Centres move to
        the means of their images, as in k-means, and divide the bank."""
        known = bool(self.prices.any())
        if not self.grouped:
            self._price(mu, known)
            return
        if not known:
            self.centres.copy_(mu[torch.linspace(0, len(mu) - 1, len(self.centres)).long()])
        for i in range(LLOYD):
            self._price(mu, known or i > 0)
            at = F.one_hot(self.assign(mu), len(self.centres)).to(mu.dtype)
            images = at.sum(0)
            with full_precision(mu):
                means = (at.T @ mu.flatten(1) / images.clamp_min(1)[:, None]).view_as(self.centres)
            self.centres.copy_(torch.where(images.view(-1, 1, 1, 1) > 0, means, self.centres))
        self._price(mu, True)
        costs = self._costs(self.bank)
        _, prices = potentials(costs, _entropy(costs))
        self.members.copy_(balanced_assignment(costs - prices).argsort(stable=True).view_as(self.members))

    def _price(self, mu: Tensor, known: bool) -> None:
        costs = self._costs(mu)
        start = self.prices if known else None
        self.prices.copy_(potentials(costs, _entropy(costs), AGAIN if known else FIRST, start)[1])

    def _costs(self, mu: Tensor) -> Tensor:
        """[n, G], in float32 under autocast too: the differences are small beside the squares."""
        centres = self.centres if self.grouped else self.bank
        with full_precision(mu):
            return squares(mu.float().flatten(1), centres.float().flatten(1)) / self.bank[0].numel()


def _entropy(costs: Tensor) -> float:
    """That of a transport plan which is sharp beside what costs [n, m] say of which column suits a row."""
    both = costs - costs.mean(0) - costs.mean(1, keepdim=True) + costs.mean()
    return SHARP * float(both.std().clamp_min(1e-12))
