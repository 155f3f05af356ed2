"""A distance class by class, for a reference with classes and latents with labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_class(
    distance: Callable[..., Tensor],
    z: Tensor,
    labels: Tensor,
    y: Tensor,
    y_labels: Tensor,
    least: int = 2,
    queue: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """sum over classes c of n_c / n distance(z of class c, y of class c), a scalar; n is the sum of the n_c.

    z [N, ...] with labels int64 [N], y [m, ...] with y_labels int64 [m]; z has n_c items of class c. Classes with fewer
    than `least` items in z or in y are left out. A class may have more items in z than in y, so `distance` must take
    sets of different sizes. With a queue (latents [k, ...], their labels int64 [k]) it is called with those of class c
    as a third set, which may be empty. Raises ValueError where all classes are left out, or a label is missing.
    """
    for name, x, of in (("labels", labels, z), ("y_labels", y_labels, y)):
        if x.shape != (len(of),):
            raise ValueError(f"{name} has shape {list(x.shape)} for {len(of)} latents; give one label to each")
    terms, weights = [], []
    for c in labels.unique().tolist():
        mine, theirs = labels == c, y_labels == c
        if min(int(mine.sum()), int(theirs.sum())) >= least:
            more = () if queue is None else (queue[0][(queue[1] == c).to(queue[0].device)],)
            terms.append(distance(z[mine.to(z.device)], y[theirs.to(y.device)], *more))
            weights.append(mine.sum())
    if not terms:
        raise ValueError(
            f"no class has {least} latents and {least} samples of the reference: labels {labels.unique().tolist()[:8]} "
            f"and {y_labels.unique().tolist()[:8]}; take larger batches, or match all classes together"
        )
    weight = torch.stack(weights).to(terms[0])
    return (torch.stack(terms) * weight / weight.sum()).sum()
