"""Metric `linear_probe`: how often a linear classifier of the latents is right."""

from __future__ import annotations

from dmvae.evaluation.metrics import Figure, Latents, Metric
from dmvae.evaluation.proxies import linear_probe
from dmvae.registry import register


@register("linear_probe")
class LinearProbe(Metric):
    always = True
    figures = (
        Figure("linear_probe", "linear probe", "%", 1, "{:.1f}", "share of test latents that a linear map gets right"),
    )

    def latents(self, latents: Latents) -> dict[str, float]:
        if len(latents.train_labels.unique()) < 2:
            return {}  # with one class, all are right
        return {"linear_probe": linear_probe(*latents.vectors())}
