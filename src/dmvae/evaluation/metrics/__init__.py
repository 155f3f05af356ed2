"""Metrics: one file each. A metric measures pairs of images, sets of features, or latents, and gives the titles of its
figures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from dmvae.evaluation.feature_set import FeatureSet
from dmvae.evaluation.scores import Figure, Scores
from dmvae.registry import Registered, absent, find, is_ours, names
from dmvae.spelling import nearest

__all__ = ["Figure", "Latents", "Metric", "Scores", "Sets", "figures", "metrics_of", "unit_of"]
T = TypeVar("T")

INCEPTION = "inception"
"""The name of Inception's features with the published weights."""


@dataclass(frozen=True)
class Sets:
    """Two sets of images, in the features of one extractor."""

    real: FeatureSet
    fake: FeatureSet
    prefix: str = ""
    """Comes before the names of distances: "r" for reconstructions, "g" for generated images, "gr" for generated images
    against reconstructions."""
    train: FeatureSet | None = None
    """The training images, for memorisation."""
    device: torch.device | None = None
    """Where distances between rows are computed; None: where the rows are."""
    shared: bool = False
    """Whether all ranks measure the same sets, and so can divide distances among them (`evaluation/rows.py`)."""

    @property
    def features(self) -> str:
        """The extractor's name."""
        return self.fake.manifest["features"]["name"]

    @property
    def labelled(self) -> bool:
        """Whether both sets have labels, and more than one class."""
        real, fake = self.real.labels, self.fake.labels
        return real is not None and fake is not None and len(real.unique()) > 1


@dataclass(frozen=True)
class Latents:
    """Latents of the training images [n, C, H, W] and the test images [m, C, H, W], normalised per channel, and their
    labels, int64 [n] and [m]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    neighbours: int
    """k, the number of neighbours."""
    device: torch.device | None = None
    shared: bool = False
    """As in `Sets`."""

    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(training vectors [n, C H W], their labels, those of the test images), on the device."""
        train, test = (x.flatten(1).to(device=self.device) for x in (self.train, self.test))
        return train, self.train_labels.to(train.device), test, self.test_labels.to(test.device)


