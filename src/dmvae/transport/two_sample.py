"""A classifier two-sample test (Lopez-Paz & Oquab, arXiv 1610.06545): can a small network tell two sets apart?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, STEPS, BATCH, RATE, DECAY = 128, 300, 256, 3e-3, 1e-2
LOUD = 3.0
"""Size of the input that tells the class, in standard deviations of the vectors: large, as it is one of many inputs."""
FEWEST = 8
"""Items that each set needs."""
LEAST = 16
"""Held-out items of a class that each set needs; the accuracy on fewer would be chance."""


def two_sample_accuracy(a: Tensor, b: Tensor, seed: int = 0, steps: int | None = None) -> float:
    """Held-out accuracy of a classifier between sets a and b: 0.5 where it finds no difference, 1 where it is always
    right.

    a, b: [n, k, d], n items of k vectors each (k = 1 for whole latents, H W for tokens); equally many of each are used.
    Three quarters of the items are for training and the rest for testing; the vectors of one item stay together. The
    network (two hidden layers of 128) and its training (300 steps of AdamW, or `steps`) are fixed. The result is a
    function of data and seed; torch's global random state is not used. Raises ValueError for fewer than 8 items in a
    set, and for vectors of different shapes.
    """
    right, _ = _held_out((a, b), None, seed, steps)
    return _accuracy(right)


def accuracy_with_class(
    a: Tensor, b: Tensor, of: tuple[Tensor, Tensor], seed: int = 0, steps: int | None = None
) -> tuple[float, dict[int, float]]:
    """`two_sample_accuracy` of a classifier that also gets the class of every item, and {class: accuracy} of the
    classes with at least 16 held-out items in each set. `of` holds the labels, int64 [n], of a and of b.

    It finds sets that are alike as a whole and differ class by class, however many classes there are. It costs as much
    as the test without classes, and finds less in a class than a network for that class alone. The same number of items
    of each class is taken from both sets, since class frequencies would tell them apart. Raises ValueError for fewer
    than 8 items in common (`in_common`)."""
    chosen = [some_of_each(labels, _in_both(*of), seed) for labels in of]
    pick = lambda pair: (pair[0][chosen[0]], pair[1][chosen[1]])
    right, kinds = _held_out(pick((a, b)), pick(of), seed, steps)
    found = {}
    for label in kinds[0].unique().tolist():
        mine = [x[kind == label] for x, kind in zip(right, kinds, strict=True)]
        if min(map(len, mine)) >= LEAST:
            found[label] = _accuracy(mine)
    return _accuracy(right), found


def in_common(a: Tensor, b: Tensor) -> int:
    """Sum over classes of the number of items that both sets, with labels a [n] and b [m], have of it: what
    `accuracy_with_class` uses of each."""
    return sum(_in_both(a, b).values())


def _in_both(a: Tensor, b: Tensor) -> dict[int, int]:
    counts = [labels.unique(return_counts=True) for labels in (a, b)]
    first, second = (dict(zip(names.tolist(), found.tolist(), strict=True)) for names, found in counts)
    return {label: min(count, second[label]) for label, count in first.items() if label in second}


def some_of_each(labels: Tensor, counts: Mapping[int, int], seed: int) -> Tensor:
    """int64, ascending: indices of items with labels int64 [n], `counts[class]` of each class, chosen by the seed; all
    of a class that has fewer."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    found = labels.cpu()[order]
    return torch.cat([order[found == label][:count] for label, count in counts.items()] or [order[:0]]).sort().values


def _accuracy(right: list[Tensor]) -> float:
    """The mean over the two sets."""
    return float(sum(x.float().mean() for x in right) / 2)


def _held_out(
    sets: tuple[Tensor, Tensor], of: tuple[Tensor, Tensor] | None, seed: int, steps: int | None
) -> tuple[list[Tensor], list[Tensor]]:
    """For each set: whether a network is right about held-out vectors, bool [tests, k]; and their labels [tests]."""
    a, b = sets
    n = min(len(a), len(b))
    if a.ndim != 3 or a.shape[1:] != b.shape[1:] or n < FEWEST:
        raise ValueError(
            f"the sets have shapes {list(a.shape)} and {list(b.shape)}; give [n, k, d] of equal k and d, with at least "
            "8 items in each"
        )
    # Weights are updated in place, and autocast would go on with the copies that it has cast before.
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        rng = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(x), generator=rng, device="cpu")[:n] for x in sets]
        chosen = [x.detach().cpu().float()[order] for x, order in zip(sets, orders, strict=True)]
        x = torch.stack(chosen)  # [2, n, k, d]
        train = n * 3 // 4
        mean, std = x[:, :train].mean((0, 1, 2)), x[:, :train].std((0, 1, 2)).clamp_min(1e-6)
        x = (x - mean) / std
        kinds, classes = torch.zeros(2, n, dtype=torch.int64, device="cpu"), 0
        if of is not None:
            kinds = torch.stack([labels.cpu()[order] for labels, order in zip(of, orders, strict=True)])
            classes = int(kinds.max()) + 1
        rows = kinds[:, :, None].expand(x.shape[:3])  # a class for every vector
        weights = _train(x[:, :train].flatten(1, 2), rows[:, :train].flatten(1), classes, rng, steps or STEPS)
        with torch.no_grad():
            logits = _network(x[:, train:], rows[:, train:], weights)  # [2, tests, k]
        return [logits[0] < 0, logits[1] > 0], list(kinds[:, train:])


def _train(x: Tensor, kinds: Tensor, classes: int, rng: torch.Generator, steps: int) -> list[Tensor]:
    """Weights of the network, trained on rows x [2, m, d] of classes [2, m]; logits are positive for the second set."""
    sizes = [x.shape[2] + classes, WIDTH, WIDTH, 1]
    weights = []
    for fan_in, fan_out in pairwise(sizes):
        start = torch.randn(fan_in, fan_out, generator=rng, device="cpu", dtype=torch.float32)
        weights += [start / math.sqrt(fan_in), torch.zeros(fan_out, device="cpu", dtype=torch.float32)]
    for w in weights:
        w.requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY, fused=True)
    size = min(BATCH // 2, x.shape[1])
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            chosen = torch.randint(x.shape[1], (2, size), generator=rng, device="cpu")
            some, of = (torch.stack([both[i, chosen[i]] for i in range(2)]) for both in (x, kinds))
            logits = _network(some, of, weights)
            loss = F.softplus(logits[0]).mean() + F.softplus(-logits[1]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [w.detach() for w in weights]


def _network(x: Tensor, kinds: Tensor, weights: list[Tensor]) -> Tensor:
    """[..., d] and classes [...] -> logits [...]. Rows of the first weights after the d-th belong to the classes, as if
    each class were one more input, `LOUD` for items of it and 0 for others."""
    w1, b1, w2, b2, w3, b3 = weights
    d = x.shape[-1]
    h = x @ w1[:d] + b1
    if len(w1) > d:
        h = h + LOUD * w1[d:][kinds]
    return (F.gelu(F.gelu(h) @ w2 + b2) @ w3 + b3).squeeze(-1)
