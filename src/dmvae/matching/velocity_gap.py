"""The squared difference of teacher's and student's velocities (three of the eleven objectives in figure 3 of DMVAE,
arXiv 2512.07778): a Fisher divergence. Latents get the part of its gradient that comes through the networks' inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import interpolate
from dmvae.matching import Log
from dmvae.matching.velocities import ByVelocities, binned
from dmvae.registry import register


@register("velocity_gap")
@dataclass(frozen=True, kw_only=True)
class VelocityGap(ByVelocities):
    """G = |d|^2 / (2 numel), d = v_T - v_S at the same z_t, J_T and J_S their Jacobians. Its gradient at z is

    stop: none       t (J_T - J_S)^T d / numel
    stop: teacher    -t J_S^T d / numel
    stop: student    t J_T^T d / numel
    """

    stop: Literal["none", "teacher", "student"] = "none"
    """The network whose output is detached; "none": the gradient comes through both."""

    def value(
        self, z: Tensor, labels: Tensor, velocities: dict[str, Velocity], t: Tensor, noise: Tensor, log: Log
    ) -> Tensor:
        """G; logs the mean of d^2 by time."""
        z_t, v = interpolate(noise=noise, z=z, t=t), {}
        for name, velocity in velocities.items():
            with torch.set_grad_enabled(name != self.stop):
                v[name] = velocity(z_t, t, labels).float()
        square = (v["teacher"] - v["student"]).square()
        log.update(binned(square.detach().mean(dim=(1, 2, 3)), t))
        return 0.5 * square.mean()
