"""A second gradient that joins the reconstruction's at the latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmvae.config import Values
from dmvae.runtime import distributed
from dmvae.runtime.precision import full_precision

THIN = 0.03
"""Directions in which a reference is thinner than this share of its spread are held as if they were as thick."""


def inverse_covariance(tokens: Tensor) -> Tensor:
    """That of tokens [m, C], every direction held at `THIN` of their spread at least: [C, C]."""
    centred = (tokens - tokens.mean(0)).double()
    values, directions = torch.linalg.eigh(centred.T @ centred / len(tokens))
    thick = torch.maximum(values, THIN**2 * values.mean().clamp_min(1e-30))
    return (directions / thick @ directions.T).float()


def held(pull: Tensor, edit: Tensor, anchor: float, inverse: Tensor) -> Tensor:
    """pull / rms(pull) + inverse edit / anchor, [n, C, H, W]: the matching gradient, scaled to a root mean square of 1
    over all ranks, plus a spring that pulls each token's edit back to 0. inverse [C, C] is the inverse covariance of
    the reference's tokens.

    So edits are measured in standard deviations of the reference along its own directions: where it is thin, as
    features are in most directions, small edits lead away from it already.
    """
    scale = distributed.average(pull.square().mean()).sqrt().clamp_min(1e-12)
    with full_precision(edit):  # along thin directions bf16 would round it to another
        return pull / scale + torch.einsum("cd,ndhw->nchw", inverse, edit) / anchor


class Pull(torch.autograd.Function):
    """The identity on latents z whose backward pass adds another loss's gradient to the reconstruction's.

    `Pull.apply(z, pull, weight, relative, late, name)`: pull, shaped as z, is the other loss's gradient at z. It is
    multiplied by weight; with `relative`, scaled so that weight is the ratio of its norm to the reconstruction's.

    The two meet where both are known: their norms are written into `late` there (`health/gradient_reconstruction`,
    `health/gradient_NAME`; see `Update.late`), and the weight can be a ratio of them without a second backward pass
    through the decoder.
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
        # Each rank's gradients are those of a mean over its own images.
        reconstruction, other = (distributed.average(squares) / distributed.world_size()).sqrt()
        scale = ctx.weight * (reconstruction / other.clamp_min(1e-12) if ctx.relative else 1.0)
        ctx.late["health/gradient_reconstruction"] = reconstruction
        ctx.late[f"health/gradient_{ctx.name}"] = scale * other
        return gradient + (scale * pull).to(gradient.dtype), None, None, None, None, None
