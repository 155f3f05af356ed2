"""What latents are made of during matching, of the image alone or of a sample of the reference that it is written into,
and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from dmvae import config as configs
from dmvae.config import Values
from dmvae.models.base import Tokenizer
from dmvae.ranges import Count, Range, Width
from dmvae.references import Reference, draw
from dmvae.runtime.random import Random
from dmvae.runtime.words import counted
from dmvae.stages.approach import Recent
from dmvae.stages.tokenizer import drawn
from dmvae.tokenizers.autoencoder import Autoencoder

EDITED = ("reference", "assigned")
"""Kinds of `noise` that an editor of samples makes latents of."""
DRAWN = ("posterior", "fixed")
"""Kinds of `noise` by which latents are drawn about the image's mean."""
_ARRIVING: Values = {"objective": {"type": "transport"}, "balance": "distance", "target": 1.4, "weight": 1.0}
_RESHAPED: Values = {"objective": {"type": "transport"}, "weight": 1.0}
_EDITED: Values = {"noise": "assigned", "noise_groups": 32, "anchor": 0.3}
_DRAWN: Values = {"noise": "posterior", "objective": {"type": "hand_over"}, "target": 2.5, "student_steps": 2}


@dataclass(frozen=True, kw_only=True)
class Editing:
    """Fields of a matching that say what latents are made of."""

    noise: Literal["none", "posterior", "fixed", "reference", "assigned"] = configs.added("none")
    """"none": latents are a function of the image, a variational tokenizer's means. "posterior": they are drawn from
    its posterior, whose spread learns from all losses; the posteriors of all images together are what is matched.
    "fixed": the same with one spread for all images, `noise_std`, about what any tokenizer says of the image.
    "reference": the encoder writes the image into a sample of the reference (`dmvae.tokenizers.editor`). So latents
    can fill any distribution and start near it, from any tokenizer of ours. "assigned": the same, with the sample that
    suits the image, by optimal transport, or one of the group of samples that does."""
    noise_std: Annotated[float, Range(1e-3, 10)] | None = configs.added(None)
    """The spread of `noise: fixed`, in standard deviations of the latents that the reference is normalised by, per
    channel: 1 leaves no room for the image in a standard Gaussian."""
    noise_groups: Count | None = configs.added(None)
    """Groups of one size that `noise: assigned` divides images and samples into: fewer leave y more random, and so z
    nearer to the reference; more let y say more of the image. null: as many as there are samples."""
    noise_width: Width = configs.added(256)
    """Hidden width of the network that writes the image into the sample."""
    noise_bank: Count = configs.added(2048)
    """Samples of the reference that the finished tokenizer keeps for `noise: reference`."""
    anchor: Annotated[float, Range(1e-3, 1e3)] | None = configs.added(None)
    """How far an edit may lead away from its sample, in standard deviations of the reference along its principal
    directions: from about there on the sample pulls it back harder than the objective pulls. This keeps the fine
    structure of a reference that is thin in some directions, as features are, which sliced distances hardly see. null:
    no such pull."""


@dataclass
class Encoded:
    """A batch's latents, [n, C, H, W]."""

    raw: Tensor
    """As the decoder takes them, with the graph to the encoder in the tokenizer's turns."""
    latents: Tensor
    """Normalised as the reference's samples, detached."""
    labels: Tensor
    """int64 [n], as the objective is told them."""
    edit: Tensor | None = None
    """What was written into samples of the reference, where they are edited."""


@contextmanager
def as_saved(model: Tokenizer, drawn: bool, images: Iterable[Tensor] | None) -> Iterator[None]:
    """Within it the tokenizer is as its artifact has it: it draws latents or not, and its groups and prices are those
    of these images [n, c, h, w]; None where none are assigned. Afterwards it is as before."""
    editor = model.editor if isinstance(model, Autoencoder) and images is not None else None
    kept = [] if editor is None else [(buffer, buffer.clone()) for buffer in editor.buffers()]
    model.drawn = drawn
    if editor is not None:
        assert isinstance(model, Autoencoder)
        assert images is not None
        with torch.no_grad():
            mu = torch.cat([editor.normalize(model.describe(x)[1]) for x in images])
        for _ in range(2):
            editor.settle(mu)
    try:
        yield
    finally:
        model.drawn = False
        for buffer, value in kept:
            buffer.copy_(value)


def encode(
    config: Editing,
    model: Tokenizer,
    reference: Reference | None,
    plan: Recent,
    images: Tensor,
    labels: Tensor,
    rng: Random,
    settle: bool,
) -> Encoded:
    """Latents of images alone, or of samples of the reference that they are written into. reference: where samples are
    drawn from it. plan: recent latents of images, where samples are assigned to them; with `settle`, prices and groups
    follow these first."""
    if config.noise not in EDITED:
        out = model.encode(images)
        raw = drawn(out.latent_dist, rng) if config.noise in DRAWN else out.latents
        return Encoded(raw, model.normalize(raw.detach().float()), labels)
    assert isinstance(model, Autoencoder)
    assert model.editor is not None
    features, latents = model.describe(images)
    if config.noise == "assigned":
        mu = model.editor.normalize(latents.detach())
        plan.remember(mu)
        if settle:
            model.editor.settle(plan.filled)
        y = model.editor.draw(mu, rng, even=True)
    else:
        assert reference is not None
        y = draw(reference, len(images), rng, images.device)[0]
    raw = model.editor(features, latents, y)
    normalised = model.normalize(raw.detach().float())
    return Encoded(raw, normalised, labels, normalised - y)


