"""The resolved fields of a recipe's variants side by side: what `--help` and `--dry-run` print."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from dmvae import config as configs
from dmvae.config import Values
from dmvae.idle import MODELS, sized
from dmvae.ranges import range_of
from dmvae.recipe import Recipe, method_of
from dmvae.registry import Registered, family_of, names
from dmvae.runtime.words import few

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclasses.dataclass(frozen=True)
class Field:
    """A field, with its value in each variant that has it."""

    place: str
    """section.field"""
    meaning: str
    values: Values
    """Variant -> value."""

    def choices(self) -> list[tuple[str, list[str]]]:
        """Each value, as it is typed, with the variants that have it."""
        found: list[tuple[object, list[str]]] = []
        for variant, value in self.values.items():
            same = [of for known, of in found if known == value and type(known) is type(value)]
            same[0].append(variant) if same else found.append((value, [variant]))
        return [(configs.written(value), variants) for value, variants in found]


@dataclasses.dataclass(frozen=True)
class Section:
    """The fields of one section, without those of the sections in it."""

    place: str
    meaning: str
    variants: list[str]
    """The variants in which it is not null."""
    fields: list[Field]


def sections(recipes: Mapping[str, Recipe]) -> list[Section]:
    """The sections of all variants, in the recipe's order, without the fields that nothing of a variant uses."""
    top = Section("", "", list(recipes), [])
    return [top, *_below(recipes, top, {name: _unused(recipe) for name, recipe in recipes.items()})]


def describe(cls: type) -> dict[str, str]:
    """Field name -> the docstring written under it, with those of the base classes, and the range of its numbers."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base) or "made" in vars(base):
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[union-attr]
    docs |= {f.name: f.metadata["doc"] for f in dataclasses.fields(cls) if "doc" in f.metadata}
    ranges = {f.name: range_of(configs.hints_of(cls)[f.name]) for f in dataclasses.fields(cls)}
    return docs | {name: f"{docs.get(name, '')} [{given}]".lstrip() for name, given in ranges.items() if given}


def label(chosen: Sequence[str], known: Sequence[str]) -> str:
    """The chosen variants' names, a method's name for all its seeds; "" where all known ones are chosen."""
    if len(chosen) == len(known):
        return ""
    methods: dict[str, list[str]] = {}
    for name in known:
        methods.setdefault(method_of(name), []).append(name)
    said = []
    for method, seeds in methods.items():
        had = [name for name in seeds if name in chosen]
        said += [method] if had == seeds else had
    return few(said)


def _below(
    members: Mapping[str, DataclassInstance], section: Section, unused: Mapping[str, set[str]]
) -> Iterator[Section]:
    """Fill in the section from `members`, its config in each variant; yield the sections inside it."""
    classes = list(dict.fromkeys(type(member) for member in members.values()))
    docs: dict[str, str] = {}
    for cls in classes:
        docs |= describe(cls)
        if issubclass(cls, Registered) and not (section.fields and section.fields[0].place.endswith(".type")):
            known = f"One of: {', '.join(names(family_of(cls)))}."
            types = {variant: member.type for variant, member in members.items() if isinstance(member, Registered)}
            section.fields.append(Field(f"{section.place}.type", known, types))
    for name in dict.fromkeys(field.name for cls in classes for field in dataclasses.fields(cls)):
        place = f"{section.place}.{name}" if section.place else name
        values = {
            variant: getattr(member, name)
            for variant, member in members.items()
            if hasattr(member, name) and place not in unused[variant]
        }
        deeper = {
            variant: value
            for variant, value in values.items()
            if dataclasses.is_dataclass(value) and not isinstance(value, type)
        }
        if deeper:
            inner = Section(place, docs.get(name, ""), list(deeper), [])
            inside = list(_below(deeper, inner, unused))
            yield from (inner, *inside)
        elif values:
            plain = {variant: configs.plain_value(value) for variant, value in values.items()}
            section.fields.append(Field(place, docs.get(name, ""), plain))


def _unused(recipe: Recipe) -> set[str]:
    """Places that surely no stage of a variant uses."""
    used = {place.partition(".")[0] for stage in recipe.stages() for place in stage.uses}
    found = {"losses", "autoencoder"} - used
    if recipe.pretrained is not None:
        found |= {"autoencoder", "tokenizer.start"}
    reference = recipe.section("reference")
    copied = reference is not None and reference.trains
    if reference is not None and not copied:  # no teacher is trained
        asked = ("distribution", "drawn") if reference.teacher else ("distribution", "drawn", "teacher")
        found |= {f"reference.{field.name}" for field in dataclasses.fields(reference) if field.name not in asked}
    tokenizer, shape = recipe.section("tokenizer"), recipe.autoencoder if recipe.pretrained is None else None
    if tokenizer is not None and shape is not None and not shape.variational:
        found.add("tokenizer.kl_weight")
    matching = recipe.section("matching")
    if matching is not None:
        if not matching.objective.has_student:
            found |= {f"matching.{of}" for of in ("student_steps", "student_warmup", "student_learning_rate", "model")}
        elif copied:  # the student is a copy of the teacher
            found.add("matching.model")
    for place in MODELS:
        if sized(recipe, place):  # `size` gives these
            found |= {f"{place}.{name}" for name in ("width", "depth", "heads", "patch_size")}
    return found
