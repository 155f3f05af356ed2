"""`dmvae run RECIPE --help`: every field of a recipe with its value and meaning."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.text import Text

from dmvae import config as configs
from dmvae.registry import Registered, family_of, names
from dmvae.runtime.console import console


def print_fields(config: Any, where: str = "") -> None:
    """List the fields of a config dataclass and those below it as --section.field VALUE, MEANING."""
    docs = configs.describe(type(config))
    if isinstance(config, Registered):
        others = ", ".join(names(family_of(type(config))))
        _print_field(f"{where}.type", config.type, f"One of: {others}.")
    for field in dataclasses.fields(config):
        value, place = getattr(config, field.name), f"{where}.{field.name}" if where else field.name
        if dataclasses.is_dataclass(value):
            console.print(Text(f"\n{place}: {docs.get(field.name, '')}", style="bold"))
            print_fields(value, place)
        else:
            _print_field(place, value, docs.get(field.name, ""))


def _print_field(place: str, value: object, meaning: str) -> None:
    console.print(Text.assemble((f"  --{place} ", "cyan"), (f"{configs.plain(value)}  ", "green"), meaning))
