"""Runs a recipe: the stages of its variants, in order. Finished stages are skipped and interrupted ones resumed; a
stage that variants have in common runs once; several processes that run the same recipe divide the stages up.

A stage's folder is `run_dir/stages/NAME-FINGERPRINT`; `run_dir/VARIANT/NAME` is a link to it. The
fingerprint covers the stage's config, the recipe sections that it uses, the content of the data set, of the
files that a config names and of plugins, and the fingerprints of what it reads: so a changed field runs that stage
and those that depend on it again, and no others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dmvae import checks
from dmvae import config as configs
from dmvae.config import Values
from dmvae.datasets import Split, open_dataset
from dmvae.datasets.skipped import write_skipped
from dmvae.fitting import fit
from dmvae.inputs import Inputs, latent_shape
from dmvae.recipe import Recipe, load
from dmvae.registry import Registered, plugin_of
from dmvae.runtime import distributed
from dmvae.runtime.console import console
from dmvae.runtime.done import NAME as DONE
from dmvae.runtime.done import damage, read_done, write_done
from dmvae.runtime.files import atomic_write, locked, sweep
from dmvae.runtime.hashing import content_hash
from dmvae.training.loop import CHECKPOINTS, train
from dmvae.training.stage import AnyStage, Facts, TrainingStage

VARIANTS = "variants.json"


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
        return "interrupted" if self.folder.exists() else "new"

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
        folders: dict[str, Path] = {}
        for stage in recipe.stages():
            reads = {name: folders[name] for name in stage.reads if name in folders}
            fingerprint = _fingerprint(stage, recipe, everything, splits, [folder.name for folder in reads.values()])
            folders[stage.name] = run_dir / "stages" / f"{stage.name}-{fingerprint}"
            jobs.append(Job(variant, stage, recipe, folders[stage.name], reads))
    return jobs


def jobs_of(run_dir: Path) -> list[Job]:
    """The jobs of a run folder, for the variants of the recipe that was last run there.

    Stages are found by their links, not by fingerprints computed anew: so a run can be reported on a machine without
    its data, and after an update that would compute other fingerprints. Raises ValueError where the folder is not a
    run's.
    """
    files = sorted(run_dir.glob("*/recipe.yaml"), key=lambda file: file.stat().st_mtime_ns)
    if (run_dir / VARIANTS).exists():
        named = [run_dir / name / "recipe.yaml" for name in json.loads((run_dir / VARIANTS).read_text())]
        files = [file for file in named if file in files]
    if not files:
        raise ValueError(f"{run_dir}: not a run's folder (it holds no VARIANT/recipe.yaml)")
    jobs = [job for file in files for job in _linked(run_dir, file.parent.name, load(file)["main"])]
    if not jobs:
        raise ValueError(f"{run_dir}: no links to stages in it; copy a run with its links (`cp -a`, `rsync -a`)")
    return jobs


def _linked(run_dir: Path, variant: str, recipe: Recipe) -> list[Job]:
    stages = recipe.stages()
    links = {stage.name: run_dir / variant / stage.name for stage in stages}
    folders = {
        name: run_dir / "stages" / Path(os.readlink(link)).name for name, link in links.items() if link.is_symlink()
    }
    return [
        Job(variant, stage, recipe, folders[stage.name], {n: folders[n] for n in stage.reads if n in folders})
        for stage in stages
        if stage.name in folders
    ]


def run(
    recipes: dict[str, Recipe],
    run_dir: Path,
    only: str | None = None,
    variants: list[str] | None = None,
    verify: bool = True,
    asked: Collection[str] | None = None,
) -> list[Job]:
    """Run every job that is not finished; with `only`, that stage alone, whose inputs must be finished.

    `variants`: the names of all variants, where `recipes` holds only some of them. `verify`: check the files of
    finished stages, and run stages with damaged files again. `asked`: the fields that the user set by options. Where it
    is given, fields that the user did not set and that are too large for a small data set are lowered, and the run
    prints which; where it is None, nothing is changed.

    Processes that run the same recipe side by side (one per GPU, or one per core) divide its stages up: each takes the
    first stage that is ready and that no other process has taken, and returns when all are finished.

    Raises ValueError when `only` names a stage that no variant has, or one whose inputs are not finished.
    """
    if not distributed.is_main():
        distributed.barrier()  # rank 0 fills the data set's caches first; the others then read them
    said: list[str] = []
    if asked is not None:
        recipes, said = fit(recipes, asked)
    jobs = plan(recipes, run_dir)
    if distributed.is_main():
        _tidy(jobs, verify)
        distributed.barrier()
    chosen = [job for job in jobs if only in (None, job.stage.name)]
    if not chosen:
        raise ValueError(f"no variant of this recipe has the stage {only!r}")
    _check([job for job in chosen if job.state != "finished"])
    if distributed.is_main():
        run_dir.mkdir(parents=True, exist_ok=True)
        with locked(run_dir):
            _write_recipes(recipes, run_dir, variants or list(recipes))
            for job in jobs:
                _link(job, run_dir)
            for line in (*dict.fromkeys(map(about_data, recipes.values())), *said, *_left_out(run_dir)):
                console.print(line)
    ahead, variant, waits = list(chosen), None, False
    while ahead:
        with ExitStack() as lock:
            taken = distributed.broadcast(_take(ahead, lock) if distributed.is_main() else None)
            if taken is None:
                if distributed.is_main() and not waits:
                    console.print("waits for stages that another process is running")
                waits = True
                time.sleep(0.5)
                continue
            position, state = taken
            job, waits = ahead.pop(position), False
            if distributed.is_main():
                if job.variant != variant and len(recipes) > 1:
                    console.print(headline(chosen, job.variant))
                verb = {"finished": "skip (finished)", "interrupted": "resume (interrupted)", "new": "run (new)"}[state]
                console.print(f"{job.variant}/{job.stage.name}: {verb} {job.folder}")
            variant = job.variant
            if state != "finished":
                execute(job)
    return jobs


def _check(jobs: list[Job]) -> None:
    """Raise ValueError for what is wrong with these jobs, as far as that can be known before any of them runs."""
    for variant, recipe in {job.variant: job.recipe for job in jobs}.items():
        latent_shape(recipe)
        stages = [job.stage for job in jobs if job.variant == variant]
        for problem in (*checks.lacking(recipe, stages), *checks.problems(recipe, stages)):
            raise ValueError(f"{variant}: {problem}")


def _take(ahead: list[Job], lock: ExitStack) -> tuple[int, str] | None:
    """(position, state) of the first job that is finished, or that is ready to run and that no other process runs. This
    process then holds the job's lock until `lock` closes. None where there is no such job now."""
    coming = {job.folder for job in ahead}
    for position, job in enumerate(ahead):
        state = job.state
        if state != "finished":
            unfinished = [folder for folder in job.reads.values() if read_done(folder) is None]
            if any(folder in coming for folder in unfinished):
                continue
            _check_inputs(job)
            job.folder.mkdir(parents=True, exist_ok=True)
            if not lock.enter_context(locked(job.folder, wait=False)):
                continue
            state = "finished" if job.finished else state
        return position, state
    return None


