"""How evenly latent vectors are spread: the density of their map by t-SNE (VA-VAE, arXiv 2501.01423, section 5)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmvae.evaluation.latents import normalised

LEAST = 100
"""Fewest latents of which a map says anything."""


def uniformity(z: Tensor) -> dict[str, float]:
    """{"density_cv", "density_entropy", "density_gini"} of latents z [n, C, H, W]: of a kernel density estimate at the
    points of a plane, which t-SNE makes of a vector [C] of each latent, from a place that is drawn.

    Vectors are normalised by the mean and the deviation of each channel of z. A function of z; another order of the
    latents draws other places. Raises ValueError for fewer than LEAST latents, for vectors along a single line, and
    without scikit-learn.
    """
    if len(z) < LEAST:
        raise ValueError(f"uniformity: a map of {len(z)} latents says nothing; give at least {LEAST}")
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ValueError('uniformity: t-SNE needs scikit-learn: pip install "dmvae[report]"') from error
    places = torch.randint(z[0, 0].numel(), (len(z),), generator=torch.Generator().manual_seed(0))
    vectors = normalised(z, z).flatten(2)[torch.arange(len(z)), :, places]
    if (rank := int(torch.linalg.matrix_rank(vectors - vectors.mean(0)))) < 2:  # t-SNE divides by their spread
        raise ValueError(
            f"uniformity: a map needs vectors that vary in 2 directions, and these vary in {rank}; leave it out"
        )
    # scikit-learn's defaults, as in the authors' tool: its figures depend on them
    return density_figures(TSNE(random_state=0).fit_transform(vectors.numpy()))


def density_figures(points: np.ndarray) -> dict[str, float]:
    """The three figures of points [n, 2]: for equal densities 0, 1 and 0."""
    from scipy.stats import gaussian_kde  # comes with scikit-learn

    density = np.sort(gaussian_kde(points.T)(points.T))
    share, n = density / density.sum(), len(density)
    return {
        "density_cv": float(density.std() / density.mean()),
        "density_entropy": float(-(share * np.log(share)).sum() / np.log(n)),
        "density_gini": float(((2 * np.arange(1, n + 1) - n - 1) * share).sum() / n),
    }
