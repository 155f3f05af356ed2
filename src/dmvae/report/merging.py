"""Several runs as one: a folder with links to their stages, which tables and reports read like a run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from dmvae import config as configs
from dmvae.jobs import MERGED, VARIANTS, Job, by_variant, jobs_of, point, record
from dmvae.recipe import method_of
from dmvae.report.summary import earlier_of
from dmvae.runtime.files import read_json, require_place, write_text

Variants: TypeAlias = dict[str, list[Job]]
"""Of a run: name -> its jobs."""


def merge(run_dirs: Sequence[Path], out: Path) -> tuple[list[Job], dict[str, str]]:
    """Make `out` a run of all variants of these runs, by links to their stages. Returns (its jobs, what `earlier_of`
    says of them in their own runs).

    A merged folder counts as the runs that it was made of. Seeds that two runs have of one method, with the same
    settings, become one method. A variant that two runs have is taken once, from the run that has finished more of it.
    Different methods of one name are called RUN.METHOD, after their run's folder. Raises ValueError where those names
    are equal too, whatever their seeds, and for an `out` that is a run, holds one or lies in one."""
    folders_of = [source for run_dir in run_dirs for source in sources(run_dir.resolve())]
    jobs_in = {run_dir: jobs_of(run_dir) for run_dir in folders_of}
    runs = _with_seeds({run_dir: by_variant(jobs) for run_dir, jobs in jobs_in.items()})
    marks = {run_dir: earlier_of(run_dir, jobs) for run_dir, jobs in jobs_in.items()}
    _require_apart(list(runs), out)
    require_place("--out", out, folder=True)
    found: Variants = {}
    origin: dict[str, tuple[Path, str]] = {}
    settings: dict[str, str] = {}
    for run_dir, variants in runs.items():
        for variant, jobs in variants.items():
            method = method_of(variant)
            named = {(m, _settings(one, of)) for of in runs.values() for m, one in of.items() if method_of(m) == method}
            there = [of[variant] for of in runs.values() if variant in of]
            unlike = len({how for _, how in named}) > 1 or any(_addresses(one) != _addresses(jobs) for one in there)
            name = f"{re.sub(r'[^a-zA-Z0-9_+=-]', '_', run_dir.name)}.{variant}" if unlike else variant
            first = found.setdefault(name, jobs)
            origin.setdefault(name, (run_dir, jobs[0].variant))
            how = _settings(jobs, variants)
            known = settings.setdefault(method_of(name, jobs[0].recipe), how)  # of all seeds of a method
            if _addresses(first) != _addresses(jobs) or how != known:
                raise ValueError(f"two runs in folders called {run_dir.name!r} have a {method!r}; rename one")
            if _finished(jobs) > _finished(first):
                found[name], origin[name] = jobs, (run_dir, jobs[0].variant)
    stages = out / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    write_text(out / MERGED, json.dumps([str(run_dir) for run_dir in runs]))
    links = _links([job for jobs in found.values() for job in jobs])
    for folder, name in links.items():
        point(stages.resolve() / name, folder)

    def linked(folder: Path) -> Path:
        return stages / links.get(folder.resolve(), folder.name)

    merged = [
        replace(job, variant=name, folder=linked(job.folder), reads={n: linked(f) for n, f in job.reads.items()})
        for name, jobs in found.items()
        for job in jobs
    ]
    record({name: jobs[0].recipe for name, jobs in found.items()}, merged, out, list(found))
    told = {name: marks[run_dir].get(variant) for name, (run_dir, variant) in origin.items()}
    return merged, {name: how for name, how in told.items() if how is not None}


def _with_seeds(runs: dict[Path, Variants]) -> dict[Path, Variants]:
    """Run -> its variants, each of which there are several seeds called METHOD@SEED, also where a run had one alone."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for variants in runs.values():
        for variant, jobs in variants.items():
            recipe = jobs[0].recipe
            seeds.setdefault((method_of(variant, recipe), _settings(jobs, variants)), set()).add(recipe.seed)

    def called(variant: str, jobs: list[Job], of: Variants) -> str:
        method, seed = method_of(variant, jobs[0].recipe), jobs[0].recipe.seed
        return f"{method}@{seed}" if len(seeds[method, _settings(jobs, of)]) > 1 else variant

    return {run: {called(variant, jobs, of): jobs for variant, jobs in of.items()} for run, of in runs.items()}


def _links(jobs: list[Job]) -> dict[Path, str]:
    """Real folder of a stage -> its name in a merged folder: its own, with a number if several runs have done the same
    stage. Unfinished folders are left out if another run has finished the stage."""
    ended = {job.folder.name for job in jobs if job.finished}
    names: dict[Path, str] = {}
    for job in jobs:
        place, name = job.folder.resolve(), job.folder.name
        if place not in names and job.folder.exists() and (job.finished or name not in ended):
            before = sum(known.partition("+")[0] == name for known in names.values())
            names[place] = f"{name}+{before}" if before else name
    return names


def sources(run_dir: Path) -> list[Path]:
    """The runs that a merged folder was made of; for any other run, itself."""
    file = run_dir / MERGED
    return [Path(str(name)) for name in read_json(file, list)] if file.is_file() else [run_dir]


def _require_apart(runs: Sequence[Path], out: Path) -> None:
    place = out.resolve()
    if place.exists() and not place.is_dir():
        raise ValueError(f"--out: {out} is a file; give a folder")
    inside = [folder for folder in (place, *place.parents[:2]) if (folder / VARIANTS).is_file()]
    inside = [folder for folder in inside if folder != place or not (place / MERGED).is_file()]
    if inside or place in runs:
        raise ValueError(f"--out: {out} is a run's folder, or lies in one; give a folder of its own")
    for run in runs:
        if place in run.parents[:2]:
            raise ValueError(f"--out: {out} holds the run {run}; give a folder of its own")


def _settings(jobs: list[Job], of: Variants) -> str:
    """A variant's recipe as text, without its seed, its name, and where and how it was run. Where it starts from
    another variant's networks in its run's folder (`pretrained.path`), the settings of that one stand for the path."""
    recipe = jobs[0].recipe
    values = configs.plain(recipe)
    own = {name: value for name, value in values.items() if name not in ("seed", "name", "run", "plugins")}
    own["data"] = {name: value for name, value in values["data"].items() if name not in recipe.data.PLACES}
    text = json.dumps(own, sort_keys=True, default=str)
    others = {variant: there for variant, there in of.items() if there is not jobs}
    for there in others.values():
        if (path := json.dumps(f"{recipe.run.dir}/{there[0].variant}/")[:-1]) in text:
            text = text.replace(path, json.dumps(_settings(there, others) + "/")[:-1])
    return text


def _finished(jobs: list[Job]) -> int:
    return sum(job.finished for job in jobs)


def _addresses(jobs: list[Job]) -> list[str]:
    return [job.folder.name for job in jobs]
