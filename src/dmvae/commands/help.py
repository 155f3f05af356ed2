"""`dmvae run RECIPE --help`: every field of a recipe with its value in each variant, and its meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.text import Text

from dmvae.commands.fields import Field, label, sections
from dmvae.config import FieldMissing, Values
from dmvae.recipe import Recipe, Recipes
from dmvae.registry import cause_of
from dmvae.runtime.console import console, paragraph

REQUIRED = "REQUIRED"
"""The help shows it as the value of a field that has to be given, such as the folder of your images."""


def print_fields(recipes: Mapping[str, Recipe]) -> None:
    """List fields as --section.field VALUE MEANING; where variants differ, a line for each value."""
    if len(recipes) > 1:
        console.print(f"The variants {', '.join(recipes)}; an option --section.field sets it in all that have it,")
        console.print("--variants.NAME.section.field in one.")
    for section in sections(recipes):
        if section.place:
            some = label(section.variants, list(recipes))
            heading = f"\n{section.place}{f' ({some})' if some else ''}: {section.meaning}".rstrip(": ")
            paragraph(Text(heading, style="bold"))
        for field in section.fields:
            _print_field(field, section.variants)


def print_values(recipes: Mapping[str, Recipe]) -> None:
    """List values alone: a line for each section, and one for each group of variants with values of its own."""
    for section in sections(recipes):
        some = label(section.variants, list(recipes))
        name = f"{section.place or 'recipe'}{f' ({some})' if some else ''}"
        same: list[str] = []
        apart: dict[str, list[str]] = {}
        for field in section.fields:
            for value, variants in field.choices():
                mine = label(variants, section.variants)
                apart.setdefault(mine, []) if mine else None
                (apart[mine] if mine else same).append(f"{field.place.rpartition('.')[2]} {value}")
        if same or apart:
            paragraph(f"  {name}: {', '.join(same)}".rstrip(": "), 6)
        for mine, values in apart.items():
            paragraph(f"      {mine}: {', '.join(values)}", 10)


def placeholders(load: Callable[[Values], Recipes], overrides: Values) -> Recipes:
    """`load(overrides)` with REQUIRED in place of missing fields that have no default: only for printing. Raises
    ValueError as `load` does, also for a missing field that holds no text."""
    missing: ValueError | None = None
    while True:
        try:
            return load(overrides)
        except ValueError as error:
            cause = cause_of(error, FieldMissing)
            if missing is not None and repr(REQUIRED) in str(error):
                raise missing from None
            if cause is None or cause.place in overrides:
                raise
            missing = error
            overrides = overrides | {cause.place: REQUIRED}


def _print_field(field: Field, variants: list[str]) -> None:
    choices = [(value, label(of, variants)) for value, of in field.choices()]
    place = (f"  --{field.place} ", "cyan")
    if len(choices) == 1 and not choices[0][1]:
        paragraph(Text.assemble(place, (f"{choices[0][0]}  ", "green"), field.meaning), 6)
        return
    paragraph(Text.assemble(place, f" {field.meaning}"), 6)
    for value, of in choices:
        console.print(Text.assemble("      ", (value, "green"), f"  ({of})" if of else ""))
