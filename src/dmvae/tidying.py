"""What a run does to the folders of finished stages before it goes on: it removes what a kill at their very end left,
and finds damaged files."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from pathlib import Path

from dmvae.inputs import SNAPSHOTS
from dmvae.latents.store import STATISTICS
from dmvae.runtime.console import console
from dmvae.runtime.done import NAME as DONE
from dmvae.runtime.done import damages, read_done
from dmvae.runtime.files import held, locked, remove, sweep, within
from dmvae.runtime.words import counted
from dmvae.training.checkpoint import settle
from dmvae.training.loop import CHECKPOINTS

QUIET = 5.0
"""Seconds of waiting for another process after which that is told."""


def tidy(folders: Collection[Path], verify: bool) -> None:
    """Remove what a finished stage left behind if it was killed at its very end; with `verify`, mark stages with
    damaged files as unfinished, so that they run again. Later stages are kept as they are: on a CPU the new result
    equals the old one bit for bit, on a GPU up to rounding."""
    checked_elsewhere = []
    for folder in dict.fromkeys(folders):
        with locked(folder, wait=False) as mine:
            if mine:
                tidy_stage(folder, verify)
            else:
                checked_elsewhere.append(folder)
    # Processes that begin at once share the folders out, and none goes on before all are checked.
    quiet = time.monotonic() + QUIET
    for folder in checked_elsewhere:
        while read_done(folder) is not None and held(folder):
            if time.monotonic() > quiet:
                console.print(f"waits for another process, which checks {folder}")
                quiet = math.inf
            time.sleep(0.1)


def tidy_stage(folder: Path, verify: bool) -> None:
    """`tidy` of one folder, of which this process has the lock."""
    if (facts := read_done(folder)) is None:
        return
    settle(folder / CHECKPOINTS)
    sweep(folder)
    wrong = list(damages(folder, facts)) if verify else []
    if wrong:
        more = f", {counted(len(wrong) - 1, 'other file')} too" if len(wrong) > 1 else ""
        console.print(f"{folder}: {' '.join(wrong[0])}{more}; the stage is run again")
        # `within`: the list may come from somebody else, and its names lead out through links
        for file in [within(folder / name, folder) for name, _ in wrong]:
            # statistics would mean that all shards beside them are there
            within(file.parent / STATISTICS, folder).unlink(missing_ok=True)
            file.unlink(missing_ok=True)
        if any(name.startswith(f"{SNAPSHOTS}/") for name, _ in wrong):  # which a last state cannot make again
            remove(folder / CHECKPOINTS)
        (folder / DONE).unlink()  # last: if killed before, the next run sees again what is missing
