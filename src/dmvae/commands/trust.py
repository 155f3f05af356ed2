"""Recipes that would run code of their own: `report`, `serve` and `measure --check` read run folders that may come from
somebody else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from dmvae.runtime.yaml_text import read_yaml


def require_no_code(recipes: Iterable[Path]) -> None:
    """Raise ValueError where one of these files names plugins or a `function`: reading the recipe would import them. A
    recipe that `extends` another is refused too: the other is not searched, and a run never writes one."""
    for file in recipes:
        for name in _named(file):
            raise ValueError(
                f"{file} names {name}, code that would be run: look at it first, and add --trust where you trust it"
            )


def _named(file: Path) -> Iterator[str]:
    if not file.is_file():
        return  # its reader reports it
    try:
        values = read_yaml(file.read_text())
        yield from _code(values)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not valid YAML, or nested too deep: {' '.join(str(error).split())}") from error


def _code(values: object, key: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for name, value in values.items():
            parts = str(name).split(".")  # a recipe's dotted keys are sections, at any depth
            if value and not {"plugins", "extends"}.isdisjoint(parts):
                yield f"{name}: {value!r}"
            elif "function" in parts or ("type" in parts and value == "function"):
                yield f"a {'.'.join(parts[:-1]) or key or 'section'} of type function"
            else:
                yield from _code(value, str(name))
    elif isinstance(values, list):
        for value in values:
            yield from _code(value, key)
