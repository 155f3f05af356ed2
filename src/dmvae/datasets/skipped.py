"""What data sets left out in this process, so that a run can name every one of the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmvae.runtime.files import atomic_write

NAME = "skipped.txt"
_skipped: dict[str, tuple[str, ...]] = {}


def note(place: str, told: Sequence[str]) -> None:
    """Keep what was left out of a folder or split: a line of FILE: REASON each."""
    if told:
        _skipped[place] = tuple(told)


def forget() -> None:
    """For a program that runs another recipe, whose data these are not."""
    _skipped.clear()


def write_skipped(run_dir: Path) -> tuple[int, Path]:
    """Write run_dir/skipped.txt, or remove the one of before where nothing was left out; (lines, file)."""
    path = run_dir / NAME
    lines = sorted({line for told in _skipped.values() for line in told})
    if lines:
        with atomic_write(path) as part:
            part.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
    else:
        path.unlink(missing_ok=True)
    return len(lines), path
