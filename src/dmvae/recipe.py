"""A recipe: one experiment, as a YAML file holds it.

`load` reads a file, lays command-line overrides and each variant's overrides on it, and returns one
resolved `Recipe` per variant. `seeds: [0, 1, 2]`, or `seeds: {VARIANT: [0, 1, 2], ...}`, makes one variant of
each seed, called VARIANT@SEED; the table then has their mean and spread too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dmvae import config as configs
from dmvae.datasets import DatasetConfig
from dmvae.evaluation.features import FeaturesConfig
from dmvae.losses import LossConfig
from dmvae.registry import load_plugins, nearest
from dmvae.sections import AutoencoderShape, RunConfig
from dmvae.stages.decoder import DecoderConfig
from dmvae.stages.encoder import EncoderTraining
from dmvae.stages.evaluate import EvaluateConfig
from dmvae.stages.generator import GeneratorConfig
from dmvae.stages.latents import LatentsConfig
from dmvae.stages.matching import MatchingTraining
from dmvae.stages.reference import ReferenceTraining
from dmvae.stages.sample import SampleConfig
from dmvae.stages.tokenizer import TokenizerConfig
from dmvae.tokenizers import TokenizerSource

__all__ = ["AutoencoderShape", "FeaturesConfig", "Recipe", "RunConfig", "load"]

TOKENIZER_STAGES = ("encoder", "tokenizer", "reference", "matching", "decoder")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One method on one data set. A section set to null is a stage that the method does not have."""

    name: str
    """Name of the experiment."""
    seed: int = 0
    """Seed of all randomness."""
    plugins: tuple[str, ...] = ()
    """Files or folders of Python files that register more references, objectives, data sets or encoders."""
    run: RunConfig = field(default_factory=RunConfig)
    """How to run."""
    data: DatasetConfig
    """The data set."""
    autoencoder: AutoencoderShape | None = None
    """The architecture of a tokenizer that is trained here."""
    pretrained: TokenizerSource | None = None
    """A finished tokenizer, by `type`, instead of the stages that train one."""
    losses: LossConfig = field(default_factory=LossConfig)
    """The reconstruction loss of the stages that train a decoder."""
    encoder: EncoderTraining | None = None
    """Self-supervised training of the encoder; null for a pretrained encoder or one trained with the tokenizer."""
    tokenizer: TokenizerConfig | None = None
    """Training of bottleneck and decoder."""
    reference: ReferenceTraining | None = None
    """The reference distribution and its teacher."""
    matching: MatchingTraining | None = None
    """Distribution matching."""
    decoder: DecoderConfig | None = None
    """Training of the decoder alone, on final latents."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """Encoding of the data set."""
    generator: GeneratorConfig | None = None
    """The flow model on the latents."""
    sample: SampleConfig | None = None
    """Sampling from it."""
    evaluate: EvaluateConfig | None = None
    """Measuring."""

    def __post_init__(self) -> None:
        if self.pretrained is None:
            for name in ("autoencoder", "tokenizer"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: this field is required, unless `pretrained` names a finished tokenizer")
        else:
            trained = [name for name in TOKENIZER_STAGES if getattr(self, name) is not None]
            if trained:
                raise ValueError(
                    "pretrained: a finished tokenizer stands in for the stages that train one; "
                    f"set {', '.join(trained)} to null, or remove `pretrained`"
                )
        if self.matching is not None and self.reference is None:
            raise ValueError("matching: there is nothing to match without a reference; add the section `reference`")


def load(path: str | Path, overrides: dict[str, Any] | None = None) -> dict[str, Recipe]:
    """Variant name -> resolved recipe, in the file's order; one called "main" where there are no variants.

    Raises ValueError naming the file and the field for anything that is not a valid recipe.
    """
    path = Path(path)
    values = _extended(path)
    named = values.get("variants") or {"main": {}}
    values = configs.merge(values, overrides or {})
    variants = values.pop("variants", None) or {"main": {}}
    seeds = values.pop("seeds", None)
    try:
        if not isinstance(variants, dict) or not all(isinstance(v, dict | None) for v in variants.values()):
            raise ValueError("variants: expected a mapping of names to overrides")
        for name in variants:
            if name not in named:
                raise ValueError(f"variants.{name}: the recipe has no variant {name!r}{nearest(name, named)}")
        variants = _with_seeds(variants, seeds)
        load_plugins(_beside(path, values.get("plugins")))
        recipes = {}
        for name, over in variants.items():
            try:
                recipes[str(name)] = configs.read(Recipe, configs.merge(values, over or {}))
            except ValueError as error:
                raise ValueError(f"{error}" + (f" (variant {name!r})" if len(variants) > 1 else "")) from error
        return recipes
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _extended(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's values, laid over those of the recipe that it `extends`, whose variants and seeds are its own."""
    if path in below:
        raise ValueError(f"{below[-1]}: extends: {path} extends this file in turn")
    values = _read_yaml(path)
    if values.get("plugins"):
        values["plugins"] = _beside(path, values["plugins"])
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: extends: expected the path of a recipe, beside this one, got {base!r}")
    inherited = _extended((path.parent / base).resolve(), (*below, path))
    return configs.merge({key: value for key, value in inherited.items() if key not in ("variants", "seeds")}, values)


def _beside(recipe: Path, plugins: Any) -> list[str]:
    """Absolute paths; those that lead nowhere from here are meant from the recipe's folder."""
    if not isinstance(plugins, list | tuple | None):
        raise ValueError(f"plugins: expected a list of files or folders, got {plugins!r}")
    plugins = [str(plugin) for plugin in plugins or ()]
    return [str((Path(p) if Path(p).exists() else recipe.parent / p).absolute()) for p in plugins]


def method_of(variant: str) -> str:
    """The method that a variant METHOD@SEED is one seed of; itself without a seed."""
    return variant.rpartition("@")[0] or variant


def _with_seeds(variants: dict[str, Any], seeds: Any) -> dict[str, Any]:
    """`variants`, each of those that `seeds` names once per seed."""
    if seeds is None:
        return variants
    lists = seeds if isinstance(seeds, dict) else dict.fromkeys(variants, seeds)
    for name, chosen in lists.items():
        if name not in variants:
            raise ValueError(f"seeds: no variant is called {name!r}{nearest(str(name), map(str, variants))}")
        if not isinstance(chosen, list) or not chosen or not all(type(seed) is int for seed in chosen):
            raise ValueError(f"seeds: expected a list of whole numbers, got {chosen!r}")
    return {
        (name if seed is None else f"{name}@{seed}"): over
        if seed is None
        else configs.merge(over or {}, {"seed": seed})
        for name, over in variants.items()
        for seed in lists.get(name, [None])
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no such recipe: {path}" + (" (that is a folder)" if path.is_dir() else ""))
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of sections")
    for key in ("variants", "seeds"):  # YAML reads a name of digits as a number
        if isinstance(values.get(key), dict):
            values[key] = {str(name): value for name, value in values[key].items()}
            for name in values[key]:
                if not re.fullmatch(r"[\w@+=-]+", name) or name == "stages":
                    raise ValueError(
                        f"{path}: {key}: {name!r} names a folder beside `stages` and is part of options: use letters, "
                        "digits and _ @ + = -"
                    )
    return values
