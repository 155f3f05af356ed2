"""The features of a set of images, or only their statistics, with a manifest that says what they were made from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch
from torch import Tensor

from dmvae.config import Values
from dmvae.datasets.download import cache_folder
from dmvae.evaluation.features import POOL, SPATIAL, Extractor
from dmvae.evaluation.frechet import Statistics
from dmvae.evaluation.images import Images
from dmvae.evaluation.manifest import versions
from dmvae.evaluation.passes import kept_in, over_images
from dmvae.runtime import distributed
from dmvae.runtime.files import locked_if_it_can, read_sealed, sweep_beside, write_sealed
from dmvae.runtime.hashing import digest


@dataclass
class FeatureSet:
    """`rows`: head -> float32 [n, d]; `statistics`: head -> mean and covariance. A file may have only one of them."""

    manifest: Values
    """images: what they are, count, fingerprint, crop and resize; features: the extractor, its weights' hash, dtype;
    versions. Statistics of other projects have fewer entries."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    labels: Tensor | None = None
    """int64 [n]; None without classes."""

    @property
    def pool(self) -> Tensor | None:
        return self.rows.get(POOL)

    def moments(self, head: str = POOL) -> Statistics | None:
        """Mean and covariance of a head, computed once; None where neither they nor rows are there."""
        if head not in self.statistics and head in self.rows:
            self.statistics[head] = Statistics.of(self.rows[head])
        return self.statistics.get(head)

    def save(self, path: Path, heads: Sequence[str] = (POOL,)) -> None:
        """Write a safetensors file: statistics of every head, rows of `heads`, labels, and the manifest as JSON."""
        tensors = {f"rows.{head}": self.rows[head] for head in heads if head in self.rows}
        counts = {}
        for head in {**self.rows, **self.statistics}:
            if head in heads or head in self.statistics:
                moments = self.moments(head)
                assert moments is not None
                tensors |= {f"mean.{head}": moments.mean, f"covariance.{head}": moments.covariance}
                counts[head] = moments.n
        if self.labels is not None:
            tensors["labels"] = self.labels
        about = {"manifest": json.dumps(self.manifest), "n": json.dumps(counts)}
        write_sealed(path, {name: value.contiguous() for name, value in tensors.items()}, about)

    @classmethod
    def load(cls, path: Path) -> FeatureSet:
        """Read what `save` wrote. Raises ValueError for another or a damaged file."""
        tensors, about = read_sealed(path)
        if "manifest" not in about:
            raise ValueError(f"{path} holds no statistics with a manifest; `dmvae measure ... --save-reference` does")
        try:
            manifest, counts = json.loads(about["manifest"]), dict(json.loads(about["n"]))
            if not isinstance(manifest, dict):
                raise TypeError("its manifest is no mapping")
            return cls(
                manifest=manifest,
                rows={name.removeprefix("rows."): t for name, t in tensors.items() if name.startswith("rows.")},
                statistics={
                    head: Statistics(n=n, mean=tensors[f"mean.{head}"], covariance=tensors[f"covariance.{head}"])
                    for head, n in counts.items()
                },
                labels=tensors.get("labels"),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: damaged, or not as `dmvae measure ... --save-reference` writes it ({error!r})"
            ) from error


def describe(extractor: Extractor, images: Images) -> Values:
    """The manifest of the features of some images."""
    facts = images.facts | {"count": len(images)}
    return {"images": facts, "features": extractor.manifest(), "versions": versions()}


def features_of(
    extractors: Sequence[Extractor], images: Images, batch_size: int, title: str, kept: Path | None = None
) -> list[FeatureSet]:
    """The features of images in several spaces, in one pass. Images are held a batch at a time, but all features are in
    memory: 1 GB for 50,000 images in Inception's. All ranks must call; all get the whole. kept: see `over_images`.
    Raises ValueError for an extractor in place of a list of them, and for images that are no source."""
    if isinstance(extractors, Extractor):
        raise ValueError("extractors: give a list of them, [extractor]")
    if not hasattr(images, "batches"):
        raise ValueError(
            f"images: a {type(images).__name__} is no source; give TensorImages, FolderImages or DatasetImages of "
            "dmvae.evaluation.images"
        )
    rows = over_images(images, batch_size, partial(heads_of, extractors), title, kept) if extractors else {}
    return sets_of(rows, extractors, images, images.labels)


