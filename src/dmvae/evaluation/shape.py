"""The shape of latents at hand, without images or networks: spread, rank, classes, distance to a distribution.

Shapes: latents [n, C, H, W], raw; labels int64 [n].
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmvae.evaluation.classification import knn_accuracy
from dmvae.evaluation.latents import high_frequency_share, latent_statistics, normalised
from dmvae.evaluation.neighbours import intrinsic_dimension
from dmvae.evaluation.online import class_share
from dmvae.evaluation.other_figures import FOLDED, OTHERS
from dmvae.evaluation.proxies import POINTS, linear_probe
from dmvae.evaluation.scores import Figure
from dmvae.transport.arrival import LATENTS, Arrival, effective_rank, measure

VERSION = 2
"""Goes up when figures are computed otherwise."""
SAMPLES, ROOM = 5120, 2**27
"""Samples of a standard Gaussian that latents are compared with; fewer where these are more numbers than ROOM."""
HELD_OUT = 5
"""One in so many latents is classified by its neighbours among the others."""
NEIGHBOURS = 20
FIGURES = {
    figure.key: figure
    for figure in (
        *OTHERS,
        *FOLDED,
        Figure("mean_max", "largest mean of a channel", "", 0, "{:.4g}", "of raw latents, its absolute value"),
        Figure("std_min", "narrowest channel", "", 0, "{:.4g}", "its standard deviation in raw latents"),
        Figure("std_max", "widest channel", "", 0, "{:.4g}", "its standard deviation in raw latents"),
        Figure("kurtosis", "kurtosis", "", 0, "{:.2f}", "of channels; 3 for a Gaussian"),
        Figure("rank_whole", "effective rank, whole latents", "", 0, "{:.1f}", "of at most 2048 latents"),
        Figure("intrinsic_dimension", "intrinsic dimension", "", 0, "{:.1f}", "by distances of near neighbours"),
        Figure("high_frequency", "high frequencies", "%", 0, "{:.1f}", "share of the power above 1/4 cycle per latent"),
        Figure("class_share", "variance between classes", "%", 0, "{:.1f}", "share of all variance"),
        Figure("density_cv", "density, deviation over mean", "", 0, "{:.3f}", "of a map by t-SNE; 0 is even"),
        Figure("density_entropy", "density, entropy", "", 0, "{:.4f}", "of a map by t-SNE; 1 is even"),
        Figure("density_gini", "density, Gini coefficient", "", 0, "{:.3f}", "of a map by t-SNE; 0 is even"),
    )
}
"""Figures that no metric makes, by their keys."""


def shape(z: Tensor, labels: Tensor | None, reference: Tensor | None = None) -> tuple[dict[str, float], Arrival]:
    """({key: figure} of latents z [n, C, H, W], how near they are to the reference).

    reference: raw latents [m, C, H, W], by whose mean and standard deviation per channel both are normalised; None: a
    standard Gaussian, and z is normalised by its own. Figures by labels are missing where there are no two classes, or
    too few latents. A function of the arguments. Raises ValueError for too few latents, or other shapes.
    """
    if reference is not None and reference.shape[1:] != z.shape[1:]:
        raise ValueError(
            f"latents {list(z.shape[1:])} and reference {list(reference.shape[1:])}: give latents of one shape"
        )
    own = normalised(z, z)
    raw, standard = latent_statistics(z), latent_statistics(own)
    order, here, there = compared(z, reference)
    found = measure(here, there)
    # of the latents alone, whatever they stand beside; `found` has it by the reference's deviations
    rank = found.rank if reference is None else effective_rank(own[order[:LATENTS]].flatten(1))
    figures = {name: raw[name] for name in ("mean_max", "std_min", "std_max")} | {
        "effective_rank": standard["effective_rank"],
        "rank_whole": rank,
        "intrinsic_dimension": intrinsic_dimension(own[order[:POINTS]]),
        "kurtosis": standard["kurtosis"],
        "high_frequency": high_frequency_share(own[order[:POINTS]]),
    }
    return figures | found.figures() | ({} if labels is None else _by_class(own[order], labels[order])), found


def compared(z: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(order [n] in which latents z are shuffled, they so, samples of the reference), normalised as `shape` does it and
    ready to be compared."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(z), generator=generator)
    if reference is None:
        # `measure` compares as many of them as latents, with as many others, and takes directions from the rest
        count = min(SAMPLES, max(5 * len(z) // 2 + 1, ROOM // z[0].numel()))
        return order, normalised(z, z)[order], torch.randn(count, *z.shape[1:], generator=generator)
    there = normalised(reference, reference)
    return order, normalised(z, reference)[order], there[torch.randperm(len(there), generator=generator)]


def _by_class(z: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of how classes lie, of shuffled latents."""
    held = len(z) // HELD_OUT
    if len(labels.unique()) < 2 or not held or len(z) - held < NEIGHBOURS:
        return {}
    x = z.flatten(1)
    sets = x[held:], labels[held:], x[:held], labels[:held]
    return {
        "class_share": float(class_share(z[:POINTS], labels[:POINTS])),
        "knn": knn_accuracy(*sets, k=NEIGHBOURS),
        "linear_probe": linear_probe(*sets),
    }
