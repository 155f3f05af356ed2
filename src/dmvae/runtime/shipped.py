"""The recipes that come with the package, by name: `demo`, `studies/references`."""

from __future__ import annotations

from pathlib import Path

from dmvae.spelling import nearest

FOLDER = Path(__file__).parents[1] / "recipes"


def shipped() -> dict[str, Path]:
    """Name -> file: first those in the top folder, last the studies."""
    files = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in files}


def recipe_file(name: str | Path) -> Path:
    """The file at that path, else the shipped recipe of that name (for a study also without its folder's name). Raises
    ValueError where there is neither."""
    path = Path(name)
    if path.is_file():
        return path
    known = shipped()
    short = {key.rpartition("/")[2]: file for key, file in known.items()} | known
    if str(name) in short:
        return short[str(name)]  # even if a folder here has that name
    if path.exists():
        raise ValueError(f"no such recipe: {name} (that is a folder)")
    told = f"{nearest(str(name), known)}; `dmvae recipes` lists those that come with dmvae"
    if path.suffix:
        told = f": no such file, from {Path.cwd()}; `dmvae init NAME {name}` copies one that comes with dmvae"
    raise ValueError(f"no such recipe: {name}{told}")


def about(file: Path) -> str:
    """What a recipe is for: the first sentence of the comment at its head."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("# ") or line.startswith("#  "):
            break
        lines.append(line[2:])
    sentence = " ".join(lines)
    ends = [sentence.index(mark) + 1 for mark in (". ", "? ") if mark in sentence]
    return sentence[: min(ends)] if ends else sentence
