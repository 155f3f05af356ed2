"""A tokenizer's reconstructions, measured as they are made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dmvae.config import Values
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.evaluation.feature_set import FeatureSet, heads_of, sets_of
from dmvae.evaluation.features import CHUNK, Extractor, in_chunks, padded
from dmvae.evaluation.images import Images
from dmvae.evaluation.measure import PAIRS, all_parts, measure_sets, pair_values
from dmvae.evaluation.metrics import Figure, Metric, metrics_of
from dmvae.evaluation.passes import over_images
from dmvae.evaluation.scores import Scores
from dmvae.losses.perceptual import LPIPSPerceptual
from dmvae.models.base import Tokenizer, evaluating
from dmvae.runtime import distributed
from dmvae.runtime.hashing import weights_hash
from dmvae.runtime.precision import Precision, autocast

LPIPS = Figure("lpips", "LPIPS", "", -1, "{:.3f}", "distance of reconstructions from originals, by VGG-16")


class PerceptualDistance:
    """LPIPS of VGG-16: images [n, 1 or 3, h, w] in [-1, 1], twice -> distances [n]. Raises ValueError where its package
    or weights are missing."""

    name = "lpips_vgg16"

    def __init__(self, device: torch.device) -> None:
        self.network = LPIPSPerceptual().build().to(device)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return in_chunks(self.network.per_sample, a, b)

    def manifest(self) -> Values:
        """What changes its numbers, in the form of an extractor's manifest."""
        return {"name": self.name, "weights": weights_hash(self.network), "dtype": "float32"}


@torch.inference_mode()
def reconstruct(
    tokenizer: Tokenizer,
    extractors: Sequence[Extractor],
    images: Images,
    batch_size: int,
    title: str,
    *,
    device: torch.device,
    precision: Precision,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    pictures: int = 0,
    latents: bool = False,
    metrics: Sequence[Metric] = PAIRS,
    kept: Path | None = None,
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    """(rows, pictures). Rows have an entry for every image, in order: the figures of its pair (see `pair_values`), the
    reconstruction's features (see `heads_of`) and, with `latents`, its raw latent "z". Pictures are the first originals
    and their reconstructions, uint8 [n, c, h, w] each; None without any. All ranks must call. kept: see
    `over_images`."""
    tokenizer.to(device, memory_format=torch.channels_last)

    def codec(part: Tensor) -> tuple[Tensor, Tensor]:
        # Always batches of one size, as for extractors: other sizes round differently, and pixels may change.
        with autocast(device, precision):
            z = tokenizer.encode(as_input(padded(part), device)).latents
            x = tokenizer.decode(z).sample
        return z.float()[: len(part)], to_uint8(x.float())[: len(part)].cpu()

    def coded(batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.cat(column) for column in zip(*map(codec, batch.split(CHUNK)), strict=True))

    def compute(batch: Tensor) -> dict[str, Tensor]:
        z, recon = coded(batch)
        rows = pair_values(batch, recon, lpips, device, metrics) | heads_of(extractors, recon)
        return rows | ({"z": z} if latents else {})

    with evaluating(tokenizer):
        rows = over_images(images, batch_size, compute, title, kept)
        if not pictures or not distributed.is_main():
            return rows, None
        originals = torch.cat(list(images.batches(range(min(pictures, len(images))), batch_size)))
        return rows, (originals, coded(originals)[1])


def reconstruction_scores(
    rows: dict[str, Tensor],
    reals: Sequence[FeatureSet],
    extractors: Sequence[Extractor],
    images: Images,
    parts: Collection[str] | None = None,
) -> Scores:
    """Figures of the pairs, and of the set of reconstructions against the set of images."""
    scores = Scores()
    chosen = [m.type for m in metrics_of(all_parts() if parts is None else tuple(parts)) if m.of_reconstructions]
    scores.add_means({name: value for name, value in rows.items() if name != "z" and "." not in name})
    for real, recon in zip(reals, sets_of(rows, extractors, images), strict=True):
        scores.add(measure_sets(real, recon, prefix="r", parts=chosen))
    return scores
