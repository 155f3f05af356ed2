"""The command line: one subcommand per stage, in stage order, plus run, study, report and fields.

Overrides are `--section.field value`: they are laid on the recipe file as one more layer and read by the
same strict reader as the file and its variants, so the same names, types and errors hold in all three.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dmvae.registry import nearest

STAGE_NAMES = ("encoder", "tokenizer", "reference", "matching", "decoder", "latents", "generator", "sample", "evaluate")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `dmvae` command. Exit code 2: a mistake in what was asked; 1: the run failed; 130: stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        _dispatch(arguments)
    except KeyboardInterrupt as stop:
        saved = "; the state was saved, the same command goes on" if type(stop).__name__ == "Interrupted" else ""
        _fail(f"stopped{saved}", 130, debug)
    except ValueError as error:
        _fail(str(error), 2, debug)
    except FloatingPointError as error:
        _fail(f"{error}; the last checkpoint is kept: lower the stage's learning_rate or raise its warmup", 1, debug)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1, debug)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    command, *rest = arguments
    if command not in COMMANDS:
        raise ValueError(f"no such command: {command}{nearest(command, COMMANDS)}")
    COMMANDS[command][0](command, rest)


def _run(command: str, arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"dmvae {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--run_dir", "--run-dir")
    parser.add_argument("--dry-run", "--dry_run", action="store_true")
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    if known.recipe is None or known.recipe.startswith("-"):
        raise ValueError(f"usage: dmvae {command} RECIPE [--run_dir DIR] [--variant NAME] [--section.field value ...]")
    from dmvae import distributed
    from dmvae.recipe import load

    overrides = parse_overrides(rest)
    if known.run_dir:
        overrides["run.dir"] = known.run_dir
    recipes = load(known.recipe, overrides)
    for name in known.variant:
        if name not in recipes:
            raise ValueError(f"--variant: no variant is called {name!r}{nearest(name, recipes)}")
    if known.variant:
        recipes = {name: recipes[name] for name in known.variant}
    if known.help:
        from dmvae.help import print_fields

        return print_fields(next(iter(recipes.values())))
    if known.dry_run:
        from dmvae.dryrun import print_plan

        return print_plan(recipes)
    from dmvae import pipeline

    distributed.start()
    try:
        run_dir = Path(next(iter(recipes.values())).run.dir)
        jobs = pipeline.run(recipes, run_dir, only=None if command in ("run", "study") else command)
        if command in ("run", "study") and distributed.is_main():
            _finish(jobs, run_dir)
    finally:
        distributed.stop()


def _finish(jobs: list[Any], run_dir: Path) -> None:
    from dmvae.report import write_report
    from dmvae.summary import print_summary, write_summary

    summary = write_summary(jobs, run_dir)
    path = write_report(run_dir, jobs)
    print_summary(summary)
    print(f"summary: {run_dir / 'summary.json'}\nreport:  {path}")


def _report(command: str, arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ValueError("usage: dmvae report RUN_DIR")
    from dmvae.pipeline import plan
    from dmvae.recipe import load

    run_dir = Path(arguments[0])
    files = sorted(run_dir.glob("*/recipe.yaml"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        raise ValueError(f"{run_dir}: not a run's folder (it holds no VARIANT/recipe.yaml)")
    _finish(plan({file.parent.name: load(file)["main"] for file in files}, run_dir), run_dir)


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """["--a.b", "1", "--c=x"] -> {"a.b": 1, "c": "x"}; values are read as YAML."""
    overrides: dict[str, Any] = {}
    i = 0
    while i < len(words):
        word = words[i]
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}; overrides are written --section.field value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if i + 1 < len(words) and not words[i + 1].startswith("--"):
                i += 1
                value = words[i]
            else:
                value = "true"
        try:
            overrides[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--{name}: {value!r} is not a YAML value") from error
        i += 1
    return overrides


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    print(f"dmvae: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


COMMANDS: dict[str, tuple[Callable[[str, list[str]], None], str]] = {
    **{name: (_run, f"run the stage {name} of RECIPE") for name in STAGE_NAMES},
    "run": (_run, "run every stage of RECIPE that is not finished, then write the table and the report"),
    "study": (_run, "the same, for a recipe with many variants"),
    "report": (_report, "write the table and the report of RUN_DIR again"),
}


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: dmvae COMMAND RECIPE [--run_dir DIR] [--variant NAME] [--dry-run] [--debug] [--section.field value ...]"
        "\n\n"
        + "\n".join(lines)
        + "\n\n`dmvae run RECIPE --help` lists every field of the recipe with its value and meaning."
    )
