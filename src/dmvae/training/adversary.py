"""Whether the discriminator of a training told images from reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

LEAST = 0.05
"""Difference of its answers to images and to reconstructions, below which it tells nothing apart; 2 is certainty."""
STEPS = 500
"""Steps that it is given to learn."""


def idle_adversary(rows: Sequence[Mapping[str, float]]) -> str:
    """What to say of the rows of a training's log where the discriminator told nothing apart in the second half of its
    steps; "" where it did, where it had fewer than STEPS, and where there is none.

    Its gradient is small and points nowhere then, and the adaptive weight gives it its full share of the
    reconstruction's all the same.
    """
    seen = [row for row in rows if "adversarial/real" in row and "adversarial/fake" in row]
    if not seen or seen[-1]["step"] - seen[0]["step"] < STEPS:
        return ""
    late = seen[len(seen) // 2 :]
    gap = fmean(row["adversarial/real"] - row["adversarial/fake"] for row in late)
    if gap >= LEAST:
        return ""
    weights = [row["adversarial/weight"] for row in late if "adversarial/weight" in row]
    weight = f", and its loss had a weight of {fmean(weights):.2g}" if weights else ""
    return (
        f"the discriminator told nothing apart: in the second half of its steps its answers to images and to "
        f"reconstructions differed by {gap:.2g}, where 2 is certainty{weight}. Lower losses.adversarial.learning_rate "
        f"to a third or less, with norm: group where it is a patchgan, or start it from one that has learned "
        f"(losses.adversarial.start_from)"
    )
