"""Runs a recipe: its variants, their stages in order; skips what is finished, resumes what is not, shares
what variants have in common, and shares the work with every other process that runs the same recipe.

A stage's folder is `run_dir/stages/NAME-FINGERPRINT`; `run_dir/VARIANT/NAME` is a link to it. The
fingerprint covers the stage's config, the recipe sections that it uses, the content of the data set, of the
files that a config names and of plugins, and the fingerprints of what it reads: so a changed field redoes that
stage and what hangs on it, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from dmvae import checks
from dmvae import config as configs
from dmvae.datasets import open_dataset
from dmvae.inputs import Inputs, describe_latents
from dmvae.recipe import Recipe, load
from dmvae.registry import Registered, plugin_of
from dmvae.runtime import distributed
from dmvae.runtime.console import console
from dmvae.runtime.files import flush, locked, sweep, whole
from dmvae.runtime.hashing import content_hash
from dmvae.stages import STAGES
from dmvae.training.loop import CHECKPOINTS, train

VARIANTS = "variants.json"


@dataclass(frozen=True)
class Job:
    """One stage of one variant."""

    variant: str
    stage: ModuleType
    recipe: Recipe
    folder: Path
    reads: dict[str, Path]

    @property
    def done(self) -> Path:
        return self.folder / "done.json"

    @property
    def state(self) -> str:
        """ "finished", "interrupted" or "new"."""
        if self.done.exists():
            return "finished"
        return "interrupted" if self.folder.exists() else "new"

    def facts(self) -> dict[str, Any]:
        """What done.json says: seconds, steps, images seen."""
        return json.loads(self.done.read_text())


def plan(recipes: dict[str, Recipe], run_dir: Path) -> list[Job]:
    """Every variant's stages in the order in which they run.

    Raises ValueError for data that cannot be opened.
    """
    jobs = []
    for variant, recipe in recipes.items():
        splits = {"train": open_dataset(recipe.data, "train").fingerprint}
        if recipe.evaluate is not None:
            splits["test"] = open_dataset(recipe.data, "test").fingerprint
        everything = configs.plain(recipe, _content)
        folders: dict[str, Path] = {}
        for stage in STAGES:
            section = getattr(recipe, stage.NAME)
            if section is None:
                continue
            missing = [name for name in getattr(stage, "NEEDS", ()) if name not in folders]
            if missing:
                raise ValueError(f"variant {variant!r}: {stage.NAME} needs the stage {missing[0]!r}, which is null")
            reads = {name: folders[name] for name in stage.READS if name in folders}
            fingerprint = _fingerprint(stage, recipe, everything, splits, [folder.name for folder in reads.values()])
            folders[stage.NAME] = run_dir / "stages" / f"{stage.NAME}-{fingerprint}"
            jobs.append(Job(variant, stage, recipe, folders[stage.NAME], reads))
    return jobs


def jobs_of(run_dir: Path) -> list[Job]:
    """The jobs of a run that is on disk, of the variants that the recipe last run there has.

    Folders are found by their links, not planned anew: so a run can be reported where its data is not, and after an
    update that would fingerprint its stages otherwise. Raises ValueError for a folder that is no run's.
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
    stages = [stage for stage in STAGES if getattr(recipe, stage.NAME) is not None]
    links = {stage.NAME: run_dir / variant / stage.NAME for stage in stages}
    folders = {
        name: run_dir / "stages" / Path(os.readlink(link)).name for name, link in links.items() if link.is_symlink()
    }
    return [
        Job(variant, stage, recipe, folders[stage.NAME], {n: folders[n] for n in stage.READS if n in folders})
        for stage in stages
        if stage.NAME in folders
    ]


def run(
    recipes: dict[str, Recipe], run_dir: Path, only: str | None = None, variants: list[str] | None = None
) -> list[Job]:
    """Run every job that is not finished; with `only`, that stage alone, whose inputs must be there. `variants`: names
    of all that the recipe has, where `recipes` are but some of them.

    Processes that run the same recipe side by side (one per GPU, or one per core) share its stages out: each takes
    the first one that is ready and that no other has, and returns when all are finished.

    Raises ValueError when `only` names a stage that no variant has, or one whose inputs are not finished.
    """
    if not distributed.is_main():
        distributed.barrier()  # the first rank fills the data set's caches, which the others then read
    jobs = plan(recipes, run_dir)
    if distributed.is_main():
        distributed.barrier()
    chosen = [job for job in jobs if only in (None, job.stage.NAME)]
    if not chosen:
        raise ValueError(f"no variant of this recipe has the stage {only!r}")
    _check([job for job in chosen if job.state != "finished"])
    if distributed.is_main():
        run_dir.mkdir(parents=True, exist_ok=True)
        with locked(run_dir):
            _write_recipes(recipes, run_dir, variants or list(recipes))
            for job in jobs:
                _link(job, run_dir)
    ahead, variant, waits = list(chosen), None, False
    while ahead:
        with ExitStack() as lock:
            taken = distributed.share(_take(ahead, lock) if distributed.is_main() else None)
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
                console.print(f"{job.variant}/{job.stage.NAME}: {verb} {job.folder}")
            variant = job.variant
            if state != "finished":
                execute(job)
    return jobs