def arriving(values: Values) -> Values:
    """A recipe whose matching names no objective gets the setting by which latents arrive at any reference, whatever
    the start (docs/results, "Arrival"): samples of the reference, each of the group that suits its image, are edited,
    held by transport and an anchor, and the pull follows the distance. A variational tokenizer draws its latents, and
    so does any where the section says `noise: posterior`; transport brings these near and the paper's objective
    refines them, for which the reference needs its teacher. A `pretrained` one has no place for an editor and moves its
    own latents; a `reshaped` one by transport alone, as no reconstruction speaks against it. What the section does
    name, it keeps; one that names an objective gets nothing of this, so `{type: dmd}` is the paper's. Latents that are
    drawn are normalised as they are drawn."""
    section, reference = values.get("matching"), values.get("reference")
    if not isinstance(section, dict) or not isinstance(reference, dict):
        return values
    shape, noise, named = values.get("autoencoder"), section.get("noise"), "objective" in section
    own = not values.get("pretrained")
    variational = own and isinstance(shape, dict) and shape.get("variational") is True
    if noise == "posterior" or (noise is None and variational and not named):
        default: Values = {} if named else _aimed(section, _ARRIVING | _DRAWN)
        return configs.merge({"matching": default, "reference": {"drawn": True}}, values)
    if named:
        return values
    if isinstance(source := values.get("pretrained"), dict) and source.get("type") == "reshaped":
        default = _RESHAPED
    else:
        default = _aimed(section, _ARRIVING | (_EDITED if own and noise in (None, "assigned") else {}))
    return configs.merge({"reference": {"teacher": False}, "matching": default}, values)


def _aimed(section: Values, default: Values) -> Values:
    """These defaults, without a `target` where the section's own settings look at none."""
    aims = section.get("balance", "distance") == "distance" or section.get("until") is not None
    return {name: value for name, value in default.items() if aims or name != "target"}


def unfit(config: Editing, model: Tokenizer, batch_size: int, relative: bool, until: str | None) -> Iterator[str]:
    """What an `Editing` asks for that this tokenizer does not have, or images in batches of so many; relative: the pull
    is a ratio of gradients; until: when the stage ends before its last step."""
    if config.noise in EDITED and until is not None:
        yield (
            f"matching.until: {until}: samples that are edited are at the reference from the first turn, so it would "
            f"end before images are written into them; set until to null, or matching.noise ({config.noise}) to another"
        )
    if config.noise == "posterior" and not model.has_spread:
        how = " (autoencoder.variational: true); use 'none'"
        if not isinstance(model, Autoencoder):
            how = ", which this `pretrained` has not; use 'fixed', one spread for all images, or 'none'"
        yield f"matching.noise: 'posterior' needs a tokenizer with one{how}"
    if config.noise in EDITED and not isinstance(model, Autoencoder):
        yield (
            f"matching.noise: {config.noise!r} puts another network behind the encoder, for which the files of this "
            f"`pretrained` ({model.config['source']['type']}) have no place; use 'none' or 'posterior'"
        )
    elif config.noise in EDITED and model.has_spread:
        yield f"matching.noise: {config.noise!r} has no use for a posterior; set autoencoder.variational: false"
    if model.parts().undone and (config.noise == "fixed" or relative):
        what = "noise: fixed" if config.noise == "fixed" else "balance: gradient or distance"
        yield (
            "matching: no reconstruction of this `pretrained` depends on what moves its latents, so "
            f"{what} has nothing to go by; set noise: none and balance: fixed"
        )
    if config.noise == "fixed" and config.noise_std is None:
        yield "matching.noise: 'fixed' needs a spread of latents about means; give matching.noise_std, such as 0.5"
    if config.noise != "fixed" and config.noise_std is not None:
        yield f"matching.noise_std: {config.noise_std:g} is the spread of matching.noise: fixed; leave it out"
    groups = config.noise_groups
    if groups is not None and config.noise != "assigned":
        yield f"matching.noise_groups: {groups} groups are of samples that images get; set matching.noise: assigned"
    elif groups is not None and (config.noise_bank % groups or groups > batch_size):
        yield (
            f"matching.noise_groups: {counted(groups, 'group')} of {config.noise_bank} samples (noise_bank), found in "
            f"{counted(batch_size, 'image')} (batch_size); give a number that divides those and is at most these"
        )
    if config.anchor is not None and (config.noise not in EDITED or not relative):
        yield (
            f"matching.anchor: {config.anchor:g} holds edits of samples of the reference, by a ratio of gradients; set "
            "matching.noise: reference or assigned, and matching.balance: gradient or distance"
        )
    if isinstance(model, Autoencoder) and model.editor is not None:
        yield (
            "pretrained: this tokenizer writes images into samples of the reference that it was matched to "
            "(matching.noise: reference); start from the one before, or train its decoder alone"
        )
