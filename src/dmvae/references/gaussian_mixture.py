"""Mixtures of Gaussians with diagonal covariance, noised along the flow's path, in closed form.

Shapes: b samples, K components, C H W of a latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmvae.flow.path import expand
from dmvae.runtime.random import Random

ELEMENTS = 1 << 24  # of the work space [b, K, C, H, W]


class GaussianMixture:
    """p(z | label c) = sum_k p(k | c) N(z; m_k, diag s_k^2), and p(z) for the label `num_classes`.

    means m_k, variances s_k^2: [K, C, H, W]; joint [num_classes, K] = p(c, k), see `joint_weights`. Computes in the
    dtype and on the device of the states z_t. mean, std [C]: as of every `Reference`.
    """

    def __init__(self, means: Tensor, variances: Tensor, joint: Tensor, mean: Tensor, std: Tensor) -> None:
        assert means.shape == variances.shape
        assert joint.shape[1] == len(means)
        self.means, self.variances, self.joint = means, variances, joint
        self.mean, self.std = mean, std
        self._kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        pair = _pick(self.joint.flatten(), rng.uniform(n).cpu())
        labels, k = pair // len(self.means), pair % len(self.means)
        noise = rng.normal(n, *self.means.shape[1:]).cpu()
        means, variances = (x[k].float() for x in (self.means, self.variances))
        return means + variances.sqrt() * noise, labels

    def log_prob(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """log p_t(z_t | label) [b], in nats, of z_t [b, C, H, W] at times t [b]; t = 1 is the mixture itself."""
        return self._log_terms(z_t, t, labels)[0].logsumexp(1)

    def velocity(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """E[z - noise | z_t, label], [b, C, H, W]. With v_k = t^2 s_k^2 + (1 - t)^2 and r_k = p(k | z_t, label), it is

        sum_k r_k (m_k + (t s_k^2 - (1 - t)) / v_k (z_t - t m_k))
        """
        size = max(1, ELEMENTS // self.means.numel())
        parts = zip(z_t.split(size), t.split(size), labels.split(size), strict=True)
        return torch.cat([self._velocity(*part) for part in parts])

    def _velocity(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        log_terms, difference, v = self._log_terms(z_t, t, labels)
        t = expand(t, difference)
        means, variances, _ = self._at(z_t)
        each = means + (t * variances - (1 - t)) / v * difference
        share = log_terms.softmax(1).view(*log_terms.shape, 1, 1, 1)
        return (share * each).sum(1)  # not a matrix product: autocast would round it to bf16

    def _log_terms(self, z_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log p(k | label) + log N(z_t; t m_k, v_k) [b, K], z_t - t m_k [b, K, C, H, W], v_k likewise)."""
        means, variances, log_weights = self._at(z_t)
        t = t.to(z_t).view(-1, *[1] * means.ndim)
        difference = z_t[:, None] - t * means
        v = t.square() * variances + (1 - t).square()
        log_normal = -0.5 * (difference.square() / v + v.log() + math.log(2 * math.pi)).flatten(2).sum(2)
        return log_normal + log_weights[labels], difference, v

    def _at(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(means, variances, log p(k | c) [num_classes + 1, K], whose last row is log p(k)), in the dtype and on the
        device of `like`; moved once."""
        key = like.device, like.dtype
        if key not in self._kept:
            with torch.inference_mode(False):  # they outlive this call, and a later one may want a gradient
                joint = torch.cat([self.joint, self.joint.sum(0, keepdim=True)])
                weights = (joint / joint.sum(1, keepdim=True)).log()
                self._kept[key] = self.means.to(like), self.variances.to(like), weights.to(like)
        return self._kept[key]


def joint_weights(weights: Tensor, labels: Tensor | None, num_classes: int) -> Tensor:
    """p(c, k), float64 [num_classes, K], of components with weights [K] > 0 that belong to the classes `labels` [K].

    A class without components stands for the whole mixture, with p(c) = 1 / num_classes; so does every class where
    `labels` is None. So every class occurs, and p(k) is what the weights say.
    """
    weights = weights.double() / weights.double().sum()
    joint = torch.zeros(num_classes, len(weights), dtype=torch.float64)
    if labels is not None:
        joint[labels, torch.arange(len(weights))] = weights
    missing = joint.sum(1) == 0
    joint *= 1 - missing.sum() / num_classes
    joint[missing] = weights / num_classes
    return joint


def _pick(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Indices drawn with the probabilities [m], from uniform numbers [n]."""
    ends = probabilities.cumsum(0)
    return torch.searchsorted(ends, uniform.double() * ends[-1], right=True).clamp_max(len(ends) - 1)
