"""Tries to lose, hang, crash and deceive the program, and counts how often that works: python -m benchmarks.torture.

    tries        how often something was damaged, mutated, ended or forged
    losses       files or states that were there before and are gone, or a file written outside the named folder
    tracebacks   answers that are no error of one line
    hangs        no answer in time, or a process left running
    silent uses  what is damaged or hostile was used without a word

Exit code 1 unless the last four are 0. `--quick` makes a few tries of each kind, in minutes of one core.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.table import Table

from benchmarks.tortures import COUNTS, Row
from benchmarks.tortures.damage import checkpoints, files, recipes, run_folder
from benchmarks.tortures.hostile import hostile, workers
from benchmarks.tortures.kills import kills
from benchmarks.tortures.values import nans, odd_fields, odd_images, ranks
from dmvae.runtime.console import console


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few tries of each kind")
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args(arguments)
    rng, many = random.Random(known.seed), 1 if known.quick else 10
    quick = known.quick
    parts: list[Callable[[Path], Iterator[Row]]] = [
        # First, since they fork a process that has trained nothing.
        lambda folder: kills(folder, 3 if quick else 100, 1 if quick else 18, rng),
        lambda folder: nans(folder, rng),
        lambda folder: odd_images(folder, rng),
        lambda folder: files(folder, 100 * many, rng),
        lambda folder: checkpoints(folder, 30 * many, rng),
        lambda folder: recipes(folder, 50 * many, rng),
        lambda folder: odd_fields(folder, 50 if quick else 10**6, rng),
        hostile,
        lambda folder: workers(folder, 0 if quick else 5),
        lambda folder: ranks(folder, 1 if quick else 5),
    ]
    if not quick:
        parts.append(lambda folder: run_folder(folder, 100, rng))
    rows = []
    with tempfile.TemporaryDirectory(prefix="torture-cache-") as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # nothing of the user's is read or written
        for part in parts:
            with tempfile.TemporaryDirectory(prefix="torture-") as folder:
                for row in part(Path(folder).resolve()):
                    rows.append(row)
                    console.print(f"{row.name}: {row.tries} tries", *row.notes, sep="\n  ", markup=False)
    table = Table("", "tries", *COUNTS)
    for row in rows:
        table.add_row(row.name, str(row.tries), *(str(row.counts[what]) for what in COUNTS))
    console.print(table)
    return int(any(row.notes for row in rows))


if __name__ == "__main__":
    sys.exit(main())
