"""The evaluator: every metric of sets of images and of pairs, under a name that carries its features.

`dmvae measure` and the stage `evaluate` both come here. A result is `Scores`: numbers, 95 % intervals for those that
are means over images, and per-class numbers.

    fd_X          Frechet distance in features X; fid_inception and sfid_inception where X is the published Inception
    kid_X, kid-std_X    kernel distance and its spread over subsets
    is_inception, is-std_inception    Inception Score of the measured set
    precision_X, recall_X, density_X, coverage_X
    agreement_X    share of the images near a sample that are of the sample's class; agreement-real_X is the same of the
        reference's own images, each left out in turn: what the features can tell
    fd-per-class_X    mean over classes of the Frechet distance within each
    memorisation_X    how much nearer to the training images samples are than test images: 0.5 is not at all
    psnr, ssim, lpips_vgg16    of pairs
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmvae.datasets.pixels import as_input, as_uint8
from dmvae.evaluation.bootstrap import interval
from dmvae.evaluation.feature_set import FeatureSet
from dmvae.evaluation.features import LOGITS, POOL, SPATIAL
from dmvae.evaluation.frechet import Statistics, frechet_distance, frechet_distance_of_few
from dmvae.evaluation.kernel import SEED, SPLITS, SUBSET_SIZE, SUBSETS, inception_score, kernel_distance
from dmvae.evaluation.manifest import PREPARED, require_same
from dmvae.evaluation.manifolds import agreement_values, manifold_values, memorisation_values
from dmvae.evaluation.metrics import psnr_values, ssim_values
from dmvae.evaluation.neighbours import nearest

PARTS = ("frechet", "kernel", "score", "manifold", "per-class", "memorisation")
"""What `measure_sets` can take up."""
INCEPTION = "inception"
"""The features' name where the weights are the published ones."""
NEIGHBOURS = 5
PROTOCOL = {
    "neighbours": NEIGHBOURS,
    "kernel": f"{SUBSETS} subsets of {SUBSET_SIZE}, seed {SEED}",
    "score": f"{SPLITS} parts, seed {SEED}",
}
"""What the metrics' definitions leave open."""


@dataclass
class Scores:
    """Figures by name."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % bootstrap intervals of the figures that are means over images, the other images held fixed."""
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    """A number for every label; None for a class with fewer than 2 images on a side."""

    def add(self, other: Scores) -> None:
        self.metrics |= other.metrics
        self.intervals |= other.intervals
        self.per_class |= other.per_class

    def add_means(self, values: dict[str, Tensor]) -> None:
        """The mean over images, and its interval, of every row of values [n]."""
        for name, x in values.items():
            self.metrics[name], self.intervals[name] = float(x.double().mean()), interval(x)


def frechet_name(prefix: str, features: str, what: str = "") -> str:
    """fid is a name for the published Inception's features alone."""
    return f"{prefix}{'fid' if features == INCEPTION else 'fd'}{what}_{features}"


def distances(features: str) -> str:
    """What the distances of a table are, for its title."""
    return "FID" if features == INCEPTION else f"Frechet distances on {features} features (not FID)"


def pair_values(
    originals: Tensor,
    reconstructions: Tensor,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    device: torch.device = torch.device("cpu"),
) -> dict[str, Tensor]:
    """psnr, ssim (where images are 11 pixels or more) and, with `lpips`, lpips_vgg16 of each pair, [n].

    Images uint8, or float in [0, 1], [n, C, h, w]. lpips(a, b) takes images in [-1, 1] and gives distances [n].
    """
    a, b = as_uint8(originals), as_uint8(reconstructions)
    values = {"psnr": psnr_values(a, b)}
    if min(a.shape[2:]) >= 11:
        values["ssim"] = ssim_values(a, b)
    if lpips is not None:
        with torch.inference_mode():
            values["lpips_vgg16"] = lpips(as_input(a, device), as_input(b, device)).double().cpu()
    return values


def measure_pairs(originals: Tensor, reconstructions: Tensor, lpips: Any = None) -> Scores:
    """`pair_values`, averaged, with intervals."""
    scores = Scores()
    scores.add_means(pair_values(originals, reconstructions, lpips))
    return scores


