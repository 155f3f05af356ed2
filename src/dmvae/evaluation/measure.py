"""The evaluator: every metric of sets of images and of pairs, under a name that carries its features.

`dmvae measure` and the stage `evaluate` both come here. A result is `Scores`: numbers, 95 % intervals for those that
are means over images, and per-class numbers.

    fd_X          Frechet distance in features X; fid_inception and sfid_inception where X is the published Inception
    kid_X, kid-std_X    kernel distance and its spread over subsets, where there are several
    is_inception, is-std_inception    Inception Score of the measured set
    precision_X, recall_X, density_X, coverage_X
    agreement_X    share of the images near a sample that are of the sample's class; agreement-real_X is the same for
        the reference's images, each among the others: the best that these features can show
    fd-per-class_X    mean over classes of the Frechet distance within each
    memorisation_X    how much nearer samples are to the training images than test images are: 0.5 is not at all
    psnr, ssim, lpips_vgg16    of pairs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmvae.datasets.pixels import as_input, unit_to_uint8
from dmvae.evaluation.feature_set import FeatureSet
from dmvae.evaluation.kernel import SEED, SPLITS, SUBSET_SIZE, SUBSETS
from dmvae.evaluation.manifest import PREPARED, require_same
from dmvae.evaluation.manifolds import NEIGHBOURS
from dmvae.evaluation.metrics import Metric, Sets, measured_pairs, measured_sets, metrics_of, of_sets
from dmvae.evaluation.metrics.psnr import PSNR
from dmvae.evaluation.metrics.ssim import SSIM
from dmvae.evaluation.scores import Scores
from dmvae.registry import find, names

PROTOCOL = {
    "neighbours": NEIGHBOURS,
    "kernel": f"{SUBSETS} subsets of {SUBSET_SIZE}, seed {SEED}",
    "score": f"{SPLITS} parts, seed {SEED}",
}
"""Settings that the metrics' definitions leave open."""
PAIRS: tuple[Metric, ...] = (PSNR(), SSIM())
"""The metrics of pairs that are always computed."""


def all_parts() -> tuple[str, ...]:
    """The names of the metrics of sets."""
    return tuple(name for name in names(Metric) if of_sets(find(Metric, name)))


def pair_values(
    originals: Tensor,
    reconstructions: Tensor,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    device: torch.device = torch.device("cpu"),
    metrics: Sequence[Metric] = PAIRS,
) -> dict[str, Tensor]:
    """The figures of `metrics` for each pair, by default psnr and ssim (for images of at least 11 pixels), and with
    `lpips` also lpips_vgg16: [n] each, computed on the device and returned on the CPU.

    Images uint8, or float in [0, 1], [n, C, h, w]. lpips(a, b) takes images in [-1, 1] and gives distances [n]. Raises
    ValueError for other images.
    """
    a, b = unit_to_uint8(originals).to(device), unit_to_uint8(reconstructions).to(device)
    values = {name: value.cpu() for metric in metrics for name, value in measured_pairs(metric, a, b).items()}
    if lpips is not None:
        with torch.inference_mode():
            values["lpips_vgg16"] = lpips(as_input(a, device), as_input(b, device)).double().cpu()
    return values


def measure_sets(
    real: FeatureSet,
    fake: FeatureSet,
    *,
    prefix: str = "",
    parts: Sequence[str] | None = None,
    train: FeatureSet | None = None,
    force: bool = False,
    device: torch.device | None = None,
    shared: bool = False,
) -> Scores:
    """The metrics `parts` (default: all) that the two sets allow, in the features that they share.

    Manifold metrics and the kernel distance need the rows of both sets, per-class distances also labels, memorisation
    also the training images' rows. prefix: comes before the names of distances, "r" for reconstructions, "g" for
    generated images. device: where distances between rows are computed, by default where the rows are. shared: all
    ranks call, with the same sets, and divide these distances among them.
    Raises ValueError for an unknown metric and, unless `force`, for sets in features of different extractors.
    """
    metrics = metrics_of(all_parts() if parts is None else parts)
    for other in (real, train) if train is not None else (real,):
        both = [s.manifest.get("images", {}) for s in (other, fake)]
        shaped = [key for key in PREPARED if all(key in images for images in both)]
        a, b = (
            {key: s.manifest[key] for key in ("features", "versions") if key in s.manifest}
            | {f"images.{key}": images[key] for key in shaped}
            for s, images in zip((other, fake), both, strict=True)
        )
        require_same(a, b, "the features of the two sets", force=force)
    scores, sets = Scores(), Sets(real, fake, prefix, train, device, shared)
    for metric in metrics:
        scores.add(measured_sets(metric, sets))
    return scores
