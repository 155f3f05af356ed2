"""`dmvae run`, `study`, `report`, and every stage by its name."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from dmvae import pipeline
from dmvae.claims import left_behind, require_linked
from dmvae.commands.help import placeholders, print_fields, print_values
from dmvae.commands.parser import USAGE, CheckFailed, Parser, parse_overrides, require
from dmvae.commands.plan import Machine, bytes_of, print_plan
from dmvae.commands.processes import Unended, side_by_side
from dmvae.commands.trust import require_no_code
from dmvae.config import FieldError, Values
from dmvae.datasets import asked_once
from dmvae.fitting import fit
from dmvae.idle import idle
from dmvae.jobs import Job, by_variant, jobs_of, recipes_of
from dmvae.jobs import plan as planned
from dmvae.options import flat, told
from dmvae.recipe import Recipe, Recipes, load, method_of, recipe_class
from dmvae.registry import cause_of
from dmvae.report import write_report
from dmvae.report.merging import merge, sources
from dmvae.report.pipelines import write_pipelines
from dmvae.report.summary import print_summary, write_summary
from dmvae.runtime import distributed
from dmvae.runtime.console import console, forget_lost
from dmvae.runtime.files import locked
from dmvae.runtime.joined import joined
from dmvae.runtime.words import counted, few
from dmvae.spelling import nearest
from dmvae.stages import stages


def run(command: str, arguments: list[str], commands: Sequence[str] = ("run", "study")) -> None:
    """Run a recipe; with a stage's name as the command, only that stage. `commands`: the names that are no stages."""
    parser = Parser(prog=f"dmvae {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--run_dir", "--run-dir")
    parser.add_argument("--dry-run", "--dry_run", action="store_true")
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--no-verify", "--no_verify", action="store_true")
    parser.add_argument("--no-report", "--no_report", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    require(1, processes=known.processes)
    if known.processes > 1 and "RANK" in os.environ:
        raise ValueError("--processes starts processes of its own; under torchrun, leave it out")
    names = [stage.name for stage in stages()]
    if command not in (*names, *commands) and not Path(known.recipe or "").is_file():
        raise ValueError(f"no such command: {command}{nearest(command, [*commands, *names])}")
    # an option before the recipe would swallow it as its value
    if known.recipe is None or (known.recipe != arguments[0] and not Path(known.recipe).is_file()):
        if known.help:
            return console.print(USAGE)
        raise ValueError(f"usage: dmvae {command} RECIPE [--run_dir DIR] [--variant NAME] [--section.field value ...]")
    overrides = _overrides(rest, known.run_dir)
    read = partial(_read, parser, known.recipe)
    whole = placeholders(read, overrides) if known.help else read(overrides)
    names = [stage.name for stage in stages()]  # the recipe's plugins may have brought some
    if command not in (*names, *commands):
        raise ValueError(f"no such command: {command}{nearest(command, [*commands, *names])}")
    here = known.processes == 1 or known.dry_run
    recipes = chosen(whole, known.variant, say=here)
    if known.help:
        return print_fields(recipes)
    only = command if command in names else None
    how = next(iter(recipes.values())).run
    if known.dry_run:
        if int(os.environ.get("RANK", 0)) == 0:  # torchrun sets RANK; a dry run needs no process group
            _require_none(_plan(recipes, whole, overrides, Machine.here(), only, values=True))
        return
    run_dir, reports, asked = Path(how.dir), only is None and not known.no_report, list(flat(overrides))
    if not here:
        variants = [word for name in known.variant for word in ("--variant", name)]
        place = [] if known.run_dir is None else ["--run_dir", known.run_dir]
        skips = ["--no-verify"] if known.no_verify else []
        # planned before, as each process does: a plugin or the data may be edited while they run
        jobs = planned(fit(recipes, asked)[0], run_dir) if reports else []
        diverged: Unended | None = None
        try:
            side_by_side([command, known.recipe, "--no-report", *skips, *place, *variants, *rest], known.processes)
        except Unended as error:
            diverged = error
        if reports:
            finish_chosen(jobs, run_dir, recipes, whole, asked)
        if diverged is not None:
            raise diverged
        return
    with joined(how.timeout):
        verify = not known.no_verify
        run_to_the_end(recipes, run_dir, whole, asked, only=only, verify=verify, reports=reports)
    forget_lost()


def run_to_the_end(
    recipes: dict[str, Recipe],
    run_dir: Path,
    whole: Recipes,
    asked: Sequence[str],
    only: str | None = None,
    verify: bool = True,
    reports: bool = True,
) -> None:
    """`pipeline.run`, and with `reports` `finish_chosen`, also where trainings diverged while other variants ended;
    their error is raised after it."""
    diverged: pipeline.Unended | None = None
    try:
        jobs = pipeline.run(recipes, run_dir, only=only, variants=whole, verify=verify, asked=asked)
    except pipeline.Unended as error:
        jobs, diverged = error.jobs, error
    if reports and distributed.is_main():
        finish_chosen(jobs, run_dir, recipes, whole, asked)
    if diverged is not None:
        distributed.barrier()  # torchrun ends all ranks when the first one fails, and rank 0 writes the report
        raise diverged


def plan(command: str, arguments: list[str]) -> None:
    """Print what every stage of a recipe needs on a given machine, and what stands in the way. Raises CheckFailed where
    something does."""
    parser = Parser(
        prog=f"dmvae {command}",
        allow_abbrev=False,
        description="What a recipe needs, and what stands in its way.",
        epilog="Fields of the recipe are options too: --section.field VALUE.",
    )
    parser.add_argument("recipe", help="a file, or a name that `dmvae recipes` lists")
    parser.add_argument("--gpus", type=int, help="how many GPUs to plan for (default: this machine as it is)")
    of_gpus = {"memory": "80GB", "peak": 989.0, "utilisation": 0.4}
    parser.add_argument("--memory", help="of each GPU (default: 80GB)")
    parser.add_argument("--peak", type=float, help="TFLOP/s of a GPU in bf16 (default: 989, an H100's)")
    parser.add_argument("--utilisation", type=float, help="share of the peak that steps reach (default: 0.4)")
    parser.add_argument(
        "--variant", action="append", default=[], help="this variant alone, or METHOD for all its seeds"
    )
    parser.add_argument("--run_dir", "--run-dir", help="the folder that would be written")
    known, rest = parser.parse_known_args(arguments)
    if known.gpus is not None and known.gpus < 1:
        raise ValueError(f"--gpus: {known.gpus}; give 1 or more, or leave it out to plan for this machine")
    for name, usual in of_gpus.items():
        if getattr(known, name) is None:
            setattr(known, name, usual)
        elif known.gpus is None:
            raise ValueError(f"--{name}: it describes the GPUs to plan for; give --gpus N too, or leave it out")
    if not 0 < known.utilisation <= 1:
        raise ValueError(f"--utilisation {known.utilisation:g}: give the share of --peak that is reached, up to 1")
    if not 0 < known.peak < math.inf:
        raise ValueError(f"--peak {known.peak:g}: give the operations of a GPU in TFLOP/s, such as 312")
    machine, speed = Machine.here(), known.peak * known.utilisation * 1e12
    if known.gpus is not None:
        machine = Machine(known.gpus, bytes_of(known.memory), True, speed)
    overrides = _overrides(rest, known.run_dir)
    whole = _read(parser, known.recipe, overrides)
    _require_none(_plan(chosen(whole, known.variant), whole, overrides, machine))


def _plan(
    recipes: dict[str, Recipe],
    whole: Recipes,
    overrides: Values,
    machine: Machine,
    only: str | None = None,
    values: bool = False,
) -> list[str]:
    """Print what these recipes, of those in the `whole` file, need on that machine; with `values`, their fields first.
    only: one stage instead of all. Returns what stands in the way."""
    with asked_once():
        recipes, said = fit(recipes, flat(overrides), machine.ranks)
        if values:
            console.print("resolved values:")
            print_values(recipes)
            console.print()
        for line in (*said, *idle(recipes, whole)):
            console.print(line)
        return print_plan(recipes, machine, only)


def _require_none(obstacles: Sequence[str]) -> None:
    if obstacles:
        raise CheckFailed(counted(len(obstacles), "thing stands", "things stand") + " in the way")


def _overrides(words: list[str], run_dir: str | None) -> Values:
    """The options, --run_dir among them. Raises ValueError where the folder is given under both its names."""
    overrides = parse_overrides(words)
    if run_dir is not None:
        if "run.dir" in overrides:
            raise ValueError("--run_dir and --run.dir are the same; give one of them")
        overrides["run.dir"] = run_dir
    return overrides


def _read(parser: Parser, recipe: str, overrides: Values) -> Recipes:
    """`load`; where an override is no field, the error suggests an option of `parser` that it is like."""
    try:
        return load(recipe, overrides)
    except ValueError as error:
        cause = cause_of(error, FieldError)
        if cause is not None and cause.place in overrides:
            like = parser.like(cause.place, (field.name for field in fields(recipe_class())))
            if like:
                raise ValueError(f"--{cause.place}: no such option; did you mean --{like}?") from error
        raise


def chosen(whole: Recipes, names: list[str], say: bool = True) -> dict[str, Recipe]:
    """The variants of these names (METHOD for all its seeds), all without names. say: print which options do not
    reach all of them. Raises ValueError for an option that reaches none, and for a name that no variant has."""
    seeds = {name: [name] for name in whole}
    for variant in whole:
        seeds.setdefault(method_of(variant), [v for v in whole if method_of(v) == method_of(variant)])
    for name in names:
        if name not in seeds:
            raise ValueError(f"--variant: no variant is called {name!r}{nearest(name, seeds)}")
    recipes = {variant: whole[variant] for name in names or whole for variant in seeds[name]}
    for option, reached in whole.partial.items():
        mine = [name for name in reached if name in recipes]
        if not mine:
            raise ValueError(
                f"--{option} reaches {few(reached)}, but not --variant {' '.join(names)}, which lacks the section or "
                "field: leave it out"
            )
        if say and len(mine) < len(recipes) and distributed.is_main():
            console.print(told(option, mine, list(recipes)))
    return recipes


def report(command: str, arguments: list[str]) -> None:
    """Write the table and the report of a run again, or of several as one."""
    parser = Parser(
        prog=f"dmvae {command}",
        description="Write the table and the report of a run again, or of several as one.",
        epilog="With --out, that folder becomes a run of all variants, with links to their stages. Where several runs "
        "have different variants of one name, these are called RUN.VARIANT.",
    )
    parser.add_argument("run_dirs", type=Path, metavar="RUN_DIR", nargs="+")
    parser.add_argument("--out", type=Path, help="folder to write to (the run's own); required for several runs")
    parser.add_argument("--trust", action="store_true", help="run the code that the runs' recipes name")
    known = parser.parse_args(arguments)
    run_dirs: list[Path] = known.run_dirs
    if not known.trust:
        for run_dir in run_dirs:
            for folder in dict.fromkeys([run_dir, *sources(run_dir.resolve())]):  # a merged folder names others
                require_no_code(recipes_of(folder))
    if known.out is not None:
        jobs, earlier = merge(run_dirs, known.out)
        tell(jobs, known.out, earlier)
    elif len(run_dirs) > 1:
        raise ValueError(f"a table of {len(run_dirs)} runs needs a folder of its own: give --out DIR")
    else:
        jobs = jobs_of(run_dirs[0])
        if not os.access(run_dirs[0], os.W_OK):
            raise ValueError(f"{run_dirs[0]} cannot be written; give --out DIR, which gets the table and the report")
        finish(jobs, run_dirs[0])


def finish_chosen(
    jobs: list[Job], run_dir: Path, recipes: Mapping[str, Recipe], whole: Recipes, asked: Sequence[str]
) -> None:
    """`finish` after a run of these recipes, of those in the `whole` file: its other variants have their place in the
    table too, as far as they were run. `asked`: the fields that options set."""
    jobs = jobs_of(run_dir, jobs) if len(recipes) < len(whole) else jobs
    others = {name: whole[name] for name in by_variant(jobs) if name in whole and name not in recipes}
    finish(jobs, run_dir, left_behind(run_dir, others, asked))


def finish(jobs: list[Job], run_dir: Path, earlier: Mapping[str, str] | None = None) -> None:
    """Write a run's results: summary.json, the report, a pipeline for every generator. `earlier`: see
    `write_summary`."""
    with locked(run_dir):  # other processes may have run other stages of this run, and finish it too
        require_linked(jobs, run_dir)
        tell(jobs, run_dir, earlier)
        for folder in write_pipelines(jobs, run_dir):
            console.print(f"pipeline: {folder}")


def tell(jobs: list[Job], out: Path, earlier: Mapping[str, str] | None = None) -> None:
    """Write summary.json and the report into a folder, and print the table."""
    summary = write_summary(jobs, out, earlier)
    path = write_report(out, jobs)
    print_summary(summary)
    console.print(f"summary:  {out / 'summary.json'}\nreport:   {path}")
