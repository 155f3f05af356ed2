"""Metric `score`: the Inception Score of the measured set."""

from __future__ import annotations

from dmvae.evaluation.feature_set import in_order
from dmvae.evaluation.features import LOGITS
from dmvae.evaluation.kernel import SPLITS, inception_score
from dmvae.evaluation.metrics import INCEPTION, Figure, Metric, Scores, Sets
from dmvae.registry import register


@register("score")
class InceptionScore(Metric):
    figures = (
        Figure(
            "is",
            "IS",
            "",
            1,
            "{:.4g}",
            "Inception Score: high if each image is of one class, and all are of many",
        ),
    )

    def sets(self, sets: Sets) -> Scores:
        logits = sets.fake.rows.get(LOGITS)
        if sets.features != INCEPTION or logits is None or len(logits) < SPLITS:
            return Scores()
        mean, spread = inception_score(in_order(logits))
        name = f"{sets.prefix}is"
        return Scores({f"{name}_{sets.features}": mean, f"{name}-std_{sets.features}": spread})

    def short(self, prefix: str, features: str) -> dict[str, str]:
        return {"is": f"gis_{features}"} if prefix == "g" else {}
