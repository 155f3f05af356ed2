"""What can be known to be wrong with a recipe before any of its stages is run: a run stops at the first, a dry run
lists them all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dmvae.datasets import open_dataset
from dmvae.inputs import Inputs
from dmvae.losses.objective import new_discriminator
from dmvae.losses.perceptual import LPIPSPerceptual
from dmvae.recipe import Recipe
from dmvae.training.contract import TrainingConfig
from dmvae.training.data import require_batch

TRAIN_DECODERS = {"tokenizer", "matching", "decoder"}
_built: set[str] = set()
"""Parts that could be built in this process: many variants share one, and each takes a second. What failed is tried
again."""


def lacking(recipe: Recipe, stages: list[str]) -> Iterator[str]:
    """Packages and weights that these stages need and the machine lacks."""
    parts: list[tuple[str, Any]] = []
    if TRAIN_DECODERS & set(stages) and recipe.losses.perceptual is not None:
        parts.append(("losses.perceptual", recipe.losses.perceptual))
    if recipe.evaluate is not None and "evaluate" in stages:
        parts += [("evaluate", features) for features in (recipe.evaluate.features, *recipe.evaluate.also)]
        if recipe.evaluate.lpips:
            parts.append(("evaluate.lpips", LPIPSPerceptual()))
    for place, part in parts:
        if repr(part) not in _built:
            found = list(_complaint(place, part.build))
            yield from found
            if not found:
                _built.add(repr(part))
    if recipe.run.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        yield 'run.tracker: wandb is not installed: pip install "dmvae[wandb]"'


def problems(recipe: Recipe, stages: list[str]) -> Iterator[str]:
    """What does not fit the data or the latents in these stages. The data set must be there."""
    items = len(open_dataset(recipe.data, "train"))
    for name in stages:
        section = getattr(recipe, name)
        if isinstance(section, TrainingConfig) and name != "reference":  # which draws its own data
            yield from _complaint("", partial(require_batch, name, section.batch_size, items))
    if TRAIN_DECODERS & set(stages):
        yield from _complaint("", partial(_try_discriminator, recipe))
    if recipe.reference is not None and "reference" in stages:
        inputs = Inputs(recipe, "", Path(), {}, torch.device("cpu"))
        yield from _complaint("reference.distribution", partial(recipe.reference.distribution.check, inputs))
    if recipe.evaluate is not None and "evaluate" in stages:
        k, latents = recipe.evaluate.neighbours, min(recipe.evaluate.knn_count, items)
        if k > latents:
            yield f"evaluate.neighbours: {k} neighbours are sought among {latents} latents; use at most {latents}"


def _try_discriminator(recipe: Recipe) -> None:
    data = recipe.data
    with torch.device("meta"):
        discriminator = new_discriminator(recipe.losses, data.channels)
        if discriminator is not None:
            discriminator(torch.empty(2, data.channels, data.size, data.size))


def _complaint(place: str, check: Callable[[], Any]) -> Iterator[str]:
    try:
        check()
    except ValueError as error:
        yield f"{place}: {error}" if place else str(error)
