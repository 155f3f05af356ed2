"""A recipe: one experiment, as a YAML file holds it.

`load` reads a file, lays each variant's overrides on it and on those what was asked on the command line, and returns
one resolved `Recipe` per variant. `seeds: [0, 1, 2]`, or `seeds: {VARIANT: [0, 1, 2], ...}`, makes one variant of
each seed, called VARIANT@SEED; the table then has their mean and spread too.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from dmvae import config as configs
from dmvae.config import FieldError, FieldMissing, NoSuchField, Values
from dmvae.options import flat, lacks, lay, of_option
from dmvae.registry import cause_of, importable, load_plugins
from dmvae.runtime.shipped import recipe_file
from dmvae.runtime.words import few
from dmvae.runtime.yaml_text import read_yaml
from dmvae.sections import Sections
from dmvae.spelling import nearest
from dmvae.stages import stages
from dmvae.training.stage import AnyStage


@dataclass(frozen=True, kw_only=True)
class Recipe(Sections):
    """One method on one data set: the shared sections, and a section for each stage, null for a stage that the method
    does not have. Recipes are made by `recipe_class`, which knows the stages."""

    beside: ClassVar[tuple[str, ...]] = ("extends", "variants", "seeds")
    """What a file may have besides these fields."""

    @classmethod
    def upgrade(cls, values: Values) -> Values:
        """Let the stages fill in choices that their sections leave open, see `Stage.usual`."""
        values = super().upgrade(values)
        for stage in stages():
            values = stage.usual(values)
        return values

    def section(self, stage: AnyStage | str) -> Any:
        """The stage's config, or None."""
        return getattr(self, stage if isinstance(stage, str) else stage.name, None)

    def stages(self) -> list[AnyStage]:
        """The stages that the method has, in order."""
        return [stage for stage in stages() if self.section(stage) is not None]

    def read_by(self, stage: AnyStage) -> Values:
        """Name -> config of the stages that this one reads, of those that the method has."""
        names = stage.reads_of(self.section(stage))
        return {name: self.section(name) for name in names if self.section(name) is not None}

    def __post_init__(self) -> None:
        if self.pretrained is None:
            for name in ("autoencoder", "tokenizer"):
                if self.section(name) is None:
                    raise ValueError(f"{name}: this field is required, unless `pretrained` names a finished tokenizer")
        else:
            trained = [stage.name for stage in self.stages() if stage.makes_encoder]
            if trained:
                raise ValueError(
                    "pretrained: a finished tokenizer has an encoder, and needs no stage that trains one from the "
                    f"beginning; set {', '.join(trained)} to null, or remove `pretrained`"
                )
        for stage in self.stages():
            for name in stage.needs:
                if self.section(name) is None:
                    raise ValueError(f"{stage.name}: it needs the stage {name!r}, which is null; add that section")


def recipe_class() -> type[Recipe]:
    """`Recipe` with the sections of all stages, those of loaded plugins too."""
    return _recipe_class(stages())


@lru_cache
def _recipe_class(known: tuple[AnyStage, ...]) -> type[Recipe]:
    shared = {f.name for f in fields(Sections)}
    for stage in known:
        taken = {*shared, *Recipe.beside, "pipeline"}  # the last is a folder beside the stages'
        if stage.after is not None and (hasattr(Recipe, stage.name) or stage.name in taken):
            raise ValueError(f"stage {stage.name!r}: that word has a meaning in recipes already; call it otherwise")
    own = [
        (stage.name, stage.Config | None, field(default=None, metadata={"doc": _sentence(stage.Config)}))
        for stage in known
        if stage.name not in shared
    ]
    return make_dataclass("Recipe", own, bases=(Recipe,), frozen=True, kw_only=True, namespace={"made": True})


def _sentence(cls: type) -> str:
    """Its docstring in a line; dataclass writes the signature where there is none, which says nothing new."""
    doc = cls.__doc__ or ""
    return "" if doc.startswith(f"{cls.__name__}(") else " ".join(doc.split())


