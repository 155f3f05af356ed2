"""Metric `memorisation`: how much nearer samples are to the training images than test images are."""

from __future__ import annotations

from dmvae.evaluation.manifolds import memorisation_values
from dmvae.evaluation.metrics import Figure, Metric, Scores, Sets
from dmvae.registry import register


@register("memorisation")
class Memorisation(Metric):
    figures = (
        Figure(
            "memorisation",
            "memorisation",
            "",
            0,  # lower is no better: samples that are like no image at all have 0
            "{:.3f}",
            "how often a sample is nearer to a training image than a test image is; 0.5 is not at all, 1 is copies",
        ),
    )

    def sets(self, sets: Sets) -> Scores:
        scores, (real, fake, train) = Scores(), (sets.real.pool, sets.fake.pool, sets.train)
        if real is not None and fake is not None and train is not None and train.pool is not None:
            real, fake = real.to(device=sets.device), fake.to(device=sets.device)
            values = memorisation_values(train.pool, real, fake, shared=sets.shared)
            scores.add_means({f"memorisation_{sets.features}": values})
        return scores
