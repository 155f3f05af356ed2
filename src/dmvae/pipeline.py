"""Runs a recipe: the stages of its variants, in order. Finished stages are skipped and interrupted ones resumed; a
stage that variants have in common runs once; several processes that run the same recipe divide the stages up.

Which stages those are, and in which folders, is in `dmvae.jobs`.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch

from dmvae import checks, datasets
from dmvae import config as configs
from dmvae.blank import latent_shape
from dmvae.claims import begun_anew, claimed
from dmvae.datasets import open_dataset
from dmvae.datasets.skipped import write_skipped
from dmvae.fitting import fit
from dmvae.hindrances import hindrances
from dmvae.idle import idle
from dmvae.inputs import Inputs, kept_steps
from dmvae.jobs import MERGED, Job, plan
from dmvae.prolonging import prolong
from dmvae.recipe import Recipe, method_of
from dmvae.runtime import distributed
from dmvae.runtime.console import console
from dmvae.runtime.done import read_done, write_done
from dmvae.runtime.files import locked, read_json, sweep, write_json
from dmvae.runtime.signals import stop_if_asked
from dmvae.runtime.words import counted, few
from dmvae.tidying import tidy
from dmvae.training.checkpoint import settle, steps
from dmvae.training.health import Diverged
from dmvae.training.loop import CHECKPOINTS, train
from dmvae.training.stage import Facts, TrainingStage

STARTED = "DMVAE_STARTED"
"""Environment variable with a name that processes share which one command has started (`--processes`)."""
DIVERGED = "diverged.json"
"""File beside a stage's checkpoints that says to the others of such a start, by its name, that the stage diverged."""


class Unended(Diverged):
    """Trainings have diverged, and all that does not need them has been run."""

    def __init__(self, errors: Sequence[str], jobs: list[Job]) -> None:
        super().__init__(" | ".join(errors))
        self.jobs = jobs


