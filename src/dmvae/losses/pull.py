"""The gradient of another loss, added to that of the reconstruction at the latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmvae.config import Values
from dmvae.runtime import distributed
from dmvae.runtime.precision import full_precision

THIN = 0.03
"""The smallest standard deviation along a direction that `inverse_covariance` keeps, relative to the root mean square
over directions."""


def inverse_covariance(tokens: Tensor) -> Tensor:
    """The inverse covariance of tokens [m, C], float32 [C, C]; smaller standard deviations count as `THIN` allows."""
    centred = (tokens - tokens.mean(0)).double()
    values, directions = torch.linalg.eigh(centred.T @ centred / len(tokens))
    thick = torch.maximum(values, THIN**2 * values.mean().clamp_min(1e-30))
    return (directions / thick @ directions.T).float()


def held(pull: Tensor, edit: Tensor, anchor: float, inverse: Tensor) -> Tensor:
    """pull / rms(pull) + inverse edit / anchor, [n, C, H, W]: the matching gradient `pull`, scaled to a root mean
    square of 1 over all ranks, plus a spring that pulls the `edit` of each token back to 0. Both are [n, C, H, W];
    inverse [C, C] is the inverse covariance of the reference's tokens.

    So an edit counts in standard deviations of the reference along its own directions. Along thin ones, as most are of
    features, a small edit already leads away from the reference.
    """
    scale = distributed.average(pull.square().mean()).sqrt().clamp_min(1e-12)
    with full_precision(edit):  # bf16 would lose the thin directions
        return pull / scale + torch.einsum("cd,ndhw->nchw", inverse, edit) / anchor


class Pull(torch.autograd.Function):
    """The identity on latents z, whose backward pass adds the gradient of another loss to the reconstruction's g.

    `Pull.apply(z, pull, weight, relative, late, name)`: pull, shaped as z, is the other loss's gradient at z. The
    gradient that goes on is g + weight pull; with `relative` g + weight |g| / |pull| pull, norms over all ranks.

    Both gradients are known here, so their ratio costs no second backward pass through the decoder. Their norms, the
    second after scaling, are written into `late` (`health/gradient_reconstruction`, `health/gradient_NAME`; see
    `Update.late`).
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, pull: Tensor, weight: float | Tensor, relative: bool, late: Values, name: str = "matching"
    ) -> Tensor:
        ctx.save_for_backward(pull)
        ctx.weight, ctx.relative, ctx.late, ctx.name = weight, relative, late, name
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,), (pull,) = gradients, ctx.saved_tensors
        squares = torch.stack([gradient.float().square().sum(), pull.square().sum()])
        # A rank's gradients are of a mean over its own images, so those of the whole batch are 1 / world as long.
        reconstruction, other = (distributed.average(squares) / distributed.world_size()).sqrt()
        scale = ctx.weight * (reconstruction / other.clamp_min(1e-12) if ctx.relative else 1.0)
        ctx.late["health/gradient_reconstruction"] = reconstruction
        ctx.late[f"health/gradient_{ctx.name}"] = scale * other
        return gradient + (scale * pull).to(gradient.dtype), None, None, None, None, None
