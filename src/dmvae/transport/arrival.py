"""Whether latents have arrived: their distance from the reference, as a multiple of chance.

Finite samples of one distribution have a distance above 0. So each distance is divided by the same distance between two
samples of the reference, of the same sizes. The sizes are fixed, since such a multiple grows with them: 2048 latents,
4096 tokens and pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.runtime.precision import full_precision
from dmvae.transport.energy import energy_distance
from dmvae.transport.sliced import directions, wasserstein_1d
from dmvae.transport.two_sample import FEWEST, accuracy_with_class, in_common, two_sample_accuracy
from dmvae.transport.views import View, pairs, tokens, whole

LATENTS, VECTORS, SLICES, NEIGHBOURS = 2048, 4096, 256, 1024
"""At most: latents and vectors of a sliced distance, its directions, latents of `energy` and `mixing`."""
ROOM = 2**26
"""The most numbers of samples that give directions to slice along."""
NEAR, TOLD, FILLED = 2.0, 0.6, 0.5
"""Limits of the verdict: the largest multiple and accuracy that count as arrived, the smallest share of the reference's
rank that can be compared."""
CLASS, CLASS_STEPS = 64, 100
"""Latents, and samples, that a class needs to be tested by itself, as a quarter of them is held out; and training steps
of its network, fewer because a class has few vectors."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Distance of latents from their reference. A multiple of chance is 1 between two samples of the reference."""

    whole: float
    """Sliced 2-Wasserstein distance over whole latents, a multiple of chance."""
    token: float
    """The same over tokens."""
    pair: float
    """The same over pairs of neighbouring tokens; `token`'s where the grid has but one place."""
    energy: float
    """Square root of the energy distance over whole latents, a multiple of chance."""
    accuracy: float
    """Held-out accuracy of a small network that tells whole latents from samples of the reference; 0.5 is chance."""
    token_accuracy: float
    """The same for single tokens."""
    spread: float
    """Standard deviation of latents about their mean, divided by the reference's."""
    rank: float
    """Effective rank of whole latents."""
    reference_rank: float
    """The same of as many samples of the reference."""
    mixing: float
    """From 0 to 0.5: 0.5 where the nearest neighbour is in the other set half of the time, for latents and for samples;
    0 where it always or never is."""

    @property
    def arrived(self) -> bool:
        """Whether all sliced distances are at most 2 times chance and `token_accuracy` is at most 0.6."""
        return max(self.whole, self.token, self.pair) <= NEAR and self.token_accuracy <= TOLD

    @property
    def verdict(self) -> str:
        """What the figures mean, in words for a table."""
        if self.arrived:
            return "arrived"
        if self.rank < FILLED * self.reference_rank:
            return "not comparable: the reference has more dimensions than the encoder fills"
        distance, view = max((self.whole, "whole latents"), (self.token, "tokens"), (self.pair, "pairs of tokens"))
        # never rounded to the limit itself, which would be arrival
        if distance > NEAR:
            return f"on the way: {view} at {max(distance, NEAR + 0.01):.2f} times chance, where {NEAR:g} is arrival"
        told = max(self.token_accuracy, TOLD + 0.001)
        return f"on the way: {told:.1%} of the tokens told apart, where {TOLD:.0%} is arrival"

    def figures(self) -> dict[str, float]:
        """What tables show of it, by the keys of `dmvae.evaluation.other_figures`."""
        return {
            "distance_whole": self.whole,
            "distance_token": self.token,
            "distance_pair": self.pair,
            "distance_energy": self.energy,
            "token_accuracy": self.token_accuracy,
            "latent_accuracy": self.accuracy,
            "spread_to_reference": self.spread,
            "rank_to_reference": self.rank / self.reference_rank,
            "mixing": self.mixing,
        }


