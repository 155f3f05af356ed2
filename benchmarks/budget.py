"""gFD against the generator's training steps, a curve for each method: what a latent distribution costs to model.

    python -m benchmarks.budget runs/budget docs/results/budget/curves.svg [--baseline kl_1e-2]
    python -m benchmarks.budget RUN FILE.svg --across "generator parameters, thousands"

Variants are called METHOD_NUMBER, the number being the generator's steps, or what --across says. Those of several seeds
count with their mean. The table has each method's gFD, and its ratio to the baseline's at the same number. Rows that
were measured otherwise than most are left out, and named.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.results import by_method
from benchmarks.tables import header, line
from dmvae.report.run import COLOURS

Curve = dict[int, float]
"""The number in a variant's name -> gFD."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("file", type=Path, help="the picture, .svg")
    parser.add_argument("--baseline", help="method whose gFD the others' are divided by; the last one unless given")
    parser.add_argument("--across", default="generator steps", help="what the numbers in the names are (%(default)s)")
    known = parser.parse_args()
    try:
        summary = json.loads((known.run / "summary.json").read_text())
        curves, floors = curves_of(summary)
        print(table(curves, known.baseline, known.across))
        if unlike := summary.get("unlike"):
            print(f"left out, measured otherwise: {', '.join(unlike)}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    draw(curves, floors, known.across, known.file)


def curves_of(summary: dict[str, Any]) -> tuple[dict[str, Curve], dict[str, float]]:
    """(method -> its curve, method -> its rFD, where it has one). Raises ValueError for a name without a number, and
    where none has a gFD."""
    curves: dict[str, Curve] = {}
    floors: dict[str, float] = {}
    unlike = summary.get("unlike", {})
    rows = {name: row for name, row in summary["methods"].items() if "gfd" in row and name not in unlike}
    for name, figures in by_method(rows).items():
        method, _, number = name.rpartition("_")
        if not (method and number.isdecimal()):
            raise ValueError(f"{name}: not called METHOD_NUMBER, so it is no point of a curve")
        curves.setdefault(method, {})[int(number)] = statistics.fmean(figures["gfd"])
        if "rfd" in figures:  # a tokenizer of latents that were encoded elsewhere has none
            floors[method] = statistics.fmean(figures["rfd"])
    if not curves:
        raise ValueError("no method with a gFD has ended")
    return {method: dict(sorted(curve.items())) for method, curve in curves.items()}, floors


def table(curves: dict[str, Curve], baseline: str | None, across: str) -> str:
    """Raises ValueError for a baseline that is not there. A cell is empty where a method has not ended."""
    baseline = baseline or list(curves)[-1]
    if baseline not in curves:
        raise ValueError(f"--baseline: no method is called {baseline!r}; there are {', '.join(curves)}")
    others = [method for method in curves if method != baseline]
    lines = [header([across, *(f"{method} gFD" for method in curves), *(f"{m} / {baseline}" for m in others)])]
    for number in _numbers(curves):
        at = {method: curve.get(number, math.nan) for method, curve in curves.items()}
        cells = [f"{gfd:.4g}" for gfd in at.values()]
        cells += [f"{at[method] / at[baseline]:.2f}" for method in others]
        lines.append(line([number, *(cell.replace("nan", "") for cell in cells)]))
    return "\n".join(lines)


def _numbers(curves: dict[str, Curve]) -> list[int]:
    return sorted({number for curve in curves.values() for number in curve})


def draw(curves: dict[str, Curve], floors: dict[str, float], across: str, file: Path) -> None:
    """Logarithmic axes; a dashed line is the distance of reconstructions, which a long training comes down to."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for colour, (method, curve) in zip(cycle(COLOURS), curves.items(), strict=False):
        axes.loglog(list(curve), list(curve.values()), "o-", color=colour, label=method)
        if method in floors:
            axes.axhline(floors[method], color=colour, linestyle="--", linewidth=1)
    numbers = _numbers(curves)
    axes.set_xticks(numbers, [str(number) for number in numbers], minor=False)
    axes.minorticks_off()
    drawn = [*floors.values(), *(value for curve in curves.values() for value in curve.values())]
    low, high = min(drawn), max(drawn)
    round_ones = (digit * 10.0**power for power in range(-3, 6) for digit in (1, 1.5, 2, 3, 4, 6, 8))
    ticks = [value for value in round_ones if 0.8 * low <= value <= 1.2 * high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xlabel(across)
    axes.set_ylabel("Frechet distance to the test images")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, title="gFD (dashed: rFD)")
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    print(file)


if __name__ == "__main__":
    main()
