"""How fast features are taken: images per second of a network alone on synthetic tensors, and of the whole evaluator,
which reads, resizes and normalises images and collects their features, from memory and from PNG files. Then the time
of a Frechet distance at 2048 dimensions, ours beside scipy's general matrix square root:

    python -m benchmarks.extraction [--seconds 6]        (after `make install-dev`)

Weights are drawn at random where they need a download: speed does not depend on them. Network and evaluator take turns,
so that what else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests" / "evaluation"))

from benchmarks.models import seconds_of, timed
from benchmarks.tables import header, line
from dmvae.datasets.shapes import Shapes
from dmvae.evaluation.feature_set import features_of
from dmvae.evaluation.features import CHUNK, Extractor
from dmvae.evaluation.features.effnet import EffNetLite0
from dmvae.evaluation.features.inception import Inception
from dmvae.evaluation.features.timm import TimmFeatures
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.images import FolderImages, Images, TensorImages

ROUNDS = 3
RESOLUTION = {"inception": 299}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="of a timing of the network (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width, pixels (default: %(default)s)")
    known = parser.parse_args()
    heads = ["from memory, images/s (of the network's)", "from PNG files, 2 workers, images/s (of the network's)"]
    print(header(["features", "network, images/s", *heads]))
    for name, build in EXTRACTORS.items():
        extractor = build()
        side = RESOLUTION.get(name) or extractor.resolution or known.size
        x = torch.randn(CHUNK, 3, side, side).to(memory_format=torch.channels_last)
        chunks = max(1, round(known.seconds / seconds(lambda e=extractor, x=x: e.network(x))))
        images = torch.stack([Shapes(size=known.size, count=CHUNK).build("train")[i][0] for i in range(CHUNK)])
        images = images.repeat(chunks, 1, 1, 1)
        with tempfile.TemporaryDirectory() as folder:
            for i, image in enumerate(images):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(Path(folder, f"{i:06}.png"))
            compare(name, extractor, x, chunks, [TensorImages(images), FolderImages(folder, workers=2)])
    frechet()


def compare(name: str, extractor: Extractor, x: torch.Tensor, chunks: int, sources: list[Images]) -> None:
    """A row: the best of a few rounds each, for other programs only slow what is timed."""
    jobs: list[Callable[[], object]] = [lambda: [extractor.network(x) for _ in range(chunks)]]
    jobs += [lambda s=s: features_of([extractor], s, 256, "") for s in sources]
    best = [float("inf")] * len(jobs)
    for _ in range(ROUNDS):
        best = [min(known, seconds(job)) for known, job in zip(best, jobs, strict=True)]
    rates = [chunks * CHUNK / s for s in best]
    shares = [f"{rate:.4g} ({rate / rates[0]:.0%})" for rate in rates[1:]]
    print(line([name, f"{rates[0]:.4g}", *shares]), flush=True)


@torch.inference_mode()
def seconds(job: Callable[[], object]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):  # bars
        return seconds_of(job)


def effnet() -> Extractor:
    return EffNetLite0().build()


def dinov2() -> Extractor:
    return TimmFeatures(model="vit_small_patch14_dinov2.lvd142m", resolution=224, pretrained=False).build()


def inception() -> Extractor:
    import random_inception

    with tempfile.TemporaryDirectory() as scratch:
        return Inception(weights=str(random_inception.write(Path(scratch, "weights.pth")))).build()


EXTRACTORS: dict[str, Callable[[], Extractor]] = {
    "EfficientNet-Lite0 at 64": effnet,
    "DINOv2 ViT-S/14 at 224": dinov2,
    "inception": inception,
}


def frechet(n: int = 3000, d: int = 2048) -> None:
    """Two sets of random vectors with a common spectrum that falls off, as features' does."""
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) * torch.arange(1, d + 1) ** -0.5
    a, b = (Statistics.of((torch.randn(n, d, generator=generator, dtype=torch.float64) + s) @ mix) for s in (0, 0.1))
    ours_time, ours = timed(lambda: frechet_distance(a, b))
    theirs_time, root = timed(lambda: sqrtm((a.covariance @ b.covariance).numpy()))
    gap = float((a.mean - b.mean).square().sum())
    theirs = gap + float(a.covariance.trace() + b.covariance.trace()) - 2 * float(root.trace().real)
    print(f"\nFrechet distance, {d} dimensions: {ours_time:.2f} s, scipy {theirs_time:.2f} s; "
          f"relative difference {abs(ours - theirs) / theirs:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