def about_data(recipe: Recipe) -> str:
    """The numbers of training and test images, and how the test images were chosen."""
    train = open_dataset(recipe.data, "train")
    counts, held_out = f"{len(train):,} training", ""
    if any("test" in stage.splits for stage in recipe.stages()):
        counts += f" and {len(open_dataset(recipe.data, 'test')):,} test"
        held_out = recipe.data.held_out()
    return f"data: {counts} images of {len(train.classes)} classes{f'; {held_out}' if held_out else ''}"


def _left_out(run_dir: Path) -> Iterator[str]:
    count, path = write_skipped(run_dir)
    if count:
        yield f"data: files were left out; {path} names them"


def headline(jobs: list[Job], variant: str) -> str:
    """The line that is printed when a variant begins: stages finished, and the time left where finished stages of the
    same names allow an estimate."""
    variants = list(dict.fromkeys(job.variant for job in jobs))
    folders = {job.folder: job for job in jobs}
    done = [job for job in folders.values() if job.state == "finished"]
    seconds: dict[str, list[float]] = {}
    for job in done:
        seconds.setdefault(job.stage.name, []).append(job.facts()["seconds"])
    ahead = [job.stage.name for job in folders.values() if job.state != "finished"]
    known = [sum(seconds[name]) / len(seconds[name]) for name in ahead if name in seconds]
    left = f", about {sum(known) / 60:.0f} min left" if ahead and len(known) == len(ahead) else ""
    text = f"{len(done)} of {len(folders)} stages finished{left}"
    return f"[{variants.index(variant) + 1}/{len(variants)}] {variant}: {text}"


