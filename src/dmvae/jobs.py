"""What there is to run: a job for each stage of each variant, in the folder that its fingerprint names.

A stage's folder is `run_dir/stages/NAME-FINGERPRINT`; `run_dir/VARIANT/NAME` is a link to it. The
fingerprint covers the stage's config, the recipe sections that it uses, the content of the data set, of the
files that a config names and of plugins, and the fingerprints of what it reads: so a changed field runs that stage
and those that depend on it again, and no others. A generator depends on the encoder, and on no decoder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path

from dmvae import config as configs
from dmvae.config import Values
from dmvae.datasets import DatasetConfig, Split, open_dataset
from dmvae.recipe import Recipe, load
from dmvae.registry import Registered, is_ours
from dmvae.runtime.console import console
from dmvae.runtime.done import read_done, read_source
from dmvae.runtime.files import read_json, remove, write_text
from dmvae.runtime.hashing import code_of, content_of, files_of
from dmvae.runtime.yaml_text import as_yaml
from dmvae.spelling import nearest
from dmvae.training.stage import AnyStage, Facts

VARIANTS = "variants.json"
MERGED = "merged.json"
"""In a folder that merges other runs: which runs these are."""
PIPELINE = "pipeline"
STEPS = ("snapshot", "guide")
"""Fields of `sample` that name a generator for the pipeline: a step of this training, or a folder of another one."""


@dataclass(frozen=True)
class Job:
    """One stage of one variant."""

    variant: str
    stage: AnyStage
    recipe: Recipe
    folder: Path
    reads: dict[str, Path]

    @property
    def state(self) -> str:
        """ "finished", "interrupted" or "new"."""
        if self.finished:
            return "finished"
        # an empty folder is new: a process makes it before it tries the lock that this one may hold
        return "interrupted" if any(self.folder.glob("*")) else "new"

    @property
    def finished(self) -> bool:
        return read_done(self.folder) is not None

    def facts(self) -> Facts:
        """What done.json says of a finished stage: seconds, steps, images seen."""
        return read_done(self.folder) or {}


def plan(recipes: dict[str, Recipe], run_dir: Path) -> list[Job]:
    """Every variant's stages in the order in which they run.

    Raises ValueError for data that cannot be opened.
    """
    jobs = []
    for variant, recipe in recipes.items():
        read: dict[Split, None] = dict.fromkeys(split for stage in recipe.stages() for split in stage.splits)
        splits = {split: open_dataset(recipe.data, split).fingerprint for split in read}
        everything = configs.identity(recipe, _content)
        if recipe.pretrained is not None:
            everything["autoencoder"] = None  # it is then in the recipe for other variants only
        folders: dict[str, Path] = {}
        encoded: dict[str, str] = {}  # the addresses if only stages that change latents had run before
        for stage in recipe.stages():
            reads = {name: folders[name] for name in recipe.read_by(stage) if name in folders}
            address = partial(_address, stage, recipe, everything, splits)
            name = address([folder.name for folder in reads.values()])
            if not stage.keeps_latents:
                encoded[stage.name] = address([encoded[of] for of in reads if of in encoded])
            # Version 0.1 gave every stage the address `name` above: a folder that has it is kept, not computed anew.
            if stage.of_latents and not (run_dir / "stages" / name).exists():
                name = encoded[stage.name]
            folders[stage.name] = run_dir / "stages" / name
            jobs.append(Job(variant, stage, recipe, folders[stage.name], reads))
    return jobs


def _address(stage: AnyStage, recipe: Recipe, everything: Values, splits: dict[Split, str], reads: list[str]) -> str:
    """The name of the folder of a stage that reads the stages in the folders `reads`."""
    uses = {path: _at(everything, recipe, path, stage.name) for path in stage.uses}
    data = {name: value for name, value in everything["data"].items() if name not in recipe.data.PLACES}
    if code := code_of(type(recipe.data)):  # whose `fingerprint` may be of the files that it reads alone
        data["code"] = code
    key = {
        "stage": stage.name,
        "config": everything[stage.name],
        "seed": recipe.seed,
        "data": data | {"content": {split: splits[split] for split in stage.splits}},
        "uses": {path: value for path, value in uses.items() if value is not None},
        "reads": reads,
    }
    section = recipe.section(stage)
    if own := [code for cls in stage.code(section) if (code := code_of(cls))]:
        key["code"] = own
    # our own classes define themselves how their files count
    if files := files_of(section, next(filter(is_ours, type(section).__mro__), object)):
        key["files"] = files
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return f"{stage.name}-{fingerprint}"


def _content(member: Registered) -> Values:
    """What counts in the fingerprint besides the fields: the content of the files that they name, and of the file that
    defines a class that is not ours. The items of a data set count by `Dataset.fingerprint`, see `plan`."""
    content = member.fingerprint() if isinstance(member, DatasetConfig) else content_of(member)
    parts = [content, code_of(type(member))]
    return {"content": parts} if any(parts) else {}


def _at(values: Values, recipe: Recipe, path: str, stage: str) -> object:
    """The value at a dotted place of a recipe's identity; None where a section on the way is null, and for a field that
    was `added` and is at its default. Raises ValueError, with the stage that uses it, for a place that is not there."""
    found: object = values
    section: object = recipe
    for name in path.split("."):
        if found is None:
            return None
        if not isinstance(found, dict) or name not in found:
            if is_dataclass(section) and any(f.name == name and f.metadata.get("added") for f in fields(section)):
                return None
            known = found if isinstance(found, dict) else {}
            raise ValueError(f"stage {stage!r}: uses names {path!r}: no field {name!r} is there{nearest(name, known)}")
        found, section = found[name], getattr(section, name, None)
    return found


def recipes_of(run_dir: Path) -> list[Path]:
    """The resolved recipes of a run folder's variants, in the order in which they were written. Raises ValueError for a
    folder that is not a run's, or that lies in a run's folder."""
    for folder in run_dir.resolve().parents[:2]:
        if (folder / VARIANTS).is_file() and not (run_dir / VARIANTS).is_file():  # a run may lie in another's folder
            raise ValueError(f"{run_dir} lies in a run's folder; give {folder}")
    files = sorted(run_dir.glob("*/recipe.yaml"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        what = "that is a file" if run_dir.is_file() else "it holds no VARIANT/recipe.yaml"
        raise ValueError(f"{run_dir}: not a run's folder ({what}); give that of run.dir")
    return files


def jobs_of(run_dir: Path, mine: Sequence[Job] = ()) -> list[Job]:
    """The jobs of a run folder, for the variants of the recipe that was last run there. `mine`: those that this process
    has run. Where they are given, another variant whose recipe cannot be read is reported and left out.

    Stages are found by their links, not by fingerprints computed anew: so a run can be reported on a machine without
    its data, and after an update that would compute other fingerprints. Raises ValueError where the folder is not a
    run's.
    """
    own = by_variant(mine)
    files = recipes_of(run_dir)
    if (run_dir / VARIANTS).exists():
        named = [run_dir / str(name) / "recipe.yaml" for name in read_json(run_dir / VARIANTS, list)]
        files = [file for file in named if file in files]
    jobs: list[Job] = []
    for file in files:
        variant = file.parent.name
        try:
            jobs += own[variant] if variant in own else _linked(run_dir, variant, _main(file))
        except ValueError as error:
            if not mine:
                raise
            console.print(f"left out of the table: {variant}, whose recipe of an earlier run cannot be read: {error}")
    if not jobs:
        raise ValueError(f"{run_dir}: no links to stages in it; copy a run with its links (`cp -a`, `rsync -a`)")
    return jobs


def _main(file: Path) -> Recipe:
    try:
        recipes = load(file)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if str(file) in told else f"{file}: {told}") from error
    if list(recipes) != ["main"]:
        raise ValueError(f"{file}: it has variants or seeds; a run writes one recipe a variant, so remove them")
    return recipes["main"]


def by_variant(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Variant -> its jobs, in their order."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.variant, []).append(job)
    return found


def _linked(run_dir: Path, variant: str, recipe: Recipe) -> list[Job]:
    stages = recipe.stages()
    links = {stage.name: run_dir / variant / stage.name for stage in stages}
    folders = {
        name: run_dir / "stages" / Path(os.readlink(link)).name for name, link in links.items() if link.is_symlink()
    }
    for folder in folders.values():
        if folder.is_symlink() and not folder.exists():
            raise ValueError(
                f"{folder} is a link to {os.readlink(folder)}, which is not there; make the folder anew with `dmvae "
                "report RUNS --out DIR`"
            )
    return [
        Job(variant, stage, recipe, folders[stage.name], {n: folders[n] for n in recipe.read_by(stage) if n in folders})
        for stage in stages
        if stage.name in folders
    ]


def record(recipes: dict[str, Recipe], jobs: list[Job], run_dir: Path, variants: list[str]) -> None:
    """Write what `jobs_of` reads: the names of all variants, the resolved recipe of every variant that is run, as YAML
    that `dmvae run` takes, and a link to the folder of every job. A pipeline of other stages is removed first."""
    _remove_stale(jobs, run_dir)
    write_text(run_dir / VARIANTS, json.dumps(variants))
    for variant, recipe in recipes.items():
        write_text(run_dir / variant / "recipe.yaml", as_yaml(configs.plain(recipe)))
    for job in jobs:
        point(run_dir / job.variant / job.stage.name, job.folder)


def replaced(ahead: Sequence[Job], jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
    """(variant, problem) of the paths in the sections of the jobs `ahead` that lead through the links and pipelines of
    `jobs`, which `record` replaces: the fingerprint would be of the old content, and the stage read the new one."""
    links: dict[tuple[str, ...], Path] = {(job.variant, job.stage.name): job.folder for job in jobs}
    found: dict[tuple[str, str], None] = {}
    for job in ahead:
        for name in ("data", job.stage.name, *(place.partition(".")[0] for place in job.stage.uses)):
            for place, path in _paths(configs.plain_value(job.recipe.section(name)), name):
                if (stays := _stays(path, job.folder.parents[1], links)) is not None:
                    found[job.variant, f"{place}: {path} is replaced when the run begins; give {stays}"] = None
    yield from found


def _paths(value: object, place: str) -> Iterator[tuple[str, str]]:
    """(place, text) of every text that may lead below a folder; a bare word, such as a type, does not."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{place}.{name}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _paths(inner, f"{place}[{i}]")
    elif isinstance(value, str) and os.sep in value:
        yield place, value


