"""When a matching fails: the figures that `training/health.py` watches, and their bounds."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from dmvae.evaluation.latents import scatter
from dmvae.inputs import Inputs
from dmvae.matching import LAG
from dmvae.runtime.transfer import Loggable
from dmvae.training.health import Bound

BOUNDS = (
    Bound(
        figure="health/spread",
        usual=1.0,
        below=0.2,
        means="the latents have collapsed: their spread is a small part of the reference's",
        advice="lower matching.weight or matching.learning_rate, or raise matching.student_steps or student_warmup",
        warns=0.5,
        warning="the latents have shrunk, as they do where they are far from the reference, which pulls them to its "
        "mean first; name no objective, for the setting that arrives, or hand_over; raise matching.student_steps where "
        "student/lag is above 1",
    ),
    Bound(
        figure="health/spread",
        usual=1.0,
        above=5.0,
        means="the latents grow without bound",
        advice="lower matching.learning_rate or matching.weight",
    ),
    Bound(
        figure="health/error",
        usual=1.0,
        above=1.5,
        means="reconstructions are worse than plain grey",
        advice="lower matching.learning_rate or matching.weight",
    ),
    Bound(
        figure=LAG,
        usual=1.0,
        above=1.5,  # a student of a standard Gaussian has 1.67 where latents have a third or three times its spread
        means="the student does not keep up with the latents",
        advice="raise matching.student_steps or student_learning_rate, or lower matching.learning_rate",
        slows=("tokenizer",),
    ),
    *(
        Bound(
            figure=f"distance/{view}",
            usual=2.0,
            above=3.0,
            means="the latents move away from the reference",
            advice="lower matching.learning_rate, or choose another matching.objective",
        )
        for view in ("whole", "token")
    ),
)
"""The bounds of a matching. health/spread is the latents' spread over the reference's, health/error the pixel loss over
that of plain grey images."""
UNPULLED = tuple(
    bound if bound.figure == "health/error" else replace(bound, above=math.inf, below=0.0, warns=0.0)
    for bound in BOUNDS
)
"""Those of a matching of weight 0: nothing holds its latents near the reference, and its student teaches nothing."""


def spread(z: Tensor) -> Tensor:
    """Root mean square over channels and places of each element's standard deviation over latents z [n, C, H, W]: a
    scalar. For a single latent, the standard deviation over its elements; for a single number its absolute value."""
    if z.numel() == 1:
        return z.abs().squeeze()
    return (z.var(0) if len(z) > 1 else z.var()).mean().sqrt()


def usual_spread(inputs: Inputs) -> float:
    """`spread` of samples of the reference; 1 where that is 0, or there are no samples yet."""
    name = "map.safetensors"
    here = inputs.weights and inputs.has("reference", name)
    return float(spread(inputs.tensors("reference", name)["latents"])) or 1.0 if here else 1.0


def shape_of(z: Tensor) -> dict[str, Loggable]:
    """Effective rank, standard deviation and absolute mean of channels over the images and places of latents z
    [n, C, H, W]; the mean alone for one place of one image."""
    figures: dict[str, Loggable] = {"health/mean": z.mean(dim=(0, 2, 3)).abs().mean()}
    if z[:, 0].numel() > 1:
        figures["health/effective_rank"] = scatter(z, "channels").effective_rank
        figures["health/std"] = z.std(dim=(0, 2, 3)).mean()
    return figures
