"""Metric `kernel`: the kernel distance of two sets (KID), and its spread over subsets."""

from __future__ import annotations

from dmvae.evaluation.feature_set import in_order
from dmvae.evaluation.kernel import kernel_distance
from dmvae.evaluation.metrics import Figure, Metric, Scores, Sets
from dmvae.registry import register


@register("kernel")
class Kernel(Metric):
    of_reconstructions = True
    figures = (
        Figure("kid", "gKID", "", -1, "{:.4g}", "kernel distance from generated to test images; can be below 0"),
    )

    def sets(self, sets: Sets) -> Scores:
        if sets.real.pool is None or sets.fake.pool is None:
            return Scores()
        mean, spread = kernel_distance(in_order(sets.real.pool), in_order(sets.fake.pool))
        name = f"{sets.prefix}kid"
        found = {f"{name}_{sets.features}": mean, f"{name}-std_{sets.features}": spread}
        return Scores({name: value for name, value in found.items() if value is not None})

    def short(self, prefix: str, features: str) -> dict[str, str]:
        return {"kid": f"gkid_{features}"} if prefix == "g" else {}
