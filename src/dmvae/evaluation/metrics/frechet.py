"""Metric `frechet`: the Frechet distance of two sets, FID where the features are the published Inception's."""

from __future__ import annotations

import warnings

from dmvae.evaluation.feature_set import FeatureSet
from dmvae.evaluation.features import POOL, SPATIAL
from dmvae.evaluation.frechet import frechet_distance, frechet_distance_of_few
from dmvae.evaluation.metrics import INCEPTION, Figure, Metric, Scores, Sets
from dmvae.registry import register


@register("frechet")
class Frechet(Metric):
    of_reconstructions = True
    figures = (
        Figure("rfd", "rFD", "", -1, "{:.4g}", "Frechet distance from reconstructions to test images"),
        Figure("gfd", "gFD", "", -1, "{:.4g}", "Frechet distance from generated images to test images"),
        Figure(
            "grfd",
            "gFD to reconstructions",
            "",
            -1,
            "{:.4g}",
            "Frechet distance from generated images to reconstructed test images: both went through the decoder, so "
            "only the generator's errors are left",
        ),
    )

    def sets(self, sets: Sets) -> Scores:
        scores = Scores(_distance(sets, frechet_name(sets.prefix, sets.features), POOL))
        if sets.features == INCEPTION:
            scores.metrics |= _distance(sets, f"{sets.prefix}sfid_{sets.features}", SPATIAL)
        return scores

    def short(self, prefix: str, features: str) -> dict[str, str]:
        return {f"{prefix}fd": frechet_name(prefix, features)} if prefix else {}


def frechet_name(prefix: str, features: str, what: str = "") -> str:
    """The full name of a Frechet distance: "fid" only for the published Inception's features, else "fd"."""
    return f"{prefix}{'fid' if features == INCEPTION else 'fd'}{what}_{features}"


def distances(features: str) -> str:
    """What a table's distances are, for its title."""
    return "FID" if features == INCEPTION else f"Frechet distances on {features} features (not FID)"


def _distance(sets: Sets, name: str, head: str) -> dict[str, float]:
    real, fake = sets.real, sets.fake
    x, y = real.rows.get(head), fake.rows.get(head)
    for rows, images in ((x, _images(real)), (y, _images(fake))):
        if rows is not None and len(rows) < 2:
            raise ValueError(f"{images.get('path', 'a set')} holds {len(rows)} image; {name} needs 2 or more on a side")
    if x is not None and y is not None and min(len(x), len(y)) < x.shape[1]:
        return {name: frechet_distance_of_few(x, y)}
    a, b = real.moments(head), fake.moments(head)
    if a is None or b is None:
        warnings.warn(f"{name} left out: the reference has no {head} statistics", stacklevel=4)
        return {}
    return {name: frechet_distance(a, b)}


def _images(features: FeatureSet) -> dict[str, str]:
    return features.manifest.get("images", {})
