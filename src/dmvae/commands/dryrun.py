"""`dmvae run RECIPE --dry-run`: stages, sizes, parameters, memory and data, and what is missing. Trains nothing."""

from __future__ import annotations

from typing import Any

import torch
from rich.table import Table
from torch import nn

from dmvae import checks
from dmvae.datasets import open_dataset
from dmvae.inputs import build_tokenizer, describe_latents
from dmvae.matching import BringsStudent
from dmvae.recipe import Recipe
from dmvae.runtime.console import console
from dmvae.stages import STAGES
from dmvae.training.contract import TrainingConfig

# float32 weights, gradient, AdamW's two moments, and the average
BYTES_TRAINED = 20
BYTES_FROZEN = 4


def print_plan(recipes: dict[str, Recipe]) -> None:
    """Print one table per variant, and below it what the machine lacks."""
    for variant, recipe in recipes.items():
        images, missing = _data(recipe)
        stages = [stage.NAME for stage in STAGES if getattr(recipe, stage.NAME) is not None]
        missing += recipe.autoencoder.encoder.missing() if recipe.autoencoder and recipe.pretrained is None else []
        missing += checks.lacking(recipe, stages)
        if images["train"] is not None:
            missing += checks.problems(recipe, stages)
        networks = _networks(recipe, images["classes"])
        shape = "x".join(map(str, describe_latents(recipe)))
        stride = networks["autoencoder"].stride
        console.print(f"\n{variant}: {images['text']}; latents {shape} (stride {stride})")
        console.print(_table(recipe, networks, images["train"]))
        for line in missing:
            console.print(f"  missing: {line}")
        if not missing:
            console.print("  nothing is missing")


def _table(recipe: Recipe, networks: dict[str, nn.Module], images: int | None) -> Table:
    table = Table("stage", "steps", "batch", "epochs", "trained", "frozen", "memory without activations")
    for stage in STAGES:
        section = getattr(recipe, stage.NAME)
        if section is None:
            continue
        if not isinstance(section, TrainingConfig):
            table.add_row(stage.NAME, "", "", "", "", "", "")
            continue
        trained, frozen = (sum(map(_count, part)) for part in _roles(recipe, stage.NAME, networks))
        memory = trained * BYTES_TRAINED + frozen * BYTES_FROZEN
        epochs = f"{section.steps * section.batch_size / images:.1f}" if images else "?"
        table.add_row(
            stage.NAME,
            f"{section.steps:,}",
            str(section.batch_size),
            epochs,
            f"{trained / 1e6:.2f} M",
            f"{frozen / 1e6:.2f} M",
            f"{memory / 2**30:.2f} GiB",
        )
    return table


def _networks(recipe: Recipe, num_classes: int) -> dict[str, Any]:
    """Every network of the recipe on the meta device."""
    from dmvae.losses.objective import new_discriminator

    tokenizer = build_tokenizer(recipe)
    networks: dict[str, Any] = {"autoencoder": tokenizer}
    shape = describe_latents(recipe)
    with torch.device("meta"):
        if recipe.reference is not None and not recipe.reference.distribution.closed_form:
            networks["teacher"] = recipe.reference.model.build(shape, num_classes)
        if recipe.matching is not None:
            objective = recipe.matching.objective.build(num_classes)
            if isinstance(objective, BringsStudent):
                networks["student"] = objective.build_student(shape, num_classes)
            else:  # without a teacher to copy, the student has a model of its own
                networks["student"] = networks.get("teacher") or recipe.matching.model.build(shape, num_classes)
        if recipe.generator is not None:
            networks["generator"] = recipe.generator.model.build(shape, num_classes)
        discriminator = new_discriminator(recipe.losses, recipe.data.channels)
        networks["discriminator"] = discriminator or nn.Identity()
    return networks


def _roles(recipe: Recipe, stage: str, networks: dict[str, Any]) -> tuple[list[nn.Module], list[nn.Module]]:
    """(networks that train, networks that are frozen) in a stage."""
    if recipe.tokenizer is None:  # then nothing but the generator trains
        return [networks[stage]], []
    ae, adversary = networks["autoencoder"], networks["discriminator"]
    teacher, student, generator = (networks.get(n, nn.Identity()) for n in ("teacher", "student", "generator"))
    rest = [ae.bottleneck, ae.decoder, adversary]
    moves, aligned = recipe.tokenizer.train_encoder, recipe.tokenizer.alignment is not None
    return {
        "encoder": ([ae.encoder], []),
        "tokenizer": ([ae.encoder, *rest] if moves else rest, [ae.encoder] if aligned or not moves else []),
        "reference": ([teacher], [ae]),
        "matching": ([ae, adversary, student], [teacher]),
        "decoder": ([ae.decoder, adversary], [ae.encoder, ae.bottleneck]),
        "generator": ([generator], []),
    }[stage]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _data(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    try:
        train, test = open_dataset(recipe.data, "train"), open_dataset(recipe.data, "test")
    except ValueError as error:
        return {"text": f"data {recipe.data.type} is not here", "train": None, "classes": 1000}, [str(error)]
    text = f"{len(train):,} training and {len(test):,} test images of {len(train.classes)} classes"
    return {"text": text, "train": len(train), "classes": len(train.classes)}, []
