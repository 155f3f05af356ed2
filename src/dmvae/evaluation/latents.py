"""Statistics of latents, and the distance between two sets of them.

Shapes: latents [n, C, H, W]; d components of a vector. A latent's channel vectors are its H W vectors of C components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.evaluation.frechet import Statistics
from dmvae.runtime.transfer import covariance
from dmvae.transport.sliced import wasserstein_1d

Over = Literal["channels", "all"]
WIDE = 8192
"""Largest d for which a covariance [d, d] is computed; it then takes 0.5 GB. For wider vectors, their products [n, n]
are taken instead (`products`): they have the same eigenvalues, and serve the same regression."""
CUT = 4096
"""Components of such wide vectors that are multiplied at a time."""


def vectors(z: Tensor, over: Over) -> Tensor:
    """Latents [n, C, H, W] as vectors: their channel vectors [n H W, C], or one vector [n, C H W] each."""
    return z.movedim(1, -1).flatten(0, 2) if over == "channels" else z.flatten(1)


def normalised(z: Tensor, by: Tensor) -> Tensor:
    """Latents z [n, C, H, W], by the mean and standard deviation per channel of others [m, C, H, W]."""
    mean, std = by.mean((0, 2, 3), keepdim=True), by.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    return (z - mean) / std


@dataclass(frozen=True)
class Scatter:
    """The matrix whose eigenvalues are wanted. Making it does not wait for the device, and it is small, so it can be
    kept until the eigenvalues, which do wait, are needed."""

    matrix: Tensor
    """The covariance [d, d] of d components, or the products [n, n] of n wide vectors: X^T X and X X^T have the same
    eigenvalues except for zeros."""
    components: int
    """d."""

    def spectrum(self) -> Tensor:
        """Eigenvalues of the covariance [d], descending; on the latents' device, float64 where it has it."""
        values = torch.linalg.eigvalsh(self.matrix).clamp_min(0).flip(0)
        return F.pad(values, (0, self.components - len(values)))

    def effective_rank(self) -> Tensor:
        """exp(-sum p log p), p the eigenvalues divided by their sum (Roy & Vetterli 2007): between 1, all variance in
        one direction, and d, variance equal in all; 0 where nothing varies. A scalar."""
        values = self.spectrum()
        share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
        return torch.exp(torch.special.entr(share).sum()) * (values.sum() > 0)


def scatter(z: Tensor, over: Over = "all") -> Scatter:
    """The `Scatter` of latents [n, C, H, W], without gradient: of whole latents (d = C H W) or, over "channels", of
    channel vectors (d = C). If d exceeds WIDE and the number of vectors, it holds their products: n^2 instead of d^2
    numbers."""
    x = vectors(z.detach(), over)
    matrix = products(x, x) / max(1, len(x) - 1) if is_wide(x) else covariance(exact(x))
    return Scatter(matrix, x.shape[1])


def is_wide(x: Tensor) -> bool:
    """Whether vectors [n, d] have too many components for a covariance: d > WIDE and d > n."""
    return x.shape[1] > max(len(x), WIDE)


def products(y: Tensor, x: Tensor) -> Tensor:
    """(Y - m)(X - m)^T [k, n] of vectors y [k, d] and x [n, d], m the mean of x; float64 where the device has it.

    CUT components at a time: float64 copies of all vectors would take twice their memory.
    """
    total = exact(x.new_zeros(len(y), len(x)))
    for b, a in zip(y.split(CUT, 1), x.split(CUT, 1), strict=True):
        mean = exact(a).mean(0)
        total.addmm_(exact(b) - mean, (exact(a) - mean).T)
    return total


def exact(x: Tensor) -> Tensor:
    """float64 where the device has it."""
    return x.double() if x.device.type != "mps" else x.float()


def spectral_slope(values: Tensor) -> float:
    """a of the power law value_i ~ i^-a that fits eigenvalues [d], descending, by least squares of the logarithms.

    Rank i has the weight 1 / i, so that every octave of ranks counts the same. Values below 1e-8 of the first are
    rounding errors and left out. 0 for equal values and where fewer than two are left.
    """
    y = values.double()
    y = y[y > 1e-8 * y[0]].log()
    rank = torch.arange(1, len(y) + 1, dtype=torch.float64, device=y.device)
    if len(y) < 2:
        return 0.0
    weight = 1 / rank / (1 / rank).sum()
    x = rank.log() - weight @ rank.log()
    return float(-(weight * x) @ y / ((weight * x) @ x))


def high_frequency_share(z: Tensor) -> float:
    """Share of the power of latents [n, C, H, W] over the grid at frequencies above 1/4 cycle per latent.

        power(fy, fx) = mean over n and C of |F[z - mean z](fy, fx)|^2

    F is the discrete Fourier transform, mean z the mean over the set, and the frequency is |(fy, fx)|. 11/16 for
    independent components on a 4x4 grid; 0 where all positions of a latent are equal, or for a single position.
    """
    x = z.detach().cpu().double()
    power = torch.fft.fft2(x - x.mean(0)).abs().square().mean((0, 1))
    rows, columns = torch.fft.fftfreq(x.shape[2]).double(), torch.fft.fftfreq(x.shape[3]).double()
    high = torch.hypot(rows[:, None], columns) > 0.25 + 1e-9
    return float(power[high].sum() / power.sum().clamp_min(1e-300))


def sliced_distance(a: Tensor, b: Tensor, projections: int = 256) -> float:
    """Sliced 2-Wasserstein distance between vectors a [n, d] and b [m, d].

        ( mean over random unit directions u of integral_0^1 (quantile_a.u(q) - quantile_b.u(q))^2 dq )^(1/2)

    Latents count as the vectors of all their components. The directions are the same at every call. Raises
    ValueError when the two have different numbers of components.
    """
    a, b = a.flatten(1).float(), b.flatten(1).float()
    d = a.shape[1]
    if b.shape[1] != d:
        raise ValueError(f"the sets have vectors of {d} and {b.shape[1]} components; give latents of one shape")
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(d, projections, generator=generator), dim=0).to(a.device)
    of_a, of_b = (exact(x.to(a.device) @ directions).T for x in (a, b))
    return float(wasserstein_1d(of_a, of_b).mean().clamp_min(0).sqrt())


def latent_statistics(z: Tensor) -> dict[str, float]:
    """Figures of latents [n, C, H, W] that show collapse and drift.

    mean_max         largest absolute mean of a channel
    std_min, std_max standard deviations of the narrowest and the widest channel
    spread           sum of the channels' variances
    effective_rank   exp(entropy) of the eigenvalues of the channel vectors' covariance, between 1 and C
    kurtosis         mean over channels of the fourth standardised moment; 3 for a Gaussian
    """
    z = z.contiguous()  # sums depend on the order in memory; latents gathered from ranks are contiguous
    channels = Statistics.of(vectors(z, "channels"))
    mean, std, covariance = channels.mean, channels.std, channels.covariance
    shape = (1, -1, 1, 1)
    standard = (z.detach().cpu().double() - mean.view(shape)) / std.clamp_min(1e-12).view(shape)
    return {
        "mean_max": float(mean.abs().max()),
        "std_min": float(std.min()),
        "std_max": float(std.max()),
        "spread": float(covariance.trace()),
        "effective_rank": float(Scatter(covariance, len(mean)).effective_rank()),
        "kurtosis": float(standard.pow(4).mean()),
    }