@torch.no_grad()
def measure(z: Tensor, y: Tensor, seed: int = 0) -> Arrival:
    """How far latents z [n, C, H, W] are from a reference with samples y [m, C, H, W].

    Normalise z as the reference's samples are. n latents are compared with n samples of y; n other samples of y
    compared with the same n give the level of chance. n is at most 2048 and 2 m / 5, so give 5120 samples. The first n
    latents are used, so shuffle them. The rest of y gives directions to slice along, besides random ones. The result is
    a function of the arguments. About 5 s on one core for 32x4x4. For one class, give that class's latents and samples.

    Raises ValueError for too few samples, shapes that differ, or values that are not finite.
    """
    if z.ndim != 4 or y.ndim != 4 or z.shape[1:] != y.shape[1:]:
        raise ValueError(f"latents {list(z.shape)} and reference {list(y.shape)}: both must be [n, C, H, W], alike")
    n = min(len(z), LATENTS, 2 * len(y) // 5)
    if n < 32:
        raise ValueError(f"{len(z)} latents and {len(y)} samples of the reference: give at least 32 and 80")
    z, (y, other, rest) = z[:n].float(), (x.to(z.device).float() for x in (y[:n], y[n : 2 * n], y[2 * n :]))
    if not all(x.isfinite().all() for x in (z, y, other, rest)):
        raise ValueError("latents or reference hold NaN or infinity: the run has diverged; lower the learning rate")
    single = z.shape[2] * z.shape[3] == 1
    token = _sliced(tokens, z, y, other, rest, seed)
    few = slice(NEIGHBOURS)
    spread, reference_spread = (x.var(0).sum().sqrt() for x in (z, y))
    return Arrival(
        whole=_sliced(whole, z, y, other, rest, seed),
        token=token,
        pair=token if single else _sliced(pairs, z, y, other, rest, seed),
        energy=_ratio(*(_energy(x[few], y[few]) for x in (z, other))),
        accuracy=two_sample_accuracy(z.flatten(1)[:, None], y.flatten(1)[:, None], seed),
        token_accuracy=two_sample_accuracy(as_items(z), as_items(y), seed),
        spread=float(spread / reference_spread.clamp_min(1e-12)),
        rank=effective_rank(z.flatten(1)),
        reference_rank=effective_rank(y.flatten(1)),
        mixing=mixing(z[few].flatten(1), y[few].flatten(1)),
    )


@torch.no_grad()
def told_by_class(z: Tensor, labels: Tensor, y: Tensor, of: Tensor, seed: int = 0) -> dict[int, dict[str, float]]:
    """{class: {"accuracy", "token_accuracy"}}, as `Arrival` has them, of latents z [n, C, H, W] with labels [n] and
    samples y [m, C, H, W] of the reference with labels `of` [m]; for classes with at least 64 of both."""
    found = {}
    for label in labels.unique().tolist():
        a, b = z[labels == label].float(), y[of == label].float()
        if min(len(a), len(b)) >= CLASS:
            found[label] = {
                "accuracy": two_sample_accuracy(a.flatten(1)[:, None], b.flatten(1)[:, None], seed, CLASS_STEPS),
                "token_accuracy": two_sample_accuracy(as_items(a), as_items(b), seed, CLASS_STEPS),
            }
    return found


@torch.no_grad()
def told_with_class(z: Tensor, labels: Tensor, y: Tensor, of: Tensor, seed: int = 0) -> dict[str, float]:
    """{"accuracy", "token_accuracy"}, as `Arrival` has them, of networks that get the class as an input: for data of so
    many classes that none has enough latents for a test of its own. Arguments as for `told_by_class`. Empty where z and
    y have fewer than 8 items of the same classes."""
    if in_common(labels, of) < FEWEST:
        return {}
    return {
        "accuracy": accuracy_with_class(z.flatten(1)[:, None], y.flatten(1)[:, None], (labels, of), seed)[0],
        "token_accuracy": accuracy_with_class(as_items(z), as_items(y), (labels, of), seed)[0],
    }


@torch.no_grad()
def multiples(z: Tensor, y: Tensor, rng: torch.Generator, slices: int = 64) -> dict[str, float]:
    """The figures that decide arrival, fast enough for every tenth update: {"whole", "token", "pair", "told"}.

    The first three are sliced W2 distances as multiples of chance ("pair" is missing on a 1x1 grid). "told" is
    (accuracy - 0.5) / 0.05, at least 0, of a classifier between tokens of z and of y: 0 is chance, and up to 2 (60 %)
    counts as arrived.

    z [n, C, H, W], recent latents, for example 1024; y [m, C, H, W], of which the first 2 n are compared and the rest,
    at least 2, give directions. A multiple grows with n: for a squared distance D^2 of the distributions, and chance of
    mean square c / n, it is about sqrt(1 + D^2 n / c), so 1.1 with 1024 latents is about 1.2 with 2048. Raises
    ValueError for too few samples, and for shapes that differ.
    """
    z, n = z.float(), len(z)
    if z.ndim != 4 or z.shape[1:] != y.shape[1:]:
        raise ValueError(f"latents {list(z.shape)} and reference {list(y.shape)}: both must be [n, C, H, W], alike")
    if len(y) < 2 * n + 2:
        raise ValueError(f"y has {len(y)} samples for {n} latents; give at least {2 * n + 2}")
    views: dict[str, View] = {"whole": whole, "token": tokens}
    if z.shape[2] * z.shape[3] > 1:
        views["pair"] = pairs
    first, other, rest = (x.to(z) for x in (y[:n], y[n : 2 * n], y[2 * n :]))
    seed = int(torch.randint(1 << 31, (), generator=rng, device=rng.device))
    found = {name: _sliced(view, z, first, other, rest, seed, slices, VECTORS // 2) for name, view in views.items()}
    return found | {"told": _told(two_sample_accuracy(as_items(z), as_items(first), seed))}


@torch.no_grad()
def details(z: Tensor, y: Tensor, of: tuple[Tensor, Tensor] | None = None, seed: int = 0) -> dict[str, float]:
    """The other figures of `measure`, `told_with_class` and `told_by_class`, fast enough for every hundredth update.

    "energy": as in `Arrival`. "told_whole": as "told" of `multiples`, of a classifier of whole
    latents. With `of`, labels int64 [n] and [m] of z and y, also "told_class" and "told_whole_class", of classifiers
    that get the class as input, and of each class with enough of both "told/CLASS" and "told_whole/CLASS".

    z [n, C, H, W] and y [m, C, H, W], of which the first 2 n are used. The networks train for 100 steps, and classes
    share one, so they find less than those of `measure`.
    """
    z, n = z.float(), len(z)
    y, other, few = y[:n].to(z), y[n : 2 * n].to(z), slice(NEIGHBOURS)
    sets = {"told_whole": (z.flatten(1)[:, None], y.flatten(1)[:, None]), "told": (as_items(z), as_items(y))}
    found = {
        "energy": _ratio(*(_energy(x[few], y[few]) for x in (z, other))),
        "told_whole": _told(two_sample_accuracy(*sets["told_whole"], seed, CLASS_STEPS)),
    }
    if of is not None:
        for name, (a, b) in sets.items() if in_common(of[0], of[1][:n]) >= FEWEST else ():
            overall, told = accuracy_with_class(a, b, (of[0], of[1][:n]), seed, CLASS_STEPS)
            found |= {f"{name}_class": _told(overall)}
            found |= {f"{name}/{label}": _told(accuracy) for label, accuracy in told.items()}
    return found


def _told(accuracy: float) -> float:
    """0 at chance, 2 (`NEAR`) at the largest accuracy that counts as arrived."""
    return max(0.0, NEAR * (accuracy - 0.5) / (TOLD - 0.5))


def accuracy_of(told: float) -> float:
    """The accuracy, at least 0.5, for which `multiples` and `details` give `told`."""
    return 0.5 + told * (TOLD - 0.5) / NEAR


def _sliced(
    view: View, z: Tensor, y: Tensor, other: Tensor, rest: Tensor, seed: int, slices: int = SLICES, count: int = VECTORS
) -> float:
    """W2 over a view's vectors, z to y as a multiple of other to y, in the same directions and as many vectors."""
    return _ratio(*distances(view, z, y, other, rest, seed, slices, count))


def distances(
    view: View, z: Tensor, y: Tensor, other: Tensor, rest: Tensor, seed: int, slices: int = SLICES, count: int = VECTORS
) -> tuple[Tensor, Tensor]:
    """Sliced W2 over a view's vectors of latents [n, C, H, W]: (z to y, other to y), two scalars, along the same
    directions: random ones, and differences of vectors of `rest`."""
    rng = torch.Generator().manual_seed(seed)
    total = len(z) * len(view(z[:1]))
    chosen = torch.randperm(total, generator=rng, device="cpu")[:count].to(z.device)
    a, b, c = (view(x)[chosen] for x in (z, y, other))  # one at a time: pairs take several times the latents' memory
    u = directions(a, view(rest[: max(2, ROOM // rest[0].numel())]), rng, slices, ("random", "reference"))
    with full_precision(z):
        here, there = (wasserstein_1d(u @ x.T, u @ b.T).mean().clamp_min(0).sqrt() for x in (a, c))
    return here, there


def as_items(z: Tensor) -> Tensor:
    """[n, C, H, W] -> [n, H W, C], a vector for each place."""
    return z.flatten(2).transpose(1, 2)


def _energy(a: Tensor, b: Tensor) -> Tensor:
    with full_precision(a):
        return energy_distance(a.flatten(1), b.flatten(1), unbiased=False).clamp_min(0).sqrt()


def _ratio(distance: Tensor, chance: Tensor) -> float:
    return float(distance / chance.clamp_min(1e-12))


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the shares of variance along the principal directions of vectors x [n, d]: from 1 to d; 1
    for vectors that are all the same."""
    share = torch.linalg.svdvals(x - x.mean(0)).square()
    share = share / share.sum().clamp_min(1e-30)
    return float(torch.special.entr(share).sum().exp())


def mixing(z: Tensor, y: Tensor) -> float:
    """0.5 - |p - 0.5|, averaged over the sets z [n, d] and y [n, d]: from 0 to 0.5. p is the share of a set's vectors
    whose nearest neighbour is in the other set. In many dimensions all nearest neighbours are in the narrower of two
    sets: its p is 0, that of the other is 1, and the mixing is 0.
    """
    x = torch.cat([z, y])
    nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).argmin(1)
    other = (nearest >= len(z)).float()
    shares = torch.stack([other[: len(z)].mean(), 1 - other[len(z) :].mean()])
    return float(0.5 - (shares - 0.5).abs().mean())
