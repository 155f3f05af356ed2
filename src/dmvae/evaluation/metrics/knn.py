"""Metric `knn`: how often a latent's nearest neighbours give its class."""

from __future__ import annotations

from dmvae.evaluation.classification import knn_accuracy
from dmvae.evaluation.metrics import Figure, Latents, Metric
from dmvae.registry import register


@register("knn")
class KNN(Metric):
    always = True
    figures = (Figure("knn", "kNN", "%", 1, "{:.1f}", "share of test images whose nearest latents give their class"),)

    def latents(self, latents: Latents) -> dict[str, float]:
        if len(latents.train_labels.unique()) < 2:
            return {}  # with one class, all are right
        return {"knn": knn_accuracy(*latents.vectors(), k=latents.neighbours, shared=latents.shared)}
