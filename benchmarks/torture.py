"""Tries to lose, hang, crash and deceive the program, and counts how often that works: python -m benchmarks.torture.

    tries        how often something was damaged, mutated, ended or forged
    losses       files or states that were there before and are gone, or a file written outside the named folder
    tracebacks   answers that are no error of one line
    hangs        no answer in time, or a process left running
    silent uses  what is damaged or hostile was used without a word

Exit code 1 unless the last four are 0. `--quick` makes a few tries of each kind, in minutes of one core; all of them
take some hours. The table is printed after each part, so that a run that is cut short has told what it
found.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.table import Table

from benchmarks.tortures import COUNTS, Row
from benchmarks.tortures.damage import checkpoints, files, recipes, run_folder
from benchmarks.tortures.foreign import foreign
from benchmarks.tortures.hostile import hostile, workers
from benchmarks.tortures.kills import disks, kills
from benchmarks.tortures.power import cuts
from benchmarks.tortures.values import nans, odd_fields, odd_images, ranks
from dmvae.runtime.console import console

Part = Callable[[Path, bool, random.Random], Iterator[Row]]
PARTS: dict[str, Part] = {
    "nans": lambda folder, quick, rng: nans(folder),
    "images": lambda folder, quick, rng: odd_images(folder),
    "files": lambda folder, quick, rng: files(folder, 100 if quick else 1000, rng),
    "checkpoints": lambda folder, quick, rng: checkpoints(folder, 30 if quick else 300, rng),
    "foreign": lambda folder, quick, rng: foreign(folder, 30 if quick else 300, rng),
    "recipes": lambda folder, quick, rng: recipes(folder, 50 if quick else 500, rng),
    "hostile": lambda folder, quick, rng: hostile(folder),
    "workers": lambda folder, quick, rng: workers(folder, 0 if quick else 3),
    "ranks": lambda folder, quick, rng: ranks(folder, 1 if quick else 6),
    "run": lambda folder, quick, rng: run_folder(folder, 2 if quick else 100, rng),
    "kills": lambda folder, quick, rng: kills(folder, 3 if quick else 100, rng),
    "disks": lambda folder, quick, rng: disks(folder, 1 if quick else 18, rng),
    "power": lambda folder, quick, rng: cuts(folder, 1 if quick else 10, rng),
    "fields": lambda folder, quick, rng: odd_fields(folder, 50 if quick else 10**6, rng),
}
"""What is tried, by the names that `--parts` takes."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few tries of each kind")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--seed", type=int, default=0, help="of what is damaged, and where (default: %(default)s)")
    known = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="torture-cache-") as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # nothing of the user's is read or written
        for number, name in enumerate(known.parts, 1):
            begun = time.monotonic()
            print(f"{name}: part {number} of {len(known.parts)}", flush=True)
            rng = random.Random(f"{known.seed} {name}")  # the same tries, whatever other parts there are
            with tempfile.TemporaryDirectory(prefix="torture-") as folder:
                for row in PARTS[name](Path(folder).resolve(), known.quick, rng):
                    rows.append(row)
                    print(f"  {row.name}: {row.tries} tries, {len(row.notes)} failures", flush=True)
            print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
            console.print(_table(rows))
            sys.stdout.flush()
    return int(any(row.notes for row in rows))


def _table(rows: list[Row]) -> Table:
    table = Table("", "tries", *COUNTS)
    for row in rows:
        table.add_row(row.name, str(row.tries), *(str(row.counts[what]) for what in COUNTS))
    return table


if __name__ == "__main__":
    sys.exit(main())
