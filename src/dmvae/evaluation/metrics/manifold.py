"""Metric `manifold`: precision, recall, density, coverage, and class agreement where there are classes."""

from __future__ import annotations

import warnings

from torch import Tensor

from dmvae.evaluation.feature_set import same_classes
from dmvae.evaluation.manifolds import FEW, NEIGHBOURS, agreement_values, manifold_values
from dmvae.evaluation.metrics import Figure, Metric, Scores, Sets
from dmvae.evaluation.neighbours import nearest
from dmvae.registry import register


@register("manifold")
class Manifold(Metric):
    figures = (
        Figure("precision", "precision", "%", 1, "{:.1f}", "share of samples that lie among the test images"),
        Figure("recall", "recall", "%", 1, "{:.1f}", "share of test images that lie among the samples"),
        Figure("density", "density", "", 1, "{:.3f}", "like precision, but less affected by outliers; can exceed 1"),
        Figure("coverage", "coverage", "%", 1, "{:.1f}", "share of test images with a sample near them"),
        Figure(
            "agreement",
            "class agreement",
            "%",
            1,
            "{:.1f}",
            "share of the five test images nearest to a sample that are of the class that was asked for; distances, "
            "precision, recall, density and coverage do not look at classes",
        ),
    )

    def sets(self, sets: Sets) -> Scores:
        scores, (real, fake) = Scores(), (sets.real.pool, sets.fake.pool)
        if real is None or fake is None:
            return scores
        if FEW > min(len(real), len(fake)) > NEIGHBOURS:
            warnings.warn(
                f"precision, recall, density and coverage of {len(fake)} images beside {len(real)}: with so few, the "
                f"{NEIGHBOURS} nearest of an image reach far, and different sets look alike; take {FEW} or more",
                stacklevel=4,
            )
        x, y = real.to(device=sets.device), fake.to(device=sets.device)
        values: dict[str, Tensor] = {}
        if min(len(real), len(fake)) > NEIGHBOURS:
            values = manifold_values(x, y, NEIGHBOURS, shared=sets.shared)
        if sets.labelled and len(real) > NEIGHBOURS and same_classes(sets.real, sets.fake):
            of, asked = sets.real.labels, sets.fake.labels
            assert of is not None
            assert asked is not None
            values["agreement"] = agreement_values(x, of, y, asked, NEIGHBOURS, shared=sets.shared)
            # for comparison: each real image among the others
            neighbours = nearest(x, k=NEIGHBOURS, shared=sets.shared)[1].to(of.device)
            values["agreement-real"] = (of[neighbours] == of[:, None]).double().mean(1)
        scores.add_means({f"{name}_{sets.features}": value for name, value in values.items()})
        return scores
