"""Fields that a recipe gives and that nothing reads beside its other settings. A run says so and goes on: a recipe laid
over another may have got them from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from dmvae.recipe import Recipe
from dmvae.registry import is_ours
from dmvae.runtime.words import few


def _copied(recipe: Recipe) -> bool:
    reference, objective = recipe.section("reference"), recipe.section("matching").objective
    copies = reference.teacher and not reference.distribution.closed_form
    return is_ours(type(objective)) and (copies or not objective.has_student)


def _of_one_density(recipe: Recipe) -> bool:
    return getattr(recipe.section("matching").objective, "divergence", None) == "reverse_kl"


IDLE: Mapping[str, tuple[Callable[[Recipe], bool], str]] = {
    "run.shard_bf16": (lambda r: not r.run.shard, "it is of run.shard"),
    "run.shard_in_node": (lambda r: not r.run.shard, "it is of run.shard"),
    "run.reshard": (lambda r: not r.run.shard, "it is of run.shard"),
    "matching.model": (
        _copied,
        "the student is a copy of the teacher (reference.model), or there is none",
    ),
    "matching.target": (
        lambda r: r.section("matching").balance != "distance" and r.section("matching").until is None,
        "it is of matching.balance: distance, and of matching.until",
    ),
    "matching.objective.ratio_width": (_of_one_density, "it is of other divergences than reverse_kl"),
    "matching.objective.ratio_depth": (_of_one_density, "it is of other divergences than reverse_kl"),
    "sample.last_step": (
        lambda r: r.section("sample").method in ("euler", "heun", "midpoint"),
        "it is of sample.method: sde",
    ),
    "sample.guidance_interval": (
        lambda r: set(r.section("sample").guidance) == {1.0},
        "a guidance scale of 1 guides at no time",
    ),
}
"""Field -> (whether nothing reads it in a recipe that has its section, why). Fields whose default is null are refused
instead, by the `problems` of their stages."""


def idle(recipes: Mapping[str, Recipe]) -> list[str]:
    """A line on each field that is not at its default and has no effect, with its variants where these are not all."""
    found: dict[str, list[str]] = {}
    for variant, recipe in recipes.items():
        for line in _idle(recipe):
            found.setdefault(line, []).append(variant)
    return [line + (f" ({few(of)})" if len(of) < len(recipes) else "") for line, of in found.items()]


def _idle(recipe: Recipe) -> Iterator[str]:
    for place, (unread, why) in IDLE.items():
        *sections, name = place.split(".")
        owner: object = recipe
        for section in sections:
            owner = getattr(owner, section, None)
        given = {field.name: field for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
        if name in given and unread(recipe):
            value, default = getattr(owner, name), given[name].default
            if default is dataclasses.MISSING and callable(factory := given[name].default_factory):
                default = factory()
            if value != default and not (place == "matching.model" and value == recipe.section("reference").model):
                shown = value if isinstance(value, bool | int | float | tuple) else "what is given"
                yield f"{place}: {list(shown) if isinstance(shown, tuple) else shown} changes nothing: {why}"
