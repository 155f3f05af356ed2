"""What is asked on the command line, laid over every variant: it wins over the recipe's file and over the variant.

`--section.field value` is meant for all variants that have such a field; `--variants.NAME.section.field` for one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TypeVar

from dmvae import config as configs
from dmvae.config import NoSuchField, Values
from dmvae.decoders import decoder_section
from dmvae.runtime.words import few

T = TypeVar("T")


def flat(values: Values, where: str = "", *, whole: bool = True) -> Values:
    """Dotted place -> value. whole: keep a mapping with a `type` as one value, for it chooses a member of a family
    together with its fields."""
    found: Values = {}
    for key, value in values.items():
        place = configs.dotted(where, key)
        inside = isinstance(value, dict) and value and not (whole and "type" in value)
        found |= flat(value, place, whole=whole) if inside else {place: value}
    return found


def lay(
    variants: dict[str, Values], options: Values, recipe: type, read: Callable[[str, Values], T]
) -> tuple[dict[str, T], dict[str, list[str]]]:
    """Lay `options`, dotted as `flat` makes them, over each variant's values and `read(variant, values)` the result.

    An option reaches the variants that have its section and its field; if none has the section, all get it.
    Returns (what was read, {option: the variants that it reaches} of the options that do not reach all). Raises
    ValueError for an option that no variant can read.
    """
    options = {_spelling(option): value for option, value in options.items()}
    bases = {name: _modern(values) for name, values in variants.items()}
    reach = {
        option: [name for name, values in bases.items() if not lacks(values, option, recipe)] or list(bases)
        for option in options
    }
    refused: dict[str, NoSuchField] = {}
    found: dict[str, T] = {}
    for name, values in bases.items():
        while name not in found:
            asked = {option: value for option, value in options.items() if name in reach[option]}
            try:
                found[name] = read(name, configs.merge(values, asked))
            except NoSuchField as error:  # the section may be of another type in other variants
                if name not in reach.get(error.place, ()):
                    raise
                reach[error.place].remove(name)
                refused.setdefault(error.place, error)
    for option, refusal in refused.items():
        if not reach[option]:
            raise refusal
    return found, {option: names for option, names in reach.items() if len(names) < len(bases)}


def told(option: str, reached: list[str], variants: list[str]) -> str:
    """One line on whom an option reaches."""
    others = [name for name in variants if name not in reached]
    return f"--{option} reaches {few(reached)}, not {few(others)}: no such section or field there"


def of_option(error: str, options: Values, without: Callable[[str], str]) -> str | None:
    """The error's text, naming the option that is at fault; None where the file is. `without(option)`: the error's text
    when the recipe is read without this option, "" for none.

    An option is at fault for an error `PLACE: what is wrong` if PLACE is its field, inside it or above it, and there is
    another error, or none, without the option. For any other place, it is at fault if there is no error without it."""
    if error.startswith("--"):
        return error
    places = re.match(r"(?:[^\s:]+: )*", error)
    assert places is not None
    place, wrong = places[0].replace(": ", ".").rstrip("."), error[places.end() :]
    for option in options if place else ():
        variant = "".join(re.findall(r"^variants\.[^.]+\.", option))
        path = option.removeprefix(variant)
        inside = re.match(rf"{re.escape(_spelling(path))}(?![^.\[])", place)
        above = f"{path}.".startswith(f"{place}.") or option.startswith(f"{place}.")
        if (inside or above) and without(option) != error:
            return f"--{variant}{place}: {wrong}" if inside else f"--{option}: {wrong}"
    for option, value in options.items():  # the error may name another section, such as a stage that needs this one
        if not without(option):
            return f"--{option} {configs.written(configs.plain_value(value))}: {error}"
    return None


def lacks(values: Values, option: str, recipe: type) -> bool:
    """Whether the section of an option is null in a variant. A stage that a recipe does not name is null too."""
    first, *parents = option.split(".")[:-1] or [""]
    if first and first not in values:
        defaults = {field.name: field.default for field in dataclasses.fields(recipe)}
        return defaults.get(first, dataclasses.MISSING) is None
    here = values.get(first, values)
    for name in parents:
        if not isinstance(here, dict) or name not in here:
            return here is None
        here = here[name]
    return here is None


def _spelling(option: str) -> str:
    """The name of today for a field of version 0.1: autoencoder.decoder.width for autoencoder.decoder_width."""
    section, _, name = option.partition(".")
    moved = section == "autoencoder" and "decoder" in decoder_section({name: None}) and name != "decoder"
    return option.replace(".decoder_", ".decoder.") if moved else option


def _modern(values: Values) -> Values:
    """The values in today's spelling, so that an option finds what it replaces."""
    shape = values.get("autoencoder")
    return values | {"autoencoder": decoder_section(shape)} if isinstance(shape, dict) else values
