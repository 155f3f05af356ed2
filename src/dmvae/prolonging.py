"""A longer training goes on from a shorter one of the same settings: its first steps would be the same ones.

A finished training keeps the state of its last step where a longer one could begin with it (`run.keep_state`), and an
interrupted one has its checkpoints. A training that has none of its own looks beside its folder for those of another
whose fingerprint it would have with the other's number of steps.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dmvae.config import Values
from dmvae.inputs import SNAPSHOTS, kept_steps
from dmvae.jobs import Job, plan
from dmvae.runtime.done import damage, read_done
from dmvae.runtime.files import atomic_write, locked, read_json
from dmvae.training.checkpoint import PLANNED, steps
from dmvae.training.loop import CHECKPOINTS
from dmvae.training.optim import learning_rate_factor
from dmvae.training.stage import TrainingConfig, TrainingStage

MOMENT = 5.0
"""Seconds after which another process that has an unfinished training's folder locked is taken to train there."""


def shorter(job: Job) -> tuple[Path, int] | None:
    """(folder, step) of the newest checkpoint of another training with which the job, which has none, can begin; None
    where there is no such checkpoint, or where a snapshot is asked that the other training passed and did not keep."""
    if not (issubclass(job.stage, TrainingStage) and job.stage.prolongs) or job.finished:
        return None
    if steps(job.folder / CHECKPOINTS):
        return None
    section, every, best, there = job.recipe.section(job.stage), job.recipe.run.keep_every, None, 0
    planned = set[int]()
    for file in job.folder.parent.glob(f"{job.stage.name}-*/{CHECKPOINTS}/{PLANNED}"):
        with suppress(OSError, ValueError, KeyError):
            planned.add(read_json(file, dict)["steps"])
    for count in planned - {section.steps}:
        with suppress(ValueError):  # settings that are valid with other steps alone
            other = replace(section, steps=count, keep_at=())
            folder = _folder(job, other)
            if damage(folder, read_done(folder), SNAPSHOTS):  # they would be taken over
                continue
            kept = kept_steps(folder)
            for step in steps(folder / CHECKPOINTS):
                asked = section.kept(step - 1, every)  # its own is made of the checkpoint
                if there < step <= section.steps and asked.issubset(kept) and _same_rates(section, other, step):
                    best, there = (folder, step), step
    return best


def _folder(job: Job, section: TrainingConfig) -> Path:
    """The folder that the job would have with this config of its stage."""
    changed: Values = {job.stage.name: section}
    recipe = replace(job.recipe, **changed)
    jobs = plan({job.variant: recipe}, job.folder.parents[1])
    return next(of.folder for of in jobs if of.stage is job.stage)


def _same_rates(section: TrainingConfig, other: TrainingConfig, until: int) -> bool:
    """Whether the learning rates of the first steps are the same."""
    if section.schedule == "constant":
        return True
    return all(learning_rate_factor(section, step) == learning_rate_factor(other, step) for step in range(until))


def prolong(job: Job) -> str:
    """Give the job's folder, which this process has locked, the checkpoint that `shorter` finds and older ones, in case
    that is damaged, and with it the log, pictures and snapshots so far, in place of those of an own start that came to
    no checkpoint; returns what was done, in words, "" for nothing. A kill meanwhile leaves no checkpoint, and the next
    run does it again."""
    if (found := shorter(job)) is None:
        return ""
    folder, step = found
    with _locked(folder) as mine:
        if not mine or step not in steps(folder / CHECKPOINTS):
            return ""
        for beside in ("log.jsonl", "tensorboard"):
            _take(folder / beside, job.folder / beside, shutil.copy)
        for kind in ("pictures", SNAPSHOTS, CHECKPOINTS):  # checkpoints last, the newest first
            for of in sorted(folder.glob(f"{kind}/step-*"), reverse=True):
                if (at := re.fullmatch(r"step-(\d+)(\.png)?", of.name)) and int(at[1]) <= step:
                    _take(of, job.folder / kind / of.name, _link)
    return f"goes on from step {step} of {folder}, which has the same settings but its number of steps"


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock the folder of another training: yields False where a process trains there. One that looks through its files,
    or goes on from it too, is waited for."""
    until = time.monotonic() + MOMENT
    while True:
        with locked(folder, wait=False) as mine:
            if mine or (read_done(folder) is None and time.monotonic() > until):
                yield mine
                return
        time.sleep(0.1)


def _take(there: Path, here: Path, copy: Callable[[str, str], object]) -> None:
    """Make `here` of a file or folder, if there is one."""
    if there.exists():
        with atomic_write(here) as part:
            shutil.copytree(there, part, copy_function=copy) if there.is_dir() else copy(str(there), str(part))


def _link(old: str, new: str) -> None:
    """Give a file that nobody changes a second name, which takes no space; copy it where the disk has no hard links,
    and where it is another user's, since nobody else may set its permissions."""
    if os.stat(old).st_uid == os.geteuid():
        with suppress(OSError):
            return os.link(old, new)
    shutil.copy(old, new)
