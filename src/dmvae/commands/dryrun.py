"""`dmvae run RECIPE --dry-run`: stages, sizes, parameters, memory and data, and what is missing. Trains nothing."""

from __future__ import annotations

import torch
from rich.table import Table

from dmvae import checks
from dmvae.commands.help import print_values
from dmvae.config import Values
from dmvae.datasets import open_dataset
from dmvae.inputs import Blueprint, build_tokenizer, latent_shape
from dmvae.pipeline import about_data
from dmvae.recipe import Recipe
from dmvae.runtime.console import console
from dmvae.training.stage import AnyTraining, TrainingStage

# float32 weights, gradient, AdamW's two moments, and the average
BYTES_TRAINED = 20
BYTES_FROZEN = 4


def print_plan(recipes: dict[str, Recipe]) -> None:
    """Print one table per variant, below it what the machine lacks, and at last the values of all fields."""
    for variant, recipe in recipes.items():
        images, missing = _data(recipe)
        missing += recipe.autoencoder.encoder.missing() if recipe.autoencoder and recipe.pretrained is None else []
        missing += checks.lacking(recipe, recipe.stages())
        if images["train"] is not None:
            missing += checks.problems(recipe, recipe.stages())
        shape = "x".join(map(str, latent_shape(recipe)))
        console.print(f"\n{variant}: {images['text']}; latents {shape} (stride {build_tokenizer(recipe).stride})")
        console.print(_table(recipe, images["train"], images["classes"]))
        for line in missing:
            console.print(f"  missing: {line}")
        if not missing:
            console.print("  nothing is missing")
    console.print("\nresolved values:")
    print_values(recipes)


def _table(recipe: Recipe, images: int | None, num_classes: int) -> Table:
    table = Table("stage", "steps", "batch", "epochs", "trained", "frozen", "memory without activations")
    for stage in recipe.stages():
        section = recipe.section(stage)
        if not issubclass(stage, TrainingStage):
            table.add_row(stage.name, "", "", "", "", "", "")
            continue
        trained, frozen = _parameters(recipe, stage, num_classes)
        memory = trained * BYTES_TRAINED + frozen * BYTES_FROZEN
        epochs = f"{section.steps * section.batch_size / images:.1f}" if images else "?"
        table.add_row(
            stage.name,
            f"{section.steps:,}",
            str(section.batch_size),
            epochs,
            f"{trained / 1e6:.2f} M",
            f"{frozen / 1e6:.2f} M",
            f"{memory / 2**30:.2f} GiB",
        )
    return table


def _parameters(recipe: Recipe, stage: type[AnyTraining], num_classes: int) -> tuple[int, int]:
    """(parameters that train, parameters that are frozen) in a stage, whose networks are built without weights."""
    reads = {name: recipe.section(name) for name in stage.reads if recipe.section(name) is not None}
    with torch.device("meta"):
        networks = stage(recipe.section(stage), Blueprint(recipe, "", reads, num_classes)).build()
    moving = {p for parameters in networks.trains.values() for p in parameters}
    trained = sum(p.numel() for p in moving)
    return trained, sum(p.numel() for p in networks.parameters()) - trained


def _data(recipe: Recipe) -> tuple[Values, list[str]]:
    try:
        train, _ = open_dataset(recipe.data, "train"), open_dataset(recipe.data, "test")
    except ValueError as error:
        return {"text": f"data {recipe.data.type} is not here", "train": None, "classes": 1000}, [str(error)]
    text = about_data(recipe).removeprefix("data: ")
    return {"text": text, "train": len(train), "classes": len(train.classes)}, []
