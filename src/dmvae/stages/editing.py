"""How latents are made during matching: from the image alone, or by editing a sample of the reference; and the settings
for which that is impossible."""

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
"""Kinds of `noise` where latents are samples of the reference, edited."""
DRAWN = ("posterior", "fixed")
"""Kinds of `noise` where latents are drawn around the image's mean."""
_ARRIVING: Values = {"objective": {"type": "transport"}, "balance": "distance", "target": 1.4, "weight": 1.0}
_RESHAPED: Values = {"objective": {"type": "transport"}, "weight": 1.0}
_EDITED: Values = {"noise": "assigned", "noise_groups": 32, "anchor": 0.3}
_DRAWN: Values = {"noise": "posterior", "objective": {"type": "hand_over"}, "target": 2.5, "student_steps": 2}


@dataclass(frozen=True, kw_only=True)
class Editing:
    """Fields of a matching that say how latents are made."""

    noise: Literal["none", "posterior", "fixed", "reference", "assigned"] = configs.added("none")
    """"none": latents are a function of the image; for a variational tokenizer, the means. "posterior": they are drawn
    from the tokenizer's posterior, whose spread learns from all losses; the posteriors of all images together are
    matched. "fixed": they are drawn around the latents of any tokenizer, with one spread for all images, `noise_std`.
    "reference": the encoder writes the image into a sample of the reference (`dmvae.tokenizers.editor`), so that
    latents can have any distribution and start near it, from any tokenizer of ours. "assigned": the same, with the
    sample that suits the image by optimal transport, or a random one of the group of samples that does."""
    noise_std: Annotated[float, Range(1e-3, 10)] | None = configs.added(None)
    """The standard deviation of `noise: fixed`, in units of the one per channel by which the reference is normalised: 1
    leaves no room for the image in a standard Gaussian."""
    noise_groups: Count | None = configs.added(None)
    """Groups of equal size into which `noise: assigned` divides images and samples. With fewer groups the sample is
    more random, and latents are nearer to the reference; with more it says more of the image. null: as many as
    samples."""
    noise_width: Width = configs.added(256)
    """Hidden width of the network that writes the image into the sample."""
    noise_bank: Count = configs.added(2048)
    """Samples of the reference that the finished tokenizer keeps for `noise: reference`."""
    anchor: Annotated[float, Range(1e-3, 1e3)] | None = configs.added(None)
    """How far an edit may lead from its sample, in standard deviations of the reference along its principal directions:
    beyond about this, a pull back to the sample is stronger than the objective's pull. This keeps the fine structure of
    references that are thin in some directions, as features are, which sliced distances hardly see. null: no pull
    back."""


@dataclass
class Encoded:
    """A batch's latents, [n, C, H, W]."""

    raw: Tensor
    """As the decoder takes them; in the tokenizer's updates with the graph to the encoder."""
    latents: Tensor
    """Normalised as the reference's samples, detached."""
    labels: Tensor
    """int64 [n], as the objective gets them."""
    edit: Tensor | None = None
    """Edited latents minus the samples of the reference, normalised; None where none are edited."""


@contextmanager
def as_saved(model: Tokenizer, drawn: bool, images: Iterable[Tensor] | None) -> Iterator[None]:
    """In the block the tokenizer is as its artifact will be: it draws latents if `drawn`, and groups and prices of its
    editor are those of `images`, batches [n, c, h, w]; None where no samples are assigned. Afterwards it is as
    before."""
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
    """Latents of images [n, c, h, w] with labels [n], made as `config` says. reference: only for `noise: reference`,
    which draws from it. plan: recent latents of images, to which samples are assigned; with `settle`, prices and groups
    are first updated on them."""
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
    """The recipe's values with defaults for a matching that names no objective: the setting by which latents arrive at
    any reference from any start (docs/results, "Arrival").

    - A tokenizer of the recipe edits samples of the reference, of the group that suits the image, with transport, an
      anchor and a weight that follows the distance.
    - A variational one, or one with `noise: posterior`, draws its latents; transport brings them near and the paper's
      objective, which needs the reference's teacher, refines them.
    - A `pretrained` one has no place for an editor and moves its own latents; a `reshaped` one by transport alone,
      since its reconstructions cannot get worse.

    What the section names, it keeps. With an objective, such as `{type: dmd}`, the paper's, it gets none of these.
    Where latents are drawn from posteriors, `reference.drawn` is set too.
    """
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
    """The defaults, without `target` where the section's own settings do not use one."""
    aims = section.get("balance", "distance") == "distance" or section.get("until") is not None
    return {name: value for name, value in default.items() if aims or name != "target"}


def unfit(config: Editing, model: Tokenizer, batch_size: int, relative: bool, until: str | None) -> Iterator[str]:
    """Messages for settings that do not fit the tokenizer or the batch size. relative: whether the weight is a ratio of
    gradients. until: `matching.until`."""
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
