"""Pages that are written from the registry and the docstrings under fields; `docs/build.py` puts them into the site.

What they say stands once, in the code, where `dmvae run RECIPE --help` prints it too.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import dmvae
from dmvae import config as configs
from dmvae.commands.fields import describe
from dmvae.datasets import DatasetConfig
from dmvae.decoders import DecoderConfig
from dmvae.encoders import EncoderConfig
from dmvae.evaluation.features import FeaturesConfig
from dmvae.evaluation.metrics import Metric
from dmvae.flow.samplers import Sampler
from dmvae.generators import GeneratorConfig
from dmvae.losses.alignment import AlignmentConfig
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.losses.perceptual import PerceptualConfig
from dmvae.matching import Matching
from dmvae.references import ReferenceConfig
from dmvae.registry import Registered, family_of, find, names
from dmvae.sections import Sections
from dmvae.stages import stages
from dmvae.tokenizers import TokenizerSource

FAMILIES: dict[str, tuple[type[Registered], str, str]] = {
    "references": (ReferenceConfig, "References", "reference.distribution"),
    "objectives": (Matching, "Matching objectives", "matching.objective"),
    "datasets": (DatasetConfig, "Data sets", "data"),
    "encoders": (EncoderConfig, "Encoders", "autoencoder.encoder"),
    "decoders": (DecoderConfig, "Decoders", "autoencoder.decoder"),
    "generators": (GeneratorConfig, "Generators", "generator.model"),
    "samplers": (Sampler, "Samplers", "sample.method"),
    "metrics": (Metric, "Metrics", "evaluate.metrics"),
    "features": (FeaturesConfig, "Feature extractors", "evaluate.features"),
    "alignments": (AlignmentConfig, "Alignments", "tokenizer.alignment"),
    "discriminators": (AdversarialConfig, "Discriminators", "losses.adversarial"),
    "perceptual": (PerceptualConfig, "Perceptual losses", "losses.perceptual"),
    "tokenizers": (TokenizerSource, "Finished tokenizers", "pretrained"),
}
"""Page -> (family, title, the place in a recipe that chooses a member). Stages are on the page of a recipe's fields."""
BY_NAME = {Sampler, Metric}
"""Families whose members have no fields: a recipe gives the name alone."""
FIELDS = "fields"
API = ("flow", "matching", "references", "generators", "transport", "losses", "evaluation", "tokenizers", "encoders")
API += ("decoders", "datasets", "latents", "models", "training", "stages", "interop")
"""Packages with a page in the API reference."""
API_FILES = ("library", "config", "registry", "recipe", "sections", "inputs", "runtime.random")


def pages() -> dict[str, str]:
    """Place of every generated page, relative to docs/ -> its Markdown."""
    found = {f"parts/{FIELDS}.md": recipe_fields()}
    found |= {f"parts/{page}.md": family_page(*row) for page, row in FAMILIES.items()}
    found |= {"api/dmvae.md": api_page("dmvae", ["dmvae", *(f"dmvae.{name}" for name in API_FILES)])}
    found |= {f"api/{name}.md": api_page(f"dmvae.{name}", modules_of(name)) for name in API}
    return found


def family_page(family: type[Registered], title: str, place: str) -> str:
    """Every member of a family with its fields."""
    members = [find(family, name) for name in names(family)]
    chosen = f"`{place}: {{type: NAME, ...}}`" if family not in BY_NAME else f"`{place}: NAME`"
    if family is Metric:
        chosen = f"`{place}: [NAME, ...]`"
    parts = [f"# {title}", text(inspect.getdoc(inspect.getmodule(family)) or ""), f"In a recipe: {chosen}.", ""]
    rows = [(f"[`{member.type}`{{.field}}](#{member.type})", sentence(about(member))) for member in members]
    parts.append(table(("name", "what it is"), rows))
    for member in members:
        parts += [f"## `{member.type}` {{#{member.type}}}", text(about(member))]
        parts.append(field_table(member) if dataclasses.is_dataclass(member) else figure_table(member))
    return "\n\n".join(part for part in parts if part) + "\n"


def recipe_fields() -> str:
    """Every section of a recipe that is not a member of a family, with its fields."""
    parts = [
        "# Fields of a recipe",
        "Sections of one stage each come after those that every stage may read. A stage whose section is left out "
        "is not run, but for `latents`. `dmvae run RECIPE --help` prints the same with the values of that recipe.",
        "## Top level {#top}",
        field_table(Sections),
    ]
    shared = [(name, cls) for name, hint in get_type_hints(Sections).items() for cls in plain_sections(hint)]
    for name, cls in dict([*shared, *((stage.name, stage.Config) for stage in stages())]).items():
        parts += section(name, cls)
    return "\n\n".join(parts) + "\n"