def run(
    recipes: dict[str, Recipe],
    run_dir: Path,
    only: str | None = None,
    variants: Mapping[str, Recipe] | None = None,
    verify: bool = True,
    asked: Collection[str] | None = None,
) -> list[Job]:
    """Run every job that is not finished; with `only`, that stage alone, whose inputs must be finished.

    `variants`: all variants, where `recipes` holds only some of them. `verify`: check the files of
    finished stages, and run stages with damaged files again. `asked`: the fields that the user set by options. Where it
    is given, fields that the user did not set and that are too large for a small data set are lowered, and the run
    prints which; where it is None, nothing is changed.

    Processes that run the same recipe side by side (one per GPU, or one per core) divide its stages up: each takes the
    first stage that is ready and that no other process has taken, and returns when all are finished.

    Where a training diverges, the variants that do not need it go on to their end; then `Unended` is raised.

    Raises ValueError when `only` names a stage that no variant has, or one whose inputs are not finished, and where
    another process is running other recipes in the folder.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"run.dir: {run_dir} is a file; name a folder, to make or to go on in")
    try:
        str(run_dir.resolve()).encode()
    except UnicodeEncodeError as error:  # safetensors writes such a path, and does not read it
        raise ValueError(f"run.dir: the name of {run_dir!r} is no UTF-8; name another folder") from error
    if (run_dir / MERGED).is_file():
        raise ValueError(
            f"run.dir: {run_dir} is made of stages of other runs (`dmvae report --out`); go on in one of them"
        )
    if not distributed.is_main():  # rank 0 looks through the files and fills their caches first
        _adopt()
    said: list[str] = []
    if asked is not None:
        recipes, said = fit(recipes, asked)
    jobs = plan(recipes, run_dir)
    if distributed.is_main():
        tidy([job.folder for job in jobs if job.finished], verify)
        distributed.broadcast(datasets.opened())
    chosen = [job for job in jobs if only in (None, job.stage.name)]
    if not chosen:
        known = ", ".join(dict.fromkeys(job.stage.name for job in jobs))
        raise ValueError(f"no variant of this recipe has the stage {only!r}: give it a section {only}; it has {known}")
    _check([job for job in chosen if not job.finished], jobs)
    said += idle(recipes, variants)
    said += begun_anew(run_dir, chosen) if distributed.is_main() else []
    with claimed(run_dir, recipes, jobs, list(variants or recipes)) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            for line in (*dict.fromkeys(map(about_data, recipes.values())), *said, *_left_out(run_dir)):
                console.print(line)
        diverged = _run(chosen, len(recipes) > 1)
    if diverged:
        raise Unended(diverged, jobs)
    return jobs


def _adopt() -> None:
    """Take the data sets that rank 0 has opened. Raises ValueError where they need files that this node lacks."""
    try:
        datasets.adopt(distributed.broadcast({}))
    except FileNotFoundError as error:  # tables of the package `datasets`, which lie in its cache
        raise ValueError(
            f"data.root: rank 0 reads a file that is not on the node of rank {distributed.rank()} ({error}); set "
            "HF_HOME to a folder that all nodes see"
        ) from error


def _run(chosen: list[Job], several: bool) -> list[str]:
    """Run these jobs, as far as no other process does. Returns the errors of trainings that diverged; jobs that need
    them were not run."""
    ahead, variant, waits, diverged = list(chosen), None, False, list[str]()
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
                if job.variant != variant and several:
                    console.print(headline(chosen, job.variant))
                console.print(f"{job.variant}/{job.stage.name}: {_verb(job, state)} {job.folder}")
                if state == "finished" and (missed := _missed(job)):
                    told = f"{few(missed)} of {job.stage.name}.keep_at came before that was asked and were not kept"
                    console.print(f"{told}; remove {job.folder} to train anew")
            variant = job.variant
            if state != "finished" and (trouble := _told(job) or _trouble(job, several)):
                diverged.append(trouble)
                ahead, others = _without(ahead, job)
                if others and distributed.is_main():
                    console.print(f"{trouble}\nit goes on with {', '.join(others)}")
    return diverged


def _trouble(job: Job, several: bool) -> str:
    """Run a job; the error of one that diverged, of several variants with its own and how that one alone is changed, ""
    of one that ended."""
    try:
        execute(job)
        return ""
    except FloatingPointError as error:
        if distributed.world_size() > 1 and not isinstance(error, Diverged):  # the other ranks do not know of it
            raise
        alone = f"--variants.{method_of(job.variant, job.recipe)}.SECTION.FIELD changes this variant alone"
        whose = f"{job.variant}/" if isinstance(error, Diverged) else f"{job.variant}: "
        trouble = f"{whose}{error}; {alone}" if several else str(error)
        if isinstance(error, Diverged) and STARTED in os.environ:
            write_json(job.folder / CHECKPOINTS / DIVERGED, {os.environ[STARTED]: trouble})
    gc.collect()  # the error and its traceback hold each other, and the networks, whose memory others need
    stop_if_asked()
    return trouble


def _told(job: Job) -> str:
    """The error with which the job diverged in another process of this start, where it would diverge again; ""."""
    file, start = job.folder / CHECKPOINTS / DIVERGED, os.environ.get(STARTED, "")
    return str(read_json(file, dict).get(start, "")) if start and file.exists() else ""


def _without(ahead: Sequence[Job], failed: Job) -> tuple[list[Job], list[str]]:
    """(the jobs `ahead`, in the order in which they run, that need nothing of a failed one; the variants among them
    that can end)."""
    lost, left, ended = {failed.folder}, list[Job](), {failed.variant}
    for job in ahead:
        if job.folder in lost or not lost.isdisjoint(job.reads.values()):
            lost.add(job.folder)
            ended.add(job.variant)
        else:
            left.append(job)
    return left, [variant for variant in dict.fromkeys(job.variant for job in left) if variant not in ended]


def _verb(job: Job, state: str) -> str:
    """What is done with a job in that state."""
    if _told(job):
        return "skip (diverged in another process)"
    if state == "interrupted" and issubclass(job.stage, TrainingStage) and not steps(job.folder / CHECKPOINTS):
        return "run again (interrupted before its first checkpoint)"
    return {"finished": "skip (finished)", "interrupted": "resume (interrupted)", "new": "run (new)"}[state]


def _missed(job: Job) -> list[int]:
    """The steps of `keep_at` that a finished training has not kept."""
    asked = getattr(job.recipe.section(job.stage), "keep_at", ()) if issubclass(job.stage, TrainingStage) else ()
    reached = job.facts()["steps"] if asked else 0
    return sorted({step for step in asked if step <= reached}.difference(kept_steps(job.folder)))


def _check(ahead: list[Job], jobs: list[Job]) -> None:
    """Raise ValueError for what is wrong with the jobs `ahead`, of these `jobs`, as far as that can be known before any
    of them runs."""
    for variant, recipe in {job.variant: job.recipe for job in ahead}.items():
        latent_shape(recipe)
        stages = [job.stage for job in ahead if job.variant == variant]
        for problem in (*checks.lacking(recipe, stages), *checks.problems(recipe, stages)):
            raise ValueError(f"{variant}: {problem}")
    for variant, problem in hindrances(ahead, jobs):
        raise ValueError(f"{variant}: {problem}")
    coming = {job.folder for job in ahead}
    for job in ahead:  # of a stage that is asked for alone; links to what is there would be lost for nothing
        if coming.isdisjoint(job.reads.values()):
            _check_inputs(job)


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
    latents = recipe.data.are_latents
    counts, held_out = counted(len(train), "latent" if latents else "training image"), ""
    if any("test" in stage.splits for stage in recipe.stages()):
        first = counts if latents else f"{len(train):,} training"
        counts = f"{first} and {counted(len(open_dataset(recipe.data, 'test')), 'test image')}"
        held_out = recipe.data.held_out()
    classes = f"{len(train.classes)} classes" if len(train.classes) > 1 else f"one class, {train.classes[0]!r}"
    there = set(torch.as_tensor(train.labels).unique().tolist())  # a plugin may have a list, which `checks` tells
    if empty := [str(name) for label, name in enumerate(train.classes) if label not in there]:
        classes += f", {len(empty)} of them without a training image ({few(empty)}), of which none is sampled"
    return f"data: {counts} of {classes}{f'; {held_out}' if held_out else ''}"


def _left_out(run_dir: Path) -> Iterator[str]:
    with locked(run_dir):
        count, path = write_skipped(run_dir)
    if count:
        yield f"data: files were left out; {path} names them"


def headline(jobs: list[Job], variant: str) -> str:
    """The line that is printed when a variant begins: stages finished, and the time left where finished stages of the
    same names allow an estimate."""
    variants = list(dict.fromkeys(job.variant for job in jobs))
    folders = {job.folder: job for job in jobs}
    done = [job for job in folders.values() if job.finished]
    seconds: dict[str, list[float]] = {}
    for job in done:
        seconds.setdefault(job.stage.name, []).append(job.facts()["seconds"])
    ahead = [job.stage.name for job in folders.values() if not job.finished]
    known = [sum(seconds[name]) / len(seconds[name]) for name in ahead if name in seconds]
    left = f", about {sum(known) / 60:.0f} min left" if ahead and len(known) == len(ahead) else ""
    text = f"{len(done)} of {counted(len(folders), 'stage')} finished{left}"
    return f"[{variants.index(variant) + 1}/{len(variants)}] {variant}: {text}"


def execute(job: Job) -> None:
    """Run one stage to its end and write its done.json. Raises Interrupted after it for a signal that came too late to
    interrupt a training."""
    begun = time.monotonic()
    device = distributed.start()
    job.folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        sweep(job.folder)
        if told := prolong(job):
            console.print(f"  {job.stage.name}: {told}")
    distributed.barrier()
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, device)
    section = job.recipe.section(job.stage)
    stage = job.stage(section, inputs)
    facts = train(stage) if isinstance(stage, TrainingStage) else stage.run()
    if not isinstance(facts, dict):
        raise ValueError(f"stage {job.stage.name}: run returned {type(facts).__name__}; give a dict, for done.json")
    for name, value in facts.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            told = f"{name!r} that done.json cannot hold ({error}); give numbers, texts, lists or dicts"
            raise ValueError(f"stage {job.stage.name}: run returned a {told}") from error
    wall = round(time.monotonic() - begun, 2)
    facts = {"stage": job.stage.name} | facts | {"seconds": max(wall, facts.get("seconds", 0.0))}
    if distributed.is_main():
        _finish(job, facts | {"config": configs.plain(section)})
    distributed.barrier()
    stop_if_asked()


def _finish(job: Job, facts: Facts) -> None:
    write_done(job.folder, facts)
    # Only after done.json is written: a stage that is killed before that resumes from its checkpoint.
    settle(job.folder / CHECKPOINTS)


def _check_inputs(job: Job) -> None:
    for name, folder in job.reads.items():
        if read_done(folder) is None:
            raise ValueError(
                f"{job.variant}/{job.stage.name} reads the stage {name!r}, which has not been run with this recipe "
                f"({folder} is not finished); run `dmvae {name} RECIPE` first, or `dmvae run RECIPE` for all"
            )
