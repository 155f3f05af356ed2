"""Figures of a run that no metric makes, and what a plugin's metric must not call its own."""

from __future__ import annotations

import re

from dmvae.evaluation.metrics import figures
from dmvae.evaluation.reconstruct import LPIPS
from dmvae.evaluation.scores import Figure

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
RESERVED = (
    *("features", "count", "latents", "metrics", "intervals", "per_class", "manifest", "proxies", "arrival"),
    *("images_seen", "z", "mean_max", "std_min", "std_max", "spread", "kurtosis"),
)
"""Names in metrics.json and summary.json, and on the way there, that have no column of their own."""


def require_apart() -> None:
    """Raise ValueError where a metric's figure, of a plugin's too, has the key or the title of another figure, or a key
    that files cannot have: one of the two would stand in the other's place."""
    ours = {figure.key: figure for figure in (*OTHERS, *FOLDED)}
    titles = {figure.title: figure for figure in ours.values()}
    for key, figure in figures().items():
        if not re.fullmatch(r"[\w-]+", key):
            raise ValueError(f"figure {key!r}: its key is a name in files; use letters, digits, - and _")
        if key in ours or key in RESERVED:
            raise ValueError(f"figure {key!r}: that key has a meaning in every run already; give it another")
        if figure.title in titles:
            raise ValueError(
                f"figure {key!r}: it is called {figure.title!r} in tables, as {titles[figure.title].key!r} is, which "
                "every run may have; give it another title"
            )
