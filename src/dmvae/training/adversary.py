"""Whether the discriminator of a training told images from reconstructions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

LEAST = 0.05
"""Difference of its answers to images and to reconstructions, below which it tells nothing apart; 2 is certainty."""
STEPS = 500
"""Steps of the stage in which it is given time to learn; in `matching` it learns in one of `student_steps`."""


def told_apart(rows: Sequence[Mapping[str, float]]) -> tuple[int, float, float]:
    """(steps, difference of answers, weight of its loss) of the discriminator in the rows of a training's log: the
    stage's steps from its first row to its last, and the means over their second half. NaN where there is none."""
    seen = [row for row in rows if "adversarial/real" in row and "adversarial/fake" in row]
    if not seen:
        return 0, math.nan, math.nan
    late = seen[len(seen) // 2 :]
    weights = [row["adversarial/weight"] for row in late if "adversarial/weight" in row]
    gap = fmean(row["adversarial/real"] - row["adversarial/fake"] for row in late)
    return int(seen[-1]["step"] - seen[0]["step"]), gap, fmean(weights) if weights else math.nan


def idle_adversary(rows: Sequence[Mapping[str, float]]) -> str:
    """What to say of the rows of a training's log where the discriminator told nothing apart in the second half of its
    steps; "" where it did, where it had fewer than STEPS, and where there is none.

    Its gradient is small and points nowhere then, and the adaptive weight gives it its full share of the
    reconstruction's all the same: so the decoder is driven wherever the discriminator has begun to see something.
    """
    steps, gap, weight = told_apart(rows)
    if steps < STEPS or not gap < LEAST:
        return ""
    weighed = "" if math.isnan(weight) else f", and its loss had a weight of {weight:.2g}"
    return (
        f"the discriminator told nothing apart: in the second half of its steps its answers to images and to "
        f"reconstructions differed by {gap:.2g}, where 2 is certainty{weighed}. Limit that weight "
        f"(losses.adversarial.adaptive_most: 0.05), lower losses.adversarial.learning_rate, or start it from one that "
        f"has learned (losses.adversarial.start_from)"
    )
