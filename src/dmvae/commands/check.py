"""Files of scores: measured again, or compared with each other."""

from __future__ import annotations

import math
import os
import reprlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.table import Column, Table

from dmvae.commands.measurements import DRAWING, KINDS, fits, measure, options_of
from dmvae.commands.score_files import read_scores
from dmvae.commands.trust import require_no_code
from dmvae.config import Values, typed
from dmvae.evaluation.manifest import differences, require_comparable
from dmvae.evaluation.metrics import figures, unit_of
from dmvae.evaluation.shape import FIGURES
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.runtime import distributed
from dmvae.runtime.console import console
from dmvae.runtime.words import counted
from dmvae.stages.evaluate import EvaluateStage
from dmvae.stages.measuring import Measuring

READING = (
    *("features", "batch_size", "size", "resampling", "limit", "workers", "parts", "train", "force"),
    *("lpips", "uniformity", "precision", "guidance", "seed", *DRAWING),
)
"""The options that a file of scores may set: none of them writes a file."""

TOLERANCE = 1e-4
"""Relative difference up to which two runs agree. Processors and batch shapes change results by about 1e-6."""


def check(path: Path, *, trust: bool = False) -> tuple[dict[str, tuple[float, float | None]], list[str]]:
    """Measure again what a file of scores says was measured.

    Returns ({name: (value in the file, value now)} of every figure that does not agree to TOLERANCE, by its dotted name
    and intervals included; the fields of the manifest that changed). trust: run the code that a run's recipe names.
    Raises ValueError for a file that does not say how it was made.
    """
    there = read_scores(path)
    call = there["manifest"].get("call")
    if not isinstance(call, dict):
        raise ValueError(f"{path} does not say how it was made (manifest.call): it cannot be measured again")
    try:
        now = _evaluate(_here(path, call), trust) if call.get("kind") == "evaluate" else _measure_again(call)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    values = _figures(now)
    apart = {
        name: (value, values.get(name))
        for name, value in _figures(there).items()
        if not agree(value, values.get(name)) and not ("kid-std" in name and value == 0)  # older versions wrote it so
    }
    return apart, differences(there["manifest"], now["manifest"])


def _figures(scores: object, where: str = "") -> dict[str, float]:
    """Every number in a file of scores but those of its manifest, by dotted name."""
    if isinstance(scores, list | tuple):
        scores = dict(enumerate(scores))
    if isinstance(scores, dict):
        kept = ((f"{where}{key}", value) for key, value in scores.items() if key != "manifest")
        return {name: x for key, value in kept for name, x in _figures(value, f"{key}.").items()}
    return {where.rstrip("."): float(scores)} if isinstance(scores, int | float) else {}


def agree(a: float, b: float | None) -> bool:
    """Equal to TOLERANCE, relative or, near zero, absolute; NaN agrees with NaN."""
    if b is None or math.isnan(a) or math.isnan(b):
        return b is not None and math.isnan(a) and math.isnan(b)
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE * 1e-2)


def side_by_side(paths: Iterable[Path], *, force: bool = False) -> Table:
    """A table of files of scores, a column each. Raises ValueError where they do not compare, unless `force`."""
    files = {str(path): read_scores(path) for path in paths}
    first, *rest = files.values()
    for other in rest:
        require_comparable(first["manifest"], other["manifest"], force=force)
    digits = _digits(first["manifest"])
    table = Table("metric", *(Column(name, overflow="fold") for name in _short(list(files))))
    for name in dict.fromkeys(name for scores in files.values() for name in scores["metrics"]):
        values = (scores["metrics"].get(name) for scores in files.values())
        table.add_row(name, *("" if value is None else in_unit(name, value, digits) for value in values))
    return table


def _short(paths: list[str]) -> list[str]:
    """The paths without the folders that all of them begin and end with."""
    parts = [list(Path(path).parts) for path in paths]
    for end in (0, -1):
        while len(parts) > 1 and all(len(one) > 1 for one in parts) and len({one[end] for one in parts}) == 1:
            parts = [one[1:] if end == 0 else one[:-1] for one in parts]
    return [str(Path(*one)) for one in parts]


def print_scores(result: Values) -> None:
    """Print a row for each metric: the title that tables of runs have, the value, its interval if there is one, and its
    name in files. The features, which are part of these names, stand above the table if all names have the same."""
    features = {name.partition("_")[2] for name in result["metrics"]} - {""}
    shared = f"_{features.pop()}" if len(features) == 1 else ""
    sure = "intervals" in result
    table = Table("", "value", *["95 % interval"] * sure, Column("in files", overflow="fold"))
    manifest = result.get("manifest", {})
    table.title = f"features: {shared[1:]}; the names in files end in {shared}" if shared else None
    for name, value in result["metrics"].items():
        low_high = [in_unit(name, end) for end in result.get("intervals", {}).get(name) or ()]
        told = in_unit(name, value, _digits(manifest))
        table.add_row(title_of(name), told, *[" to ".join(low_high)] * sure, name.removesuffix(shared))
    if "count" in manifest:
        against, size = (manifest["reference"].get(name) for name in ("count", "size"))
        what = "latent" if _of_latents(manifest) else "image"
        table.caption = counted(manifest["count"], what) + (f" against {against:,}" if against else "")
        # nobody may have asked for it: of a tokenizer it is its config's unless given
        table.caption += f", {size}x{size}" if isinstance(size, int) else ""
    console.print(table)
    if "verdict" in result:
        console.print(
            f"normalised by channel, to {manifest['reference'].get('path', 'a standard Gaussian')}: {result['verdict']}"
        )


