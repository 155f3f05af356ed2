"""How well a generator will do on latents, predicted without training it: all proxies of a finished tokenizer.

Shapes: images uint8 [n, c, h, w] where they are data, float in [-1, 1] where a decoder made them; latents
[n, C, H, W], normalised per channel; labels int64 [n].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.datasets.mixed import spaced, stratified
from dmvae.datasets.pixels import as_input
from dmvae.evaluation.frechet import Statistics
from dmvae.evaluation.interpolation import Decode, interpolated_frechet
from dmvae.evaluation.latents import WIDE, high_frequency_share, products, scatter, spectral_slope
from dmvae.evaluation.neighbours import intrinsic_dimension
from dmvae.evaluation.online import class_share, linear_flow_loss, neighbour_distance
from dmvae.evaluation.sensitivity import Encode, equivariance, smoothness
from dmvae.models.base import Tokenizer
from dmvae.runtime.precision import Precision, autocast

IMAGES = 1000
"""Most images for smoothness and equivariance: means over images need no more."""
OF_FEATURES = ("ifd", "ifd_slerp", "smoothness_features", "probe_gfd")
"""Proxies in an extractor's features; their full names carry the extractor's."""
POINTS = 5000
"""Most latents for figures that compare all pairs."""


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, ridge: float = 1e-3) -> float:
    """Share of test latents [m, ...] that a linear classifier fitted to training latents [n, ...] gets right.

        W = (X^T X + ridge n s^2 I)^-1 X^T Y,    prediction argmax of (x - mean) W

    X the centred latents, s^2 their mean variance, Y the centred one-hot labels: ridge regression in closed form. There
    is nothing to draw or to tune, and rotating or scaling the latents changes nothing.

    For latents of more than WIDE components, X^T X would be too large: they are fitted in the dual form, which gives
    the same W = X^T (X X^T + ridge n s^2 I)^-1 Y, to at most WIDE training latents (chosen by `spaced`).
    """
    wide = train[0].numel() > WIDE
    if wide and len(train) > WIDE:
        some = spaced(train_labels, WIDE)
        train, train_labels = train[some], train_labels[some]
    classes = int(torch.maximum(train_labels.max(), test_labels.max())) + 1
    targets = F.one_hot(train_labels, classes).double()
    share = targets.mean(0)
    form = _dual if wide else _primal
    gram, cross, inputs = form(train.flatten(1), targets - share, test.flatten(1))
    gram.diagonal().add_((ridge * gram.trace() / train[0].numel()).clamp_min(1e-30))
    predicted = (inputs @ torch.linalg.solve(gram, cross) + share).argmax(1)
    return float((predicted == test_labels).double().mean())


def _primal(train: Tensor, targets: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(X^T X, X^T Y, centred test vectors), which a solution W maps to class scores; for vectors [n, d] and [m, d]."""
    mean = train.mean(0, dtype=torch.float64)
    gram, cross = mean.new_zeros(len(mean), len(mean)), mean.new_zeros(len(mean), targets.shape[1])
    for z, y in zip(train.split(4096), targets.split(4096), strict=True):
        x = z.double() - mean
        gram += x.T @ x
        cross += x.T @ y
    return gram, cross, test.double() - mean


def _dual(train: Tensor, targets: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(X X^T, Y, products of test and training vectors), which a dual solution maps to class scores."""
    return products(train, train), targets, products(test, train)


def codec(tokenizer: Tokenizer, device: torch.device, precision: Precision = "auto") -> tuple[Encode, Decode]:
    """(encode: uint8 images -> normalised latents, decode: these -> images in [-1, 1]); results float32 on the CPU."""

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with autocast(device, precision):
            z = tokenizer.encode(as_input(images, device)).latents
        return tokenizer.normalize(z.float()).cpu()

    @torch.no_grad()
    def decode(z: Tensor) -> Tensor:
        with autocast(device, precision):
            return tokenizer.decode(tokenizer.denormalize(z.to(device))).sample.float().cpu()

    return encode, decode


def latent_proxies(z: Tensor, labels: Tensor) -> dict[str, float]:
    """Proxies from training latents and their labels alone, from at most POINTS of them. The evaluation adds kNN
    accuracy, linear probe and statistics."""
    chosen = stratified(labels, POINTS)
    some, some_labels = z[chosen], labels[chosen]
    spread = scatter(some)
    return {
        "class_share": float(class_share(some, some_labels)),
        "effective_rank_all": float(spread.effective_rank()),
        "intrinsic_dimension": intrinsic_dimension(some),
        "twonn": intrinsic_dimension(some, k=2),
        "neighbour_distance": float(neighbour_distance(some)),
        "spectral_slope": spectral_slope(spread.spectrum()),
        "high_frequency": high_frequency_share(some),
        "linear_flow_loss": float(linear_flow_loss(some, some_labels, "all")),
    }


def decoder_proxies(
    encode: Encode,
    decode: Decode,
    stride: int,
    images: Tensor,
    z: Tensor,
    train_z: Tensor,
    real: Statistics,
    extractor: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Proxies that run the tokenizer: "ifd", "ifd_slerp", "smoothness", "smoothness_features", "equivariance_flip" and
    "equivariance_shift". images: uint8 test images [n, c, h, w]; z [n, C, H, W]: their latents; train_z: those of
    training images; real: statistics of the test images' features in `extractor`."""
    return {
        "ifd": interpolated_frechet(decode, z, train_z, real, extractor),
        "ifd_slerp": interpolated_frechet(decode, z, train_z, real, extractor, path="slerp"),
        **{name: float(x) for name, x in smoothness(decode, z[:IMAGES], extractor=extractor).items()},
        **equivariance(encode, images[:IMAGES], stride),
    }