class Metric(Registered):
    """One metric; `type` is its name in `evaluate.metrics`. Subclasses define `sets`, `pairs` or `latents`, or several.
    All ranks call these: with the same sets and latents, and each with pairs of its own."""

    required: ClassVar[tuple[str, ...]] = ("sets|pairs|latents",)

    figures: ClassVar[tuple[Figure, ...]] = ()
    """The figures that tables show, in order."""
    always: ClassVar[bool] = False
    """Whether the stage `evaluate` measures it without being asked."""
    of_reconstructions: ClassVar[bool] = False
    """Whether it is also measured for reconstructions, not only for generated images."""

    def sets(self, sets: Sets) -> Scores:
        """Figures of two sets, by their full names, which contain the features' name; none if the sets do not allow
        it."""
        return Scores()

    def pairs(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """Name -> figures [n] of the n pairs of images, uint8 [n, c, h, w] each."""
        return {}

    def latents(self, latents: Latents) -> dict[str, float]:
        """Name -> figure of the latents."""
        return {}

    def short(self, prefix: str, features: str) -> dict[str, str]:
        """Short name in tables -> full name, of the figures that `sets` gives with this prefix."""
        return {figure.key: f"{figure.key}_{features}" for figure in self.figures} if prefix == "g" else {}


def of_sets(metric: type[Metric]) -> bool:
    """Whether a metric measures sets, and so can be asked for in `dmvae measure`."""
    return metric.sets is not Metric.sets


def metrics_of(chosen: Sequence[str]) -> list[Metric]:
    """The metrics of these names. Raises ValueError for an unknown name."""
    known = names(Metric)
    for name in chosen:
        if name not in known:
            raise ValueError(absent(Metric, name, "metric"))
    return [find(Metric, name)() for name in chosen]


def measured_pairs(metric: Metric, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """`metric.pairs(a, b)`. Raises ValueError for anything but {name: tensor [n]}."""
    found: object = metric.pairs(a, b)
    values = list(found.values()) if isinstance(found, dict) else [found]
    if not (isinstance(found, dict) and all(isinstance(x, Tensor) and x.shape == (len(a),) for x in values)):
        told = ", ".join(f"a tensor {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in values)
        raise ValueError(
            f"metric {metric.type!r}: pairs returned {told} for {len(a)} pairs; give {{name: tensor [{len(a)}]}}"
        )
    return _shown(metric, found)


def measured_latents(metric: Metric, latents: Latents) -> dict[str, float]:
    """`metric.latents(latents)`. Raises ValueError for anything but {name: number}."""
    with _unchanged(metric, "latents", [latents.train, latents.test]):
        found: object = metric.latents(latents)
    return _shown(metric, _numbers(metric, "latents returned", found, "{name: number}"))


def measured_sets(metric: Metric, sets: Sets) -> Scores:
    """`metric.sets(sets)`, with a warning where no table will show what a plugin's gives. Raises ValueError for
    anything but Scores of numbers."""
    given = [rows for features in (sets.real, sets.fake, sets.train) if features for rows in features.rows.values()]
    with _unchanged(metric, "sets", given):
        found: object = metric.sets(sets)
    if not isinstance(found, Scores):
        told = type(found).__name__
        raise ValueError(f"metric {metric.type!r}: sets returned {told}; give Scores({{name: number}})")
    found.metrics = _numbers(metric, "sets returned Scores of", found.metrics, "numbers")
    shown = metric.short(sets.prefix, sets.features).values()
    if not is_ours(type(metric)) and shown and found.metrics and found.metrics.keys().isdisjoint(shown):
        warnings.warn(
            f"metric {metric.type!r}: sets gives {', '.join(found.metrics)}, and short names {', '.join(shown)}: no "
            "table shows it",
            stacklevel=2,
        )
    return found


@contextmanager
def _unchanged(metric: Metric, method: str, given: Sequence[Tensor]) -> Iterator[None]:
    """Raises ValueError where the block changes one of these tensors in place: what is measured after it reads them
    too. torch itself refuses to change those that were made in inference mode."""
    given = [x for x in given if not x.is_inference()]
    before = [x._version for x in given]
    yield
    if [x._version for x in given] != before:
        raise ValueError(
            f"metric {metric.type!r}: {method} changes what it is given in place, and other metrics read that after "
            "it; make new tensors (x = x - 1, not x -= 1)"
        )


def _numbers(metric: Metric, what: str, found: object, wanted: str) -> dict[str, float]:
    """The numbers as Python floats, for files and tables. Raises ValueError for anything else."""
    values = list(found.values()) if isinstance(found, dict) else [found]
    if not (isinstance(found, dict) and all(isinstance(x, Real) for x in values)):
        told = ", ".join(type(x).__name__ for x in values)
        raise ValueError(f"metric {metric.type!r}: {what} {told}; give {wanted}")
    return {name: float(x) for name, x in found.items()}


def _shown(metric: Metric, found: dict[str, T]) -> dict[str, T]:
    """`found`, with a warning for each name that is none of the metric's figures."""
    known = [figure.key for figure in metric.figures]
    for name in (name for name in found if name not in known):
        warnings.warn(
            f"metric {metric.type!r} measures {name!r}, which is none of its figures{nearest(name, known)}: no table "
            "shows it",
            stacklevel=3,
        )
    return found


def figures() -> dict[str, Figure]:
    """Key -> figure, of all metrics, plugins' too. Raises ValueError where two metrics have the same key, or two
    figures the same heading in tables."""
    found: dict[str, Figure] = {}
    for metric in (find(Metric, name) for name in names(Metric)):
        if taken := [figure.key for figure in metric.figures if figure.key in found]:
            owners = [name for name in names(Metric) if taken[0] in {of.key for of in find(Metric, name).figures}]
            raise ValueError(f"metrics {' and '.join(owners)}: both have a figure {taken[0]!r}; give one another key")
        found |= {figure.key: figure for figure in metric.figures}
    named: dict[str, Figure] = {}
    for figure in found.values():
        if (other := named.setdefault(figure.heading, figure)) is not figure:
            raise ValueError(
                f"figures {other.key!r} and {figure.key!r} are both called {figure.heading!r} in tables; give one "
                "another title"
            )
    return found


def unit_of(name: str) -> Figure | None:
    """The figure that gives the unit of a full name: coverage for "coverage_X" and, as a plugin's may be called, for
    "gcoverage_X"; agreement for "agreement-real_X"; None for names that tables do not know."""
    known, stem = figures(), name.partition("_")[0]
    like = (name, stem, stem.partition("-")[0], *map(stem.removeprefix, ("gr", "g", "r")))
    return next((known[key] for key in like if key in known), None)
