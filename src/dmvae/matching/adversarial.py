"""Adversarial matching: an adversarial autoencoder (Makhzani et al., arXiv 1511.05644) to any reference.

A critic learns to tell the reference's samples from the latents, both [n, C, H, W] normalised per channel, with their
labels; the latents learn to fool it. It needs no velocity, and so no teacher.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.flow.guidance import Velocity
from dmvae.flow.loss import require_batch
from dmvae.generators.flow import TransformerConfig
from dmvae.matching import Context, Log, Matching, Student, beside, compared, require_gradient
from dmvae.matching.velocities import at_latents
from dmvae.ranges import Range, Weight, Width
from dmvae.references import draw
from dmvae.registry import register
from dmvae.runtime.eager import uncompiled
from dmvae.runtime.precision import full_precision


@register("adversarial")
@dataclass(frozen=True, kw_only=True)
class Adversarial(Matching):
    """The non-saturating adversarial loss. With a perfect critic, D = log(p / q) of the reference p and the latents q,
    it descends 2 KL((p + q) / 2 || p), the softened reverse KL divergence (arXiv 2010.08029).

    Gradient at z_i of n: -(1 - s) grad D(z_i) / n, where s = 1 / (1 + exp(-D(z_i))) is the critic's probability that
    z_i is of the reference: a latent that already deceives the critic gets next to no gradient.
    """

    needs_teacher: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    learns_velocity: ClassVar[bool] = False

    width: Width = 128
    """Channels of the critic."""
    depth: Annotated[int, Range(0, 1024)] = 3
    """Residual blocks of the critic; each widens its receptive field by one token on every side."""
    penalty: Weight = 1.0
    """gamma of the penalty gamma / 2 |dD/dz|^2 at the reference's samples (R1, arXiv 1801.04406), without which the
    critic of two distributions that do not overlap grows without bound; 0 is off."""

    def new_student(
        self, latent_shape: tuple[int, int, int], num_classes: int, teacher: object, model: TransformerConfig
    ) -> Critic:
        return beside(Critic(latent_shape[0], num_classes, self.width, self.depth), teacher)

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Student | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """mean log(1 + exp(-D(z, label))), a scalar with its gradient at z."""
        require_batch(z, labels)
        if student is None:
            raise ValueError("adversarial compares by its critic: give a student that `new_student` made")
        require_gradient(z)
        return at_latents(lambda at: F.softplus(-student(at, labels)).mean(), z), {}

    def student_loss(
        self, student: Student, z: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Log]:
        """mean log(1 + exp(-D(y))) + mean log(1 + exp(D(z))) + gamma / 2 mean |dD/dy|^2, y samples of the reference."""
        context, reference = compared(self.type, context, z, labels)
        real, real_labels = draw(reference, len(z), context.rng, z.device)
        real.requires_grad_(self.penalty > 0)
        with uncompiled() if self.penalty > 0 else nullcontext():
            at_real, at_z = student(real, real_labels), student(z, labels)
        loss = F.softplus(-at_real).mean() + F.softplus(at_z).mean()
        log = {
            "critic/reference": at_real.detach().mean(),
            "critic/latents": at_z.detach().mean(),
            "critic/accuracy": 0.5 * ((at_real > 0).float().mean() + (at_z < 0).float().mean()),
        }
        if self.penalty > 0:
            with full_precision(z):  # autocast would cast the products of this backward pass too
                (slope,) = torch.autograd.grad(at_real.sum(), real, create_graph=True)
            square = slope.square().sum(dim=(1, 2, 3)).mean()
            log["critic/slope"] = square.detach()
            loss = loss + 0.5 * self.penalty * square
        return loss, log


class Critic(nn.Module):
    """D(z, label): residual blocks with 3x3 convolutions, their mean over places, and a logit that depends on the label
    through an inner product (projection discriminator, arXiv 1802.05637).

    No normalisation inside: it would hide the mean and spread of the latents, which are to be compared.
    """

    def __init__(self, channels: int, num_classes: int, width: int, depth: int):
        super().__init__()
        self.embed = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 1))
            for _ in range(depth)
        )
        self.logit = nn.Linear(width, 1)
        self.labels = nn.Embedding(num_classes + 1, width)
        nn.init.zeros_(self.labels.weight)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """z [n, C, H, W], labels int64 [n] in 0 .. num_classes -> logits [n], float32, higher for the reference."""
        with full_precision(z):  # the penalty differentiates twice, and is too small for bf16
            x = self.embed(z.float())
            for block in self.blocks:
                x = x + block(F.leaky_relu(x, 0.2))
            pooled = F.leaky_relu(x, 0.2).mean(dim=(2, 3))
            logits: Tensor = self.logit(pooled).squeeze(1) + (self.labels(labels) * pooled).sum(1)
            return logits

    def compiled_parts(self) -> list[nn.Module]:
        """None: torch.compile does not support differentiating twice."""
        return []
