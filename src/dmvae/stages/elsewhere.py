"""Latents that were encoded elsewhere (`data: {type: latents}`): how the stage `latents` takes them, and what they
cannot give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dmvae.datasets import open_dataset
from dmvae.datasets.latents import Latents, LatentsData
from dmvae.datasets.mixed import Chosen, stratified
from dmvae.inputs import Inputs
from dmvae.latents.store import link_shards
from dmvae.models.base import Tokenizer
from dmvae.sections import LatentsConfig, Sections
from dmvae.tokenizers import Normalisation
from dmvae.tokenizers.reshaped import ReshapedTokenizer

SOME = 2048
"""Latents, at most, with which the statistics beside the files are compared."""
APART = 0.25
"""How far those may be from the latents': of means, in standard deviations; of these, as a share. LightningDiT's are of
some of the latents."""
COMPARED = 256
"""Test images, at most, whose latents are compared with as many of the files."""
NARROW, WIDE, SHIFTED = 0.5, 2.0, 1.0
"""Limits of the spread and the mean that latents of test images have, after the files' normalisation: far outside of
what another choice of images does, and inside of what a scaling factor does (0.18 of Stable Diffusion's)."""


def take(
    inputs: Inputs,
    tokenizer: Tokenizer,
    latents: Latents,
    names: tuple[str, str],
    whitened: float,
    given: Normalisation | None,
) -> None:
    """Make the stores of latents, and of mirror images' where the files hold them, in folders of these names: links to
    the files, or, where they are no shards with labels or the tokenizer reshapes latents, shards of our own. whitened,
    given: as `dmvae.latents.store.encode_dataset` has them; without `given`, the statistics beside the files count.
    Raises ValueError where these, or the tokenizer, are of other latents."""
    reshapes, linked = isinstance(inputs.sections.pretrained, ReshapedTokenizer), is_linked(inputs.sections)
    if given is None and latents.files.statistics and not reshapes:
        given = Normalisation(**latents.files.statistics)
        _require_near(given, latents)
    for name, part in zip(names, (latents, latents.mirrors()), strict=True):
        if part is None:
            continue
        if linked:
            link_shards(latents.files.paths, inputs.out / name, part.tensor, whitened, given)
        else:
            told = f"latents, {name}" if name != names[0] else name
            inputs.encode(tokenizer, part, inputs.out / name, told, whitened=whitened, given=given)
    if not reshapes and isinstance(inputs.data, LatentsData) and inputs.data.test is not None:
        _require_alike(inputs, tokenizer, latents)


def is_linked(sections: Sections) -> bool:
    """Whether the stage `latents` has links to files in place of latents: to shards with labels that nothing reshapes.
    Raises ValueError for data that cannot be opened."""
    latents = open_dataset(sections.data, "train") if sections.data.are_latents else None
    reshapes = isinstance(sections.pretrained, ReshapedTokenizer)
    return isinstance(latents, Latents) and latents.files.linkable and not reshapes


def _mean_std(latents: Latents, count: int) -> tuple[Tensor, Tensor]:
    """Of each channel, measured on `count` of the latents at most."""
    some = latents.__getitems__(range(0, len(latents), -(-len(latents) // count)))[0]
    return some.mean((0, 2, 3)), some.std((0, 2, 3), correction=0).clamp_min(1e-6)  # a channel may be dead


def _require_near(given: Normalisation, latents: Latents) -> None:
    mean, std = _mean_std(latents, SOME)
    apart = torch.stack([(given.mean - mean) / std, given.std / std - 1]).abs().amax(0)
    channel = int(apart.argmax())
    if apart[channel] > APART:
        theirs, found = (
            f"mean {m[channel]:.4g} and std {s[channel]:.4g}" for m, s in ((given.mean, given.std), (mean, std))
        )
        raise ValueError(
            f"the statistics beside the latents give channel {channel} {theirs}, and the latents have {found}: they "
            "are of other latents; delete their file, and they are measured"
        )


@torch.no_grad()
def _require_alike(inputs: Inputs, tokenizer: Tokenizer, latents: Latents) -> None:
    images = inputs.test_set
    some = Chosen(images, stratified(images.labels, COMPARED))
    model = tokenizer.to(inputs.device).eval()
    z = torch.cat([model.encode(x).latents.float().cpu() for x in inputs.batches(some)])
    mean, std = _mean_std(latents, COMPARED)  # not the given ones, which say nothing of the files
    z = (z - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    spread, shift = float(z.std()), float(z.mean((0, 2, 3)).square().mean().sqrt())
    if not (NARROW <= spread <= WIDE and shift <= SHIFTED):
        raise ValueError(
            f"data.root: after the normalisation of these latents, those that `pretrained` makes of test images have "
            f"standard deviation {spread:.2g} and means of {shift:.2g}, where 1 and 0 are right: the files hold scaled "
            "or normalised latents, or those of another tokenizer; give raw ones, as its encode makes them"
        )


def unfit(config: LatentsConfig, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
    """What a recipe asks of latents that are encoded already and they cannot give."""
    latents, source = inputs.train_set, inputs.sections.pretrained
    assert isinstance(latents, Latents)
    if source is None:
        yield "data: latents are of a finished tokenizer; name it under `pretrained`"
    trained = [name for name in ("tokenizer", "decoder") if name in others]
    if "matching" in others and not isinstance(source, ReshapedTokenizer):
        trained.append("matching")
    for name in trained:
        told = ", or take pretrained: {type: reshaped, source: ...}, which needs none" * (name == "matching")
        yield f"{name}: it trains on images, and data.type: latents has none; set {name}: null{told}"
    for name, why in (
        ("stored", "all latents are stored already"),
        ("mirrored", "files that hold latents_flip give mirror images"),
        ("drawn", "the files say what was drawn"),
    ):
        if getattr(config, name):
            yield f"latents.{name}: {why}; leave it out"
    if source is not None and latents.files.shape != inputs.latent_shape:
        yield (
            f"data.root: {latents.files.paths[0]} holds latents {list(latents.files.shape)}, and `pretrained` makes "
            f"{list(inputs.latent_shape)} of images of data.size {inputs.data.size}; set data.size to theirs, or name "
            "their tokenizer"
        )
