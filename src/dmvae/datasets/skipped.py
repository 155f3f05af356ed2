"""What data sets left out in this process, so that a run can name every one of the files."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from dmvae.runtime.files import atomic_write
from dmvae.runtime.words import counted

OnBroken = Literal["skip", "error"]
NAME = "skipped.txt"
_skipped: dict[str, tuple[str, ...]] = {}


def note(place: str, told: Sequence[str]) -> None:
    """Keep what was left out of a folder or split, lines of `FILE: REASON`."""
    if told:
        _skipped[place] = tuple(told)


def tell(
    broken: Sequence[str], labels: Tensor, keep: Sequence[int], classes: Sequence[str], where: str, on_broken: OnBroken
) -> None:
    """Warn of the unreadable images of a split, lines of `FILE: REASON`, and keep them for skipped.txt. labels: those
    of all images; keep: indices of the readable ones; where: names the split. Raises ValueError if `on_broken` is
    "error", or if a class has several images and none is readable. Of a class with one image, as small test splits
    have by chance, the split is then like one that never had the class."""
    if not broken:
        return
    named = "; ".join(broken[:3]) + ("; ..." if len(broken) > 3 else "")
    told = counted(len(broken), "unreadable image")
    if on_broken == "error":
        raise ValueError(f"{told}: {named}. Fix or delete them, or set data.on_broken: skip")
    if not keep:
        images = counted(len(broken), "image")
        raise ValueError(f"{where}: none of its {images} of this split is readable: {named}; copy them anew")
    several = {label for label, count in Counter(labels.tolist()).items() if count > 1}
    if gone := several - set(labels[list(keep)].tolist()):
        raise ValueError(
            f"{where}: no image of class {classes[min(gone)]!r} in this split is readable: {named}; copy them anew, or "
            "remove them"
        )
    note(where, broken)
    warnings.warn(f"skipped {told} of {len(labels)}: {named}", stacklevel=3)


def forget() -> None:
    """Forget all notes: a program runs another recipe, with other data."""
    _skipped.clear()


def write_skipped(run_dir: Path) -> tuple[int, Path]:
    """Write run_dir/skipped.txt, or remove an old one if nothing was left out; returns (lines, file)."""
    path = run_dir / NAME
    lines = sorted({line for told in _skipped.values() for line in told})
    if lines:
        with atomic_write(path) as part:
            part.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
    else:
        path.unlink(missing_ok=True)
    return len(lines), path
