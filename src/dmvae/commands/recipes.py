"""`dmvae recipes` and `dmvae init`: the recipes that come with the package."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from dmvae.commands.parser import Parser
from dmvae.runtime.console import console, paragraph
from dmvae.runtime.shipped import about, recipe_file, shipped


def recipes(command: str, arguments: list[str]) -> None:
    """List them, a line each."""
    Parser(prog=f"dmvae {command}", description="List the recipes that come with dmvae.").parse_args(arguments)
    known = shipped()
    width = max(map(len, known))
    for name, file in known.items():
        paragraph(f"{name:<{width}}  {about(file)}", width + 2)
    console.print("\n`dmvae run NAME` runs one, `dmvae init NAME` copies it to edit.")


def init(command: str, arguments: list[str]) -> None:
    """Copy one to edit. Raises ValueError where the file is there already."""
    from dmvae.runtime.files import require_place, write_text  # imported here: listing recipes must not load torch

    parser = Parser(prog=f"dmvae {command}", description="Copy a recipe that comes with dmvae, to edit it.")
    parser.add_argument("name", help="as `dmvae recipes` lists them")
    parser.add_argument("file", type=Path, nargs="?", help="the file to write (NAME.yaml)")
    known = parser.parse_args(arguments)
    names = {file: name for name, file in shipped().items()}
    source = recipe_file(known.name)
    if source not in names:
        raise ValueError(f"{known.name} is a file of yours, not a recipe that comes with dmvae; edit it, or copy it")
    out: Path = known.file or Path(source.name)
    if out.is_dir():
        out = out / source.name
    require_place("FILE", out)
    if out.exists():
        raise ValueError(f"{out} exists; name another file: dmvae init {known.name} FILE")
    write_text(out, _moved(source, names, out))
    console.print(f"{out}: edit it, then `dmvae run {shlex.quote(str(out))}`")


def _moved(source: Path, names: dict[Path, str], out: Path) -> str:
    """The recipe's text for the place `out`: it extends shipped recipes by name, and its comments give its new path."""
    text = source.read_text().replace(f"recipes/{names[source]}.yaml", shlex.quote(str(out)))

    def base(match: re.Match[str]) -> str:
        return f"extends: {names[(source.parent / match[1]).resolve()]}"

    return re.sub(r"^extends: (\S+)$", base, text, flags=re.MULTILINE)
