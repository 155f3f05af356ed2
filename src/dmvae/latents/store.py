"""The store of encoded data: latents in safetensors shards, with their mean and standard deviation per channel, and the
matrix that whitens them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dmvae.datasets import Items, name_of
from dmvae.datasets.loading import cuts, loader
from dmvae.datasets.pixels import as_input
from dmvae.evaluation.frechet import Statistics
from dmvae.evaluation.latents import vectors
from dmvae.models.base import EncoderOutput, Encodes, PointDistribution, Tokenizer, evaluating
from dmvae.models.whitening import mapped, whitening
from dmvae.runtime import distributed
from dmvae.runtime.console import Bar
from dmvae.runtime.files import read_head, write_tensors
from dmvae.runtime.precision import Precision, autocast
from dmvae.runtime.transfer import send
from dmvae.tokenizers import Normalisation

STATISTICS = "statistics.safetensors"
"""Mean and standard deviation per channel, and for whitened latents the matrix. Written last: if the file is there, all
shards are."""


@torch.no_grad()  # not inference_mode: tensors that move to a device under it cannot be written to afterwards
def encode_dataset(
    tokenizer: Encodes,
    dataset: Items,
    folder: Path,
    *,
    title: str,
    device: torch.device,
    precision: Precision = "auto",
    workers: int = 0,
    batch_size: int = 256,
    shard_size: int = 16384,
    dtype: Literal["float32", "float16"] = "float32",
    mirrored: bool = False,
    whitened: float = 0.0,
    given: Normalisation | None = None,
) -> None:
    """Write the data set's raw latents and labels to `folder` as safetensors shards of `shard_size` items, and their
    mean and standard deviation per channel. Finished shards are kept, so an interrupted pass goes on where it stopped.

    tokenizer: a module with `encode(images in [-1, 1]).latents`, [n, C, H, W]. Where it draws latents, shards also hold
    the means and standard deviations of the posteriors, "means" and "stds". mirrored: encode the mirror images.
    whitened: the `amount` of `dmvae.models.whitening.whitening` by which a `LatentSet` whitens what it reads; shards
    are not whitened. given: what is kept in place of the statistics of these latents.

    Raises FloatingPointError, with the first item of the batch, for latents that are not finite in `dtype`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.to(device, memory_format=torch.channels_last)
    starts = range(0, len(dataset), shard_size)
    with evaluating(tokenizer), Bar(title, len(dataset), "images") as bar:
        for number, start in enumerate(starts):
            chosen = range(start, min(start + shard_size, len(dataset)))
            path = folder / f"latents-{number:05d}.safetensors"
            place = {"start": str(chosen.start), "stop": str(chosen.stop)}
            if number % distributed.world_size() != distributed.rank() or read_head(path) == place:
                bar.step(len(chosen))
                continue
            parts: dict[str, list[Tensor]] = {}
            for images, labels in loader(dataset, cuts(chosen, batch_size), workers, device):
                x = as_input(images, device)
                found = _encoded(tokenizer, x.flip(3) if mirrored else x, precision, getattr(torch, dtype))
                if not all(z.isfinite().all() for z in found.values()):
                    first = start + sum(map(len, parts.get("labels", [])))
                    raise FloatingPointError(
                        f"{folder}: latents of {len(images)} images from number {first} on are not finite in {dtype}: "
                        "the encoder's weights are damaged"
                        + (", or its latents too large: set latents.dtype: float32" if dtype == "float16" else "")
                    )
                for name, values in (found | {"labels": labels}).items():
                    parts.setdefault(name, []).append(values)
                bar.step(len(images))
            write_tensors(path, {name: torch.cat(part) for name, part in parts.items()}, place)
    distributed.barrier()
    if distributed.is_main():  # left from an interrupted pass with smaller shards
        for path in sorted(folder.glob("latents-*.safetensors"))[len(starts) :]:
            path.unlink()
    if distributed.is_main() and read_head(folder / STATISTICS) is None:
        _write_statistics(folder, "latents", whitened, given)
    distributed.barrier()


