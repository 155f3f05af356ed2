"""What stands in the way of a run's jobs beyond their recipes: what its folder holds, and what variants ask of a
training that they share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from dmvae.config import Values
from dmvae.inputs import Inputs, snapshot
from dmvae.jobs import STEPS, Job, replaced
from dmvae.runtime.done import read_done
from dmvae.training.checkpoint import steps
from dmvae.training.loop import CHECKPOINTS
from dmvae.training.stage import TrainingStage


def hindrances(ahead: list[Job], jobs: list[Job]) -> Iterator[tuple[str, str]]:
    """(variant, problem) of what is wrong with the jobs `ahead`, the unfinished ones of `jobs`, beyond what `checks`
    finds in their recipes: what does not fit the run's folder, or what variants ask of a training that they share."""
    yield from replaced(ahead, jobs)
    first: dict[Path, Job] = {}
    for job in ahead:
        finished = {name: folder for name, folder in job.reads.items() if read_done(folder) is not None}
        inputs = Inputs(job.recipe, job.variant, job.folder, finished, torch.device("cpu"))
        try:
            job.stage.require(job.recipe.section(job.stage), inputs)
        except ValueError as error:
            yield job.variant, str(error)
        for problem in _not_kept(job):
            yield job.variant, problem
        other = first.setdefault(job.folder, job)
        if not issubclass(job.stage, TrainingStage):
            continue
        for (place, own), theirs in zip(_kept(job).items(), _kept(other).values(), strict=True):
            if own != theirs and not (place == "run.keep_every" and job.finished):
                yield (
                    job.variant,
                    f"{place} is {own}, and {theirs} in variant {other.variant}, which shares the training of stage "
                    f"{job.stage.name}; give both the same, or name steps in the keep_at of a stage that they do not "
                    "share",
                )


def _not_kept(job: Job) -> Iterator[str]:
    """Problems of steps whose generator the job asks for, and which the training has passed without keeping it."""
    folder = job.reads.get("generator")
    if folder is None or read_done(folder) is not None:
        return
    reached = max(steps(folder / CHECKPOINTS), default=0)
    for name in STEPS:
        step = getattr(job.recipe.section(job.stage), name, None)
        if isinstance(step, int) and step < reached and not (folder / snapshot(step)).exists():
            yield (
                f"{job.stage.name}.{name}: the generator is at step {reached}, and that of step {step} was not kept; "
                f"remove {folder} to train it anew, or ask for another step"
            )


def _kept(job: Job) -> Values:
    """The fields that decide which snapshots a training keeps."""
    section = job.recipe.section(job.stage)
    return {f"{job.stage.name}.keep_at": list(section.keep_at), "run.keep_every": job.recipe.run.keep_every}
