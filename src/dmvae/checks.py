"""Problems of a recipe that can be found before any stage runs: a run stops at the first, a dry run lists them all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from dmvae.datasets import open_dataset
from dmvae.inputs import Inputs, build_autoencoder, first_tokenizer
from dmvae.recipe import Recipe
from dmvae.stages.reconstruction import new_discriminator
from dmvae.training.data import require_batch
from dmvae.training.stage import AnyStage, Buildable, TrainingStage

Stages = Sequence[AnyStage]
_built: set[str] = set()
"""Parts that this process has built already: variants share parts, and building takes a second. Failures are not
remembered."""


def lacking(recipe: Recipe, stages: Stages) -> Iterator[str]:
    """Packages and weights that these stages need and that are missing on this machine."""
    parts: list[tuple[str, Buildable]] = []
    if any(stage.trains_decoder for stage in stages) and recipe.losses.perceptual is not None:
        parts.append(("losses.perceptual", recipe.losses.perceptual))
    for stage in stages:
        parts += stage.parts(recipe.section(stage), recipe)
    for place, part in parts:
        if repr(part) not in _built:
            found = list(_complaint(place, part.build))
            yield from found
            if not found:
                _built.add(repr(part))
    if recipe.run.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        yield 'run.tracker: wandb is not installed: pip install "dmvae[wandb]"'


def problems(recipe: Recipe, stages: Stages) -> Iterator[str]:
    """Settings of these stages that do not fit the data or the latents. The data set must be available."""
    items = len(open_dataset(recipe.data, "train"))
    inputs = Inputs(recipe, "", Path(), {}, torch.device("cpu"))
    if any(stage.trains_decoder for stage in stages):
        yield from _complaint("", partial(_try_discriminator, recipe))
    if recipe.autoencoder is not None:
        yield from _complaint("autoencoder", partial(_try_autoencoder, recipe))
    if recipe.pretrained is not None and any(stage.trains_decoder for stage in stages):
        untrainable = list(_complaint("", partial(_try_start, recipe)))
        yield from untrainable
        if untrainable:  # the stages' own questions are about that tokenizer
            return
    yield from _complaint("data", partial(_try_data, recipe))
    for stage in stages:
        section = recipe.section(stage)
        if issubclass(stage, TrainingStage) and not stage.draws:
            yield from _complaint("", partial(require_batch, stage.name, section.batch_size, items))
        others = {name: recipe.section(name) for name in stage.reads if recipe.section(name) is not None}
        yield from stage.problems(section, inputs, others)


def _try_discriminator(recipe: Recipe) -> None:
    data = recipe.data
    with torch.device("meta"):
        discriminator = new_discriminator(recipe.losses, data.channels)
        if discriminator is not None:
            discriminator(torch.empty(2, data.channels, data.size, data.size))


def _try_autoencoder(recipe: Recipe) -> None:
    """Raise ValueError for an encoder or a decoder that returns another shape than it says."""
    data = recipe.data
    with torch.device("meta"):
        model = build_autoencoder(recipe)
        features = model.encoder(torch.empty(2, data.channels, data.size, data.size))
        side = data.size // model.stride
        latents = torch.empty(2, model.config.latent_channels, side, side)
        images = model.decoder(latents)
    for part, found, wanted in (
        ("encoder", features, (2, model.encoder.channels, side, side)),
        ("decoder", images, (2, data.channels, data.size, data.size)),
    ):
        if tuple(found.shape) != wanted:
            kind = getattr(recipe.autoencoder, part).type
            raise ValueError(
                f"{part}: {kind!r} returns {list(found.shape)}; its stride and channels say {list(wanted)}"
            )


def _try_start(recipe: Recipe) -> None:
    """Raise ValueError for a finished tokenizer that cannot be trained further."""
    with torch.device("meta"):
        first_tokenizer(recipe, weights=False)


def _try_data(recipe: Recipe) -> None:
    """Raise ValueError for a data set whose first and last items are not uint8 images of the recipe's shape."""
    data = recipe.data
    dataset = open_dataset(data, "train")
    wanted = (data.channels, data.size, data.size)
    for i in (0, len(dataset) - 1):
        image, label = dataset[i]
        if not isinstance(image, torch.Tensor) or image.dtype != torch.uint8 or tuple(image.shape) != wanted:
            found = f"{image.dtype} {list(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
            raise ValueError(f"{data.type!r}: item {i} is {found}; give a uint8 image {list(wanted)}, values 0 to 255")
        if not 0 <= int(label) < len(dataset.classes):
            raise ValueError(f"{data.type!r}: item {i} has the label {label}; there are {len(dataset.classes)} classes")


def _complaint(place: str, check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except ValueError as error:
        yield f"{place}: {error}" if place else str(error)