def _check(jobs: list[Job]) -> None:
    """Raise ValueError for what can be known to be wrong with a stage before those that it would wait for are run."""
    for variant, recipe in {job.variant: job.recipe for job in jobs}.items():
        describe_latents(recipe)
        stages = [job.stage.NAME for job in jobs if job.variant == variant]
        for problem in (*checks.lacking(recipe, stages), *checks.problems(recipe, stages)):
            raise ValueError(f"{variant}: {problem}")


def _take(ahead: list[Job], lock: ExitStack) -> tuple[int, str] | None:
    """(position, state) of the first job that is finished, or ready to run and no other process's: it is then ours
    until `lock` closes. None where there is no such job now."""
    coming = {job.folder for job in ahead}
    for position, job in enumerate(ahead):
        state = job.state
        if state != "finished":
            unfinished = [folder for folder in job.reads.values() if not (folder / "done.json").exists()]
            if any(folder in coming for folder in unfinished):
                continue
            _check_inputs(job)
            job.folder.mkdir(parents=True, exist_ok=True)
            if not lock.enter_context(locked(job.folder, wait=False)):
                continue
            state = "finished" if job.done.exists() else state
        return position, state
    return None


def headline(jobs: list[Job], variant: str) -> str:
    """Where the run stands as a variant begins, with the time left as far as stages of the same name tell it."""
    variants = list(dict.fromkeys(job.variant for job in jobs))
    folders = {job.folder: job for job in jobs}
    done = [job for job in folders.values() if job.state == "finished"]
    seconds: dict[str, list[float]] = {}
    for job in done:
        seconds.setdefault(job.stage.NAME, []).append(job.facts()["seconds"])
    ahead = [job.stage.NAME for job in folders.values() if job.state != "finished"]
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
    section = getattr(job.recipe, job.stage.NAME)
    facts = train(job.stage, section, inputs) if hasattr(job.stage, "updates") else job.stage.run(section, inputs)
    wall = round(time.monotonic() - begun, 2)
    facts = {"stage": job.stage.NAME} | facts | {"seconds": max(wall, facts.get("seconds", 0.0))}
    if distributed.is_main():
        _finish(job, facts | {"config": configs.plain(section)})
    distributed.barrier()


def _finish(job: Job, facts: dict[str, Any]) -> None:
    flush(job.folder)  # all that done.json vouches for, before it and before the checkpoints go
    with whole(job.done) as part:
        part.write_text(json.dumps(facts, indent=1))
    # Only now: killed before, the stage goes on from its last state.
    shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)


def _fingerprint(
    stage: ModuleType, recipe: Recipe, everything: dict[str, Any], splits: dict[str, str], reads: list[str]
) -> str:
    uses = {path: _at(everything, path) for path in stage.USES}
    data = {name: value for name, value in everything["data"].items() if name not in recipe.data.PLACES}
    key = {
        "stage": stage.NAME,
        "config": everything[stage.NAME],
        "seed": recipe.seed,
        "data": data | {"content": {split: splits[split] for split in getattr(stage, "SPLITS", ("train",))}},
        "uses": {path: value for path, value in uses.items() if value is not None},
        "reads": reads,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _content(member: Registered) -> dict[str, Any]:
    """What a member depends on beside its fields: the files that these name, and the plugin that defines it."""
    plugin = plugin_of(member)
    parts = [member.fingerprint(), content_hash([plugin]) if plugin else ""]
    return {"content": parts} if any(parts) else {}


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def _check_inputs(job: Job) -> None:
    for name, folder in job.reads.items():
        if not (folder / "done.json").exists():
            raise ValueError(
                f"{job.variant}/{job.stage.NAME} reads the stage {name!r}, which has not been run with this recipe "
                f"({folder} is not finished); run `dmvae {name} RECIPE` first, or `dmvae run RECIPE` for all"
            )


def _link(job: Job, run_dir: Path) -> None:
    link = run_dir / job.variant / job.stage.NAME
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(job.folder, link.parent)
    if not (link.is_symlink() and os.readlink(link) == target):
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _write_recipes(recipes: dict[str, Recipe], run_dir: Path, variants: list[str]) -> None:
    """The resolved recipe of every variant, as YAML that `dmvae run` takes, and the names of all variants."""
    with whole(run_dir / VARIANTS) as part:
        part.write_text(json.dumps(variants))
    for variant, recipe in recipes.items():
        with whole(run_dir / variant / "recipe.yaml") as part:
            part.write_text(yaml.safe_dump(configs.plain(recipe), sort_keys=False))
