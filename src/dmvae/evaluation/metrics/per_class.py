"""Metric `per-class`: the Frechet distance within each class, and its mean."""

from __future__ import annotations

import warnings

import torch

from dmvae.evaluation.feature_set import FeatureSet, same_classes
from dmvae.evaluation.frechet import Statistics, frechet_distance, frechet_distance_of_few
from dmvae.evaluation.metrics import Figure, Metric, Scores, Sets
from dmvae.evaluation.metrics.frechet import frechet_name
from dmvae.registry import register


@register("per-class")
class PerClass(Metric):
    figures = (Figure("gfd-per-class", "gFD per class", "", -1, "{:.4g}", "mean over classes of gFD within each"),)

    def sets(self, sets: Sets) -> Scores:
        if sets.real.pool is None or sets.fake.pool is None or not sets.labelled:
            return Scores()
        if not same_classes(sets.real, sets.fake):
            return Scores()
        return per_class(sets.real, sets.fake, frechet_name(sets.prefix, sets.features, "-per-class"))

    def short(self, prefix: str, features: str) -> dict[str, str]:
        return {"gfd-per-class": frechet_name("g", features, "-per-class")} if prefix == "g" else {}


def per_class(real: FeatureSet, fake: FeatureSet, name: str) -> Scores:
    """The Frechet distance within each class that has at least 2 images in both sets, and the mean over these. Classes
    are small, so the bias is large: compare only distances of equally many images."""
    assert real.pool is not None
    assert fake.pool is not None
    assert real.labels is not None
    assert fake.labels is not None
    found: list[float | None] = []
    for label in range(int(torch.maximum(real.labels.max(), fake.labels.max())) + 1):
        a, b = real.pool[real.labels == label], fake.pool[fake.labels == label]
        if min(len(a), len(b)) < 2:
            found.append(None)
        elif min(len(a), len(b)) < a.shape[1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # every class would say so
                found.append(frechet_distance_of_few(a, b))
        else:
            found.append(frechet_distance(Statistics.of(a), Statistics.of(b)))
    known = [value for value in found if value is not None]
    return Scores({name: sum(known) / len(known)} if known else {}, per_class={name: found})