def _stays(path: str, run_dir: Path, links: Mapping[tuple[str, ...], Path]) -> str | None:
    """What to give in place of a path that goes through a pipeline of the run, or through one of these `links`
    ((variant, stage) -> folder to which it will lead) and will lead elsewhere. None for all other paths."""
    run, place = os.path.realpath(run_dir), Path(os.path.abspath(os.path.expanduser(path)))
    own = next((place.relative_to(above).parts for above in place.parents if os.path.realpath(above) == run), ())
    if own[1:2] == (PIPELINE,) and own[0] in {variant for variant, _ in links}:
        return f"a folder below {run_dir / 'stages'}"
    coming, there = links.get(own[:2]), Path(os.path.realpath(place))
    if coming is None or not there.is_relative_to(os.path.realpath(Path(run, "stages"))):
        return None
    return None if there.is_relative_to(os.path.realpath(coming)) else str(there)


def _remove_stale(jobs: list[Job], run_dir: Path) -> None:
    """Remove pipelines of earlier settings: beside links to stages of the new ones they would be taken for theirs."""
    for variant, own in by_variant(jobs).items():
        folder = run_dir / variant / PIPELINE
        there = read_source(folder)
        if there is not None and other_source(there, source_of({job.stage.name: job for job in own})):
            remove(folder)
            console.print(f"{folder}: removed, it was of earlier settings; it is written again when the run ends")