def link_shards(paths: Sequence[Path], folder: Path, tensor: str, whitened: float, given: Normalisation | None) -> None:
    """Make `folder` a store of shards that lie elsewhere and stay there: links to them, and their statistics. tensor:
    the one of theirs that a `LatentSet` reads. Raises ValueError, naming the file, for NaN and infinity."""
    if distributed.is_main() and read_head(folder / STATISTICS) is None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(paths):
            link = folder / f"latents-{number:05d}.safetensors"
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
        _write_statistics(folder, tensor, whitened, given)
    distributed.barrier()


def _write_statistics(folder: Path, tensor: str, whitened: float, given: Normalisation | None) -> None:
    """Those of the shards, or the given ones, with a matrix that whitens where one is asked for."""
    whole = Statistics.of(vectors(z, "channels") for z in _shards(folder, tensor))
    found = given or Normalisation(whole.mean, whole.std)
    if whitened:
        # the matrix is for latents at unit variance, and given deviations may be other latents'
        ratio = found.std.double().clamp_min(1e-6) / whole.std.clamp_min(1e-6)
        found = found._replace(whitening=whitening(whole.covariance, whitened) * ratio)
    kept = {name: x.float().cpu() for name, x in found._asdict().items() if x is not None}
    write_tensors(folder / STATISTICS, kept, None if tensor == "latents" else {"tensor": tensor})


