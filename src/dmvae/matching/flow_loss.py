"""Flow-matching losses as objectives: the latents descend the teacher's, the student's, or the difference of the two.

With the residual r = v(z_t) - (z - noise) of a network and numel the number of elements of z, the loss
L = |r|^2 / (2 numel) has at z the gradient

    stop: none      (t J^T r - r) / numel        the loss's own
    stop: target    t J^T r / numel              through the network alone: z - noise is detached
    stop: network   -r / numel                   through the target alone: the network's output is detached

J is the Jacobian of v. Three members: `teacher_loss` L_T, `student_loss` L_S and `loss_difference` L_T - L_S. They make
seven of the eleven objectives in figure 3 of DMVAE (arXiv 2512.07778): each loss with each stop, and the difference
with `stop: target`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import interpolate, velocity_target
from dmvae.matching import Log
from dmvae.matching.velocities import ByVelocities
from dmvae.registry import register

Stop = Literal["none", "target", "network"]


@dataclass(frozen=True, kw_only=True)
class FlowLoss(ByVelocities):
    """sum over networks of sign * L, at the same noise and times."""

    signs: ClassVar[Mapping[str, float]]
    """"teacher" and "student" -> the sign of its loss."""

    stop: Stop = "none"
    """Where the gradient stops: at the "target" z - noise, at the "network", or nowhere ("none")."""

    def value(
        self, z: Tensor, labels: Tensor, velocities: dict[str, Velocity], t: Tensor, noise: Tensor, log: Log
    ) -> Tensor:
        """The scalar of the module's docstring; logs the loss of each network."""
        total = z.new_zeros(())
        for name, sign in self.signs.items():
            found = halved_loss(velocities[name], z, noise, t, labels, self.stop)
            log[f"flow_loss/{name}"] = 2 * found.detach()
            total = total + sign * found
        return total


def halved_loss(velocity: Velocity, z: Tensor, noise: Tensor, t: Tensor, labels: Tensor, stop: Stop) -> Tensor:
    """L = |v(z_t) - (z - noise)|^2 / (2 numel), a scalar, differentiable in z except through what `stop` names."""
    with torch.set_grad_enabled(stop != "network"):
        v = velocity(interpolate(noise=noise, z=z, t=t), t, labels).float()
    target = velocity_target(noise=noise, z=z)
    return 0.5 * (v - (target.detach() if stop == "target" else target)).square().mean()


@register("teacher_loss")
@dataclass(frozen=True, kw_only=True)
class TeacherLoss(FlowLoss):
    """L_T: latents go where the teacher predicts them best. Nothing keeps them apart: they crowd where the reference is
    dense."""

    has_student: ClassVar[bool] = False
    signs: ClassVar[Mapping[str, float]] = MappingProxyType({"teacher": 1.0})


@register("student_loss")
@dataclass(frozen=True, kw_only=True)
class StudentLoss(FlowLoss):
    """L_S: latents go where the student predicts them best. It knows nothing of the reference: for comparison only."""

    needs_teacher: ClassVar[bool] = False
    signs: ClassVar[Mapping[str, float]] = MappingProxyType({"student": 1.0})


@register("loss_difference")
@dataclass(frozen=True, kw_only=True)
class LossDifference(FlowLoss):
    """L_T - L_S, whose gradient, with nothing stopped, is

        (t J_T^T r_T - t J_S^T r_S + v_S - v_T) / numel

    For an exact student this is the whole gradient of a KL divergence of latents and reference, a mean over times;
    `dmd` has a multiple of its part v_S - v_T alone. The price is the networks' Jacobians.
    """

    signs: ClassVar[Mapping[str, float]] = MappingProxyType({"teacher": 1.0, "student": -1.0})
