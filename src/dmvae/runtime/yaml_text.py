"""YAML as recipes and the command line write it."""

from __future__ import annotations

import re

import yaml

INT, TIME = "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, to which 010 is text, not eight, 12:30 text, not 750, and 2024-01-01 text, not a date."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (INT, TIME)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789"))


def read_yaml(text: str) -> object:
    """What the text holds. Raises yaml.YAMLError, and RecursionError where it is nested too deep."""
    return yaml.load(text, Loader)  # a safe one