class Recipes(dict[str, Recipe]):
    """Variant name -> resolved recipe."""

    partial: dict[str, list[str]]
    """The options that do not reach all variants, with the names of those that they do reach."""


def load(path: str | Path, overrides: Values | None = None) -> Recipes:
    """Variant name -> resolved recipe, in the file's order; one called "main" where there are no variants.

    path: a file, or the name of a recipe that comes with the package.
    overrides: what is asked on the command line, laid over the file and its variants as `dmvae.options` says.
    Raises ValueError naming the file and the field for anything that is not a valid recipe.
    """
    path = recipe_file(path)
    return resolve(read_values(path), overrides, path)


def resolve(values: Values, overrides: Values | None = None, path: Path = Path("recipe")) -> Recipes:
    """`load` for a mapping instead of a file. path: named in errors; relative plugins are also sought in its folder."""
    asked = flat(overrides or {})

    def without(option: str) -> str:
        try:
            _resolve(values, {name: value for name, value in asked.items() if name != option}, path)
        except ValueError as error:
            return str(error)
        return ""

    try:
        return _resolve(values, asked, path)
    except ValueError as error:
        cause = cause_of(error, FieldMissing, NoSuchField)
        told = None if isinstance(cause, FieldMissing) else of_option(str(error), asked, without)
        raise ValueError(f"{told or f'{path}: {error}'}{_how(cause)}") from error


def _resolve(values: Values, asked: Values, path: Path) -> Recipes:
    """`resolve`, whose errors do not say whether the file or an option is at fault."""
    values = configs.merge({}, _with_names(values))
    variants, own, seeds, options = _asked(values, asked)
    for name, over in (*variants.items(), *own.items()):
        if "plugins" in (over or {}):
            raise ValueError(f"variants.{name}.plugins: plugins are loaded for all variants; name them at the top")
    for given in (values, options):
        if given.get("plugins"):
            given["plugins"] = _beside(path, given["plugins"])
    load_plugins(options.get("plugins", values.get("plugins")) or ())
    recipe, by_variant = recipe_class(), _with_seeds(variants, seeds)
    values = configs.named(recipe, values)
    layers = {str(name): configs.named(recipe, configs.merge(values, over or {})) for name, over in by_variant.items()}

    def read(name: str, laid: Values) -> Recipe:
        over = own.get(name if name in variants else method_of(name))  # a name may have an @ of its own
        try:
            return configs.read(recipe, configs.merge(laid, over or {}))
        except NoSuchField as error:
            if len(layers) > 1 and error.place in flat(by_variant[name] or {}):
                raise NoSuchField(error.place, f"{error.message} (variant {name!r})") from error
            raise
        except ValueError as error:
            new = [option for option in flat(over or {}) if lacks(laid, option, recipe)]
            more = [f"variant {name!r}"] if len(layers) > 1 else []
            more += [f"which lacks {new[0].rpartition('.')[0]!r} without --variants.{name}.{new[0]}"] if new else []
            raise ValueError(f"{error}" + (f" ({', '.join(more)})" if more else "")) from error

    found, partial = lay(layers, options, recipe, read)
    if len(places := {each.run.dir for each in found.values()}) > 1:
        raise ValueError(f"run.dir: variants name {' and '.join(sorted(places))}; a run has one folder for all")
    recipes = Recipes(found)
    recipes.partial = partial
    return recipes


def _how(error: FieldError | None) -> str:
    """How to give the field that is missing, or which sections have the one that is not where it was given."""
    if isinstance(error, FieldMissing):
        return f"; give it in the recipe, or as --{error.place} VALUE"
    place = error.place if error is not None else ""
    name, owners = place.rpartition(".")[2], list[str]()
    for section, hint in configs.hints_of(recipe_class()).items() if place.count(".") < 2 else ():
        kind = configs.section_of(hint)
        if kind is not None and name in {own.name for own in fields(kind)}:
            owners.append(f"{section}.{name}")
    return f"; sections have it: {few(owners)}" if owners else ""


