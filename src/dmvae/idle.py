"""Fields that a recipe gives and that nothing reads beside its other settings. A run says so and goes on: a recipe laid
over another may have got them from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from dmvae.config import default_of
from dmvae.matching import Matching
from dmvae.recipe import Recipe
from dmvae.references.mixture import MixtureReference
from dmvae.registry import is_ours
from dmvae.runtime.words import few
from dmvae.stages.editing import DRAWN


def _unseen(recipe: Recipe) -> bool:
    """Whether the training of every stage that makes pictures ends before the first one."""
    steps = [recipe.section(stage).steps for stage in recipe.stages() if getattr(stage, "shows", "")]
    return all(last < recipe.run.picture_every for last in steps)


def _copied(recipe: Recipe) -> bool:
    matching, reference = recipe.section("matching"), recipe.section("reference")
    return matching.model != reference.model and (_no_velocity(recipe) or (_ours(recipe) and reference.trains_teacher))


def part(recipe: Recipe, place: str) -> object:
    """What a recipe has in a place like "matching.model"; None without it."""
    found: object = recipe
    for name in place.split("."):
        found = getattr(found, name, None)
    return found


def sized(recipe: Recipe, place: str) -> bool:
    """Whether a flow model's `size` says its numbers."""
    return getattr(part(recipe, place), "size", None) is not None


def _no_velocity(recipe: Recipe) -> bool:
    """Whether the matching trains no velocity."""
    parts = _objective(recipe).parts().values()
    return _ours(recipe) and not any(part.has_student and part.learns_velocity for part in parts)


def _ours(recipe: Recipe) -> bool:
    return is_ours(type(_objective(recipe)))


def _of_one_density(recipe: Recipe) -> bool:
    return getattr(recipe.section("matching").objective, "divergence", None) == "reverse_kl"


def _objective(recipe: Recipe) -> Matching:
    found: Matching = recipe.section("matching").objective
    return found


def _mixed(recipe: Recipe, *by: str) -> bool:
    """Whether the reference is a mixture that one of these fields says."""
    found = part(recipe, "reference.distribution")
    return isinstance(found, MixtureReference) and any(getattr(found, name) for name in by)


MODELS = ("reference.model", "matching.model", "generator.model", "tokenizer.alignment.model")
"""Where a recipe has flow models."""
IDLE: Mapping[str, tuple[Callable[[Recipe], bool], str]] = {
    "run.shard_bf16|shard_in_node|reshard": (lambda r: not r.run.shard, "it only acts with run.shard: true"),
    "run.picture_every": (_unseen, "no stage that makes pictures trains for so many steps"),
    "matching.model": (_copied, "the student is a copy of the teacher (reference.model), or no velocity is trained"),
    "matching.target": (
        lambda r: r.section("matching").balance != "distance" and r.section("matching").until is None,
        "it only acts with matching.balance: distance or matching.until: arrived",
    ),
    "matching.objective.ratio_width|ratio_depth": (
        _of_one_density,
        "it only acts with a divergence other than reverse_kl",
    ),
    "matching.label_dropout": (_no_velocity, "its objective trains no velocity"),
    "matching.time_shift|time_distribution": (
        lambda r: _no_velocity(r) and not _objective(r).needs_teacher,
        "its objective asks no velocities",
    ),
    "reference.distribution.std|scale": (
        lambda r: _mixed(r, "fit"),
        "a mixture with `fit` has what it is fitted to",
    ),
    "reference.distribution.components|std|conditional": (
        lambda r: _mixed(r, "file"),
        "the file says it",
    ),
    "latents.drawn": (lambda r: part(r, "matching.noise") in DRAWN, "matching.noise draws them already"),
    "losses.adversarial.learn_from": (
        lambda r: r.section("tokenizer") is None,
        "it is a share of the stage tokenizer, which there is not",
    ),
    "sample.last_step": (
        lambda r: r.section("sample").method in ("euler", "heun", "midpoint"),
        "it only acts with sample.method: sde",
    ),
    "sample.guidance_interval|guidance_channels": (
        lambda r: set(r.section("sample").guidance) == {1.0},
        "a guidance scale of 1 guides nothing",
    ),
    **{
        f"{place}.width|depth|heads|patch_size": (partial(sized, place=place), f"{place}.size says it")
        for place in MODELS
    },
}
"""Field, or some of one section -> (whether nothing reads it in a recipe that has its section, why). Fields whose
default is null are mostly refused instead, by the `problems` of their stages."""


def idle(recipes: Mapping[str, Recipe]) -> list[str]:
    """A line on each field that is not at its default and has no effect, with its variants where these are not all."""
    found: dict[str, list[str]] = {}
    for variant, recipe in recipes.items():
        for line in _idle(recipe):
            found.setdefault(line, []).append(variant)
    return [line + (f" ({few(of)})" if len(of) < len(recipes) else "") for line, of in found.items()]


def _idle(recipe: Recipe) -> Iterator[str]:
    for place, (unread, why) in IDLE.items():
        section, _, names = place.rpartition(".")
        owner = part(recipe, section)
        told = [f"{name}: {_shown(owner, name)}" for name in names.split("|") if _given(owner, name)]
        if told and unread(recipe):
            yield f"{section}.{', '.join(told)} {'change' if told[1:] else 'changes'} nothing: {why}"


def _given(owner: object, name: str) -> bool:
    """Whether a section has the field, and not at its default."""
    field = {f.name: f for f in dataclasses.fields(owner)}.get(name) if dataclasses.is_dataclass(owner) else None
    return field is not None and bool(getattr(owner, name) != default_of(field))


def _shown(owner: object, name: str) -> object:
    value = getattr(owner, name)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float) else "what is given"
