"""Distribution matching by the difference of two denoisers (DMVAE; Yin et al., arXiv 2311.18828)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.flow.guidance import Velocity, guided
from dmvae.flow.path import denoise, expand, interpolate
from dmvae.generators.flow import TransformerConfig
from dmvae.matching import Context, Log, Student, bare, beside, compared, known_labels
from dmvae.matching.adversarial import Critic
from dmvae.matching.velocities import ByVelocities, binned
from dmvae.models.base import compiled_parts_of
from dmvae.ranges import Depth, Guidance, Width
from dmvae.references import draw
from dmvae.registry import register
from dmvae.runtime import distributed

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {"forward_kl": torch.exp, "jensen_shannon": torch.sigmoid}
"""Divergence -> h as a function of log r, see `DMD.loss`."""
LIMIT = 4.0
"""Bound on |log r|, so that no latent has more than e^8 times the weight of another."""


@register("dmd")
@dataclass(frozen=True, kw_only=True)
class DMD(ByVelocities):
    """The paper's objective: latents descend KL(latents || reference), the reverse KL divergence, or another one."""

    differentiates: ClassVar[bool] = False

    guidance: Guidance = 5.0
    """Guidance scale w of teacher and student alike; 1 turns guidance off."""
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon"] = configs.added("reverse_kl")
    """The f-divergence that latents descend. Any but "reverse_kl" needs the density ratio of reference and latents,
    which a small classifier of noised samples estimates (f-distill, arXiv 2502.15681); it trains with the student."""
    ratio_width: Width = configs.added(128)
    """Channels of that classifier."""
    ratio_depth: Depth = configs.added(3)
    """Its residual blocks."""

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]  # a field decides
        """The classifier learns from samples."""
        return self.divergence in WEIGHTS

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Student | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """mean (z - stop_grad(z - h g))^2 / 2, with g of `gradient`: its gradient at z is h g / numel(z).

        h = f''(r) r^2, a number per sample, with the density ratio r = reference / latents at z_t: 1 for the reverse KL
        divergence, r for the forward one, r / (1 + r) for Jensen-Shannon; the last two divided by their mean over the
        batch. Raises ValueError without teacher or student.
        """
        _, context, t, noise = self.asked(z, labels, teacher, student, context)
        assert teacher is not None
        assert student is not None
        with torch.no_grad(), known_labels(labels, context.null_label):
            g, gap = gradient(z.detach(), noise, t, labels, teacher, student, self.guidance, context.null_label)
            log = binned(gap, t)
            if self.divergence in WEIGHTS:
                ratio = self._ratio(student)
                h = WEIGHTS[self.divergence](ratio.log_ratio(interpolate(noise=noise, z=z.detach(), t=t), t, labels))
                if len(h) > 1:  # of a single image it is no number
                    log["ratio/weight_std"] = (h / h.mean()).std()
                g = expand(h / distributed.average(h.mean()), g) * g
        loss = 0.5 * (z - (z.detach() - g)).square().mean()
        return loss, log

    def new_student(
        self, latent_shape: tuple[int, int, int], num_classes: int, teacher: object, model: TransformerConfig
    ) -> nn.Module | None:
        student = super().new_student(latent_shape, num_classes, teacher, model)
        if student is None or self.divergence not in WEIGHTS:
            return student
        ratio = Ratio(latent_shape[0] + 1, num_classes, self.ratio_width, self.ratio_depth)
        return WithRatio(student, beside(ratio, student))

    def student_loss(
        self, student: Student, z: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Log]:
        """The flow-matching loss and, for the density ratio, mean log(1 + 1 / r(y_t)) + mean log(1 + r(z_t)) at samples
        y of the reference and latents z, noised alike."""
        loss, log = super().student_loss(student, z, labels, context)
        if self.divergence not in WEIGHTS:
            return loss, log
        context, reference = compared(f"divergence: {self.divergence}", context, z, labels)
        ratio = self._ratio(student)
        y, y_labels = draw(reference, len(z), context.rng, z.device)
        t = context.times.sample(len(z), context.rng)
        at_y, at_z = (
            ratio.logit(interpolate(noise=context.rng.normal(*x.shape), z=x, t=t), t, of)
            for x, of in ((y, y_labels), (z, labels))
        )
        log["ratio/accuracy"] = 0.5 * ((at_y > 0).float().mean() + (at_z < 0).float().mean())
        return loss + F.softplus(-at_y).mean() + F.softplus(at_z).mean(), log

    def _ratio(self, student: object) -> WithRatio:
        inner = bare(student)
        if not isinstance(inner, WithRatio):
            raise ValueError(f"divergence: {self.divergence} needs a student that `new_student` made")
        return inner