def execute(job: Job) -> None:
    """Run one stage to its end and write its done.json."""
    begun = time.monotonic()
    device = distributed.start()
    job.folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        sweep(job.folder)
    distributed.barrier()
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, device)
    section = job.recipe.section(job.stage)
    stage = job.stage(section, inputs)
    facts = train(stage) if isinstance(stage, TrainingStage) else stage.run()
    wall = round(time.monotonic() - begun, 2)
    facts = {"stage": job.stage.name} | facts | {"seconds": max(wall, facts.get("seconds", 0.0))}
    if distributed.is_main():
        _finish(job, facts | {"config": configs.plain(section)})
    distributed.barrier()


def _finish(job: Job, facts: Facts) -> None:
    write_done(job.folder, facts)
    # Only after done.json is written: a stage that is killed before that resumes from its checkpoint.
    shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)


def _tidy(jobs: list[Job], verify: bool) -> None:
    """Remove what a finished stage left behind if it was killed at its very end; mark stages with damaged files as
    unfinished, so that they run again. A stage is deterministic, so it gives the same result."""
    for folder in {job.folder for job in jobs if job.finished}:
        with locked(folder, wait=False) as mine:
            if not mine:
                continue
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            sweep(folder)
            wrong = damage(folder) if verify else None
            if wrong:
                console.print(f"{folder}: {wrong}; the stage is run again")
                (folder / DONE).unlink()
                (folder / wrong.partition(" ")[0]).unlink(missing_ok=True)


def _fingerprint(
    stage: AnyStage, recipe: Recipe, everything: Values, splits: dict[Split, str], reads: list[str]
) -> str:
    uses = {path: _at(everything, path) for path in stage.uses}
    data = {name: value for name, value in everything["data"].items() if name not in recipe.data.PLACES}
    key = {
        "stage": stage.name,
        "config": everything[stage.name],
        "seed": recipe.seed,
        "data": data | {"content": {split: splits[split] for split in stage.splits}},
        "uses": {path: value for path, value in uses.items() if value is not None},
        "reads": reads,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _content(member: Registered) -> Values:
    """What counts in the fingerprint besides the fields: the content of the files that they name, and that of the
    plugin that defines the class."""
    plugin = plugin_of(member)
    parts = [member.fingerprint(), content_hash([plugin]) if plugin else ""]
    return {"content": parts} if any(parts) else {}


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def _check_inputs(job: Job) -> None:
    for name, folder in job.reads.items():
        if read_done(folder) is None:
            raise ValueError(
                f"{job.variant}/{job.stage.name} reads the stage {name!r}, which has not been run with this recipe "
                f"({folder} is not finished); run `dmvae {name} RECIPE` first, or `dmvae run RECIPE` for all"
            )


def _link(job: Job, run_dir: Path) -> None:
    link = run_dir / job.variant / job.stage.name
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(job.folder, link.parent)
    if not (link.is_symlink() and os.readlink(link) == target):
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _write_recipes(recipes: dict[str, Recipe], run_dir: Path, variants: list[str]) -> None:
    """The resolved recipe of every variant, as YAML that `dmvae run` takes, and the names of all variants."""
    with atomic_write(run_dir / VARIANTS) as part:
        part.write_text(json.dumps(variants))
    for variant, recipe in recipes.items():
        with atomic_write(run_dir / variant / "recipe.yaml") as part:
            part.write_text(yaml.safe_dump(configs.plain(recipe), sort_keys=False))