def _of_latents(manifest: Values) -> bool:
    return bool(manifest.get("measured", {}).get("kind") == "latents")


def _digits(manifest: Values) -> int:
    """Of figures on the console. Those of latents are of a few thousand at most, and networks that are trained."""
    return 4 if _of_latents(manifest) else 6


def title_of(name: str) -> str:
    """The title that tables of runs give to the figure of this full name; "" where they have none."""
    if whole := FIGURES.get(name) or figures().get(name):
        return whole.title
    titles = {
        "fd": "Frechet distance",
        "sfd": "spatial Frechet distance",
        "fd-per-class": "Frechet distance within classes",
        "agreement-real": "class agreement, real images",
    }
    titles |= {key: figure.title for key, figure in figures().items()}
    titles |= {"kid": "KID", "rkid": "rKID", "gkid": "gKID"}  # tables of runs have the last alone
    stem = name.partition("_")[0].replace("fid", "fd")  # FID: the same distance, in the published Inception's features
    stem, spread, _ = stem.partition("-std")
    # not lstrip, which would take the first letter of recall too
    like = (stem, *map(stem.removeprefix, ("gr", "g", "r")), f"g{stem}")
    title = next((titles[name] for name in like if name in titles), "")
    return f"{title}, spread" if title and spread else title


def in_unit(name: str, value: float, digits: int = 6) -> str:
    """The value in the unit in which the tables of runs print it, with so many significant digits at most; files keep
    shares from 0 to 1."""
    figure = FIGURES.get(name) or unit_of(name)
    return f"{figure.in_unit(value):.{digits}g} {figure.unit}".rstrip() if figure else f"{value:.{digits}g}"


def _measure_again(call: Values) -> Values:
    """Measure again what a file of scores says ("call" in its manifest). Raises ValueError for an invalid call, and for
    one that would do more than read: the file may come from somebody else."""
    kind, paths, options = (call.get(key) for key in ("kind", "paths", "options"))
    if not (isinstance(kind, str) and kind in KINDS):
        raise ValueError(f"manifest.call.kind: expected one of {', '.join(KINDS)}, got {reprlib.repr(kind)}")
    if not isinstance(options, dict):
        raise ValueError(f"manifest.call.options: expected a mapping, got {reprlib.repr(options)}")
    if not (isinstance(paths, list) and fits(kind, paths) and all(isinstance(path, str) for path in paths)):
        raise ValueError(f"manifest.call.paths: expected two paths, got {reprlib.repr(paths)}")
    hints, asked = options_of(kind), {}
    for name, value in options.items():
        if name not in READING:
            raise ValueError(f"manifest.call.options: a check only reads, and takes no {name!r}; remove it")
        if value is not None:
            try:
                asked[name] = typed(hints.get(name, object), value, name)
            except ValueError as error:
                raise ValueError(f"manifest.call.options.{name}: {value!r} is no value for it") from error
    return measure(kind, paths, **({} if kind == "latents" else {"fresh": True}), **asked)


def _here(path: Path, call: Values) -> Values:
    """The call of a run's file, with the run that the file lies in now: the run may have been copied or moved."""
    folder = path.resolve().parent
    links = folder.parent.parent.glob(f"*/{EvaluateStage.name}") if folder.parent.name == "stages" else ()
    variants = sorted(link.parent.name for link in links if os.path.realpath(link) == str(folder))
    if not variants:
        return call
    variant = call["variant"] if call.get("variant") in variants else variants[0]
    return call | {"run_dir": str(folder.parent.parent), "variant": variant}


def _evaluate(call: Values, trust: bool) -> Values:
    """The scores of a run's stage `evaluate`, run again in a temporary folder."""
    run_dir, variant = call.get("run_dir"), call.get("variant")
    if not (isinstance(run_dir, str) and isinstance(variant, str)):
        raise ValueError("manifest.call: expected run_dir and variant of the run that was evaluated")
    file = Path(run_dir, variant, "recipe.yaml")
    if not file.is_file():
        raise ValueError(f"manifest.call.run_dir: there is no {file}; move the run back there, or name its new place")
    if not trust:
        require_no_code([file])
    recipe = load(file)["main"]
    job = next((job for job in plan({variant: recipe}, Path(run_dir)) if job.stage is EvaluateStage), None)
    if job is None:
        raise ValueError(f"{file} has no stage {EvaluateStage.name}: it cannot be measured again")
    if gone := [folder for folder in job.reads.values() if not folder.is_dir()]:
        raise ValueError(
            f"the run has no {gone[0]}: it was removed, or the data, a file that {file} names, a plugin or dmvae has "
            "changed since; put that back to measure again"
        )
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "stages", "evaluate")
        out.mkdir(parents=True)
        inputs = Inputs(recipe, variant, out, job.reads, distributed.start())
        return Measuring(recipe.section(EvaluateStage), inputs).all()
