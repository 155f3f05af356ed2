"""What of a recipe is more than its data has: sizes that are larger than a small data set, guidance without classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from dmvae.config import Values
from dmvae.datasets import Dataset, open_dataset
from dmvae.recipe import Recipe, method_of
from dmvae.runtime import distributed
from dmvae.runtime.words import counted
from dmvae.training.stage import TrainingStage

WITHIN = ("decoded", "noise_groups")
"""Fields that are no larger than their section's batch."""


def fit(
    recipes: dict[str, Recipe], asked: Collection[str] = (), ranks: int | None = None
) -> tuple[dict[str, Recipe], list[str]]:
    """(recipes whose batch sizes and `evaluate.neighbours` are lowered to the size of their training sets, and which
    draw no guided samples of a single class; messages on the changes). Lowered batches divide over `ranks` (default:
    that of this process's group).

    Fields in `asked`, such as "tokenizer.batch_size", come from the command line and stay: where they do not fit,
    `checks` gives the error; ValueError where one does not fit a field that is lowered. A recipe whose data cannot be
    opened is returned as it is.
    """
    fitted, said = {}, dict[str, None]()
    for variant, recipe in recipes.items():
        try:
            train = open_dataset(recipe.data, "train")
        except ValueError:
            fitted[variant] = recipe
            continue
        changes: Values = {}
        found = (*_too_large(recipe, len(train), ranks or distributed.world_size()), *_aimless(recipe, train))
        for section, name, value, why in found:
            place = f"{section}.{name}"
            given = (place, *(f"variants.{name}.{place}" for name in (variant, method_of(variant, recipe))))
            if not any(option in given for option in asked):
                was = getattr(recipe.section(section), name)
                told, instead = (list(x) if isinstance(x, tuple) else x for x in (value, was))
                line = f"{place} is {told} in place of {instead}: the training set has {why}"
                try:
                    changes[section] = dataclasses.replace(
                        changes.get(section, recipe.section(section)), **{name: value}
                    )
                except ValueError as error:  # it does not fit a field that was asked for
                    raise ValueError(f"{section}.{error} ({line})") from error
                said[line] = None
        fitted[variant] = dataclasses.replace(recipe, **changes)
    return fitted, list(said)


def _too_large(recipe: Recipe, images: int, ranks: int) -> Iterator[tuple[str, str, object, str]]:
    """(section, field, value that fits, what the training set has) of what is larger than that set."""
    there = counted(images, "image")
    for stage in recipe.stages():
        section = recipe.section(stage)
        if (
            issubclass(stage, TrainingStage)
            and not stage.draws
            and section.batch_size > (items := stage.items(recipe, images))
        ):
            parts = recipe.run.accumulate if stage.takes_parts else 1
            size = batch_of(items, ranks * parts)
            known = f"{there} and their mirror images" if items > images else there
            for name in WITHIN:
                if (getattr(section, name, None) or 0) > size:
                    groups = name == "noise_groups"
                    most = divisor(getattr(section, "noise_bank", 0), size) if groups else batch_of(size, ranks)
                    yield stage.name, name, most, known
            yield stage.name, "batch_size", size, known
        if stage.name == "evaluate" and section.neighbours > images:
            yield stage.name, "neighbours", images, there


def _aimless(recipe: Recipe, train: Dataset) -> Iterator[tuple[str, str, object, str]]:
    """The same of sets of guided samples where all images are of one class: the velocity with it is the one without."""
    sample = recipe.section("sample")
    if sample is not None and sample.guide is None and len(train.classes) == 1 and len(sample.guidance) > 1:
        yield "sample", "guidance", (1.0,), "one class, towards which no guidance leads"


def divisor(n: int, most: int) -> int:
    """The largest number up to `most`, at least 1, that divides n."""
    return next(number for number in range(most, 0, -1) if n % number == 0)


def batch_of(items: int, parts: int) -> int:
    """The largest power of two up to `items`, if `parts` divides it; else the largest multiple of `parts` up to
    `items`. At least `parts`."""
    power = 1 << (max(items, 1).bit_length() - 1)
    return power if power % parts == 0 else max(items - items % parts, parts)
