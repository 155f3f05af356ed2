"""Latents that are edited samples of the reference.

An encoder that adds its own noise to a mean cannot give latents an arbitrary distribution. An encoder that gets a
sample y of the reference, and writes the image into it, can: without any change y already has the reference's
distribution, whatever the tokenizer was before. Training then adds information about the image, under a loss that keeps
the distribution. Because the encoder knows y, it can choose its change so that the sum keeps the distribution, as in
coding with known interference (Costa 1983, "writing on dirty paper"); a mean with independent noise cannot.

Which y? A random y carries no information about the image, and most of z is y: a class-conditional generator finds
little to learn. With y assigned by optimal transport, it carries as much as it can: each image gets the sample that is
nearest to its own latent, at prices by which all samples of the bank are taken equally often, so that y keeps its
distribution. Groups are in between: images and samples are both divided among the same centres, in parts of one size,
and an image gets a random sample of its centre's part. Then y tells the kind of image, and stays random within it.

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
"""Sinkhorn iterations for the first prices, and for prices that follow the images' latents as they move."""
LLOYD = 2
"""Steps of k-means by which centres follow each time."""
SHARP = 0.1
"""Entropic regularisation eps of the transport plan, in standard deviations of the double-centred costs."""
START = 0.1
"""`share` before training: that of the encoder's own latent in z."""


class Editor(nn.Module):
    """z = y + a (mu - y) + MLP([features, mu, y]), at each place by itself, in latents normalised by `mean` and `std`.

    mu is the encoder's own latent. a (`share`) is learned per channel, and the MLP's last layer starts at 0. features:
    d. channels: C. grid: H = W. width: the MLP's hidden channels. bank: K. assigned: y is chosen to suit the image: a
    random sample of one of `groups` equal parts of the bank, or, for None, the one sample that suits best. Else y is
    any sample. Raises ValueError for a number of groups that does not divide the bank.
    """

    bank: Tensor
    """[K, C, H, W], samples of the reference, from which y is taken after training."""
    mean: Tensor
    """[C]."""
    std: Tensor
    """[C]."""
    prices: Tensor
    """[G], only where y is assigned: subtracted from the groups' costs, so that all groups are taken equally often."""
    centres: Tensor
    """[G, C, H, W], only with groups: centres of the images and the samples of each group."""
    members: Tensor
    """int64 [G, K / G], only with groups: which samples of the bank belong to each group."""

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
        """y [n, C, H, W] for images x [n, c, h, w] with latents mu [n, C, H, W]. Where there is a choice, a hash of the
        image decides: so an image is encoded alike in any batch and on any rank, and y is random between images."""
        return self._chosen(mu, content_hashes(x) % self._choice)

    def draw(self, mu: Tensor, rng: torch.Generator, even: bool = False) -> Tensor:
        """y [n, C, H, W] for images with latents mu [n, C, H, W], at random where there is a choice. even: the images
        of all ranks are divided evenly among the groups, so that a batch has equal parts of all of the reference."""
        number = torch.randint(self._choice, (len(mu),), generator=rng, device=rng.device)
        return self._chosen(mu, number.to(mu.device), even)

    @property
    def _choice(self) -> int:
        """Number of samples among which an image's y is drawn."""
        return len(self.bank) // len(self.prices) if self.assigned else len(self.bank)

    @torch.no_grad()
    def _chosen(self, mu: Tensor, number: Tensor, even: bool = False) -> Tensor:
        if not self.assigned:
            return self.bank[number]
        if not self.grouped:
            return self.bank[self.assign(mu)]
        if not even:
            return self.bank[self.members[self.assign(mu), number]]
        with waits("noise: assigned"):  # the images of all ranks choose one after the other
            groups = balanced_assignment(distributed.gather(self._costs(mu) - self.prices))
            own = groups[distributed.rank() * len(mu) : (distributed.rank() + 1) * len(mu)]
            return self.bank[self.members[own, number]]

    @torch.no_grad()
    def assign(self, mu: Tensor) -> Tensor:
        """int64 [n], the groups of images with latents mu [n, C, H, W]: argmin_g mean (mu - c_g)^2 - price_g, the mean
        over C, H, W. Each image chooses by itself. Without groups the centres c_g are the samples of the bank."""
        return (self._costs(mu) - self.prices).argmin(1)

    @torch.no_grad()
    @waits("noise: assigned")
    def settle(self, mu: Tensor) -> None:
        """Set prices at which recent images, mu [n, C, H, W], take all groups equally often: the dual variables of the
        entropic optimal transport between images and centres. Centres move to the means of their images, as in k-means,
        and the bank is divided among them anew."""
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
        """[n, G], mean squared differences to the centres; in float32 under autocast too, because costs differ
        little."""
        centres = self.centres if self.grouped else self.bank
        with full_precision(mu):
            return squares(mu.float().flatten(1), centres.float().flatten(1)) / self.bank[0].numel()


def _entropy(costs: Tensor) -> float:
    """eps of the transport plan: `SHARP` standard deviations of the costs [n, m] without the means of rows and columns,
    which say nothing of which column suits a row."""
    both = costs - costs.mean(0) - costs.mean(1, keepdim=True) + costs.mean()
    return SHARP * float(both.std().clamp_min(1e-12))
