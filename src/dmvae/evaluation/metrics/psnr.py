"""Metric `psnr`: peak signal-to-noise ratio of reconstructions."""

from __future__ import annotations

from torch import Tensor

from dmvae.evaluation.metrics import Figure, Metric
from dmvae.evaluation.pairs import psnr
from dmvae.registry import register


@register("psnr")
class PSNR(Metric):
    always = True
    figures = (
        Figure("psnr", "PSNR", "dB", 1, "{:.2f}", "how close reconstructions are to their originals, pixel by pixel"),
    )

    def pairs(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"psnr": psnr(a, b)}
