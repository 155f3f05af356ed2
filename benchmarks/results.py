"""What a finished run found, for a page: its table as Markdown on the terminal, and pictures into a folder.

    python -m benchmarks.results runs/references docs/results/references --baseline kl [--samples ssl@0 kl@0]
    python -m benchmarks.results runs/references --baseline kl --columns psnr rfd gfd gfd@2 knn

Methods of several seeds are a row of means and standard deviations, and with --each a row for each seed. "gFD ratio" is
a method's gFD over the baseline's, or over that of BASELINE_2000 for a generator of 2,000 steps where there is one,
seed by seed where both have several; a method that was measured otherwise than most has none, and no dot in the charts.
Seeds and methods that have not ended are left out of it, and named. The folder gets tradeoff.svg (reconstruction
against generation), parts.svg (what of gFD is the decoder's, against what is the generator's), maps.png (each reference
beside the latents matched to it) and samples.png (a row a class, a block of columns for each of --samples).
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.pictures import samples_picture, write_svg
from benchmarks.tables import header, line
from dmvae.evaluation import scores
from dmvae.jobs import jobs_of
from dmvae.recipe import Recipe, method_of
from dmvae.report import charts, latent_map, summary
from dmvae.report.figures import shown
from dmvae.report.run import COLOURS, Run

RATIO = scores.Figure("ratio", "gFD ratio", "", -1, "{:.2f}", "gFD over the baseline's")
Values = dict[str, list[Any]]
"""Figure -> its value at each seed, and SEEDS -> which these are."""
SEEDS = "@"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("folder", type=Path, nargs="?", help="where pictures go; none are made without it")
    parser.add_argument("--baseline", help="method whose gFD the others' are divided by; the last one unless given")
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="FIGURE",
        help="keys of summary.json, as psnr or gfd@1.5; all that tables show, unless given",
    )
    parser.add_argument("--each", action="store_true", help="a row for each seed; then --baseline names one, as kl@0")
    parser.add_argument("--samples", nargs="+", default=[], metavar="VARIANT", help="variants to show samples of")
    known = parser.parse_args()
    try:
        run = Run(known.run, jobs_of(known.run))
        waiting = {job.variant for job in run.jobs if not job.finished}
        methods_of = {name: name if known.each else method_of(name, recipe) for name, recipe in run.recipes.items()}
        grouped = methods_of.__getitem__
        unlike = run.summary.get("unlike", {})
        # summary.json is of the last study that ended in the folder, which another may have begun anew
        rows = {name: row for name, row in run.methods.items() if name in run.recipes and name not in waiting}
        alike = by_method({name: row for name, row in rows.items() if name not in unlike}, grouped)
        methods = by_method(rows, grouped) | alike  # a mean has no seed in it that was measured otherwise
        baseline = known.baseline or next(reversed(methods), "")
        steps = {grouped(name): generator_steps(recipe) for name, recipe in run.recipes.items()}
        print(
            table(
                methods,
                baseline,
                Counter(map(grouped, run.variants)),
                known.columns,
                methods.keys() - alike.keys(),
                steps,
            )
        )
        if wrong := [name for name in known.samples if name not in run.variants]:
            raise ValueError(f"--samples: no variant is called {', '.join(wrong)}; there are {', '.join(run.variants)}")
    except ValueError as error:
        parser.error(str(error))
    if known.folder is not None:
        known.folder.mkdir(parents=True, exist_ok=True)
        scatter(alike, "psnr", "gfd", known.folder / "tradeoff.svg")
        scatter(alike, "rfd", "grfd", known.folder / "parts.svg")
        maps(run, known.folder / "maps.png")
        if known.samples:
            samples_picture(known.run, known.samples, known.folder / "samples.png")


def by_method(rows: dict[str, dict[str, Any]], grouped: Callable[[str], str] = method_of) -> dict[str, Values]:
    """Method -> the figures that all of its seeds have. `grouped`: variant -> the method whose row it is in."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        found.setdefault(grouped(name), []).append(row | {SEEDS: name.rpartition("@")[2]})
    return {
        method: {key: [row[key] for row in seeds] for key in seeds[0] if all(key in row for row in seeds)}
        for method, seeds in found.items()
    }


