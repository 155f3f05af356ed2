"""The strength of the matching loss: a ratio of gradients that follows the measured distance."""

from __future__ import annotations

import math

from dmvae.transport.checks import require_positive

GAIN = 4.0
LIMITS = (0.2, 10.0)
"""Smallest and largest ratio."""


def next_ratio(
    ratio: float,
    multiple: float,
    target: float = 1.1,
    step: float = 0.3,
    limits: tuple[float, float] = LIMITS,
) -> float:
    """ratio * exp(step * clip(4 (multiple - target), -1, 2)), kept within the limits.

    ratio: norm of the matching loss's gradient over that of the reconstruction's, at the latents. multiple: the largest
    of `dmvae.transport.arrival.multiples`. The ratio grows while the distance is above the target, and falls while it
    is below, so that one setting works for every reference. It grows up to twice as fast as it falls: a drift away is
    seen only once it has happened, and the stage may end there. Raises ValueError for a ratio, target, step or limit
    that is not positive, a multiple that is not finite, or limits in the wrong order.
    """
    low, high = limits
    require_positive(ratio=ratio, target=target, step=step, limits=low)
    if not math.isfinite(multiple):
        raise ValueError(f"multiple is {multiple}: the latents have diverged; lower the learning rate or the limits")
    if low > high:
        raise ValueError(f"limits are {limits}; give the lower one first")
    return min(high, max(low, ratio * math.exp(step * max(-1.0, min(2.0, GAIN * (multiple - target))))))
