"""Adversarial losses, their adaptive weight, and differentiable augmentation.

Images are [n, C, h, w] in [-1, 1]; logits of any shape, higher for what looks real.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.runtime.random import Random


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """1/2 (mean max(0, 1 - real) + mean max(0, 1 + fake)): a scalar, 0 when every answer is right by a margin of 1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def hinge_generator(fake_logits: Tensor) -> Tensor:
    """-mean fake: a scalar."""
    return -fake_logits.mean()


def adaptive_weight(rec_grad: Tensor, gan_grad: Tensor, eps: float = 1e-4, max: float = 1e4) -> Tensor:
    """min(|rec_grad| / (|gan_grad| + eps), max), without gradient: a scalar (arXiv 2012.09841, eq. 7).

    Gradients of the reconstruction loss and of the adversarial loss with respect to the weights of the decoder's last
    layer: with this weight on the second, both have the same norm.
    """
    return (rec_grad.detach().norm() / (gan_grad.detach().norm() + eps)).clamp(0, max)


def augment(x: Tensor, rng: Random) -> Tensor:
    """DiffAugment (arXiv 2006.10738): `color`, `translation` and `cutout`, drawn for each image, differentiable.
    [n, C, h, w] -> the same; `rng` may live on another device."""
    return cutout(translation(color(x, rng), rng), rng)


def color(x: Tensor, rng: Random) -> Tensor:
    """Brightness shifted by -1/2 to 1/2, saturation scaled by 0 to 2 (grey images have none), contrast by 1/2 to
    3/2."""
    brightness, saturation, contrast = (rng.uniform(len(x), 1, 1, 1).to(x) for _ in range(3))
    x = x + (brightness - 0.5)
    if x.shape[1] > 1:
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translation(x: Tensor, rng: Random) -> Tensor:
    """Moved by whole pixels, at most an eighth of the height and the width, rounded; new pixels at the edge are 0."""
    for axis in (2, 3):
        size = x.shape[axis]
        reach = int(size / 8 + 0.5)
        shift = rng.integers(2 * reach + 1, len(x)).to(x.device) - reach
        source = torch.arange(size, device=x.device) + shift[:, None]
        inside = (source >= 0) & (source < size)
        # Shapes [n, 1, size, 1] or [n, 1, 1, size], for the axis that moves.
        view = (len(x), 1, -1, 1) if axis == 2 else (len(x), 1, 1, -1)
        x = x.gather(axis, source.clamp(0, size - 1).view(view).expand_as(x)) * inside.view(view)
    return x


def cutout(x: Tensor, rng: Random) -> Tensor:
    """0 in a rectangle of half the height and half the width, rounded, whose centre is anywhere in the image."""
    held = []
    for axis in (2, 3):
        size = x.shape[axis]
        width = int(size / 2 + 0.5)
        start = rng.integers(size + (1 - width % 2), len(x)).to(x.device) - width // 2
        place = torch.arange(size, device=x.device)
        held.append((place >= start[:, None]) & (place < start[:, None] + width))
    rows, columns = held
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])