def table(
    methods: dict[str, Values],
    baseline: str,
    asked: Mapping[str, int],
    wanted: list[str] | None = None,
    unlike: Container[str] = (),
    steps: Mapping[str, int | None] = MappingProxyType({}),
) -> str:
    """`asked`: every method of the recipe, with the number of its seeds; `methods` has those that ended. `wanted`: keys
    of the columns, in order. `unlike`: methods whose distances compare with no other's. `steps`: of their generators.
    Raises ValueError where none has ended, for a baseline or a column that is not there."""
    if not methods:
        raise ValueError("no method has ended; the command that started the run goes on with it")
    if baseline not in methods:
        raise ValueError(f"--baseline: no method that has ended is called {baseline!r}; there are {', '.join(methods)}")
    columns = shown({key for row in methods.values() for key in row})
    if unknown := [key for key in wanted or () if key not in columns]:
        raise ValueError(f"--columns: no method has {', '.join(unknown)}; there are {', '.join(columns)}")
    columns = {key: columns[key] for key in wanted or columns}
    lines = [header(["method", *(figure.heading for figure in columns.values()), "gFD ratio"])]
    for name, count in asked.items():
        row = methods.get(name, {})
        ended = max((len(values) for values in row.values()), default=0)
        cells = [cell(row[key], figure) if key in row else "" for key, figure in columns.items()]
        beside = like(name, baseline, methods, steps)
        compared = "gfd" in row and "gfd" in methods[beside] and name not in unlike and beside not in unlike
        cells.append(cell(ratios(row, methods[beside]), RATIO) if compared else "")
        seeds = f" ({ended} of {count} seeds)" if ended < count else f" ({count} seeds)"
        if not ended:
            cells[0] = "not ended"
        lines.append(line([name + (seeds if count > 1 and ended else ""), *cells]))
    return "\n".join(lines)


def like(name: str, baseline: str, methods: Mapping[str, Values], steps: Mapping[str, int | None]) -> str:
    """The baseline, or BASELINE_STEPS where that alone has a generator of as many steps as the method's. A baseline
    METHOD@SEED has METHOD_STEPS@SEED, or METHOD_STEPS where that has one seed."""
    if steps.get(name) == steps.get(baseline):
        return baseline
    method, at, seed = baseline.partition("@")
    same = f"{method}_{steps.get(name)}"
    return next((other for other in (f"{same}{at}{seed}", same) if "gfd" in methods.get(other, {})), baseline)


def generator_steps(recipe: Recipe) -> int | None:
    """Those after which it draws the samples that are measured."""
    sample, generator = recipe.section("sample"), recipe.section("generator")
    return (sample and sample.snapshot) or (generator and generator.steps)


def ratios(row: Values, baseline: Values) -> list[float]:
    """gFD over the baseline's of the same seed where both have several and some in common, else over its mean."""
    ours, theirs = (dict(zip(values[SEEDS], values["gfd"], strict=True)) for values in (row, baseline))
    if min(len(ours), len(theirs)) > 1 and (both := ours.keys() & theirs.keys()):
        return [ours[seed] / theirs[seed] if theirs[seed] else math.nan for seed in sorted(both)]
    mean = summary.mean(list(theirs.values()))
    return [value / mean if mean else math.nan for value in ours.values()]


def cell(values: list[float], figure: scores.Figure) -> str:
    if len(values) == 1:
        return figure.show(values[0])
    return f"{figure.show(summary.mean(values))} ± {figure.show_spread(summary.spread(values))}"


def scatter(methods: dict[str, Values], x: str, y: str, file: Path) -> None:
    """A dot for each method that has both figures."""
    dots = [
        charts.Dot(name, COLOURS[i % len(COLOURS)], summary.mean(row[x]), summary.mean(row[y]))
        for i, (name, row) in enumerate(methods.items())
        if all(key in row and math.isfinite(summary.mean(row[key])) for key in (x, y))
    ]
    across, up = (shown([key])[key].label for key in (x, y))
    write_svg(file, charts.scatter(dots, across, up))


def maps(run: Run, file: Path) -> None:
    """Each plane's panels in a row, the reference first, then the methods that share it; short ones share a row."""
    groups = latent_map.planes(latent_map.clouds_of(run))
    if not groups:
        return
    for group in groups:
        latent_map.embed(group)
    labels = sorted({int(label) for group in groups for cloud in group for label in cloud.labels})
    palette = latent_map.class_colours(labels)
    rows: list[list[tuple[latent_map.Cloud, list[latent_map.Cloud]]]] = [[]]
    width = max(4, *(len(group) for group in groups))
    for group in groups:
        if len(rows[-1]) + len(group) > width:
            rows.append([])
        rows[-1] += [(cloud, group) for cloud in group]
    figure = Figure(figsize=(2 * width, 2.2 * len(rows)), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows), width, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for places, row in zip(grid, rows, strict=True):
        for axes, (cloud, group) in zip(places, row, strict=False):
            axes.imshow(np.asarray(latent_map.draw(cloud, group, palette).resize((340, 340))))
            axes.set_title(textwrap.fill(cloud.title, 30), fontsize=8)
    figure.savefig(file)
    print(file)


if __name__ == "__main__":
    main()