def _shards(folder: Path, tensor: str) -> Iterator[Tensor]:
    """That tensor of every shard. Raises ValueError for one that is not finite, or gone."""
    for path in shards_in(folder):
        with safe_open(path, "pt") as file:
            z = file.get_tensor(tensor)
        if not z.isfinite().all():
            first = int((~z.flatten(1).isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{path.resolve()}: latent {first}: NaN or infinity in {tensor!r}: encode it again")
        yield z


def shards_in(folder: Path) -> list[Path]:
    """The shards of a store, in order. Raises ValueError for a link to a file that is gone."""
    paths = sorted(folder.glob("latents-*.safetensors"))
    for path in paths:
        if not path.exists():
            raise ValueError(
                f"{path} is a link to {path.readlink()}, which is gone: put that back, or delete {folder.parent} and "
                "run again"
            )
    return paths


class Carrying(nn.Module):
    """A tokenizer for data that are latents already: `encode` takes these on to its own (`Tokenizer.carry`)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def encode(self, z: Tensor) -> EncoderOutput:
        latents = self.tokenizer.carry(z)
        return EncoderOutput(latents=latents, latent_dist=PointDistribution(latents))


def _encoded(tokenizer: Encodes, x: Tensor, precision: Precision, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a shard holds of images x, on the CPU: latents, and for drawn ones the means and deviations of
    posteriors."""
    with autocast(x.device, precision):
        out = tokenizer.encode(x)
    found = {"latents": out.latents}
    if getattr(tokenizer, "drawn", False):
        found |= {"means": out.latent_dist.mean, "stds": out.latent_dist.std}
    return {name: z.to("cpu", dtype).contiguous() for name, z in found.items()}


def labels_of(folder: Path) -> Tensor:
    """The labels int64 [n] of the shards in a folder, read without the latents; n is 0 without shards."""
    found = [torch.empty(0, dtype=torch.int64)]
    for path in shards_in(folder):
        with safe_open(path, "pt") as file:
            found.append(file.get_tensor("labels").long())
    return torch.cat(found)


class LatentSet:
    """Latents on disk as a data set: item i is (latent [C, H, W] normalised per channel, and perhaps whitened, label).

    Shards are memory-mapped: the operating system keeps in memory what fits. Attributes: `mean` and `std`,
    float32 [C], of the raw latents, `whitening`, [C, C] or None, and `labels`, int64 [n].

    posteriors: where latents were drawn, item i is the mean and standard deviation of its posterior, [2C, H, W],
    normalised per channel. The caller draws from it, new each time, and whitens what it has drawn (`whiten`).
    """

    def __init__(self, folder: Path, posteriors: bool = False) -> None:
        statistics = load_file(folder / STATISTICS)
        self.mean, self.std = statistics["mean"], statistics["std"].clamp_min(1e-6)
        self.whitening = statistics.get("whitening")
        tensor = (read_head(folder / STATISTICS) or {}).get("tensor", "latents")
        shards = [load_file(path) for path in shards_in(folder)]
        self.drawn = all({"means", "stds"} <= shard.keys() for shard in shards)
        self.posteriors = posteriors and self.drawn
        self.shards = [shard["means" if self.posteriors else tensor] for shard in shards]
        self.stds = [shard["stds"] for shard in shards] if self.posteriors else []
        self.labels = torch.cat([shard["labels"].long() for shard in shards])
        self.stops = [*accumulate(map(len, self.shards))]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        z, labels = self.__getitems__([index])
        return z[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        z, labels = self.stored(indices)
        return self.normalise(z), labels

    def stored(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """The same items as on disk: raw, in the dtype of the shards, so few bytes to copy. `normalise` makes latents
        of them on their device."""
        index = torch.as_tensor(indices)
        index = torch.where(index < 0, index + len(self), index)
        with torch.autocast("cpu", enabled=False):  # autocast refuses to stack float16
            parts = [self._rows(shards, index) for shards in (self.shards, self.stds) if shards]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), self.labels[index]

    def normalise(self, z: Tensor) -> Tensor:
        """Stored items z, as `stored` gives them -> the set's items: normalised, whitened unless they are posteriors,
        float32, on the device of z."""
        mean, scale = (send(x.view(-1, 1, 1), z.device) for x in (self.mean, self.std))
        if not self.posteriors:
            return self.whiten((z.float() - mean) / scale)
        means, stds = z.float().chunk(2, dim=1)
        return torch.cat([(means - mean) / scale, stds / scale], dim=1)

    def whiten(self, z: Tensor) -> Tensor:
        """Latents [n, C, H, W], normalised per channel -> whitened; unchanged where the set has no matrix."""
        return z if self.whitening is None else mapped(send(self.whitening, z.device), z)

    def _rows(self, shards: Sequence[Tensor], index: Tensor) -> Tensor:
        if len(shards) == 1:
            return shards[0][index]
        return torch.stack([shards[i][j] for i, j in map(self._place, index.tolist())])

    def _place(self, item: int) -> tuple[int, int]:
        """(the item's shard, its index in that shard)."""
        shard = bisect_right(self.stops, item)
        return shard, item - (self.stops[shard - 1] if shard else 0)


class MirroredSet(LatentSet):
    """Latents of images and of their mirror images as one data set of 2n items, with the statistics of the first. A
    shuffled pass has every image once each way, so half of the items are mirrored."""

    def __init__(self, plain: LatentSet, mirrored: LatentSet) -> None:
        self.mean, self.std, self.whitening = plain.mean, plain.std, plain.whitening
        self.drawn, self.posteriors = plain.drawn, plain.posteriors
        self.shards, self.stds = plain.shards + mirrored.shards, plain.stds + mirrored.stds
        self.labels = torch.cat([plain.labels, plain.labels])
        self.stops, self._turn = plain.stops, len(plain.shards)

    def _place(self, item: int) -> tuple[int, int]:
        mirrored, item = divmod(item, len(self) // 2)
        shard, place = super()._place(item)
        return mirrored * self._turn + shard, place


class BothWays:
    """The images of a `MirroredSet`, in its order: those of a data set, then their mirror images."""

    def __init__(self, dataset: Items) -> None:
        self.dataset, self.n = dataset, len(dataset)
        many = getattr(dataset, "__getitems__", None)
        if many is not None:
            self.__getitems__ = lambda indices: self._both(many, indices)

    def __len__(self) -> int:
        return 2 * self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = cast("tuple[Tensor, int]", self.dataset[index % self.n])
        return image.flip(-1) if index >= self.n else image, label

    def _both(
        self, many: Callable[[Sequence[int]], tuple[Tensor, Tensor]], indices: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        images, labels = many([index % self.n for index in indices])
        turned = (torch.tensor(list(indices)) >= self.n).view(-1, 1, 1, 1)
        return torch.where(turned, images.flip(-1), images), labels

    def name(self, index: int) -> str:
        """The data set's name of the image."""
        return name_of(self.dataset, index % self.n)


class Stored:
    """The items of a set of latents as they are stored, for a device that normalises them."""

    def __init__(self, latents: LatentSet) -> None:
        self.latents = latents
        self.__getitems__ = latents.stored

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        z, labels = self.latents.stored([index])
        return z[0], int(labels[0])
