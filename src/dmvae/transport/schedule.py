"""The strength of the matching loss: a ratio of gradients that follows the measured distance."""

from __future__ import annotations

import math

from dmvae.transport.checks import require_positive

GAIN = 4.0
LIMITS = (0.2, 10.0)
"""Of the ratio."""


def next_ratio(
    ratio: float,
    multiple: float,
    target: float = 1.1,
    step: float = 0.3,
    limits: tuple[float, float] = LIMITS,
) -> float:
    """ratio * exp(step * clip(4 (multiple - target), -1, 2)), kept within the limits.

    ratio: of the matching loss's gradient to the reconstruction's, at the latents. multiple: the largest of
    `dmvae.transport.arrival.multiples`. The ratio grows while the distance is above the target and falls below it, so
    that one setting works for every reference; it grows twice as fast as it falls, since latents that drift away have
    done so by the time that it is measured, and the stage may end there. The ratio is the only state. Raises ValueError
    for a ratio, target or limit that is not positive, a multiple that is not finite, or limits in the wrong order.
    """
    low, high = limits
    require_positive(ratio=ratio, target=target, step=step, limits=low)
    if not math.isfinite(multiple):
        raise ValueError(f"multiple is {multiple}: the latents have diverged; lower the learning rate or the limits")
    if low > high:
        raise ValueError(f"limits are {limits}; give the lower one first")
    return min(high, max(low, ratio * math.exp(step * max(-1.0, min(2.0, GAIN * (multiple - target))))))
