"""A report before a teacher is trained: the reference's effective rank, and its distance to the latents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dmvae.evaluation.latents import scatter, sliced_distance

REPORT = "report.json"
# It warns of: a distance or a shift of means above FAR, in standard deviations of the normalised latents; a ratio of
# standard deviations above SCALE; an effective rank below RANK times the latents'.
FAR, SCALE, RANK = 0.5, 1.5, 0.5


@dataclass(frozen=True, kw_only=True)
class ReferenceReport:
    """Figures of a reference, in normalised latents."""

    rank: float
    """Effective rank of its channel vectors, between 1 and C."""
    initial_rank: float
    """Effective rank of the latents before matching."""
    distance: float
    """Sliced 2-Wasserstein distance between the two; 1 is a standard deviation of latents at unit scale."""
    floor: float
    """The same distance between two sets of samples of the reference, each of the same size."""
    channels: int
    advice: tuple[str, ...]
    """Warnings, each with what to do."""

    def lines(self) -> list[str]:
        """The report as text."""
        return [
            f"the reference has effective rank {self.rank:.1f} of {self.channels} channels (initial latents "
            f"{self.initial_rank:.1f}) and sliced Wasserstein distance {self.distance:.2f} to the initial latents "
            f"({self.floor:.2f} by chance)",
            *(f"warning: {line}" for line in self.advice),
        ]


def compare(reference: Tensor, initial: Tensor) -> ReferenceReport:
    """The report on samples of the reference [n, C, H, W] and normalised initial latents [m, C, H, W]."""
    n = min(len(reference), len(initial))
    z, z0 = reference[:n].float().cpu(), initial[:n].float()
    rank, initial_rank = (float(scatter(x, "channels").effective_rank()) for x in (z, z0))
    # Between halves of n / 2 samples. The squared distance falls as 1 / n, so sets of n are closer by sqrt(2).
    floor = sliced_distance(z[: n // 2], z[n // 2 : 2 * (n // 2)]) / 2**0.5
    distance = sliced_distance(z, z0)
    return ReferenceReport(
        rank=rank,
        initial_rank=initial_rank,
        distance=distance,
        floor=floor,
        channels=z.shape[1],
        advice=tuple(_advice(z, z0, rank, initial_rank, distance, floor)),
    )


def _advice(z: Tensor, z0: Tensor, rank: float, initial_rank: float, distance: float, floor: float) -> list[str]:
    advice = []
    if distance > FAR + floor:
        shift = float((z.mean((0, 2, 3)) - z0.mean((0, 2, 3))).abs().max())
        ratio = float(
            z0.std((0, 2, 3)).square().mean().sqrt() / z.std((0, 2, 3)).square().mean().sqrt().clamp_min(1e-12)
        )
        if max(ratio, 1 / max(ratio, 1e-12)) > SCALE or shift > FAR:
            advice.append(
                f"the initial latents are far from the reference, already in scale: {ratio:.2g} times its standard "
                f"deviation, channel means up to {shift:.2g} apart. `scale: initial`, where the reference has that "
                "field, or a reference of unit scale lets matching start where it need not learn that"
            )
        else:
            advice.append(
                "the initial latents are far from the reference, in shape and not in scale: a pull alone hardly gets "
                "them there. At a price in PSNR samples of the reference that are edited do (matching.noise: assigned, "
                "as in the recipe `arrive`, which `dmvae init arrive` copies), or, on a variational or a `pretrained` "
                "tokenizer, latents that are drawn (noise: posterior or fixed, objective: hand_over); or choose a "
                "reference nearer to the encoder's features"
            )
    if rank < RANK * min(initial_rank, z.shape[1]):
        advice.append(
            f"the reference uses about {rank:.1f} of {z.shape[1]} channels, the initial latents {initial_rank:.1f}: "
            "latents that match it lose what the others carry, and reconstruct worse. Whiten it (reduction: pca), use "
            "fewer latent channels, or a smaller matching.weight"
        )
    return advice