def section(place: str, cls: type) -> list[str]:
    """The heading and the table of a section, and those of the sections in it."""
    parts = [f"## `{place}` {{#{place.replace('.', '-')}}}", text(inspect.getdoc(cls) or ""), field_table(cls, place)]
    for name, hint in get_type_hints(cls).items():
        for inner in plain_sections(hint):
            parts += section(f"{place}.{name}", inner)
    return parts


def plain_sections(hint: object) -> list[type]:
    """The config dataclasses in a type that belong to no family."""
    return [cls for cls in classes_in(hint) if dataclasses.is_dataclass(cls) and not issubclass(cls, Registered)]


def classes_in(hint: object) -> list[type]:
    return [hint] if isinstance(hint, type) else [cls for arg in get_args(hint) for cls in classes_in(arg)]


def field_table(cls: type, place: str = "") -> str:
    """name, type, default and meaning of a config's fields; nothing for one without fields."""
    hints, docs = get_type_hints(cls), describe(cls)
    rows = [
        (
            f"`{field.name}`{{.field}}",
            kind(hints[field.name], f"{place}.{field.name}"),
            default(field),
            cell(docs[field.name]),
        )
        for field in dataclasses.fields(cls)
        if field.init
    ]
    return table(("field", "type", "default", "meaning"), rows) if rows else ""


def figure_table(member: type) -> str:
    """What a metric shows."""
    arrows = {1: "↑", -1: "↓", 0: ""}
    rows = [
        (f"`{f.key}`{{.field}}", f"{f.title} {arrows[f.better]}", f.unit, cell(f.meaning))
        for f in getattr(member, "figures", ())
    ]
    return table(("figure", "title", "unit", "meaning"), rows) if rows else ""


def kind(hint: object, place: str = "") -> str:
    """A type in a recipe's words, with a link where it is a family or a section."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else kind(arg, place) for arg in args)
    if origin is tuple:
        inner = list(dict.fromkeys(kind(arg, place) for arg in args if arg is not Ellipsis))
        return f"list of {' and '.join(inner)}" if Ellipsis in args else f"{len(args)} of {' and '.join(inner)}"
    if isinstance(hint, type) and issubclass(hint, Registered):
        page, title = next((page, row[1]) for page, row in FAMILIES.items() if row[0] is family_of(hint))
        return f"[{title.lower()}]({page}.md)"
    if dataclasses.is_dataclass(hint):
        return f"[section]({FIELDS}.md#{place.strip('.').replace('.', '-')})"
    known: dict[object, str] = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    return known.get(hint, "mapping" if (origin or hint) is dict else "any")


def default(field: dataclasses.Field[Any]) -> str:
    """The default as YAML has it."""
    if field.default_factory is not dataclasses.MISSING:
        value = configs.plain_value(field.default_factory())
        return (
            f"`{value.get('type', '')}`".replace("``", "") if isinstance(value, dict) else f"`{configs.written(value)}`"
        )
    if field.default is dataclasses.MISSING:
        return "**required**"
    value = configs.plain_value(field.default)
    return f"`{configs.written(value)}`"


def about(cls: type) -> str:
    """The docstring of a class, else of its module."""
    own = cls.__dict__.get("__doc__") or ""
    if not own or own.startswith(f"{cls.__name__}("):  # the signature that @dataclass writes
        own = inspect.getdoc(inspect.getmodule(cls)) or ""
    words = re.sub(r"^[A-Z]\w* `[\w-]+`: ", "", inspect.cleandoc(own))  # Metric `psnr`: the heading says that
    return words[:1].upper() + words[1:]


def api_page(title: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)]) + "\n"


def modules_of(package: str) -> list[str]:
    """The package and the modules in it that define something public."""
    root = importlib.import_module(f"dmvae.{package}")
    inner = pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
    return [name for name in [root.__name__, *sorted(info.name for info in inner)] if has_public(name)]


def has_public(module: str) -> bool:
    source = Path(dmvae.__path__[0], *module.split(".")[1:])
    file = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
    body = ast.parse(file.read_text()).body
    return any(isinstance(x, ast.FunctionDef | ast.ClassDef) and not x.name.startswith("_") for x in body)


def sentence(words: str) -> str:
    """The first sentence, for a cell."""
    words = " ".join(words.strip().split("\n\n")[0].split())
    found = re.match(r".*?\.(?= [A-Z])", words)  # and not at the dot of a product, u . z
    return cell(found[0] if found else words)


def text(words: str) -> str:
    """Plain words as Markdown."""
    return words.replace("<", "&lt;")


def cell(words: str) -> str:
    """The same within a table."""
    return text(words).replace("|", "\\|")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