def generators_of(stages: Mapping[str, Job]) -> dict[str, int | Path]:
    """Field of `STEPS` -> generator that it names, for the samples of a variant with these stages."""
    section = stages["sample"].recipe.section("sample") if "sample" in stages else None
    return {name: of for name in STEPS if (of := getattr(section, name, None)) is not None}


def source_of(stages: Mapping[str, Job]) -> dict[str, str]:
    """What the pipeline of a variant with these stages is made of, as its source.json says."""
    source = {name: stages[name].folder.name for name in ("latents", "generator") if name in stages}
    # a folder's content is in the fingerprint of the samples; the folder itself may be gone
    told = {
        name: stages["sample"].folder.name if isinstance(of, Path) else str(of)
        for name, of in generators_of(stages).items()
    }
    return source | told


def other_source(there: Values, source: dict[str, str]) -> bool:
    """Whether a pipeline with this source.json is made of something else than `source`."""
    return any(there.get(name) != source.get(name) for name in ("latents", "generator", *STEPS))


def point(link: Path, folder: Path) -> None:
    """Make a relative link to a folder, in place of another link, so that readers find one of them at any time. Raises
    ValueError for what is no link."""
    target = os.path.relpath(folder, link.parent)
    if not (link.is_symlink() and os.readlink(link) == target):
        if link.exists() and not link.is_symlink():
            raise ValueError(f"{link} is no link; move it away, or copy the run with its links (`cp -a`, `rsync -a`)")
        new = link.with_name(f"{link.name}.{os.getpid()}.part")  # swept as those of `atomic_write` are
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
