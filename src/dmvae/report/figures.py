"""The figures of a run's tables, in order: the same on the terminal, in the report and in the model card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dmvae.config import Values
from dmvae.evaluation.metrics import figures
from dmvae.evaluation.reconstruct import LPIPS
from dmvae.evaluation.scores import Figure
from dmvae.runtime.words import counted

CHANCE = (
    "sliced Wasserstein distance to the reference, as a multiple of that between two samples of it; up to 2 is arrival"
)
SAMPLED = (
    "sliced Wasserstein distance from the generator's latents to the data's, as a multiple of that between two sets "
    "of the data's; 1 is a perfect generator, and the decoder has no influence"
)


def _share(key: str, title: str, meaning: str) -> Figure:
    """A figure of how often a small network tells two kinds apart; lower is better."""
    return Figure(key, title, "%", -1, "{:.1f}", meaning)


def _multiple(key: str, title: str, meaning: str, of: str = "chance") -> Figure:
    """A figure in multiples of chance, lower is better; or in multiples `of` another number, where 1 is best."""
    return Figure(key, title, f"× {of}", -1 if of == "chance" else 0, "{:.2f}", meaning)


OTHERS = (
    LPIPS,
    Figure(
        "generator_loss",
        "generator loss",
        "",
        0,
        "{:.3f}",
        "loss of the generator on test latents; a part of it cannot be learned away, and is smaller for latents that "
        "fill few dimensions, so it is not ranked: sampled latents show how well they are modelled",
    ),
    _share(
        "sampled_told",
        "sampled latents told apart",
        "how often a small network tells a sampled latent from one of the data; 50 % is a perfect generator",
    ),
    _multiple("sampled_whole", "sampled latents", f"{SAMPLED}, over whole latents"),
    _multiple("sampled_token", "sampled tokens", f"{SAMPLED}, over tokens"),
    Figure(
        "effective_rank",
        "effective rank",
        "",
        0,
        "{:.1f}",
        "how many directions of the latents' channels carry variance",
    ),
    Figure(
        "distance_to_reference", "to reference", "", -1, "{:.4g}", "sliced Wasserstein distance from the latents to it"
    ),
    _multiple("distance_whole", "distance, latents", f"{CHANCE}, over whole latents"),
    _multiple("distance_token", "distance, tokens", f"{CHANCE}, over tokens"),
    _share(
        "token_accuracy",
        "tokens told apart",
        "how often a small network tells a token of the latents from the reference's; 50 % is chance, up to 60 arrival",
    ),
    _share(
        "latent_accuracy",
        "latents told apart",
        "the same for whole latents, which is stricter: it sees how tokens depend on each other; not part of the "
        "verdict",
    ),
    Figure("seconds", "time", "s", 0, "{:.0f}", "of all its stages, including those shared with others"),
)
"""Figures that no metric makes."""
FOLDED = (
    _share("sampled_token_told", "sampled tokens told apart", "as sampled latents told apart, for single tokens"),
    _multiple(
        "sampled_spread",
        "spread, sampled latents",
        "standard deviation of sampled latents divided by that of the data's; below 1, samples are too alike",
        "data",
    ),
    _multiple(
        "sampled_rank",
        "rank, sampled latents",
        "effective rank of sampled latents divided by that of as many of the data's",
        "data",
    ),
    _multiple("distance_pair", "distance, pairs", f"{CHANCE}, over pairs of neighbouring tokens"),
    _multiple(
        "distance_energy",
        "energy distance",
        "energy distance of whole latents to the reference, as a multiple of that between two samples of it",
    ),
    _multiple(
        "spread_to_reference",
        "spread, latents",
        "standard deviation of the latents divided by the reference's; 1 is equally wide",
        "reference",
    ),
    _multiple(
        "rank_to_reference",
        "rank, latents",
        "effective rank of whole latents divided by that of as many samples of the reference; 1 is equal",
        "reference",
    ),
    Figure(
        "mixing",
        "mixing",
        "%",
        1,
        "{:.1f}",
        "with latents scaled as the reference: 50 % if the nearest neighbour of a latent, or of a sample of the "
        "reference, is of the other kind half of the time; 0 if it always or never is",
    ),
)
"""Figures that only the report shows, under a fold."""
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
