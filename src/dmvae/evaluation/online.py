"""Proxies of gFD from a single training batch, for tokenizers that are still training.

They depend on the batch and the networks alone. They have no state, so a resumed run logs the same as an uninterrupted
one; and they draw none of the caller's random numbers, so logging changes no result.

Shapes: latents [n, C, H, W], labels int64 [n].
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from dmvae.evaluation.interpolation import Decode
from dmvae.evaluation.latents import Over, Scatter, exact, is_wide, products, scatter, vectors
from dmvae.evaluation.sensitivity import NOISE, smoothness
from dmvae.runtime.precision import full_precision
from dmvae.runtime.transfer import Loggable, made


def linear_flow_loss(z: Tensor, labels: Tensor | None = None, over: Over = "channels") -> Tensor:
    """Flow-matching loss that the best linear velocity of each class reaches on latents; a scalar tensor.

        pi / 2 * mean_i sqrt(value_i / mean variance of the latents)

    value_i are the eigenvalues of the latents' covariance or, with labels, of the covariance within classes (each class
    counts as a Gaussian about its own mean, with one covariance for all). It follows from the loss of a Gaussian
    component of variance s, which is the integral over t of s / (t^2 s + (1 - t)^2) = pi / 2 sqrt(s). Dividing by the
    mean variance makes tokenizers of any scale comparable. pi / 2 for white noise; less where channels correlate,
    variances are unequal or labels explain the latents. A trained generator's loss is lower by as much as the classes
    are not Gaussian. z: [n, C, H, W]; over: "channels" or "all", see `vectors`.
    """
    z = z.detach()
    return _loss(scatter(z, over), *(_within(z, labels, over) if labels is not None else (None, None)))


def _loss(whole: Scatter, within: Scatter | None, free: Tensor | None) -> Tensor:
    """`linear_flow_loss` from the scatter within classes, in which `free` latents are independent; from the whole
    scatter where none are, because no class has two latents."""
    values = spectrum = whole.spectrum()
    if within is not None and free is not None:
        values = torch.where(free > 0.5, within.spectrum(), spectrum)
    return math.pi / 2 * (values / spectrum.mean().clamp_min(1e-30)).sqrt().mean()


def _within(z: Tensor, labels: Tensor, over: Over) -> tuple[Scatter, Tensor]:
    """(the scatter within classes, the number of latents minus that of classes)."""
    rest, free = _residuals(z, labels)
    x = vectors(rest, over)
    free_vectors = free.clamp_min(1) * (len(x) // len(z))
    if is_wide(x):
        return Scatter(products(x, x) / free_vectors, x.shape[1]), free
    x = exact(x)
    return Scatter(x.T @ x / free_vectors, x.shape[1]), free


def _residuals(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(z minus the mean of its class; the number of latents minus that of classes, a scalar: the degrees of freedom of
    these residuals)."""
    same = (labels[:, None] == labels).to(z.dtype)  # not one-hot, whose size would be read from the device
    size = same.sum(1)
    mean = (same @ z.flatten(1)) / size[:, None]
    return z - mean.view_as(z), len(z) - (1 / size).sum()


def neighbour_distance(z: Tensor) -> Tensor:
    """Mean squared distance to the nearest neighbour over that of two latents; a scalar tensor in [0, 1].

    How far apart the data lie in latent space, relative to its size: a generator has to fill this gap, and iFID looks
    midway across it. It falls with the number n of latents and grows with their intrinsic dimension: compare only
    numbers of equal n. 0 for a single latent.
    """
    x = z.detach().flatten(1).float()
    x = x - x.mean(0)
    n = len(x)
    if n < 2:
        return x.new_zeros(())
    squares = x.square().sum(1)
    apart = (squares[:, None] + squares - 2 * x @ x.T).clamp_min(0)
    apart = apart + torch.diag(torch.full((n,), torch.inf, device=x.device))
    usual = 2 * squares.sum() / max(1, n - 1)
    return apart.min(1).values.mean() / usual.clamp_min(1e-30)


def class_share(z: Tensor, labels: Tensor) -> Tensor:
    """Share of the latents' variance that the labels explain, corrected for few latents per class; a scalar tensor.

        1 - (scatter within classes / (n - classes)) / (scatter about the mean / (n - 1))

    0 on average for labels that say nothing, 1 where each class is one point; 0 where no class has two latents, and
    where all latents are the same.
    """
    z = z.detach().float()
    rest, free = _residuals(z, labels)
    total = (z - z.mean(0)).square().sum() / max(1, len(z) - 1)
    share = 1 - rest.square().sum() / free.clamp_min(1) / total.clamp_min(1e-30)
    return torch.where((free > 0.5) & (total > 0), share, 0.0)


def online_proxies(z: Tensor, labels: Tensor, decode: Decode | None = None, images: int = 16) -> dict[str, Tensor]:
    """{"proxy/effective_rank", "proxy/linear_flow_loss", "proxy/neighbour_distance", "proxy/class_share"} of one batch
    of latents z [n, C, H, W] with labels int64 [n]: scalar tensors; {} for a single vector.

    Channels are first standardised over the batch, as a generator will see them. With `decode`, which takes latents in
    the units of z, also "proxy/smoothness" of the first `images` latents: that decodes twice as many.
    """
    return {name: torch.as_tensor(made(x)) for name, x in proxies_to_log(z, labels, decode, images).items()}


@torch.no_grad()
def proxies_to_log(z: Tensor, labels: Tensor, decode: Decode | None = None, images: int = 16) -> dict[str, Loggable]:
    """`online_proxies` without waiting for the device: figures that need eigenvalues are functions, called when a row
    is written. {} for a single vector (one image of one token on a rank), which has no spread."""
    if z[:, 0].numel() < 2:
        return {}
    with full_precision(z):
        z = z.float()
        mean, std = z.mean((0, 2, 3), keepdim=True), z.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
        x = (z - mean) / std
        whole = scatter(x, "channels")
        log: dict[str, Loggable] = {
            "proxy/effective_rank": whole.effective_rank,
            "proxy/linear_flow_loss": partial(_loss, whole, *_within(x, labels, "channels")),
            "proxy/neighbour_distance": neighbour_distance(x),
            "proxy/class_share": class_share(x, labels),
        }
    if decode is not None:
        log["proxy/smoothness"] = smoothness(decode, z[:images], NOISE * std)["smoothness"]
    return log