def measure_sets(
    real: FeatureSet,
    fake: FeatureSet,
    *,
    prefix: str = "",
    parts: Sequence[str] = PARTS,
    train: FeatureSet | None = None,
    force: bool = False,
) -> Scores:
    """Every metric of `parts` that the two sets allow, in the features that they share.

    Manifold metrics and the kernel distance need the rows of both, per-class distances labels too, memorisation the
    training images' rows. `prefix` stands before the names of distances: "r" of reconstructions, "g" of generated ones.
    Raises ValueError where the two are of different extractors, unless `force`.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"no metrics are called {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    for other in (real, train) if train is not None else (real,):
        both = [s.manifest.get("images", {}) for s in (other, fake)]
        shaped = [key for key in PREPARED if all(key in images for images in both)]
        a, b = (
            {key: s.manifest[key] for key in ("features", "versions") if key in s.manifest}
            | {f"images.{key}": images[key] for key in shaped}
            for s, images in zip((other, fake), both, strict=True)
        )
        require_same(a, b, "the features of the two sets", force=force)
    x = fake.manifest["features"]["name"]
    inception = x == INCEPTION
    scores = Scores()
    if "frechet" in parts:
        scores.metrics |= _frechet(real, fake, frechet_name(prefix, x), POOL)
        if inception:
            scores.metrics |= _frechet(real, fake, f"{prefix}sfid_{x}", SPATIAL)
    logits = fake.rows.get(LOGITS)
    if "score" in parts and inception and logits is not None and len(logits) >= SPLITS:
        scores.metrics |= _with_spread(f"{prefix}is", x, inception_score(in_order(logits)))
    if fake.pool is None or real.pool is None:
        return scores
    if "kernel" in parts:
        scores.metrics |= _with_spread(f"{prefix}kid", x, kernel_distance(in_order(real.pool), in_order(fake.pool)))
    if "manifold" in parts and min(len(real.pool), len(fake.pool)) > NEIGHBOURS:
        values = manifold_values(real.pool, fake.pool, NEIGHBOURS)
        scores.add_means({f"{name}_{x}": value for name, value in values.items()})
    labelled = real.labels is not None and fake.labels is not None and bool(real.labels.any())  # several classes
    if labelled and {"manifold", "per-class"} & set(parts) and _same_classes(real, fake):
        if "manifold" in parts and len(real.pool) > NEIGHBOURS:
            scores.add_means({f"{name}_{x}": value for name, value in agreement(real, fake).items()})
        if "per-class" in parts:
            scores.add(per_class(real, fake, frechet_name(prefix, x, "-per-class")))
    if "memorisation" in parts and train is not None and train.pool is not None:
        scores.add_means({f"memorisation_{x}": memorisation_values(train.pool, real.pool, fake.pool)})
    return scores


def agreement(real: FeatureSet, fake: FeatureSet) -> dict[str, Tensor]:
    """`agreement_values` of the fake images, and of the real ones, each among the others."""
    assert real.pool is not None
    assert fake.pool is not None
    assert real.labels is not None
    assert fake.labels is not None
    _, neighbours = nearest(real.pool, k=NEIGHBOURS)
    return {
        "agreement": agreement_values(real.pool, real.labels, fake.pool, fake.labels, NEIGHBOURS),
        "agreement-real": (real.labels[neighbours] == real.labels[:, None]).double().mean(1),
    }


def in_order(rows: Tensor) -> Tensor:
    """Rows [n, d] in an order of their own, that of their bytes: what draws subsets of them by number then draws the
    same images in whatever order they came."""
    values = np.ascontiguousarray(rows.cpu().numpy())
    whole = values.view(np.dtype((np.void, values.itemsize * values.shape[1]))).ravel()
    return rows[torch.from_numpy(whole.argsort()).to(rows.device)]


def per_class(real: FeatureSet, fake: FeatureSet, name: str) -> Scores:
    """The Frechet distance within each class that has at least 2 images on both sides, and the mean over those. Classes
    are small and its bias large: compare it only with distances of as many images."""
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


def _same_classes(real: FeatureSet, fake: FeatureSet) -> bool:
    a, b = (s.manifest["images"].get("classes") for s in (real, fake))
    if a is not None and b is not None and a != b:
        warnings.warn("distances within classes left out: the two sets have classes of other names", stacklevel=3)
        return False
    return True


def _frechet(real: FeatureSet, fake: FeatureSet, name: str, head: str) -> dict[str, float]:
    x, y = real.rows.get(head), fake.rows.get(head)
    for rows, images in ((x, real.manifest.get("images", {})), (y, fake.manifest.get("images", {}))):
        if rows is not None and len(rows) < 2:
            raise ValueError(f"{images.get('path', 'a set')} holds {len(rows)} image; {name} needs 2 or more on a side")
    if x is not None and y is not None and min(len(x), len(y)) < x.shape[1]:
        return {name: frechet_distance_of_few(x, y)}
    a, b = real.moments(head), fake.moments(head)
    if a is None or b is None:
        warnings.warn(f"{name} left out: the reference has no {head} statistics", stacklevel=3)
        return {}
    return {name: frechet_distance(a, b)}


def _with_spread(name: str, features: str, values: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_{features}": values[0], f"{name}-std_{features}": values[1]}
