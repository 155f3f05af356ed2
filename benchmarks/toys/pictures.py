"""The page of panels and the curves of `benchmarks.toy2d`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from benchmarks.toys.moving import Result
from benchmarks.toys.targets import TOYS
from dmvae.runtime.random import Random

GREY, POINTS, ARROWS = "0.82", "#d84f4f", "#1f6fb4"


def page(rows: dict[str, tuple[Tensor, list[tuple[str, Tensor]], list[Tensor]]], shown: str, file: Path) -> None:
    """A row for each objective: the start beside one toy, its pull at several times, and where the points end, beside
    that toy and the others. rows: name -> (start [n, 2], [(time, field [n, 2])], ends [n, 2] in the order of TOYS)."""
    most = max(len(fields) for _, fields, _ in rows.values())
    columns = 1 + most + len(TOYS)
    figure = Figure(figsize=(1.5 * columns, 1.62 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    samples = {name: make().sample(1500, Random(0, name))[0].flatten(1) for name, make in TOYS.items()}
    others = [name for name in TOYS if name != shown]
    for axes, (name, (start, fields, ends)) in zip(
        figure.subplots(len(rows), columns, squeeze=False), rows.items(), strict=True
    ):
        _panel(axes[0], samples[shown], start, f"{name}\nstart")
        for panel, (time, field) in zip(axes[1:], fields, strict=False):
            _panel(panel, samples[shown], None, time)
            some, pull = start[:120], field[:120]
            pull = 0.5 * pull / pull.norm(dim=1).quantile(0.9).clamp_min(1e-12)
            panel.quiver(*some.T, *pull.T, angles="xy", scale_units="xy", scale=1, width=0.008, color=ARROWS)
        for panel in axes[1 + len(fields) : 1 + most]:
            panel.axis("off")
        by_toy = dict(zip(TOYS, ends, strict=True))
        for panel, toy in zip(axes[1 + most :], [shown, *others], strict=True):
            _panel(panel, samples[toy], by_toy[toy], f"end: {toy}")
    _save(figure, file, 75)


def _save(figure: Figure, file: Path, dpi: int) -> None:
    """With 48 colours: a third of the size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=dpi)
    Image.open(file).convert("RGB").quantize(48).save(file, optimize=True)


def _panel(panel: Any, target: Tensor, points: Tensor | None, title: str) -> None:
    panel.scatter(*target.T, s=1, color=GREY, linewidths=0)
    if points is not None:
        panel.scatter(*points.T, s=3, color=POINTS, linewidths=0)
    panel.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
    panel.set_title(title, fontsize=7)


def curves(
    found: dict[str, dict[str, list[Result]]], groups: dict[str, Sequence[str]], starts: Sequence[str], file: Path
) -> None:
    """Distance at the end against the start, medians over seeds; a panel for each group of objectives. found: objective
    -> start -> results."""
    groups = {title: names for title, names in groups.items() if any(name in found for name in names)}
    figure = Figure(figsize=(10, 3.6 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    apart = [start for start in starts if not start[0].isdigit()]
    kinds = [[s for s in starts if s not in apart], apart]
    for axes, (title, names) in zip(figure.subplots(len(groups), 2, squeeze=False), groups.items(), strict=True):
        for panel, some in zip(axes, kinds, strict=True):
            for i, name in enumerate(names):
                if name not in found or not some:
                    continue
                line = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--", "label": name}
                panel.plot(some, [min(median(found[name][s]), 1e4) for s in some], marker="o", markersize=3, **line)
            panel.axhline(1, color="0.7", linewidth=0.8)
            panel.set(yscale="log", title=title, ylabel="distance at the end, times chance")
        axes[0].set_xlabel("distance of the start, standard deviations")
        axes[1].set_xlabel("spread of the start over the toy's; disjoint modes")
        axes[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, file, 80)


def median(results: Sequence[Result]) -> float:
    """Of the distances; infinite ones are far."""
    return statistics.median(result.distance for result in results)