def heads_of(extractors: Sequence[Extractor], batch: Tensor) -> dict[str, Tensor]:
    """Rows of features of a batch of images: "0.pool" is head "pool" of extractor 0."""
    return {f"{i}.{head}": x for i, e in enumerate(extractors) for head, x in e.heads(batch).items()}


def sets_of(
    rows: dict[str, Tensor], extractors: Sequence[Extractor], images: Images, labels: Tensor | None = None
) -> list[FeatureSet]:
    """The features in rows as `heads_of` names them, a set for each extractor. images: what they were made from."""
    return [
        FeatureSet(describe(e, images), {head: rows[f"{i}.{head}"] for head in e.widths}, labels=labels)
        for i, e in enumerate(extractors)
    ]


def reference_features(
    extractors: Sequence[Extractor],
    images: Images,
    batch_size: int,
    title: str,
    *,
    folder: Path | None = None,
) -> list[FeatureSet]:
    """As `features_of`, computed once: kept in `folder` (default ~/.cache/dmvae/features) and found by the manifest;
    what is computed is kept meanwhile, too."""
    alone: AbstractContextManager[object] = nullcontext()
    # Only rank 0 locks, for all ranks; and the default folder, which all runs share, is not locked.
    if folder is not None and distributed.is_main():
        # Other processes of the same run wait instead of computing the same. With several ranks, rank 0 does not wait:
        # the other ranks would time out waiting for it.
        alone = locked_if_it_can(folder, wait=distributed.world_size() == 1)
    folder = folder or cache_folder() / "features"
    manifests = [describe(e, images) for e in extractors]
    paths = [folder / f"features-{digest(json.dumps(m, sort_keys=True))}.safetensors" for m in manifests]
    with alone as mine:
        kept = [_kept(path) for path in paths]
        lacks = torch.tensor([found is None for found in kept], dtype=torch.int64)
        # missing on any rank: their folders may differ between nodes
        missing: list[int] = distributed.total(lacks).nonzero().flatten().tolist()
        parts = kept_in(folder, [manifests[i] for i in missing])
        fresh = features_of([extractors[i] for i in missing], images, batch_size, title, parts)
        for i, found in zip(missing, fresh, strict=True):
            kept[i] = found
            if distributed.is_main():
                if mine:
                    sweep_beside(paths[i])
                found.moments(SPATIAL)
                _keep(found, paths[i])
        rmtree(parts, ignore_errors=True)
    return kept  # type: ignore[return-value]  # all are filled by now


def _kept(path: Path) -> FeatureSet | None:
    if not path.exists():
        return None
    try:
        return FeatureSet.load(path)
    except ValueError as error:
        warnings.warn(f"{error}: the features are computed anew", stacklevel=3)
        return None


def _keep(features: FeatureSet, path: Path) -> None:
    try:
        features.save(path)
    except OSError as error:  # a full or foreign folder only costs the next measurement some time
        warnings.warn(f"features cannot be kept ({error}): they are computed at each measurement", stacklevel=3)


def in_order(rows: Tensor) -> Tensor:
    """Rows [n, d] sorted by content, so that seeded subsets do not depend on the order in which images came."""
    values = np.ascontiguousarray(rows.cpu().numpy())
    whole = values.view(np.dtype((np.void, values.itemsize * values.shape[1]))).ravel()
    return rows[torch.from_numpy(whole.argsort()).to(rows.device)]


def same_classes(real: FeatureSet, fake: FeatureSet) -> bool:
    """Whether the classes of both sets have the same names; True if one does not give them. Warns if they differ."""
    a, b = (s.manifest["images"].get("classes") for s in (real, fake))
    if a is not None and b is not None and a != b:
        warnings.warn(
            "figures by class left out: the two sets have classes of other names or in another order",
            stacklevel=4,
        )
        return False
    return True