class Ratio(Critic):
    """A critic that FSDP shards where it shards the student: their optimizer takes no mixture. It computes in
    float32."""

    _no_split_modules = ("Sequential",)
    gathers_bf16 = False


class WithRatio(nn.Module):
    """The student, and a classifier of noised samples whose logit is log r = log p_t(z_t) - log q_t(z_t), p the
    reference's density and q that of the latents."""

    def __init__(self, flow: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.flow, self.critic = flow, critic

    @property
    def config(self) -> object:
        """The flow's, for its number of classes."""
        return self.flow.config

    def forward(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The flow's velocity."""
        velocity: Tensor = self.flow(z_t, t, labels)
        return velocity

    def logit(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Logits [n] for z_t [n, C, H, W] at times t [n]; the time is one more channel."""
        found: Tensor = self.critic(torch.cat([z_t, expand(t, z_t).expand_as(z_t[:, :1])], dim=1), labels)
        return found

    def log_ratio(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """log r [n], cut off at -`LIMIT` and `LIMIT`."""
        return self.logit(z_t, t, labels).clamp(-LIMIT, LIMIT)

    def compiled_parts(self) -> list[nn.Module]:
        """The flow's own, as of a student without a ratio: then teacher and student share compiled graphs."""
        return compiled_parts_of(self.flow, [self.flow])

    def sharded_parts(self) -> list[nn.Module]:
        """Both, each as a unit: the critic is called outside of `forward`."""
        return [self.flow, self.critic]

    def enable_gradient_checkpointing(self) -> None:
        """Of the flow, which is the large one. Raises ValueError for one without blocks."""
        enable: Callable[[], None] | None = getattr(self.flow, "enable_gradient_checkpointing", None)
        if enable is None:
            raise ValueError(f"a {type(self.flow).__name__} has no blocks that can be computed again")
        enable()


def gradient(
    z: Tensor,
    noise: Tensor,
    t: Tensor,
    labels: Tensor,
    teacher: Velocity,
    student: Velocity,
    guidance: float,
    null: int,
) -> tuple[Tensor, Tensor]:
    """(g [n, C, H, W], the mean per sample of (z_hat_student - z_hat_teacher)^2 [n]), with the denoised estimates z_hat
    of the guided velocities at z_t = (1 - t) noise + t z:

    g = (z_hat_student - z_hat_teacher) / mean |z - z_hat_teacher|, the mean over C, H, W of each sample.

    z, noise [n, C, H, W], t [n], labels int64 [n]; guidance: the scale; null: the label that means "no label".
    """
    z_t = interpolate(noise=noise, z=z, t=t)
    hat_teacher = denoise(z_t=z_t, velocity=guided(teacher, guidance, null)(z_t, t, labels).float(), t=t)
    hat_student = denoise(z_t=z_t, velocity=guided(student, guidance, null)(z_t, t, labels).float(), t=t)
    difference = hat_student - hat_teacher
    scale = (z - hat_teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    return difference / scale.clamp_min(1e-8), difference.square().mean(dim=(1, 2, 3))
