"""A test of normality on random slices: SIGReg (LeJEPA, arXiv 2511.08544), only for the reference N(0, 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.transport.checks import require_positive

POINTS, REACH = 17, 5.0


def epps_pulley(x: Tensor) -> Tensor:
    """Epps and Pulley's statistic of rows x [s, n] against N(0, 1), divided by n: [s].

        integral of |phi_n(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,  phi_n(t) = mean_j exp(i t x_j)

    by the trapezoidal rule on 17 points of [-5, 5]. For many draws of N(0, 1) it goes to 0; value and gradient are
    bounded.
    """
    t = torch.linspace(-REACH, REACH, POINTS, device=x.device, dtype=x.dtype)
    normal = (-0.5 * t.square()).exp()
    angle = x[..., None] * t  # [s, n, t]
    real, imaginary = angle.cos().mean(1) - normal, angle.sin().mean(1)
    return torch.trapezoid((real.square() + imaginary.square()) * normal, t, dim=1)


def narrowed(n: int) -> float:
    """The standard deviation s of the normal distribution for which the statistic of n >= 2 draws is least on average.

    The mean of |phi_n|^2 over draws of N(0, s^2) is (1 - 1 / n) exp(-s^2 t^2) + 1 / n, since a draw is compared with
    itself too. With g = exp(-t^2 / 2) the mean of the integral of (|phi_n|^2 - 2 phi_n g) g dt is then least at s^2 =
    (2 - r) / (2 r - 1), r = (1 - 1 / n)^(-2/3): s is 1 for many draws, 0.44 for two.
    """
    r = (1 - 1 / n) ** (-2 / 3)
    return float(((2 - r) / (2 * r - 1)) ** 0.5)


def normality(z: Tensor, rng: torch.Generator, slices: int = 256, std: float = 1.0) -> Tensor:
    """Mean over random unit vectors u of `epps_pulley` of u . z / std, a scalar, for vectors z [n, d].

    A distribution is N(0, std^2 I) if and only if all of its slices are N(0, std^2). No sample of the reference is
    drawn. The gradient vanishes far from the reference, where the characteristic function oscillates fast: use it near
    the reference, or on latents of unit scale. Raises ValueError for fewer than 2 vectors, and for a `std` or a number
    of `slices` that is not above 0.
    """
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z has shape {list(z.shape)}; give two or more vectors [n, d]")
    require_positive(slices=slices, std=std)
    u = F.normalize(torch.randn(slices, z.shape[1], generator=rng, device=rng.device).to(z), dim=1)
    return epps_pulley(u @ z.T / std).mean()
