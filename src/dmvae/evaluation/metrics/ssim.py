"""Metric `ssim`: structural similarity of reconstructions."""

from __future__ import annotations

from torch import Tensor

from dmvae.evaluation.metrics import Figure, Metric
from dmvae.evaluation.pairs import WINDOW, ssim
from dmvae.registry import register


@register("ssim")
class SSIM(Metric):
    always = True
    figures = (Figure("ssim", "SSIM", "", 1, "{:.3f}", "how well reconstructions keep local structure; 1 is a copy"),)

    def pairs(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"ssim": ssim(a, b)} if min(a.shape[2:]) >= WINDOW else {}
