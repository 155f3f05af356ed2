"""What the commands' parsers share, and the overrides `--section.field value`."""

from __future__ import annotations

import argparse
from typing import NoReturn

import yaml

from dmvae.config import Values


class CheckFailed(Exception):
    """What was checked does not hold: the command ends with exit code 1."""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are a ValueError, like every other mistake in what was asked."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` tells the arguments")


def parse_overrides(words: list[str]) -> Values:
    """["--a.b", "1", "--c=x"] -> {"a.b": 1, "c": "x"}; values are read as YAML."""
    overrides: Values = {}
    i = 0
    while i < len(words):
        word = words[i]
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}; overrides are written --section.field value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if i + 1 < len(words) and not words[i + 1].startswith("--"):
                i += 1
                value = words[i]
            else:
                value = "true"
        try:
            overrides[name] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"--{name}: {value[:200]!r} is not a YAML value") from error
        i += 1
    return overrides
