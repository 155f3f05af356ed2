"""Six distributions in two dimensions, and how near each objective takes points to them, from near and far.

    python -m benchmarks.toy2d FOLDER [--parts toys starts] [--objectives dmd transport ...] [--turns 250] [--seeds 5]

Writes FOLDER/objectives.png, a page of panels of the first seed: start, pull at several times, end; and
FOLDER/distance.png: the distance at the end against the start. Prints both as tables, over all seeds. Distances are
sliced Wasserstein, as multiples of what two samples of the toy have: 1 is arrival. In a turn the student learns twice
and the points move once, both by Adam. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.tables import header, line
from benchmarks.toys.moving import BEYOND, OBJECTIVES, PAPER, Moved, Result, Run, judge
from benchmarks.toys.pictures import curves, median, page
from benchmarks.toys.targets import STARTS, TOYS
from dmvae.matching.velocities import ByVelocities

SHOWN = "ring of 8"
"""The toy whose fields are drawn, and that the starts are of."""
MANY = 256
"""Points on the page."""
TIMES = (0.2, 0.5, 0.8)
GROUPS = {"the paper's eleven": tuple(PAPER), "others": tuple(BEYOND)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="both unless given")
    parser.add_argument(
        "--objectives",
        nargs="+",
        choices=list(OBJECTIVES),
        default=list(OBJECTIVES),
        metavar="NAME",
        help=f"all unless given: {'; '.join(OBJECTIVES)}",
    )
    parser.add_argument("--turns", type=int, default=250, help="moves of the points (default: %(default)s)")
    parser.add_argument("--points", type=int, default=128, help="of a run from a start (%(default)s); the page has 256")
    parser.add_argument("--seeds", type=int, default=5, help="of each toy and start (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: %(default)s)")
    asked = parser.parse_args()
    for part in asked.parts:
        PARTS[part](asked)


def all_toys(asked: argparse.Namespace) -> None:
    """The page, and its table."""
    print(
        "On each toy, from a normal cloud of its mean and spread: distance, the median of "
        f"{asked.seeds} seeds (the farthest; mean coverage, mean spread).\n"
    )
    print(header(["objective", *TOYS]))
    rows, work = {}, partial(on_all_toys, turns=asked.turns, seeds=asked.seeds)
    try:  # what there is, is drawn, also where it is interrupted
        for name, (start, fields, ends, results) in each(asked.objectives, work, asked.workers):
            rows[name] = (start, fields, ends)
            print(line([name, *map(cell, results)]), flush=True)
    finally:
        if rows:
            page(rows, SHOWN, asked.folder / "objectives.png")


def all_starts(asked: argparse.Namespace) -> None:
    """The curves, and their table."""
    print(f"\nOn the {SHOWN}, from each start: distance, the median of {asked.seeds} seeds (and the farthest).\n")
    print(header(["objective", *STARTS]))
    found: dict[str, dict[str, list[Result]]] = {}
    work = partial(from_all_starts, turns=asked.turns, seeds=asked.seeds, points=asked.points)
    try:
        for name, by_start in each(asked.objectives, work, asked.workers):
            found[name] = by_start
            cells = (f"{told(median(by_start[s]))} ({told(max(r.distance for r in by_start[s]))})" for s in STARTS)
            print(line([name, *cells]), flush=True)
    finally:
        if found:
            curves(found, GROUPS, list(STARTS), asked.folder / "distance.png")


PARTS = {"toys": all_toys, "starts": all_starts}


def on_all_toys(
    name: str, turns: int, seeds: int
) -> tuple[Tensor, list[tuple[str, Tensor]], list[Tensor], list[list[Result]]]:
    """(the first seed's start, its fields beside the toy that is shown, its ends; how near all seeds' are, by toy)."""
    runs = [Run(toy, "0", seed) for toy in TOYS.values() for seed in range(seeds)]
    moved = Moved(name, runs, MANY)
    shown = list(TOYS).index(SHOWN) * seeds
    if isinstance(moved.objective, ByVelocities):
        fields = [(f"pull at t = {t:g}", moved.field(t)[shown]) for t in TIMES]
    else:
        fields = [("pull", moved.field(0.5)[shown])]
    ends = moved.end(turns)
    results = judged(moved, ends, seeds)
    return moved.start[:MANY].flatten(1), fields, list(ends[::seeds]), results


def judged(moved: Moved, ends: Tensor, seeds: int) -> list[list[Result]]:
    """How near the runs ended, so many seeds in a row together."""
    each_run = zip(ends, moved.reference.toys, moved.runs, strict=True)
    results = [judge(points, toy, run.seed) for points, toy, run in each_run]
    return [results[i : i + seeds] for i in range(0, len(results), seeds)]


def from_all_starts(name: str, turns: int, seeds: int, points: int) -> dict[str, list[Result]]:
    """Start -> results, one a seed."""
    runs = [Run(TOYS[SHOWN], start, seed) for start in STARTS for seed in range(seeds)]
    moved = Moved(name, runs, points)
    return dict(zip(STARTS, judged(moved, moved.end(turns), seeds), strict=True))


def each(names: Sequence[str], work: partial, workers: int) -> Iterator[tuple]:
    """(name, work(name)) in order, in so many processes of one thread each."""
    if workers <= 1:
        yield from ((name, work(name)) for name in names)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from zip(names, pool.map(work, names), strict=True)


def cell(results: list[Result]) -> str:
    """One of the page's table."""
    coverage, spread = fmean(r.coverage for r in results), fmean(r.spread for r in results)
    return f"{told(median(results))} ({told(max(r.distance for r in results))}; {coverage:.0%}, {spread:.2f})"


def told(distance: float) -> str:
    return f"{distance:.2f}" if distance < 10 else f"{distance:.0f}" if math.isfinite(distance) else "diverged"


if __name__ == "__main__":
    main()
