"""Small data sets: sizes in a recipe that are larger than the data, brought down to what there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from dmvae.config import Values
from dmvae.datasets import open_dataset
from dmvae.recipe import Recipe, method_of
from dmvae.runtime import distributed
from dmvae.runtime.words import counted
from dmvae.training.stage import TrainingStage

WITHIN = ("decoded", "noise_groups")
"""Fields that are no larger than their section's batch."""


def fit(
    recipes: dict[str, Recipe], asked: Collection[str] = (), ranks: int | None = None
) -> tuple[dict[str, Recipe], list[str]]:
    """(recipes whose batch sizes and `evaluate.neighbours` are lowered to the size of their training sets; messages on
    the changes). Lowered batches divide over `ranks` (default: that of this process's group).

    Fields in `asked`, such as "tokenizer.batch_size", come from the command line and stay: where they do not fit,
    `checks` gives the error. A recipe whose data cannot be opened is returned as it is.
    """
    fitted, said = {}, dict[str, None]()
    for variant, recipe in recipes.items():
        try:
            items = len(open_dataset(recipe.data, "train"))
        except ValueError:
            fitted[variant] = recipe
            continue
        changes: Values = {}
        for section, name, value, of in _too_large(recipe, items, ranks or distributed.world_size()):
            place = f"{section}.{name}"
            given = (place, *(f"variants.{name}.{place}" for name in (variant, method_of(variant, recipe))))
            if not any(option in given for option in asked):
                changes[section] = dataclasses.replace(changes.get(section, recipe.section(section)), **{name: value})
                was = getattr(recipe.section(section), name)
                there = f"{counted(items, 'image')}{' and their mirror images' if of > items else ''}"
                said[f"{place} is {value} in place of {was}: the training set has {there}"] = None
        fitted[variant] = dataclasses.replace(recipe, **changes)
    return fitted, list(said)


def _too_large(recipe: Recipe, images: int, ranks: int) -> Iterator[tuple[str, str, int, int]]:
    """(section, field, value that fits, items that there are) of what is larger than the training set."""
    for stage in recipe.stages():
        section = recipe.section(stage)
        if (
            issubclass(stage, TrainingStage)
            and not stage.draws
            and section.batch_size > (items := stage.items(recipe, images))
        ):
            parts = recipe.run.accumulate if stage.takes_parts else 1
            size = batch_of(items, ranks * parts)
            for name in WITHIN:
                if (getattr(section, name, None) or 0) > size:
                    groups = name == "noise_groups"
                    most = divisor(getattr(section, "noise_bank", 0), size) if groups else batch_of(size, ranks)
                    yield stage.name, name, most, items
            yield stage.name, "batch_size", size, items
        if stage.name == "evaluate" and section.neighbours > images:
            yield stage.name, "neighbours", images, images


def divisor(n: int, most: int) -> int:
    """The largest number up to `most`, at least 1, that divides n."""
    return next(number for number in range(most, 0, -1) if n % number == 0)


def batch_of(items: int, parts: int) -> int:
    """The largest power of two up to `items`, if `parts` divides it; else the largest multiple of `parts` up to
    `items`. At least `parts`."""
    power = 1 << (max(items, 1).bit_length() - 1)
    return power if power % parts == 0 else max(items - items % parts, parts)
