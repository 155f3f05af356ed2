"""The figures of a run's tables, in order: the same on the terminal, in the report and in the model card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dmvae.config import Values
from dmvae.evaluation.metrics import figures
from dmvae.evaluation.other_figures import OTHERS
from dmvae.evaluation.scores import Figure
from dmvae.runtime.words import counted

ORDER = (
    *("psnr", "ssim", "lpips", "rfd", "gfd", "grfd", "kid", "is"),
    *("precision", "recall", "density", "coverage", "agreement", "gfd-per-class", "memorisation"),
    *("generator_loss", "sampled_told", "sampled_whole", "sampled_token", "knn", "linear_probe", "effective_rank"),
    *("distance_to_reference", "distance_whole", "distance_token", "token_accuracy", "latent_accuracy"),
)
"""The figures of plugins' metrics come after these, and the time last."""


FEW = 2048
"""Number of images below which figures have a warning."""


def shown(keys: Iterable[str]) -> dict[str, Figure]:
    """The figures of these keys that tables show, in order; `gfd@2` is gFD at guidance scale 2, beside `gfd`."""
    keys = list(keys)
    known = figures() | {figure.key: figure for figure in OTHERS}
    rest = [key for key in known if key not in ORDER and key != "seconds"]
    found: dict[str, Figure] = {}
    for key in [*ORDER, *rest, "seconds"]:
        if key in keys:
            found[key] = known[key]
        for guided in sorted((k for k in keys if k.startswith(f"{key}@")), key=scale_of):
            scale = f"{scale_of(guided):g}"
            title = f"{known[key].title} w={scale}"
            found[guided] = replace(known[key], key=guided, title=title, meaning=f"the same at guidance {scale}")
    return found


def of_few(manifests: Iterable[Values]) -> str:
    """A warning for figures with these manifests if they rest on few images, generated or compared with; "" if not."""
    sides = [[side["count"] for side in (m, m.get("reference", {})) if "count" in side] for m in manifests]
    few = [min(counts) for counts in sides if min(counts, default=FEW) < FEW]
    if not few:
        return ""
    number = ("" if min(few) == max(few) else f"{min(few):,} to ") + counted(max(few), "image")
    return (
        f"They rest on {number}: of fewer than about {FEW:,}, Frechet distances are biased upwards by much and "
        "the other figures are rough; compare them only with figures of as many images."
    )


def scale_of(key: str) -> float:
    """The guidance scale of a key KEY@SCALE; infinity if it is no number."""
    try:
        return float(key.partition("@")[2])
    except ValueError:
        return float("inf")
