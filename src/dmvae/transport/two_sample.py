"""A classifier two-sample test (Lopez-Paz & Oquab, arXiv 1610.06545): can a small network tell two sets apart?"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, STEPS, BATCH, RATE, DECAY = 128, 300, 256, 3e-3, 1e-2


def two_sample_accuracy(a: Tensor, b: Tensor, seed: int = 0, steps: int | None = None) -> float:
    """Held-out accuracy of a classifier between sets a and b: 0.5 where it finds no difference, 1 where it is always
    right.

    a, b: [n, k, d], n items of k vectors each (k = 1 for whole latents, H W for tokens); equally many of each are used.
    Three quarters of the items are for training and the rest for testing; the vectors of one item stay together. The
    network (two hidden layers of 128) and its training (300 steps of AdamW, or `steps`) are fixed. The result is a
    function of data and seed; torch's global random state is not used. Raises ValueError for fewer than 8 items in a
    set.
    """
    n = min(len(a), len(b))
    if a.ndim != 3 or a.shape[1:] != b.shape[1:] or n < 8:
        raise ValueError(
            f"the sets have shapes {list(a.shape)} and {list(b.shape)}; give [n, k, d] of equal k and d, with at least "
            "8 items in each"
        )
    rng = torch.Generator().manual_seed(seed)
    order_a, order_b = (torch.randperm(len(x), generator=rng)[:n] for x in (a, b))
    x = torch.stack([a.detach().cpu().float()[order_a], b.detach().cpu().float()[order_b]])  # [2, n, k, d]
    train = n * 3 // 4
    mean, std = x[:, :train].mean((0, 1, 2)), x[:, :train].std((0, 1, 2)).clamp_min(1e-6)
    x = (x - mean) / std
    weights = _train(x[:, :train].flatten(1, 2), rng, steps or STEPS)
    with torch.no_grad():
        logits = _network(x[:, train:].flatten(1, 2), weights)  # [2, tests]
    right = (logits[0] < 0).float().mean() + (logits[1] > 0).float().mean()
    return float(right / 2)


def _train(x: Tensor, rng: torch.Generator, steps: int) -> list[Tensor]:
    """Weights of the network, trained on rows x [2, m, d]; logits are positive for the second set."""
    sizes = [x.shape[2], WIDTH, WIDTH, 1]
    weights = []
    for fan_in, fan_out in pairwise(sizes):
        weights += [torch.randn(fan_in, fan_out, generator=rng) / math.sqrt(fan_in), torch.zeros(fan_out)]
    for w in weights:
        w.requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY, fused=True)
    size = min(BATCH // 2, x.shape[1])
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            chosen = torch.randint(x.shape[1], (2, size), generator=rng)
            logits = _network(torch.stack([x[0, chosen[0]], x[1, chosen[1]]]), weights)
            loss = F.softplus(logits[0]).mean() + F.softplus(-logits[1]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [w.detach() for w in weights]


def _network(x: Tensor, weights: list[Tensor]) -> Tensor:
    """[..., d] -> logits [...]."""
    w1, b1, w2, b2, w3, b3 = weights
    return (F.gelu(F.gelu(x @ w1 + b1) @ w2 + b2) @ w3 + b3).squeeze(-1)
