"""What references made from data have in common: a data set goes through a feature network once; its features are
brought to the latents' shape and stored in shards; samples are drawn from these.

Shapes: n items, d feature channels on a grid of any size; C, H, W of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from dmvae.datasets import Labelled
from dmvae.datasets.mixed import Chosen
from dmvae.latents.store import STATISTICS, LatentSet
from dmvae.ranges import Count, Range, Width
from dmvae.references import ReferenceConfig, Surroundings
from dmvae.references.reduction import Reducer, Reduction, fit_linear, learn_bottleneck, load, require_channels
from dmvae.runtime import distributed
from dmvae.runtime.files import read_head, write_tensors
from dmvae.runtime.random import Random, seed_of
from dmvae.runtime.transfer import send
from dmvae.spelling import nearest

INITIAL_IMAGES = 2048  # whose latents before matching give mean and std
FIT_VECTORS = 1 << 16  # to fit a reduction on, about
FIT_ITEMS = 2048  # at least that many items, if the data has them: vectors of one item resemble each other
TRIED = 16  # items whose features are checked before any stage runs


@dataclass(frozen=True, kw_only=True)
class DataConfig(ReferenceConfig):
    """Fields of every reference made from data."""

    classes: tuple[Annotated[int, Range(0, 99999)] | str, ...] | None = None
    """Keep these classes only, by number or name; null keeps all. Samples for another class, whose images are matched
    too, are drawn from all classes that are kept."""
    reduction: Reduction = "pca"
    """How d feature channels become the latents' C: "pca", principal components, whitened; "random", a random
    orthogonal projection; "bottleneck", an MLP learned here by reconstruction of the features."""
    reduction_width: Width = 512
    """Hidden width of that MLP."""
    reduction_steps: Count = 1000
    """Its training steps."""

    def network(self, inputs: Surroundings) -> nn.Module:
        """A network from the data (images in [-1, 1], or the items of `dataset`) to features [n, d, h, w]. It may have
        an attribute `layout`, see `Reducer`; the default is "map"."""
        raise NotImplementedError

    def dataset(self, inputs: Surroundings) -> Labelled:
        """The data: a map-style data set with `.labels`, -1 where an item has none."""
        if inputs.data.are_latents:
            raise ValueError(f"{self.type!r} is made of training images, and data.type: latents has none; take another")
        return inputs.train_set

    def check(self, inputs: Surroundings) -> None:
        data, reducer = self.chosen(inputs), Reducer(self.network(inputs), inputs.latent_shape)
        features = torch.cat(list(_features(reducer, some(data, TRIED, inputs), inputs)))
        if not features.isfinite().all():
            raise ValueError("its features hold NaN or infinity: check its weights and data")
        if (features - features[:1, :, :1, :1]).abs().max() <= 1e-5 * features.abs().max():  # equal up to rounding
            raise ValueError("its features are the same for every item: there is nothing to match")
        if reducer.layout != "latents" and self.reduction != "bottleneck":
            vectors = len(data) * reducer.vectors_per_item - 1  # directions that centred vectors span at most
            require_channels(self.reduction, min(features.shape[1], vectors), reducer.channels)

    def build(self, inputs: Surroundings) -> Samples:
        if not encoded(inputs.out / "latents"):
            data = self.chosen(inputs)
            reducer = Reducer(self.network(inputs), inputs.latent_shape)
            self._fit(reducer, data, inputs)
            inputs.encode(reducer, data, inputs.out / "latents", "reference data")
        initial = initial_latents(inputs)
        return Samples(LatentSet(inputs.out / "latents"), inputs.num_classes, initial.mean, initial.std)

    def chosen(self, inputs: Surroundings) -> Labelled:
        """The data of the classes that are kept. Raises ValueError for a class that the data does not have."""
        data = self.dataset(inputs)
        if self.classes is None:
            return data
        names = list(inputs.train_set.classes)
        numbers = [_class_number(c, names) for c in self.classes]
        index = torch.isin(data.labels, torch.tensor(numbers, dtype=torch.int64)).nonzero().flatten()
        if len(index) == 0:
            raise ValueError(f"classes: no item of the reference's data has a label of {list(self.classes)}")
        return Chosen(data, index)

    def _fit(self, reducer: Reducer, data: Labelled, inputs: Surroundings) -> None:
        """Fit the reducer's map from d to C channels, or load it from the file that an earlier call wrote."""
        if reducer.layout == "latents":
            return
        path = inputs.out / "reduction.safetensors"
        if distributed.is_main() and read_head(path) is None:
            inputs.out.mkdir(parents=True, exist_ok=True)
            rows, seed = _vectors(reducer, data, inputs), seed_of(inputs.seed, "reduction")
            if self.reduction == "bottleneck":
                width, steps = self.reduction_width, self.reduction_steps
                module = learn_bottleneck(rows, reducer.channels, width, steps, seed, inputs.device)
            else:
                module = fit_linear(self.reduction, rows, reducer.channels, seed)
            write_tensors(path, {name: value.cpu().contiguous() for name, value in module.state_dict().items()})
        distributed.barrier()
        reducer.reduce = load(path)


