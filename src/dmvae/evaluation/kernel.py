"""Kernel distance (KID, arXiv 1801.01401) and Inception Score (arXiv 1606.03498) of sets of features.

Shapes: features float [n, d]. Everything here is float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE, SPLITS, SEED = 100, 1000, 10, 2020
"""As published; the seed is that of torch-fidelity's choice of subsets."""


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> tuple[float, float | None]:
    """(mean, standard deviation) over random subsets of the squared maximum mean discrepancy, unbiased, with the
    kernel (x . y / d + 1)^3.

    Sets smaller than `subset_size` are used whole. If the only subset is both whole sets, the deviation is None. The
    subsets, and so the figures, are torch-fidelity's.
    Raises ValueError for fewer than 2 vectors or different numbers of components.
    """
    size = min(len(a), len(b), subset_size)
    if size < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a kernel distance takes features [n, d] and [m, d], n and m at least 2, not {[*a.shape]} "
                         f"and {[*b.shape]}")  # fmt: skip
    a, b = a.double(), b.double()
    if size == len(a) == len(b):
        subsets = 1  # every subset is the same
    chance = np.random.RandomState(SEED)  # the generator that torch-fidelity draws from
    values = []
    for _ in range(subsets):
        x, y = (s[torch.from_numpy(chance.choice(len(s), size, replace=False)).to(s.device)] for s in (a, b))
        values.append(_squared_discrepancy(x, y))
    return float(np.mean(values)), float(np.std(values)) if subsets > 1 else None


def _squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """Mean of k over pairs within x, plus that within y, minus twice that across; no point is its own pair."""
    m = len(x)
    within = sum(k.sum() - k.diagonal().sum() for k in (_kernel(x, x), _kernel(y, y)))
    return float(within / (m * (m - 1)) - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def inception_score(logits: Tensor) -> tuple[float, float]:
    """(mean, standard deviation) over 10 parts of exp(mean over images of KL(p(y | x) || p(y))), with p(y) the
    part's mean. logits [n, classes], shuffled as torch-fidelity does before they are cut into parts. Raises ValueError
    for n < 10.
    """
    n = len(logits)
    if n < SPLITS:
        raise ValueError(f"an Inception Score over {SPLITS} parts needs at least {SPLITS} images, not {n}")
    order = np.random.RandomState(SEED).permutation(n)
    log_p = logits[torch.from_numpy(order).to(logits.device)].double().log_softmax(1)
    scores = []
    for i in range(SPLITS):
        part = log_p[i * n // SPLITS : (i + 1) * n // SPLITS]
        marginal = part.exp().mean(0, keepdim=True).log()
        scores.append(float((part.exp() * (part - marginal)).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))
