"""The features of a set of images, or their statistics alone, with the manifest that says what they are of."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dmvae.config import Values
from dmvae.datasets.download import cache_folder
from dmvae.evaluation.features import POOL, SPATIAL, Extractor
from dmvae.evaluation.frechet import Statistics
from dmvae.evaluation.images import Images, over_images
from dmvae.evaluation.manifest import versions
from dmvae.runtime import distributed
from dmvae.runtime.files import locked, whole
from dmvae.runtime.hashing import digest


@dataclass
class FeatureSet:
    """`rows` by head, float32 [n, d]; `statistics` by head; either may be missing where a file has only the other."""

    manifest: Values
    """images: what they are, count, fingerprint, crop and resize; features: the extractor, its weights' hash, dtype;
    versions. Statistics of other projects tell less."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    labels: Tensor | None = None
    """int64 [n], where there are classes."""

    @property
    def pool(self) -> Tensor | None:
        return self.rows.get(POOL)

    def moments(self, head: str = POOL) -> Statistics | None:
        """Mean and covariance of a head, computed once; None where neither they nor the rows are known."""
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
        with whole(path) as part:
            save_file({name: value.contiguous() for name, value in tensors.items()}, part, about)

    @classmethod
    def load(cls, path: Path) -> FeatureSet:
        """Read what `save` wrote. Raises ValueError for another file."""
        try:
            opened = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: damaged or no .safetensors file ({error})") from error
        with opened as file:
            about = file.metadata() or {}
            if "manifest" not in about:
                raise ValueError(
                    f"{path} holds no statistics with a manifest; `dmvae measure ... --save-reference` does"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        counts = json.loads(about["n"])
        return cls(
            manifest=json.loads(about["manifest"]),
            rows={name.removeprefix("rows."): t for name, t in tensors.items() if name.startswith("rows.")},
            statistics={
                head: Statistics(n=n, mean=tensors[f"mean.{head}"], covariance=tensors[f"covariance.{head}"])
                for head, n in counts.items()
            },
            labels=tensors.get("labels"),
        )


def describe(extractor: Extractor, images: Images) -> Values:
    """The manifest of the features of some images."""
    facts = images.facts | {"count": len(images)}
    return {"images": facts, "features": extractor.manifest(), "versions": versions()}


def features_of(
    extractors: Sequence[Extractor], images: Images, batch_size: int, title: str, *, alone: bool = False
) -> list[FeatureSet]:
    """The features of images in several spaces, in one pass. The images are never all in memory, their features are:
    50,000 of Inception's are 1 GB."""

    def compute(batch: Tensor) -> dict[str, Tensor]:
        return {f"{i}.{head}": x for i, e in enumerate(extractors) for head, x in e.heads(batch).items()}

    rows = over_images(images, batch_size, compute, title, alone=alone) if extractors else {}
    return [
        FeatureSet(describe(e, images), {head: rows[f"{i}.{head}"] for head in e.widths}, labels=images.labels)
        for i, e in enumerate(extractors)
    ]


def reference_features(
    extractors: Sequence[Extractor],
    images: Images,
    batch_size: int,
    title: str,
    *,
    folder: Path | None = None,
    alone: bool = False,
) -> list[FeatureSet]:
    """The same, computed once: what `folder` (~/.cache/dmvae/features) holds under an equal manifest is read."""
    folder = folder or cache_folder() / "features"
    manifests = [describe(e, images) for e in extractors]
    paths = [folder / f"features-{digest(json.dumps(m, sort_keys=True))}.safetensors" for m in manifests]
    folder.mkdir(parents=True, exist_ok=True)
    # another process of the same run may be about to compute the same; ranks are one process here
    with locked(folder) if alone else nullcontext():
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        if not alone:
            missing = distributed.share(missing)
        fresh = features_of([extractors[i] for i in missing], images, batch_size, title, alone=alone)
        if alone or distributed.is_main():
            for i, found in zip(missing, fresh, strict=True):
                found.moments(SPATIAL)
                found.save(paths[i])
    return [fresh[missing.index(i)] if i in missing else FeatureSet.load(path) for i, path in enumerate(paths)]


def in_order(rows: Tensor) -> Tensor:
    """Rows [n, d] sorted by content, so that seeded subsets do not depend on the order in which images came."""
    values = np.ascontiguousarray(rows.cpu().numpy())
    whole = values.view(np.dtype((np.void, values.itemsize * values.shape[1]))).ravel()
    return rows[torch.from_numpy(whole.argsort()).to(rows.device)]


def same_classes(real: FeatureSet, fake: FeatureSet) -> bool:
    """Whether the sets' classes have the same names, as far as both tell them; warns where they have not."""
    a, b = (s.manifest["images"].get("classes") for s in (real, fake))
    if a is not None and b is not None and a != b:
        warnings.warn("distances within classes left out: the two sets have classes of other names", stacklevel=4)
        return False
    return True