def _asked(values: Values, asked: Values) -> tuple[Values, Values, object, Values]:
    """(variants, what is asked of single variants, seeds, what is asked of all); takes the first and third off
    `values`. asked: the options, `flat`."""
    split = {key: {k: v for k, v in asked.items() if k.split(".")[0] == key} for key in ("variants", "seeds")}
    options = {key: value for key, value in asked.items() if key.split(".")[0] not in split}
    variants, seeds = values.pop("variants", None) or {"main": {}}, values.pop("seeds", None)
    own = configs.merge({}, split["variants"]).get("variants", {})
    if own is None:  # --variants null: the recipe without them
        variants, own = {"main": {}}, {}
    for of in (variants, own):
        if not isinstance(of, dict) or not all(isinstance(over, dict | None) for over in of.values()):
            raise FieldError("variants", f"expected a mapping of names to overrides, got {reprlib.repr(of)}")
    for option, over in split["variants"].items():
        if option.count(".") < 2 and (over == {} or (over is None and "." in option)):
            raise ValueError(
                f"--{option}: it says nothing; --variant NAME chooses one, --variants null does without them"
            )
    for name in own:
        if name not in variants:
            raise ValueError(f"variants.{name}: the recipe has no variant {name!r}{nearest(name, variants)}")
    if isinstance(seeds, list) and "seeds" not in split["seeds"]:  # --seeds.NAME leaves the others theirs
        seeds = dict.fromkeys(variants, seeds)
    seeds = configs.merge({"seeds": seeds}, split["seeds"])["seeds"]
    for name, place in ((None, "seed"), *((name, f"variants.{name}.seed") for name in own)):
        given = "seed" in (options if name is None else own[name] or {})
        if given and seeds is not None and (name is None or not isinstance(seeds, dict) or name in seeds):
            raise ValueError(
                f"--{place}: this recipe's `seeds` give it; ask for --seeds '[3]', or for --seeds null too"
            )
    return variants, own, seeds, options


def read_values(path: Path, below: tuple[Path, ...] = ()) -> Values:
    """The file's values, laid over those of the recipe that it `extends`, whose variants and seeds are its own."""
    if path in below:
        raise ValueError(f"{below[-1]}: extends: {path} extends this file in turn")
    return extended(_read_yaml(path), path, below)


def extended(values: Values, path: Path, below: tuple[Path, ...] = ()) -> Values:
    """`read_values` of what a file at `path` would hold, less its `extends`."""
    try:
        values = configs.merge({}, _with_names(values))
        if values.get("plugins"):
            values["plugins"] = _beside(path, values["plugins"])
        base = values.pop("extends", None)
        if base is None:
            return values
        file = _extended(path, base)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    inherited = read_values(file, (*below, path))
    inherited = {key: value for key, value in inherited.items() if key not in ("variants", "seeds")}
    load_plugins(values.get("plugins", inherited.get("plugins")) or ())  # `named` looks up the types that they register
    return configs.merge(configs.named(recipe_class(), configs.merge({}, inherited)), values)


def _extended(recipe: Path, base: object) -> Path:
    """The file that a recipe names to extend: one beside it, or one that comes with the package. Raises ValueError."""
    if not isinstance(base, str) or not base.strip():
        raise ValueError(f"extends: expected the path of a recipe, beside this one, got {base!r}")
    beside = (recipe.parent / Path(base).expanduser()).resolve()
    if beside.is_file():
        return beside
    try:
        if Path(base).suffix:
            raise ValueError(f"no such recipe: {beside}")
        return recipe_file(base)
    except ValueError as error:
        raise ValueError(f"extends: {error}" + (f" ({beside} is a folder)" if beside.is_dir() else "")) from error


