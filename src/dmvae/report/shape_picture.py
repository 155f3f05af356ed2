"""A picture of the shape of latents at hand: where they lie, how their variance is spread, how their values are.

The figures of the same latents are in `dmvae.evaluation.shape`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dmvae.evaluation.latents import scatter, vectors
from dmvae.evaluation.shape import compared
from dmvae.report.latent_map import PLANES, Cloud, class_colours, embed, planes, plot
from dmvae.transport.arrival import LATENTS

SUFFIXES = (".png", ".svg", ".pdf")
OURS, THEIRS = "#3366cc", "#8a8f98"
"""Colours of latents and reference."""
CHANNELS = 64
"""Most channels whose values have a line, evenly spaced."""
EDGES = np.linspace(-6, 6, 97)
"""Bins of values, in standard deviations."""


def require_picture(path: Path) -> None:
    """Raise ValueError for a name that says no kind of picture."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--picture {path}: name a file that ends in {', '.join(SUFFIXES)}")


def draw_shape(path: Path, z: Tensor, labels: Tensor | None, reference: Tensor | None, name: str, beside: str) -> None:
    """Write a picture of raw latents z [n, C, H, W], labels [n] or None, beside a reference as `shape` takes it.

    name, beside: what latents and reference are called in it. Three parts: a map of whole latents, the eigenvalues of
    their covariance, and the values of every channel.
    """
    order, here, there = compared(z, reference)
    count = min(len(here), len(there), LATENTS)
    with rc_context({"axes.titlesize": 10, "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 4.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        where, how, what = figure.subplots(1, 3)
        for axes in (where, how, what):
            axes.spines[["top", "right"]].set_visible(False)
        _map(where, here[:count], None if labels is None else labels[order][:count], there[:count])
        _eigenvalues(how, here[:count], there[:count])
        _values(what, here[:count], there[:count])
        legend = how.legend(
            handles=[how.lines[1], how.lines[0]], labels=[name, beside], frameon=False, loc="lower left"
        )
        size = "x".join(map(str, z.shape[1:]))
        title = figure.suptitle(f"{len(z):,} latents {size} of {name}, beside {beside}")
        for text in (*legend.get_texts(), title):
            text.set_parse_math(False)  # names of folders may hold $
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _map(axes: Axes, z: Tensor, labels: Tensor | None, y: Tensor) -> None:
    classes = np.zeros(len(z), int) if labels is None else labels.numpy()
    there = Cloud("", "", y.flatten(1).numpy(), np.zeros(len(y), int), is_reference=True)
    here = Cloud("", "", z.flatten(1).numpy(), classes, there)
    (group,) = planes([there, here])
    how = embed(group)
    palette = {0: OURS} if labels is None else class_colours(np.unique(classes).tolist())
    plot(axes, here, group, palette)
    axes.set_title(f"whole latents, by {how}" + ("" if labels is None else ", coloured by class"))
    axes.set_xlabel(PLANES[how].replace("; ", ";\n"), fontsize=7)


def _eigenvalues(axes: Axes, z: Tensor, y: Tensor) -> None:
    """Of so few vectors even a Gaussian's eigenvalues differ; as many samples of each make the two comparable."""
    for x, colour in ((y, THEIRS), (z, OURS)):
        values = scatter(x).spectrum().numpy()
        values = values[: min(len(values), len(x) - 1)] / values.sum()
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 1e-8), high)
    axes.set_title("how the variance is spread")
    axes.set_xlabel("direction, the widest first")
    axes.set_ylabel("its share of the variance")


def _values(axes: Axes, z: Tensor, y: Tensor) -> None:
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    theirs = np.histogram(vectors(y, "channels").numpy(), EDGES, density=True)[0]
    axes.fill_between(middles, theirs, color=THEIRS, alpha=0.45, linewidth=0)
    chosen = np.unique(np.linspace(0, z.shape[1] - 1, min(CHANNELS, z.shape[1])).round().astype(int))
    for channel in chosen:
        values = np.histogram(z[:, int(channel)].numpy(), EDGES, density=True)[0]
        axes.plot(middles, values, color=OURS, linewidth=0.7, alpha=max(0.15, min(0.9, 6 / len(chosen))))
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 3)
    axes.set_title("values of the channels, a line each")
    axes.set_xlabel("standard deviations of the reference")
    axes.set_ylabel("density")