class Samples:
    """A reference made of stored latents, drawn uniformly with their labels."""

    velocity: None = None

    def __init__(self, latents: LatentSet, num_classes: int, mean: Tensor, std: Tensor) -> None:
        self.latents, self.num_classes, self.mean, self.std = latents, num_classes, mean, std
        has = torch.bincount(latents.labels[latents.labels >= 0], minlength=num_classes) > 0
        self.missing = (~has).nonzero().flatten()

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        return self.sample_on(n, rng, torch.device("cpu"))

    def sample_on(self, n: int, rng: Random, device: torch.device) -> tuple[Tensor, Tensor]:
        """Samples and labels on the device. Latents are copied as stored and normalised there: with `latents.dtype:
        float16` that halves the transfer."""
        index = rng.integers(len(self.latents), n).cpu()
        stored, labels = self.latents.stored(index)
        if len(self.missing):
            stands_for_all = rng.uniform(n).cpu() < len(self.missing) / self.num_classes
            other = self.missing[rng.integers(len(self.missing), n).cpu()]
            labels = torch.where(stands_for_all, other, labels)
        return self.latents.normalise(send(stored, device)), send(labels, device)


def initial_latents(inputs: Surroundings) -> LatentSet:
    """The latents of some training images before matching, stored in files. `mean` and `std` are those of the raw
    latents."""
    folder = inputs.out / "initial"
    if not encoded(folder):
        data = some(inputs.train_set, INITIAL_IMAGES, inputs)
        inputs.encode(inputs.autoencoder(), data, folder, "initial latents")
    return LatentSet(folder)


def encoded(folder: Path) -> bool:
    """Whether `inputs.encode` has finished there: it writes the statistics last. All ranks get the first rank's answer,
    because that rank may rewrite a shard while others still look."""
    files = (folder / STATISTICS, *folder.glob("latents-*.safetensors"))
    return distributed.broadcast(all(read_head(file) is not None for file in files))


def some(data: Labelled, count: int, inputs: Surroundings) -> Chosen:
    """At most `count` items, chosen by the recipe's seed, in the data's order."""
    generator = torch.Generator().manual_seed(seed_of(inputs.seed, "reference", "some"))
    return Chosen(data, torch.randperm(len(data), generator=generator)[:count].sort().values)


def _vectors(reducer: Reducer, data: Labelled, inputs: Surroundings) -> Tensor:
    """Feature vectors [m, d], float32 on the CPU, to fit a reduction on: some positions of some items."""
    per_item = reducer.vectors_per_item
    part = some(data, max(FIT_ITEMS, FIT_VECTORS // per_item), inputs)
    keep = max(1, min(per_item, FIT_VECTORS // len(part)))
    generator = torch.Generator().manual_seed(seed_of(inputs.seed, "reference", "positions"))
    rows = []
    for features in _features(reducer, part, inputs):
        vectors = features.flatten(2).movedim(1, 2)
        positions = torch.rand(len(vectors), per_item, generator=generator).argsort(1)[:, :keep]
        rows.append(vectors.gather(1, positions[..., None].expand(-1, -1, vectors.shape[2])).flatten(0, 1))
    return torch.cat(rows)


@torch.no_grad()
def _features(reducer: Reducer, data: Labelled, inputs: Surroundings) -> Iterator[Tensor]:
    """The features of all items before reduction, in batches: [n, d, H, W], float32 on the CPU."""
    reducer.to(inputs.device).eval()
    for items in inputs.batches(data):
        yield reducer.features(items).cpu()


def _class_number(name: int | str, names: Sequence[str]) -> int:
    if isinstance(name, int):
        if not 0 <= name < len(names):
            raise ValueError(f"classes: there is no class {name}; the data set has 0 to {len(names) - 1}")
        return name
    if name in names:
        return names.index(name)
    raise ValueError(f"classes: the data set has no class {name!r}{nearest(name, names)[:200]}")