def _beside(recipe: Path, plugins: object) -> list[str]:
    """The plugins as absolute paths, or as names of modules. A path that does not exist from here is looked up from the
    recipe's folder, and what is no path is a module. Raises ValueError for what is none of these."""
    if not isinstance(plugins, list | tuple | str | None):
        raise ValueError(f"plugins: expected a list of files, folders or modules, got {plugins!r}")
    plugins = [plugins] if isinstance(plugins, str) else [str(plugin) for plugin in plugins or ()]
    found = []
    for plugin in plugins:
        if not plugin.strip():
            raise ValueError("plugins: an empty name; name a file, a folder or a module")
        named = Path(plugin).expanduser()
        places = [*dict.fromkeys((named.absolute(), (recipe.parent / named).absolute()))]
        there = [place for place in places if place.exists()]
        if not there and importable(plugin):
            found.append(plugin)
            continue
        if not there:
            known = [file.name for place in places for file in place.parent.glob("*.py")]
            told = " and no ".join(map(str, places))
            also = "" if "/" in plugin or plugin.endswith(".py") else f", nor an installed module {plugin!r}"
            raise ValueError(f"plugins: no such file or folder: {told}{also}{nearest(Path(plugin).name, known)}")
        found.append(str(there[0]))
    return found


def method_of(variant: str, recipe: Recipe | None = None) -> str:
    """The method that a variant METHOD@SEED is one seed of; itself without a seed and, where its recipe is given, also
    where its name has an @ of its own."""
    method = variant.rpartition("@")[0] or variant
    return method if recipe is None or variant == f"{method}@{recipe.seed}" else variant


def _with_seeds(variants: Values, seeds: object) -> Values:
    """`variants`, each of those that `seeds` names once per seed."""
    if seeds is None:
        return variants
    lists: Values = seeds if isinstance(seeds, dict) else dict.fromkeys(variants, seeds)
    for name, chosen in lists.items():
        if name not in variants:
            raise ValueError(f"seeds: no variant is called {name!r}{nearest(str(name), map(str, variants))}")
        if not isinstance(chosen, list | tuple) or not chosen or not all(type(seed) is int for seed in chosen):
            how = f"; write [{chosen}]" if type(chosen) is int else ""
            raise ValueError(f"seeds: expected a list of whole numbers, got {chosen!r}{how}")
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"seeds: {chosen} holds a seed twice")
        if there := [f"{name}@{seed}" for seed in chosen if f"{name}@{seed}" in variants]:
            raise ValueError(f"seeds: {there[0]!r} is a variant already; call that one otherwise")
    return {
        (name if seed is None else f"{name}@{seed}"): over
        if seed is None
        else configs.merge(over or {}, {"seed": seed})
        for name, over in variants.items()
        for seed in lists.get(name, [None])
    }


def _read_yaml(path: Path) -> Values:
    if not path.is_file():
        raise ValueError(f"no such recipe: {path}" + (" (that is a folder)" if path.is_dir() else ""))
    try:
        values = read_yaml(path.read_text(), once=True)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no text, or a number of thousands of digits
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deep to be a recipe") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {reprlib.repr(values)}")
    return values


def _with_names(values: Values) -> Values:
    """`values`, names of variants as text. Raises ValueError for a name that no folder and no option can have."""
    found = dict(values)
    for key in ("variants", "seeds"):  # YAML reads a name of digits as a number
        if isinstance(values.get(key), Mapping):
            if odd := [name for name in values[key] if isinstance(name, bool | None)]:
                raise ValueError(f"{key}: YAML reads a name here as {odd[0]}; write it in quotes, as 'on'")
            found[key] = {str(name): value for name, value in values[key].items()}
            for name in found[key]:
                if not re.fullmatch(r"[\w@+=-]+", name) or name == "stages":
                    raise ValueError(
                        f"{key}: {name!r} names a folder beside `stages` and is part of options: use letters, digits "
                        "and _ @ + = -"
                    )
    return found
