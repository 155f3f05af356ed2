"""Which recipes own a run folder: those that are written there and that processes run there.

Any number of processes may run the same recipes in one folder. A process with other recipes would replace the links of
the first while that still runs: the table would then belong to one recipe, and the links to the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dmvae import config as configs
from dmvae.config import Values
from dmvae.fitting import fit
from dmvae.jobs import VARIANTS, Job, plan, record
from dmvae.options import flat
from dmvae.prolonging import shorter
from dmvae.recipe import Recipe
from dmvae.runtime.console import console
from dmvae.runtime.files import locked, read_json, sweep, together
from dmvae.runtime.words import few
from dmvae.runtime.yaml_text import read_yaml

RUNNING = ".running"
OTHERWISE = "its data or a plugin have changed"
"""Why a stage runs anew although no field has changed."""


@contextmanager
def claimed(run_dir: Path, recipes: dict[str, Recipe], jobs: list[Job], variants: list[str]) -> Iterator[None]:
    """Record recipes, jobs and the names of all variants in the folder, and hold it for them until the block ends.

    Raises ValueError where another process is running other recipes in the folder, or other settings of one.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a link that leads nowhere" if run_dir.is_symlink() else error.strerror
        raise ValueError(f"run.dir: {run_dir} cannot be made ({why}); name another, --run_dir DIR") from error
    with ExitStack() as held:
        with locked(run_dir):
            alone = held.enter_context(together(run_dir / RUNNING))
            there = variants if alone else read_json(run_dir / VARIANTS, list)
            other = f"the variants {few(there)}" if there != variants else None
            for variant, recipe in () if other else recipes.items():
                (run_dir / variant).mkdir(exist_ok=True)
                if not held.enter_context(together(run_dir / variant / RUNNING)):  # another process runs it now
                    for place, old, new in _changed(run_dir, variant, recipe):
                        other = other or f"the variant {variant!r} with {place} {old!r}, not {new!r},"
            if other is not None:
                raise ValueError(
                    f"{run_dir}: another process is running {other} there: their results would be mixed. Give another "
                    "--run_dir, or wait for its end"
                )
            _sweep(run_dir, variants)
            if (before := _replaced(run_dir, recipes, variants)) is not None:
                console.print(
                    f"{run_dir} held {before}: its summary and report are replaced, its finished stages stay; another "
                    "--run_dir keeps all"
                )
            record(recipes, jobs, run_dir, variants)
        yield


def _sweep(run_dir: Path, variants: list[str]) -> None:
    """Remove what killed processes left beside the stages' folders; the caller holds the run folder's lock. A stage's
    folder has a lock of its own, and the process that takes it sweeps that folder."""
    for place in (run_dir, *(run_dir / variant for variant in variants)):
        sweep(place, ("*.[0-9]*.part", "pipeline/**/*.[0-9]*.part"))  # only names that `atomic_write` makes


def require_linked(jobs: list[Job], run_dir: Path) -> None:
    """Raise ValueError where the folder has become another recipe's since these jobs were run there."""
    for job in jobs:
        link = run_dir / job.variant / job.stage.name
        if not link.is_symlink() or Path(os.readlink(link)).name != job.folder.name:
            raise ValueError(
                f"{run_dir}: another recipe has been run there meanwhile, so no table of this one is written; its "
                "finished stages are kept, and `dmvae run` of this recipe writes the table"
            )


def _replaced(run_dir: Path, recipes: dict[str, Recipe], variants: list[str]) -> str | None:
    """Another recipe whose table is in the folder, in words; None where it is of an earlier state of this one."""
    try:
        there: Values = read_json(run_dir / "summary.json", dict)
    except (OSError, ValueError):  # none, or a damaged one, which is no loss
        return None
    name, methods = there.get("name"), list(there.get("methods", {}))
    if name == next(iter(recipes.values())).name and set(methods) <= set(variants):
        return None
    return f"{name} (variants {few(methods)})"


def _changed(run_dir: Path, variant: str, recipe: Recipe) -> Iterator[tuple[str, object, object]]:
    """(place, value there, value here) of the fields in which a variant's recipe in the folder differs from `recipe`.
    Fields of `run` do not count."""
    file = run_dir / variant / "recipe.yaml"
    there = read_yaml(file.read_text()) if file.exists() else {}
    old = flat(there, whole=False) if isinstance(there, dict) else {}
    new = flat(json.loads(json.dumps(configs.plain(recipe))), whole=False)
    counts = flat(configs.identity(recipe), whole=False)  # without newer fields that are at their default
    for place in dict.fromkeys([*old, *new]) if old else ():
        if place not in old and place not in counts:
            continue
        if old.get(place) != new.get(place) and not place.startswith("run."):
            yield place, old.get(place), new.get(place)


def begun_anew(run_dir: Path, jobs: Sequence[Job]) -> list[str]:
    """Messages about stages that start from scratch although the variant's link leads to an earlier folder.

    They name each stage whose earlier folder is unfinished and, for each variant, the first whose earlier folder is
    finished although no field has changed (so its data or a plugin has). Call it before `claimed`, which replaces links
    and recipes."""
    told: dict[Path, str] = {}
    anew: set[str] = set()
    for job in jobs:
        before = _linked(run_dir, job)
        there, state = before.folder, before.state
        if job.state != "new" or state not in ("interrupted", "finished") or shorter(job) is not None:
            continue
        if there in told:
            anew.add(job.variant)
            continue
        fields = _fields(run_dir, job)
        goes_on = f"the earlier command goes on with {there}, which is not finished"
        if state == "finished":
            if fields or job.variant in anew:  # the user changed it, or an earlier stage was named
                continue
            goes_on = f"{there} is finished, and not used"
        anew.add(job.variant)
        told[there] = f"{job.variant}/{job.stage.name}: begins anew, as {few(fields) or OTHERWISE}; " + goes_on
    return list(told.values())


def left_behind(run_dir: Path, others: Mapping[str, Recipe], asked: Collection[str]) -> dict[str, str]:
    """Variant -> what has changed, in words, for each of the `others` with finished stages in the folder that would run
    anew. Variants whose data cannot be opened are left out. `asked`: the fields that options set."""
    told: dict[str, str] = {}
    for variant, recipe in others.items():
        with suppress(ValueError):
            for job in plan(fit({variant: recipe}, asked)[0], run_dir):
                before = _linked(run_dir, job)
                if before.folder != job.folder and before.finished:
                    told.setdefault(variant, few(_fields(run_dir, job)) or OTHERWISE)
    return told


def _linked(run_dir: Path, job: Job) -> Job:
    """The job in the folder to which the variant's link leads; itself where there is none."""
    link = run_dir / job.variant / job.stage.name
    return replace(job, folder=run_dir / "stages" / Path(os.readlink(link)).name) if link.is_symlink() else job


def _fields(run_dir: Path, job: Job) -> list[str]:
    """What has changed in the variant's recipe, in words, without sections of stages after the job's."""
    order = [stage.name for stage in job.recipe.stages()]
    after = (*order[order.index(job.stage.name) + 1 :], "name")
    return [
        f"{place} is {configs.written(new)} and was {configs.written(old)}"
        for place, old, new in _changed(run_dir, job.variant, job.recipe)
        if place.partition(".")[0] not in after
    ]
