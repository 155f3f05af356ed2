"""Recipes from Python: what `dmvae run` does, for notebooks and programs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from dmvae import config as configs
from dmvae.commands.run import chosen, run_to_the_end
from dmvae.config import Values
from dmvae.datasets import look_again
from dmvae.datasets.instance import Pairs, offer
from dmvae.interop.pipeline import DMVAEPipeline
from dmvae.jobs import PIPELINE, jobs_of
from dmvae.latents.store import LatentSet
from dmvae.models.base import Tokenizer
from dmvae.options import flat
from dmvae.recipe import extended, read_values, resolve
from dmvae.runtime.files import read_json
from dmvae.runtime.joined import joined
from dmvae.runtime.shipped import recipe_file
from dmvae.runtime.words import few
from dmvae.spelling import nearest
from dmvae.tokenizers.adapted import load_tokenizer

SHAPE = ("size", "channels", "limit", "flip")
"""Fields of the recipe's `data` that are kept when a program passes its own data sets."""


class Run:
    """A run folder, and what its stages wrote."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ValueError for a folder that is not a run's."""
        self.dir = Path(folder)
        self.jobs = jobs_of(self.dir)

    def __repr__(self) -> str:
        return f"Run({str(self.dir)!r}: {', '.join(self.variants)})"

    @property
    def variants(self) -> list[str]:
        """The variants' names, in the recipe's order."""
        return list(dict.fromkeys(job.variant for job in self.jobs))

    @property
    def summary(self) -> Values:
        """What summary.json holds; `run.summary["methods"]["matched"]["gfd"]` is a figure."""
        return read_json(self.dir / "summary.json", dict)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.dir / "report.html"

    def folder(self, stage: str, variant: str | None = None) -> Path:
        """The folder of a stage. Raises ValueError for a method that is not there, and for a stage that is not there or
        not finished."""
        variant = variant or self.variants[0]
        if variant not in self.variants:
            raise ValueError(f"{self.dir}: no method is called {variant!r}{nearest(variant, self.variants)}")
        for job in self.jobs:
            if (job.variant, job.stage.name) == (variant, stage) and job.finished:
                return job.folder
        known = ", ".join(self.variants)
        raise ValueError(f"{self.dir}: {variant!r} has no finished stage {stage!r}; methods: {known}")

    def tokenizer(self, variant: str | None = None) -> Tokenizer:
        """The tokenizer of a method, of the first by default, with its latents' mean and std; in evaluation mode."""
        return load_tokenizer(self.folder("latents", variant) / "autoencoder")

    def latents(self, variant: str | None = None) -> LatentSet:
        """The training set's latents, or as many as `latents.stored` says, normalised per channel. torch's DataLoader
        takes them with `collate_fn=dmvae.datasets.loading.collate`: they are read a batch at a time."""
        return LatentSet(self.folder("latents", variant) / "latents")

    def pipeline(self, variant: str | None = None) -> DMVAEPipeline:
        """The diffusers pipeline of a method that has a generator. Raises ValueError where none was written: for a
        folder that merges several runs (`dmvae report --out`), and for a generator of a plugin's class."""
        self.folder("generator", variant)
        folder = self.dir / (variant or self.variants[0]) / PIPELINE
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: no pipeline is here; `dmvae report` writes them into the folder of each run, for "
                "generators that are dmvae's own"
            )
        return DMVAEPipeline.from_pretrained(folder)


def run(
    recipe: str | Path | Mapping[str, object],
    *,
    train: Pairs | None = None,
    test: Pairs | None = None,
    run_dir: str | Path | None = None,
    variant: str | None = None,
    **overrides: object,
) -> Run:
    """Run a recipe's unfinished stages, write table, report and pipelines as `dmvae run` does, and return the `Run`.

    recipe: a file, the name of one that comes with the package (`dmvae recipes`), or a mapping with a file's content.
    train, test: map-style data sets of (image, label), used in place of the recipe's `data`, of which only `size`,
    `channels`, `limit` and `flip` still count, also in variants. A later call finds the finished stages again if
    lengths, `targets` or `labels`, `classes` and 64 sampled images of each set are unchanged; after a change of other
    images, give another `run_dir`. run_dir: the folder, `run.dir` of the recipe unless given. variant: this one alone,
    or METHOD for all its seeds. Both are options of the command too. overrides: fields that replace the recipe's, as on
    the command line: a section as a mapping (`tokenizer={"steps": 30}`), or a dotted name
    (`**{"tokenizer.steps": 30}`).

    In the process that calls, denormal numbers are zeros from then on (torch.set_flush_denormal), for speed on a CPU.

    Raises ValueError for mistakes in the recipe or the data, before any stage runs; FloatingPointError for a training
    that diverges, after the other variants have ended.
    """
    if (train is None) != (test is None):
        raise ValueError("train and test: give both data sets, or neither")
    if not isinstance(recipe, str | Path | Mapping):
        raise ValueError(f"recipe: give a file, a recipe's name or a mapping, not {type(recipe).__name__}")
    if run_dir is not None:
        if "dir" in (configs.merge({}, overrides).get("run") or {}):
            raise ValueError("run_dir and run.dir are the same; give one of them")
        overrides["run.dir"] = str(run_dir)
    path = Path("recipe") if isinstance(recipe, Mapping) else recipe_file(recipe)
    values = extended(deepcopy(dict(recipe)), path) if isinstance(recipe, Mapping) else read_values(path)
    if train is not None and test is not None:
        for name in configs.merge({}, overrides).get("data") or {}:
            if name not in SHAPE:
                raise ValueError(f"data.{name}: with train and test, data has only {few(SHAPE)}{nearest(name, SHAPE)}")
        values = _with_data(values, {"type": "instance", "key": offer(train, test)})
    look_again()
    whole = resolve(values, overrides, path)
    recipes = whole if variant is None else chosen(whole, [variant])
    how = next(iter(recipes.values())).run
    run_dir = Path(how.dir)
    asked = list(flat(overrides))
    with joined(how.timeout):
        run_to_the_end(recipes, run_dir, whole, asked)
    return Run(run_dir)


def _with_data(values: Values, data: Values) -> Values:
    """A recipe's values with `data` in place of its own, of which SHAPE is kept; so also where a variant has some."""

    def laid(over: Values) -> Values:
        own = over.get("data")
        kept = {name: own[name] for name in SHAPE if name in own} if isinstance(own, dict) else None
        return over if kept is None else over | {"data": data | kept}

    variants = values.get("variants")
    if isinstance(variants, dict):
        each = {name: laid(configs.merge({}, over)) if over else over for name, over in variants.items()}
        values = values | {"variants": each}
    return laid(values | {"data": values.get("data") or {}})
