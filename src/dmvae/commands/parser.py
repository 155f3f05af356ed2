"""What the commands' parsers share, and the overrides `--section.field value`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn, get_args

import yaml

from dmvae.config import Values
from dmvae.ranges import Resampling
from dmvae.runtime.console import console, require_printed
from dmvae.runtime.yaml_text import read_yaml
from dmvae.spelling import close

USAGE = """usage: dmvae run RECIPE [--variant NAME ...] [--run_dir DIR] [--dry-run]
                        [--help] [--section.field value ...]

RECIPE is a YAML file, or the name of one that `dmvae recipes` lists. A stage's
name in the place of `run` runs that stage alone: encoder, tokenizer, reference,
matching, decoder, latents, generator, sample, evaluate.

  --section.field value   any field of the recipe, for all variants that have it
  --variants.NAME.section.field value
                          the same for one variant
  --variant NAME          run this variant alone, all seeds of it; may be given
                          several times
  --run_dir DIR           the folder that is written (run.dir)
  --processes N           in N processes that share the stages out: a GPU each,
                          or each its share of the CPU's threads
  --dry-run               print resolved values, stages, sizes and what stands
                          in the way; train nothing
  --no-verify             do not read the files of finished stages for damage
  --no-report             the stages alone, without table and report
  --debug                 show tracebacks

`dmvae run RECIPE --help` lists every field of that recipe."""


UNENDED = 3
"""Exit code where trainings have diverged, and all that does not need them has been run."""


class CheckFailed(Exception):
    """A check has failed: the command ends with exit code 1."""


class Parser(argparse.ArgumentParser):
    """argparse that raises ValueError for mistakes, as all commands do, and suggests the option that was meant."""

    words: Sequence[str] = ()

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """`parse_args`; if a required option is missing, the error names a misspelt one among these words."""
        self.words = words
        return self.parse_args(words)

    def print_help(self, file: object = None) -> None:
        """Print the help so that a failed write is an error; argparse would ignore it, and exit at once."""
        console.print(self.format_help(), end="")
        require_printed()

    def error(self, message: str) -> NoReturn:
        spelt = [word[2:].partition("=")[0] for word in self.words if word.startswith("--")]
        unknown = re.match(r"unrecognized arguments: .*?--([\w-]+)", message)
        tried = [unknown[1]] if unknown else spelt if "are required" in message else []
        meant = {word: like for word in tried if not self.knows(word) and (like := self.like(word))}
        asked = "".join(f"--{word}: did you mean --{like}? " for word, like in [*meant.items()][:1])
        raise ValueError(f"{message}; {asked}`{self.prog} --help` lists the arguments")

    def knows(self, word: str) -> bool:
        """Whether a long option begins with this word (without dashes): argparse accepts abbreviations."""
        return any(name.startswith(f"--{word}") for action in self._actions for name in action.option_strings)

    def like(self, word: str, others: Iterable[str] = ()) -> str:
        """The long option most like a word, both without dashes; "" if none is like it, or one of `others` is more."""
        names = {"debug": "debug"}  # every command has it
        for action in self._actions:
            spellings = [name.removeprefix("--") for name in action.option_strings if name.startswith("--")]
            names |= dict.fromkeys(spellings, *spellings[:1])
        found = close(word, [*names, *others])
        return names.get(found[0], "") if found else ""


def require(least: int, most: int | None = None, **options: int | None) -> None:
    """Raise ValueError for an option below `least` or above `most`; None is an option that was not given."""
    for name, value in options.items():
        if value is not None and not least <= value <= (value if most is None else most):
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise ValueError(f"--{name.replace('_', '-')} must be {bound}, got {value}")


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """--plugins, for the commands that read no recipe: tokenizers and extractors may be somebody's own."""
    parser.add_argument(
        "--plugins", nargs="+", action="extend", default=[], metavar="FILE", help="files, folders or modules to import"
    )


def add_resampling(parser: argparse.ArgumentParser) -> None:
    """--resampling, for the commands that read folders of images and have --size."""
    parser.add_argument(
        "--resampling",
        choices=get_args(Resampling),
        default=argparse.SUPPRESS,
        help="how images become squares: the central square, resized once; or as ADM prepares ImageNet (square)",
    )


def parse_overrides(words: list[str]) -> Values:
    """["--a.b", "1", "--c=x"] -> {"a.b": 1, "c": "x"}; values are read as YAML."""
    overrides: Values = {}
    i = 0
    while i < len(words):
        word = words[i]
        if not word.startswith("--"):
            written = f"--{word}" if re.match(r"[\w@]+(\.\w+)*=", word) else "--section.field value"
            raise ValueError(f"unexpected argument {word!r}; options are written {written}")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if i + 1 < len(words) and not words[i + 1].startswith("--"):
                i += 1
                value = words[i]
            else:
                value = "true"
        if not value.strip():  # YAML reads it as null, which is rarely meant: a shell's variable is not set
            raise ValueError(f"--{name}: its value is empty; write null for none, or '\"\"' for an empty text")
        try:
            overrides[name] = read_yaml(value)
        except (yaml.YAMLError, RecursionError) as error:
            how = (
                "; put a text that holds one of { } [ ] : # in quotes within it"
                if any(c in value for c in "{}[]:#")
                else ""
            )
            raise ValueError(f"--{name}: {value[:200]!r} is not a YAML value{how}") from error
        i += 1
    return overrides
