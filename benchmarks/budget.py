"""gFD against the generator's training steps, a curve for each method: what a latent distribution costs to model.

    python -m benchmarks.budget runs/budget docs/results/budget/curves.svg [--baseline kl] [--across "its parameters"]

Variants are called METHOD_STEPS, or METHOD_NUMBER by what --across says; those of several seeds count with their mean.
The table gives each method's gFD over the baseline's at the same number.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.results import by_method
from benchmarks.tables import header, line
from dmvae.report.run import COLOURS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--baseline", help="method whose gFD the others' are divided by; the last one unless given")
    parser.add_argument("--across", default="generator steps", help="what the numbers in the names are (%(default)s)")
    known = parser.parse_args()
    rows = json.loads((known.run / "summary.json").read_text())["methods"]
    methods = by_method({name: row for name, row in rows.items() if "gfd" in row})
    curves: dict[str, dict[int, float]] = {}
    floors: dict[str, float] = {}
    for name, figures in methods.items():
        method, _, steps = name.rpartition("_")
        curves.setdefault(method, {})[int(steps)] = statistics.fmean(figures["gfd"])
        floors[method] = statistics.fmean(figures["rfd"])
    for method, curve in curves.items():
        curves[method] = dict(sorted(curve.items()))
    baseline = known.baseline or list(curves)[-1]
    others = [method for method in curves if method != baseline]
    titles = [known.across, *(f"{method} gFD" for method in curves), *(f"{m} / {baseline}" for m in others)]
    print(header(titles))
    for steps in sorted({steps for curve in curves.values() for steps in curve}):
        at = {method: curve.get(steps, math.nan) for method, curve in curves.items()}  # nan: has not ended
        cells = [f"{gfd:.4g}" for gfd in at.values()]
        cells += [f"{at[method] / at[baseline]:.2f}" for method in others]
        print(line([steps, *(cell.replace("nan", "") for cell in cells)]))
    draw(curves, floors, known.across, known.file)


def draw(curves: dict[str, dict[int, float]], floors: dict[str, float], across: str, file: Path) -> None:
    """Logarithmic axes; a dashed line is the distance of reconstructions, which a long training comes down to."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for colour, (method, curve) in zip(COLOURS, curves.items(), strict=False):
        axes.loglog(list(curve), list(curve.values()), "o-", color=colour, label=method)
        axes.axhline(floors[method], color=colour, linestyle="--", linewidth=1)
    steps = sorted({steps for curve in curves.values() for steps in curve})
    axes.set_xticks(steps, [str(step) for step in steps], minor=False)
    axes.minorticks_off()
    low, high = min(floors.values()), max(value for curve in curves.values() for value in curve.values())
    ticks = [value for value in (100, 200, 300, 400, 600, 800, 1000, 1500) if 0.8 * low <= value <= 1.2 * high]
    axes.set_yticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xlabel(across)
    axes.set_ylabel("Frechet distance to the test images")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, title="gFD (dashed: rFD)")
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    print(file)


if __name__ == "__main__":
    main()
