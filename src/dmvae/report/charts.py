"""Line charts as inline SVG. Text and axes have the page's text colour, so they are readable on light and on dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dmvae",
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
POINTS = 300


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    steps: Sequence[float]
    values: Sequence[float]


def lines(series: Sequence[Line], *, log: bool = False, size: tuple[float, float] = (4.0, 2.3), label: str = "") -> str:
    """One chart: each series as an exponential moving average over its faint raw values.

    log: a logarithmic value axis. size: inches. label: what the chart shows, for screen readers. "" without a point.
    """
    kept = [(line, *_clean(line, log)) for line in series]
    kept = [(line, x, y) for line, x, y in kept if len(x)]
    if not kept:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        width, height = size
        axes = figure.add_axes((0, 0, 1, 1))
        for order, (line, x, y) in enumerate(kept):
            colour = INK if line.colour == "currentColor" else line.colour
            smooth = np.exp(_smooth(np.log(y))) if log else _smooth(y)
            if len(x) == 1:
                axes.plot(x, y, "o", color=colour, markersize=4)
                continue
            axes.plot(*_thin(x, y), color=colour, linewidth=0.7, alpha=0.28, zorder=2)
            axes.plot(*_thin(x, smooth), color=colour, linewidth=1.6, solid_capstyle="round", zorder=3 + order)
        _dress(axes, [(x, y) for _, x, y in kept], log)
        left = max(0.5, 0.12 + 0.08 * max(map(len, _labels(axes))))
        axes.set_position((left / width, 0.4 / height, 1 - (left + 0.06) / width, 1 - 0.46 / height))
        return _svg(figure, label or ", ".join(line.name for line in series))


@dataclass(frozen=True)
class Dot:
    name: str
    colour: str
    x: float
    y: float


def scatter(dots: Sequence[Dot], x: str, y: str) -> str:
    """A scatter chart of dots with their names; x and y name the axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8))
        axes = figure.add_axes((0.1, 0.14, 0.88, 0.82))
        for dot in dots:
            axes.plot([dot.x], [dot.y], "o", color=dot.colour, markersize=6)
        axes.margins(0.12)
        _name_dots(axes, dots)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color=INK, alpha=0.1, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=2.5, pad=3)
        return _svg(figure, f"{y} against {x}: " + "; ".join(f"{d.name} {d.x:.4g}, {d.y:.4g}" for d in dots))


def _name_dots(axes: Axes, dots: Sequence[Dot]) -> None:
    """Write each name beside its dot, right or left, if there is room; else on the nearest free line above or below,
    joined to the dot by a stroke."""
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    wide, line = 0.0125 * (right - left), 0.045 * (high - low)
    taken = [(dot.x - wide, dot.x + wide, dot.y) for dot in dots]
    for dot in sorted(dots, key=lambda d: d.y):
        reach = (1.2 + len(dot.name)) * wide
        spans = [(dot.x + 1.2 * wide, dot.x + reach, "left"), (dot.x - reach, dot.x - 1.2 * wide, "right")]
        inside = [span for span in spans if left <= span[0] and span[1] <= right] or spans[:1]
        places = [
            (start, stop, side, dot.y + sign * step * line / 4)
            for step in range(4 * len(dots) + 1)
            for start, stop, side in inside
            for sign in (1, -1)
            if step == 0 or low < dot.y + sign * step * line / 4 < high
        ]
        free = (p for p in places if not any(_meet(p, other, line) for other in taken))
        start, stop, side, place = next(free, places[0])
        taken.append((start, stop, place))
        near = abs(place - dot.y) < line
        axes.annotate(
            dot.name,
            (dot.x, dot.y),
            (start if side == "left" else stop, place),
            ha=side,
            va="center",
            fontsize=8,
            arrowprops=None if near else {"arrowstyle": "-", "color": dot.colour, "linewidth": 0.6},
        )


def _meet(place: tuple[float, float, str, float], other: tuple[float, float, float], line: float) -> bool:
    return abs(place[3] - other[2]) < line and place[0] < other[1] and place[1] > other[0]


def _clean(line: Line, log: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(line.steps, float), np.asarray(line.values, float)
    keep = np.isfinite(y) & ((y > 0) if log else True)
    return x[keep], y[keep]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a twentieth of the points, forwards and backwards in time, so that it does
    not lag."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    forwards, weight = _decayed(values, decay)
    backwards, weight_back = (part[::-1] for part in _decayed(values[::-1], decay))
    return (forwards + backwards - values) / (weight + weight_back - 1)


def _decayed(values: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Sums of decay^(i - j) values[j] over j <= i, and the sums of their weights."""
    sums, weights = np.array(values), np.ones(len(values))
    for i in range(1, len(values)):
        sums[i] += decay * sums[i - 1]
        weights[i] += decay * weights[i - 1]
    return sums, weights


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(x) - 1, min(POINTS, len(x))).round().astype(int))
    return x[keep], y[keep]


def _dress(axes: Axes, kept: list[tuple[np.ndarray, np.ndarray]], log: bool) -> None:
    """Set grid, ticks and limits. The steep first steps may lie outside the limits; what was measured before training,
    at step 0, is inside."""
    values = [y for _, y in kept]
    start = [y[:1] for x, y in kept if x[0] == 0]
    late = np.concatenate([*(y[len(y) // 25 :] for y in values), *start])
    if log:
        axes.set_yscale("log")
        low, high = late.min() / 1.3, late.max() * 1.3
        wide = high / low > 300
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=6 if wide else 12))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}" if 1e-4 < y < 1e5 else f"{y:.0e}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        low, high = np.quantile(late, [0.002, 0.998])
        inside = [*(y[-1] for y in values), *(y[0] for y in start)]
        low, high = min(low, *inside), max(high, *inside)
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - pad, high + pad
        axes.yaxis.set_major_locator(locator := MaxNLocator(5))
        axes.yaxis.set_major_formatter(_plain(locator.tick_values(low, high)))
    axes.set_ylim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 1000 else f"{x:g}")
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5, pad=3)
    axes.annotate(
        "steps", (1, 0), (0, -17), "axes fraction", "offset points", ha="right", va="top", fontsize=8, alpha=0.6
    )


def _plain(ticks: Sequence[float]) -> Callable[[float, object], str]:
    """A formatter that writes every tick in full, all with the same number of digits, without an offset or exponent
    beside the axis."""
    step, largest = ticks[1] - ticks[0], max(map(abs, ticks))
    kind = "f" if 1e-4 <= largest < 1e7 else "e"

    def exact(digits: int) -> bool:
        return all(abs(float(f"{y:.{digits}{kind}}") - y) < step / 100 for y in ticks)

    digits = next((n for n in range(17) if exact(n)), 17)
    return lambda y, _: f"{0.0 if abs(y) < step / 100 else y:.{digits}{kind}}"


def _labels(axes: Axes) -> list[str]:
    """The texts of the ticks of the vertical axis, from the bottom up."""
    low, high = axes.get_ylim()
    return axes.yaxis.get_major_formatter().format_ticks([y for y in axes.get_yticks() if low <= y <= high]) or [""]


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # ids would be the same in every chart of the page
    head = f'role="img" aria-label="{escape(label)}">'
    text = re.sub(
        r'<svg[^>]*?viewBox="([^"]+)"[^>]*>', lambda found: f'<svg viewBox="{found[1]}" {head}', text, count=1
    )
    return text.replace(INK, "currentColor")
